"""The de-identification gate: kinds, tags and counts; never a value."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from helpers_dicom import TEST_FILES, image
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from fedmed.errors import ConfigError
from hospital_client.dicom.confidential import table
from hospital_client.dicom.faults import UnusableError
from hospital_client.dicom.gate import DEFAULTS, Gate, known_words, parse_policy
from hospital_client.dicom.headers import quiet, read_header


def bare(**attributes: object) -> Dataset:
    return image(np.zeros((2, 2), dtype=np.uint16), **attributes)


def looked(header: Dataset, **policy: str) -> tuple[str, Gate]:
    gate = Gate(policy)
    with quiet():
        return gate.look(header), gate


def test_the_table_is_the_standards() -> None:
    found = table()
    assert len(found) == 652
    assert {row.action for row in found.values()} == {"X", "Z", "D", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*"}
    for tag, action in {0x00100010: "Z", 0x00100030: "Z", 0x0020000D: "U", 0x00081030: "X", 0x00400275: "X"}.items():
        assert found[tag].action == action
    for tag, row in found.items():
        assert keyword_for_tag(tag) in ("", row.keyword)


def test_attributes_uids_private_tags_overlays_and_faces_are_counted_by_tag() -> None:
    header = bare(RecognizableVisualFeatures="Yes", PatientBirthDate="19500101", StationName="")
    header.add_new(0x00091001, "LO", "private text")
    header.add_new(0x60003000, "OW", b"\1\0")
    header.add_new(0x50003000, "OW", b"\1\0")
    refused, gate = looked(header)
    assert refused == ""
    assert {kind for kind, count in gate.found.items() if count} == {"attribute", "uid", "private", "overlay", "face"}
    assert gate.tags["private"] == {"group 0009": 1}
    assert gate.tags["overlay"] == {"OverlayData": 1, "CurveData": 1}
    assert gate.tags["attribute"]["PatientBirthDate"] == gate.tags["attribute"]["PatientName"] == 1
    assert "StationName" not in gate.tags["attribute"]
    assert gate.tags["uid"]["StudyInstanceUID"] == 1


def test_what_stands_inside_a_sequence_is_found() -> None:
    item = Dataset()
    item.OperatorsName = "Example^Person"
    assert "OperatorsName" in looked(bare(ReferencedStudySequence=[item]))[1].tags["attribute"]


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned-in"),
        ({"BurnedInAnnotation": "yes"}, "burned-in"),
        ({"BurnedInAnnotation": "Y", "Modality": "CT"}, "burned-in"),
        ({"BurnedInAnnotation": ["NO", "YES"]}, "burned-in"),
        ({"BurnedInAnnotation": "no ", "Modality": "US"}, ""),
        ({"BurnedInAnnotation": "NO"}, ""),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, ""),
        ({"Modality": "US"}, "burned-in-likely"),
        ({"Modality": "OT"}, "burned-in-likely"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "burned-in-likely"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "burned-in-likely"),
        ({"ConversionType": "WSD"}, "burned-in-likely"),
        ({}, ""),
    ],
)
def test_pixels_that_may_hold_text_are_refused(attributes: dict[str, Any], kind: str) -> None:
    assert looked(bare(**attributes))[0] == kind
    assert looked(bare(**attributes), **{kind: "report"} if kind else {})[0] == ""


def test_texts_of_the_header_are_searched_and_only_their_tag_is_told() -> None:
    header = bare(StudyDescription="Chest of Person, 14.3.2021", ImageComments="call 555-867-5309")
    _, gate = looked(header)
    assert gate.tags["text-in-tags"] == {
        "StudyDescription: date": 1,
        "StudyDescription: name": 1,
        "ImageComments: phone": 1,
    }
    assert looked(header, **{"text-in-tags": "refuse"})[0] == "text-in-tags"


def test_a_rows_texts_are_searched_for_the_studys_own_names() -> None:
    gate = Gate()
    known = known_words(bare(ReferringPhysicianName="Quux^A"))
    assert gate.look_text({"question": "Is there a mass?", "answer": "no"}, known) == ""
    assert (
        gate.look_text({"question": "Does EXAMPLE have a mass?", "answer": "told quux on 14.3.2021"}, known)
        == "text-name"
    )
    assert gate.tags == {"text-name": {"question": 1, "answer": 1}, "text-date": {"answer": 1}}
    assert (gate.rows, gate.found["text-name"], gate.found["text-date"]) == (2, 1, 1)
    assert Gate(parse_policy(["text=report"])).look_text({"answer": "on 14.3.2021"}, known) == ""


def test_the_policy_of_the_command_line_names_every_problem() -> None:
    assert parse_policy(["overlay=refuse", "text-date=report"]) == {"overlay": "refuse", "text-date": "report"}
    with pytest.raises(ConfigError) as caught:
        parse_policy(["overlays=refuse", "face=ignore", "face"])
    assert caught.value.problems == [
        "--gate 'overlays=refuse': the gate has no kind 'overlays'",
        "--gate 'face=ignore' is not of the form KIND=refuse or KIND=report",
        "--gate 'face' is not of the form KIND=refuse or KIND=report",
    ]
    assert all(kind in caught.value.hint for kind in DEFAULTS)


def test_no_value_of_any_shipped_file_is_in_the_report() -> None:
    gate, values = Gate(), set()
    with quiet():
        for path in sorted(TEST_FILES.rglob("*")):
            with suppress(UnusableError):
                header = read_header(path)
                gate.look(header)
                values |= known_words(header)
    assert gate.files > 100
    assert len(values) > 20
    report = json.dumps(gate.report()).casefold()
    said = {word for word in values if f'"{word}"' in report or f" {word}" in report}
    assert said == set()


def test_a_value_that_cannot_be_read_is_still_a_finding() -> None:
    header = read_header(TEST_FILES / "badVR.dcm")
    _, gate = looked(header)
    assert gate.found["attribute"] == 1
