"""`fedmed data check`: numbers that were counted by hand, and nothing that tells of a person."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers_public_sets import png, slake, slake_row
from typer.testing import CliRunner

from aggregator.cli import app as fedmed
from fedmed.data.check import Report, Shared, Spread, check_manifests, check_source, report_lines
from fedmed.data.importers import importer
from fedmed.data.manifest import write_manifest
from fedmed.data.schema import Example, Exchange, ImageRef
from fedmed.errors import DataError, ModelError
from hospital_client.cli import app as site

SECRETS = ("Secret Person", "secret question", "secret finding")


def example(patient: str = "p1", shade: int = 0, **changes: Any) -> Example:
    made = Example(
        patient=patient,
        images=(ImageRef(data=png(shade, side=6 + shade)),),
        question="is it?",
        answer="yes",
        answer_type="closed",
        task="vqa",
        source="x",
    )
    return replace(made, **changes)


def manifest(folder: Path, examples: Iterable[Example]) -> Path:
    write_manifest(folder, examples)
    return folder


def north(folder: Path) -> Path:
    return manifest(
        folder,
        [
            example(),
            example(answer="Yes"),
            example(answer="no"),
            example("p2", 1),
            example("p2", 2, question="what is it?", answer="a mass", answer_type="open"),
            example("p3", 2, split="test"),
            example("p2", 1, split="test", answer="no"),
            example(
                "p4", images=(), history=(Exchange("and?", "so"),), attributes={"question_type": "WHY"}, split="test"
            ),
        ],
    )


def test_a_manifest_is_counted(tmp_path: Path) -> None:
    report = check_manifests([north(tmp_path / "north")])
    train, test = report.parts
    assert (train.name, train.patients, train.examples, train.images, train.rows_read) == ("train", 2, 5, 3, 5)
    assert (train.repeated, train.contradicted) == (1, 1)
    assert train.examples_per_patient == Spread(2, 2, 3)
    assert train.question_characters == Spread(6, 6, 11)
    assert train.answer_characters == Spread(2, 3, 6)
    assert (train.width, train.height, train.tokens) == (Spread(6, 7, 8), Spread(6, 7, 8), None)
    assert [(kind.name, kind.examples, kind.answers, kind.majority, dict(kind.counts)) for kind in train.kinds] == [
        ("vqa, closed", 4, 2, 0.75, {"yes": 3, "no": 1}),
        ("vqa, open", 1, 1, 1.0, {}),
    ]
    assert [kind.name for kind in test.kinds] == ["WHY, closed", "vqa, closed"]
    assert test.question_characters == Spread(6, 6, 12)
    assert report.shared == (Shared(("train", "test"), patients=1, images=2, examples=0),)


def test_one_image_of_two_patients_is_told(tmp_path: Path) -> None:
    """Privacy is promised to an id: whoever has two is protected less."""
    owned = [example(), example(question="and?"), example("p2", 1), example("p3", 2)]
    apart, twice = (manifest(tmp_path / name, owned + more) for name, more in (("a", []), ("b", [example("p4", 1)])))
    told = "more than one patient has the same image, of 1: one person under two ids?"
    for folder, count in ((apart, 0), (twice, 1)):
        report = check_manifests([folder])
        assert report.parts[0].images_of_several == count
        assert any(told in line for line in report_lines(report)) == bool(count)


def test_two_manifests_are_compared(tmp_path: Path) -> None:
    other = manifest(tmp_path / "south", [example("s1", 1), example("p1", 5)])
    report = check_manifests([north(tmp_path / "north"), other])
    assert [part.name for part in report.parts] == ["manifest 1, train", "manifest 1, test", "manifest 2, train"]
    assert report.shared[1:] == (
        Shared(("manifest 1, train", "manifest 2, train"), patients=1, images=1, examples=1),
        Shared(("manifest 1, test", "manifest 2, train"), patients=0, images=1, examples=0),
    )
    assert "LEAK  manifest 1, test and manifest 2, train share 1 images" in list(report_lines(report))


def test_a_source_is_counted_with_what_is_left_out(tmp_path: Path) -> None:
    folder = slake(tmp_path, train=[slake_row(), slake_row("gone"), slake_row(answer="")])
    report = check_source(importer("slake_en"), folder)
    train = report.parts[0]
    assert [part.name for part in report.parts] == ["train", "val", "test"]
    assert (train.rows_read, train.examples) == (3, 1)
    assert train.quarantined == {"image is missing": 1, "question or answer is empty": 1}
    assert report.shared == ()
    assert "no two parts share a patient, an image or an example" in list(report_lines(report))
    with pytest.raises(DataError, match="offers no split by 'hash'"):
        check_source(importer("slake_en"), folder, split_rule="hash")


def test_images_that_do_not_decode_are_counted(tmp_path: Path) -> None:
    folder = manifest(tmp_path / "north", [example(), example("p2", 1)])
    (folder / "images" / "000002.png").write_bytes(b"cut")
    (part,) = check_manifests([folder]).parts
    assert (part.rows_read, part.examples, sum(part.quarantined.values())) == (2, 1, 1)


def telling(folder: Path) -> Path:
    """A manifest in which nearly every text is one that no report may show."""
    person, question, finding = SECRETS
    return manifest(
        folder,
        [
            example(person, question=question, answer=finding, answer_type="open"),
            *(example(f"p{n}", answer=f"{finding} {n}", question=question) for n in range(20)),
            example(person, answer="yes\x1b[31m\nno", attributes={"question_type": "K" * 99}),
            example(person, answer=finding, choices=(finding, "b"), task="choice"),
        ],
    )


@pytest.mark.parametrize(("app", "command"), [(fedmed, ["data", "check"]), (site, ["check-data"])])
def test_both_command_lines_say_it_and_nothing_of_a_person(app: Any, command: list[str], tmp_path: Path) -> None:
    folder = telling(tmp_path / SECRETS[0])
    for options in ([], ["--json"], ["--base", "fedmed-tiny"]):
        done = CliRunner().invoke(app, [*command, str(folder), *options])
        assert done.exit_code == 0, done.output
        assert not any(secret in done.output for secret in (*SECRETS, "\x1b", "000001"))
        assert ("tokens" in done.output) == (options != [])
    report = json.loads(CliRunner().invoke(app, [*command, str(folder), "--json"]).output)
    (part,) = report["parts"]
    assert (part["patients"], part["examples"], part["tokens"]) == (21, 23, None)
    assert {kind["name"]: kind["counts"] for kind in part["kinds"]} == {
        "vqa, open": {},
        "vqa, closed": {},
        "choice, closed": {},
        "K" * 37 + "...": {"yes?[31m?no": 1},
    }


def test_an_importer_is_named_with_one_source(tmp_path: Path) -> None:
    folder = slake(tmp_path / "source")
    done = CliRunner().invoke(fedmed, ["data", "check", "slake_zh", str(folder), "--split-rule", "image", "--json"])
    assert [part["examples"] for part in json.loads(done.output)["parts"]] == [1, 1, 1]
    wrong = CliRunner().invoke(fedmed, ["data", "check", "slake_zh"])
    assert isinstance(wrong.exception, DataError)
    assert "0 sources are given, expected one" in wrong.exception.message
    missing = CliRunner().invoke(fedmed, ["data", "check", "slake_en", str(folder), "--base", str(tmp_path / "none")])
    assert isinstance(missing.exception, ModelError)


def test_no_more_is_held_than_digests(tmp_path: Path) -> None:
    """The report knows no text of the examples but the closed answers that it shows."""
    report = check_manifests([telling(tmp_path / "north")])
    assert isinstance(report, Report)
    assert not any(secret in repr(report) for secret in SECRETS)
