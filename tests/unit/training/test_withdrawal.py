"""Consent withdrawn while a round trains: the next step lacks exactly that patient, and everything else goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_training import flat, mixed_cohort, plan

from fedmed.data.manifest import Manifest, write_manifest
from fedmed.errors import LedgerError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import State
from fedmed.models.base import BaseModel
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer
from hospital_client.consent import RESTORE, WITHDRAW, Withdrawals, record
from hospital_client.fakes import journal_files
from hospital_client.journal import create_journal
from hospital_client.witness import JournalFiles

SMALL = LoraSpec(2, 4.0, ("projector", "language_model"), ("linear_1", "q_proj"))
GONE = 3  # of mixed_cohort: the patient with three records


@pytest.fixture
def cohort(tmp_path: Path) -> Manifest:
    return mixed_cohort(tmp_path / "data")


@pytest.fixture
def consent(tmp_path: Path) -> JournalFiles:
    (tmp_path / "site").mkdir()
    files = journal_files(tmp_path / "site", "consent.jsonl")
    create_journal(files)
    return files


def without(cohort: Manifest, folder: Path) -> Manifest:
    left_out = cohort.patients[GONE]
    kept = [example for index, example in enumerate(cohort.examples) if index not in left_out]
    return write_manifest(folder, kept, images_from=cohort.folder)


def train(base: BaseModel, cohort: Manifest, steps: int, state: State, **options: object) -> State:
    """Noiseless SGD steps on everybody."""
    trainer = LocalTrainer(base, cohort, SecureRandom(), withdrawn=options.pop("withdrawn", frozenset))  # type: ignore[arg-type]
    try:
        return trainer.train(plan(steps=steps, lot=6.0, lora=SMALL), state, 0, **options)  # type: ignore[arg-type]
    finally:
        trainer.close()


@pytest.mark.parametrize("mode", ["dp", "none"])
def test_withdrawn_before_the_round_is_as_if_the_patient_were_not_there(
    tiny_base: BaseModel, cohort: Manifest, tmp_path: Path, mode: str
) -> None:
    trained = {}
    for name, data, gone in (
        ("withdrawn", cohort, {GONE}),
        ("absent", without(cohort, tmp_path / "less"), frozenset()),
    ):
        trainer = LocalTrainer(tiny_base, data, SecureRandom(), withdrawn=lambda gone=gone: gone)
        trained[name] = flat(trainer.train(plan(mode, lot=6.0, lora=SMALL), {}, 0))
        trainer.close()
    torch.testing.assert_close(trained["withdrawn"], trained["absent"], rtol=1e-5, atol=1e-7)


def test_withdrawn_in_the_middle_of_a_round_the_next_step_lacks_exactly_that_patient(
    tiny_base: BaseModel, cohort: Manifest, consent: JournalFiles, tmp_path: Path
) -> None:
    pseudonyms = cohort.pseudonyms(consent.key)
    said: list[str] = []

    def should_stop() -> bool:
        """Asked before the first batch of step 1, which was drawn by then."""
        record(consent, WITHDRAW, frozenset([pseudonyms[GONE]]), said.append)
        return False

    both = train(tiny_base, cohort, 2, {}, withdrawn=Withdrawals(consent, pseudonyms), should_stop=should_stop)
    first = train(tiny_base, cohort, 1, {})
    then = train(tiny_base, without(cohort, tmp_path / "less"), 1, first)
    torch.testing.assert_close(flat(both), flat(then), rtol=1e-5, atol=1e-7)
    assert (flat(both) - flat(train(tiny_base, cohort, 1, first))).abs().max() > 1e-4  # the patient would have mattered
    assert said == ["consent withdraw: 1 patients, 1 withdrawn in all"]


def test_restored_the_patient_is_drawn_again(tiny_base: BaseModel, cohort: Manifest, consent: JournalFiles) -> None:
    pseudonyms = cohort.pseudonyms(consent.key)
    withdrawals = Withdrawals(consent, pseudonyms)
    for kind in (WITHDRAW, RESTORE):
        record(consent, kind, frozenset(pseudonyms[:2]), lambda message: None)
        assert withdrawals() == (frozenset({0, 1}) if kind == WITHDRAW else frozenset())
    torch.testing.assert_close(
        flat(train(tiny_base, cohort, 1, {}, withdrawn=withdrawals)), flat(train(tiny_base, cohort, 1, {}))
    )


def test_consent_that_cannot_be_trusted_any_more_ends_the_round(
    tiny_base: BaseModel, cohort: Manifest, consent: JournalFiles
) -> None:
    record(consent, WITHDRAW, frozenset(cohort.pseudonyms(consent.key)[:1]), lambda message: None)

    def put_back() -> bool:
        consent.path.write_bytes(b"")
        return False

    with pytest.raises(LedgerError, match="was put back from a backup"):
        train(
            tiny_base,
            cohort,
            2,
            {},
            withdrawn=Withdrawals(consent, cohort.pseudonyms(consent.key)),
            should_stop=put_back,
        )
