"""A round's selection of records and parts, and that neither changes what the accounting assumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_training import flat, plan, random_state, record

from fedmed.data.difficulty import difficulty
from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.schema import Example, Exchange
from fedmed.errors import PrivacyError
from fedmed.messages import Selection
from fedmed.models.adapter import adapter_state
from fedmed.models.base import load_base
from fedmed.models.kinds import part_of
from fedmed.privacy.random import InsecureSeededRandom
from fedmed.training.adapted import AdaptedBase
from fedmed.training.local_round import LocalTrainer
from fedmed.training.selection import selected_records


def example(answer: str, patient: int = 0, **changes: object) -> Example:
    made = record(patient, len(answer), 1, answer)
    return replace(made, **{"answer_type": "open", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("item", "grade"),
    [
        (example("yes", answer_type="closed"), 1),
        (example("left lung"), 2),
        (example("a b c d"), 3),
        (example(" ".join("w" * 11)), 4),
        (example(" ".join("w" * 41)), 5),
        (example(" ".join("w" * 41), history=(Exchange("q", "a"),)), 5),
        (example("yes", answer_type="closed", history=(Exchange("q", "a"),)), 2),
        (example("yes", answer_type="closed", question="w " * 41), 2),
        (example("left", answer_type="closed", choices=("left", "right")), 2),
    ],
)
def test_grades(item: Example, grade: int) -> None:
    assert difficulty(item) == grade


def test_records_are_chosen_one_by_one() -> None:
    """What is drawn of one patient does not depend on who else is there: the accounting assumes it."""
    mine = [example("yes", 0, answer_type="closed"), example("a b c d", 0, task="report")]
    others = [example(" ".join("w" * n), 1, source=source) for n in (1, 12, 50) for source in ("test", "else")]
    for selection in (
        Selection(),
        Selection(tasks=("vqa",)),
        Selection(sources=("test",)),
        Selection(max_difficulty=2),
    ):
        alone = selected_records(mine, [(0, 1)], selection)[0]
        for size in range(len(others) + 1):
            together = selected_records([*mine, *others[:size]], [(0, 1), tuple(range(2, 2 + size))], selection)
            assert together[0] == alone
    assert selected_records(mine, [(0, 1)], Selection(tasks=("report",))) == ((1,),)
    assert selected_records(mine, [(0, 1)], Selection(sources=("else",))) == ((),)


def test_the_easiest_share_compares_records_and_is_refused_under_privacy() -> None:
    examples = [example(" ".join("w" * n), n) for n in (30, 2, 8, 50)]
    patients = [(index,) for index in range(4)]
    assert selected_records(examples, patients, Selection(easiest_share=0.5)) == ((), (1,), (2,), ())
    assert selected_records(examples, patients, Selection(easiest_share=1.0)) == tuple(patients)
    replace(plan("none"), selection=Selection(easiest_share=0.5))
    with pytest.raises(PrivacyError, match=r"easiest_share=0\.5: expected 1 with privacy\.mode=dp"):
        replace(plan("dp"), selection=Selection(easiest_share=0.5))


@pytest.fixture(scope="module")
def shared() -> AdaptedBase:
    return AdaptedBase(load_base("fedmed-tiny"))


def cohort(folder: Path) -> Manifest:
    return write_manifest(folder, [replace(record(p, p, 1), task="vqa" if p % 2 else "report") for p in range(6)])


@pytest.mark.parametrize("mode", ["dp", "none"])
def test_a_selection_trains_as_if_the_other_records_were_not_there(
    shared: AdaptedBase, tmp_path: Path, mode: str
) -> None:
    """All patients are drawn at rate 1; those without a selected record add nothing to a sum with a public divisor."""
    whole = cohort(tmp_path / "whole")
    part = write_manifest(
        tmp_path / "part", [item for item in whole.examples if item.task == "vqa"], images_from=whole.folder
    )
    chosen = replace(plan(mode), selection=Selection(tasks=("vqa",)))
    start = random_state(adapter_state(shared.take(chosen.lora, 0)))
    found = LocalTrainer(shared, whole, InsecureSeededRandom(1)).train(chosen, start, 0)
    expected = LocalTrainer(shared, part, InsecureSeededRandom(1)).train(plan(mode), start, 0)
    assert torch.allclose(flat(found), flat(expected), atol=1e-6)
    assert not torch.allclose(flat(found), flat(start), atol=1e-4)


@pytest.mark.parametrize("mode", ["dp", "none"])
def test_a_round_in_which_nobody_has_a_record_is_a_round(shared: AdaptedBase, tmp_path: Path, mode: str) -> None:
    nobody = replace(plan(mode, steps=2), selection=Selection(sources=("elsewhere",)))
    start = random_state(adapter_state(shared.take(nobody.lora, 0)))
    found = LocalTrainer(shared, cohort(tmp_path / "site"), InsecureSeededRandom(1)).train(nobody, start, 0)
    assert torch.equal(flat(found), flat(start))


class CountedDraws(InsecureSeededRandom):
    """Tells for how many patients or records a uniform number was drawn."""

    def __init__(self) -> None:
        super().__init__(3)
        self.sizes: list[int] = []

    def uniform(self, size: int) -> npt.NDArray[np.float64]:
        self.sizes.append(size)
        return super().uniform(size)


def test_patients_are_drawn_from_all_whatever_is_selected(shared: AdaptedBase, tmp_path: Path) -> None:
    site = cohort(tmp_path / "site")
    for selection in (Selection(), Selection(tasks=("vqa",)), Selection(grading="loss", max_difficulty=1)):
        random = CountedDraws()
        chosen = replace(plan(rate=0.5, steps=3), selection=selection)
        start = random_state(adapter_state(shared.take(chosen.lora, 0)))
        LocalTrainer(shared, site, random).train(chosen, start, 0)
        assert random.sizes == [6, 6, 6]


def test_parts_that_are_not_trained_come_back_as_they_came(shared: AdaptedBase, tmp_path: Path) -> None:
    chosen = replace(plan(steps=2, noise=1.0), parts=("projector",))
    start = random_state(adapter_state(shared.take(chosen.lora, 0)))
    found = LocalTrainer(shared, cohort(tmp_path / "site"), InsecureSeededRandom(1)).train(chosen, start, 0)
    assert found.keys() == start.keys()
    moved = {part_of(key) for key in found if not torch.equal(found[key], start[key])}
    assert moved == {"projector"}


def test_by_loss_only_what_the_model_finds_easy_is_trained(shared: AdaptedBase, tmp_path: Path) -> None:
    """Records that no model of this size foresees are above grade 1; with all grades the round is the ordinary one."""
    strange = [replace(item, answer="zq xv wk jj") for item in cohort(tmp_path / "a").examples]
    site = write_manifest(tmp_path / "site", strange, images_from=tmp_path / "a")
    start = random_state(adapter_state(shared.take(plan().lora, 0)))

    def trained(selection: Selection) -> torch.Tensor:
        chosen = replace(plan(), selection=selection)
        return flat(LocalTrainer(shared, site, InsecureSeededRandom(1)).train(chosen, start, 0))

    assert torch.equal(trained(Selection(grading="loss", max_difficulty=1)), flat(start))
    assert torch.equal(trained(Selection(grading="loss")), trained(Selection()))
    assert not torch.equal(trained(Selection()), flat(start))
