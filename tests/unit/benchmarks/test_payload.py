"""The arithmetic of the payload benchmark, and that its payload travels."""

from pathlib import Path

import pytest
import torch

from aggregator.rounds.store import RoundRecord, RoundStore
from benchmarks.payload import require_travelled, summary
from fedmed.errors import FederationError


def test_a_peak_is_what_the_payload_adds_in_payloads() -> None:
    got = summary({"daemon": 400, "connector": 100}, {"daemon": 700, "connector": 250}, 100, [2.04, 1.0])
    assert got["processes"]["daemon"] == {"peak_payloads": 3.0, "peak_bytes": 700}
    assert got["processes"]["connector"]["peak_payloads"] == 1.5
    assert (got["payload_bytes"], got["rounds_s"]) == (100, [2.0, 1.0])


def test_a_round_that_carried_less_than_the_payload_is_no_measurement(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    for number, carried in enumerate((0, 1000)):
        record = RoundRecord(number, False, (), {}, None, carried, carried + 1, 1.0, 1.0, "c" * 64)
        store.commit(record, {"m.lora_A.weight": torch.zeros(2, 2)})
    require_travelled(tmp_path, 1000)
    with pytest.raises(FederationError, match="1000 bytes"):
        require_travelled(tmp_path, 1001)
