"""Files to patients, studies and series, and what is left out of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_dicom import TEST_FILES, ct_series, image, save

from hospital_client.dicom import faults
from hospital_client.dicom.archive import Archive, read_archive
from hospital_client.dicom.gate import Gate

ALL = ("CT", "MR", "CR", "DX", "MG", "PT")


def read(folder: Path, modalities: tuple[str, ...] = ALL, **policy: str) -> Archive:
    return read_archive(folder, modalities, Gate(policy))


def put(path: Path, modality: str = "CT", **attributes: object) -> Path:
    return save(path, image(np.zeros((4, 4), dtype=np.uint16), modality, **attributes))


def test_files_lie_nested_and_without_an_ending_and_others_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "a/b/c/0001")
    put(tmp_path / "a/IMG.dcm.bak", InstanceNumber=2)
    put(tmp_path / "z/other", StudyInstanceUID="9.9")
    put(tmp_path / "z/report", "SR")
    put(tmp_path / "z/odd", "Example^Person")
    (tmp_path / "a/notes.txt").write_text("not DICOM")
    (tmp_path / "DICOMDIR").write_bytes((TEST_FILES / "dicomdirtests/DICOMDIR").read_bytes())
    (tmp_path / "a/copy").write_bytes((tmp_path / "a/b/c/0001").read_bytes())
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    archive = read(tmp_path)
    assert set(archive.studies) == {"1.2.3", "9.9"}
    assert len(archive.studies["1.2.3"].series["1.2.3.1"].slices) == 2
    assert archive.files == 8
    assert archive.left_out == {
        faults.NOT_DICOM: 1, faults.DIRECTORY: 1, faults.DUPLICATE: 1,
        f"{faults.OTHER_MODALITY}: SR": 1, f"{faults.OTHER_MODALITY}: not a known one": 1,
    }  # fmt: skip


def test_a_patient_is_an_id_with_its_issuer_and_never_a_name(tmp_path: Path) -> None:
    put(tmp_path / "1", StudyInstanceUID="1", PatientID=" p1 ", IssuerOfPatientID="NORTH")
    put(tmp_path / "2", StudyInstanceUID="2", PatientID="p1", IssuerOfPatientID=None)
    put(tmp_path / "3", StudyInstanceUID="3", PatientID="p2", IssuerOfPatientID=None)
    put(tmp_path / "4", StudyInstanceUID="4", PatientID="", PatientName="Someone^Else")
    put(tmp_path / "5", StudyInstanceUID="5", PatientID="ANONYMOUS")
    found = {uid: (study.identifier, study.fault) for uid, study in read(tmp_path).studies.items()}
    assert found["1"] == found["2"] == ("NORTH/p1", "")
    assert found["3"] == ("p2", "")
    assert found["4"] == ("", faults.NO_PATIENT)
    assert found["5"][1] == faults.NO_PATIENT


def test_one_person_is_never_counted_twice_nor_two_taken_for_one(tmp_path: Path) -> None:
    put(tmp_path / "1", StudyInstanceUID="1", PatientID="p1", IssuerOfPatientID="NORTH")
    put(tmp_path / "2", StudyInstanceUID="2", PatientID="p1", IssuerOfPatientID="SOUTH")
    put(tmp_path / "3", StudyInstanceUID="3", PatientID="p1")
    put(tmp_path / "4", StudyInstanceUID="4", PatientID="p5")
    put(tmp_path / "5", StudyInstanceUID="4", PatientID="p6")
    for name in ("6", "7"):  # a copy under another ID, as from before a de-identification
        put(tmp_path / name, StudyInstanceUID="6", SOPInstanceUID="6.1", PatientID=f"p{name}")
    put(tmp_path / "8", StudyInstanceUID="9", SOPInstanceUID="6.1")  # as when an archive has merged studies
    studies = read(tmp_path).studies
    assert studies["6"].fault == faults.TWO_PATIENTS and "9" not in studies
    assert [studies[uid].identifier for uid in "12"] == ["NORTH/p1", "SOUTH/p1"]
    assert studies["3"].fault == faults.UNCLEAR_ISSUER
    assert studies["4"].fault == faults.TWO_PATIENTS


def test_a_study_has_every_accession_number_of_its_files(tmp_path: Path) -> None:
    for name, number in (("1", None), ("2", "A-1"), ("3", "A-2")):
        put(tmp_path / name, AccessionNumber=number)
    assert read(tmp_path).studies["1.2.3"].accessions == {"", "A-1", "A-2"}


def test_a_folder_that_may_not_be_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "open/1")
    put(tmp_path / "shut/2")
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    archive = read(tmp_path)
    assert archive.files == 1 and archive.left_out == {faults.CLOSED: 1}


def test_a_header_without_uids_or_an_image_is_left_out_and_spoils_its_own_series_alone(tmp_path: Path) -> None:
    put(tmp_path / "1", SeriesInstanceUID="")
    put(tmp_path / "2", SeriesInstanceUID="bad", Rows=0)
    put(tmp_path / "3", SeriesInstanceUID="good")
    put(tmp_path / "4", SeriesInstanceUID="shifted", BitsStored=12, HighBit=15)
    archive = read(tmp_path)
    assert archive.left_out == {faults.NO_UID: 1, faults.BAD_HEADER: 2}
    assert {uid: series.fault for uid, series in archive.studies["1.2.3"].series.items()} == {
        "bad": faults.BAD_HEADER,
        "shifted": faults.BAD_HEADER,
        "good": "",
    }


def test_localizers_and_what_the_gate_refuses_leave_the_rest_of_the_series(tmp_path: Path) -> None:
    ct_series(tmp_path, [1, 2, 3])
    put(tmp_path / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    put(tmp_path / "capture", BurnedInAnnotation="YES")
    archive = read(tmp_path)
    assert archive.left_out == {faults.LOCALIZER: 1, f"{faults.REFUSED}: burned-in": 1}
    assert len(archive.studies["1.2.3"].series["1.2.3.1"].slices) == 3


def test_neither_a_file_name_nor_a_value_of_a_patient_is_in_a_repr_or_a_reason(tmp_path: Path) -> None:
    put(tmp_path / "Quux.dcm", PatientID="Quux", AccessionNumber="Quux-1", PatientName="Quux")
    put(tmp_path / "Quux2.dcm", PatientID="Quux", SeriesInstanceUID="", PatientName="Quux")
    archive = read(tmp_path)
    assert archive.studies
    assert "Quux" not in repr(archive) + repr(list(archive.studies.values())) + str(archive.left_out)
