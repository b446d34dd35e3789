"""Phantoms: fixed by their seed, varied, with answers that agree with each other, and two domains that differ."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from fedmed.data.phantom import HOSPITAL_QUESTION, phantom_examples
from fedmed.data.phantom_image import draw
from fedmed.data.schema import Example
from fedmed.errors import DataError


def by_patient(records: list[Example]) -> dict[str, list[Example]]:
    patients: dict[str, list[Example]] = defaultdict(list)
    for record in records:
        patients[record.patient].append(record)
    return patients


@pytest.fixture(scope="module")
def public() -> list[Example]:
    return list(phantom_examples(150, 0, domain="public", split="train"))


@pytest.fixture(scope="module")
def hospital() -> list[Example]:
    return list(phantom_examples(150, 0, domain="hospital", split="train"))


def test_the_seed_the_domain_and_the_split_fix_everything(hospital: list[Example]) -> None:
    again = list(phantom_examples(150, 0, domain="hospital", split="train"))
    assert again == hospital
    others = [
        next(phantom_examples(1, 1, domain="hospital", split="train")),
        next(phantom_examples(1, 0, domain="hospital", split="test")),
        next(phantom_examples(1, 0, domain="public", split="train")),
    ]
    images = {record.images[0].data for record in [*others, hospital[0]]}
    assert len(images) == 4


def test_every_patient_has_one_small_grey_image_that_differs_from_the_others(public: list[Example]) -> None:
    patients = by_patient(public)
    assert len(patients) == 150
    images = {records[0].images[0].data for records in patients.values()}
    assert len(images) == 150
    for records in patients.values():
        assert len({record.images for record in records}) == 1
        picture = Image.open(io.BytesIO(records[0].images[0].data))
        assert (picture.size, picture.mode) == ((64, 64), "L")


def test_public_records_have_closed_side_count_and_report_questions(public: list[Example]) -> None:
    kinds = Counter(record.attributes["question_type"] for record in public)
    assert set(kinds) == {"closed", "side", "zone", "count", "report"}
    assert kinds["report"] == kinds["count"] == 150
    for record in public:
        if record.answer_type == "closed":
            assert record.answer in ("yes", "no")
        if record.task == "report":
            assert record.answer.count(".") == 2


def test_answers_about_one_phantom_agree(public: list[Example]) -> None:
    for records in by_patient(public).values():
        report = next(record.answer for record in records if record.task == "report")
        sides = [record for record in records if record.attributes["question_type"] == "side"]
        for record in sides:
            noun = record.question.removeprefix("On which side is the ").removesuffix("?")
            assert f"{record.answer.replace('both', 'bilateral')} {noun}" in report
        (heart,) = [record for record in records if "enlarged heart" in record.question]
        assert (heart.answer == "yes") == ("heart is enlarged" in report)


def test_a_side_is_where_the_density_is() -> None:
    drawn = draw(200, np.random.default_rng(0), "public")
    found = drawn.findings["consolidation"]
    alone = (found > 0).any(1) & ~(drawn.findings["haze"] > 0).any(1) & ~(drawn.findings["interstitial"] > 0).any(1)
    for side, columns in ((0, slice(0, 3)), (1, slice(4, 7))):
        only = alone & (found[:, side] > 0.6) & (found[:, 1 - side] == 0)
        other = slice(4, 7) if side == 0 else slice(0, 3)
        density = drawn.opacity[only]
        assert (density[:, :, columns].sum((1, 2)) > density[:, :, other].sum((1, 2))).mean() > 0.9


def test_only_hospital_phantoms_and_questions_know_the_effusion(public: list[Example], hospital: list[Example]) -> None:
    assert not any("effusion" in record.question + record.answer for record in public)
    assert not draw(300, np.random.default_rng(0), "public").findings["effusion"].any()
    closed = [record for record in hospital if record.question == HOSPITAL_QUESTION]
    assert len(closed) == 150
    share = np.mean([record.answer == "yes" for record in closed])
    assert 0.35 < share < 0.65
    assert len(closed) / len(hospital) > 0.85
    assert all((record.answer == "yes") == (record.attributes["label"] == "effusion") for record in closed)


def test_the_hospitals_acquisition_is_another(public: list[Example], hospital: list[Example]) -> None:
    def border(records: list[Example]) -> float:
        images = {record.images[0].data for record in records}
        return float(np.mean([np.asarray(Image.open(io.BytesIO(data)))[0] for data in images]))

    assert border(hospital) < 5 < border(public)


def test_an_unknown_domain_or_split_is_refused() -> None:
    with pytest.raises(DataError, match="domain='private'"):
        next(phantom_examples(1, 0, domain="private", split="train"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="split='all'"):
        next(phantom_examples(1, 0, domain="public", split="all"))  # type: ignore[arg-type]


def test_phantoms_need_no_torch() -> None:
    code = "import sys; import fedmed.data.phantom; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
