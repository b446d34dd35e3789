"""What the server holds of a round does not grow with the number of sites; the sites are a thread here, whose memory counts too."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.server_memory import fits
from benchmarks.server_memory_point import LAYER_BYTES, Point, peak_bytes, reset_peak, run, settings

LAYERS = 16


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def adapters(side: str, sites: int, folder: Path, layers: int = LAYERS) -> float:
    """The peak of a run."""
    with ThreadPoolExecutor(1) as pool:
        before = reset_peak()
        run(Point(side, sites, 0.0), layers, pool, folder)  # type: ignore[arg-type]
        return (peak_bytes() - before) / (LAYERS * LAYER_BYTES)


def test_fedmed_holds_no_more_with_more_sites_and_stock_every_reply(tmp_path: Path) -> None:
    adapters("fedmed", 1, tmp_path / "warm-up", layers=1)
    few, many = adapters("fedmed", 2, tmp_path / "few"), adapters("fedmed", 16, tmp_path / "many")
    assert max(few, many) < 7
    assert adapters("stock", 16, tmp_path / "stock") > 14


def test_stock_is_not_run_where_it_does_not_fit() -> None:
    assert fits(1, 1.0)
    assert not fits(1000, 1e6)


def test_the_whole_adapter_travels_unless_another_method_is_asked_for() -> None:
    assert settings(Point("fedmed", 3, 1.0)).federation.method == "fedavg"
    assert settings(Point("fedmed", 3, 1.0, ("federation.method=rolora",))).federation.method == "rolora"
