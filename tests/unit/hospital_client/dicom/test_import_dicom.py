"""fedmed-site import dicom, as a hospital's administrator gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_dicom import CORONAL, TEST_FILES, ct_series, image, save, write_table
from PIL import Image
from typer.testing import CliRunner, Result

from fedmed.data.importers.rowwise import TWO_SPLITS
from fedmed.data.manifest import Manifest, load_manifest
from fedmed.errors import FedMedError
from hospital_client.cli import app
from hospital_client.dicom import faults, importer
from hospital_client.dicom.reports import NO_KEY


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["import", "dicom", *map(str, arguments)])


def error_of(*arguments: str | Path) -> FedMedError:
    error = run(*arguments).exception
    assert isinstance(error, FedMedError), error
    return error


def told(output: str, reason: str) -> int:
    """How many were left out for a reason."""
    return sum(int(line.split()[0]) for line in output.splitlines() if line.strip().partition(" ")[2] == reason)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two patients: p-001 with a CT of five slices, p-002 with two X-rays."""
    folder = tmp_path / "archive"
    ct_series(folder / "x/y", [24, 524, 1024, 1524, 2024], PatientName="Quux^Example", PatientID="p-001")
    for index in (1, 2):
        found = image(
            np.full((10, 6), 100 * index, np.uint16), "DX", BitsStored=12, PatientID="p-002", StudyInstanceUID="4.5",
            SeriesInstanceUID="4.5.1", AccessionNumber="ACC-2", InstanceNumber=index, WindowCenter=150, WindowWidth=200,
            PhotometricInterpretation="MONOCHROME1",
        )  # fmt: skip
        save(folder / f"xray{index}", found)
    return folder


def imported(
    archive: Path, *options: str | Path, lines: tuple[str, ...] = ("study,question,answer", "1.2.3,Is it?,no")
) -> tuple[Manifest, str]:
    table = write_table(archive.parent / "reports.csv", *lines)
    result = run(archive, archive.parent / "out", "--reports", table, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    return load_manifest(archive.parent / "out"), result.output


def pixels(manifest: Manifest, index: int = 0) -> list[np.ndarray]:
    return [np.asarray(Image.open(manifest.folder / ref.path)) for ref in manifest.examples[index].images]


def test_a_study_becomes_an_example_a_row_with_the_slice_that_lies_in_the_middle(archive: Path) -> None:
    manifest, output = imported(
        archive,
        lines=(
            "study,accession,question,answer",
            "1.2.3,,Is it?,no",
            ",ACC-2,What?,a mass",
            "9.9,,What?,x",
            ",,What?,x",
        ),
    )
    first, second = manifest.examples
    assert (first.patient, first.answer_type, first.source, dict(first.attributes)) == (
        "p-001",
        "closed",
        "dicom",
        {"modality": "CT"},
    )
    assert (second.patient, second.answer, len(second.images)) == ("p-002", "a mass", 2)
    (middle,) = pixels(manifest)
    assert (middle == 128).all()  # 0 HU in a window from -1000 to 1000
    assert [int(picture[0, 0]) for picture in pixels(manifest, 1)] == [255 - 64, 255 - 192]
    assert first.images[0].path == "images/000001.png"
    assert "4 rows read: 2 examples of 2 patients" in output
    assert told(output, importer.NO_STUDY) == told(output, NO_KEY) == 1


def test_reports_join_by_accession_number_and_become_reports(archive: Path) -> None:
    manifest, output = imported(archive, "--column", "accession=ACC", lines=("ACC,findings", "ACC-2,Clear lungs."))
    assert [(item.task, item.answer) for item in manifest.examples] == [("report", "Clear lungs.")]
    assert "studies that no row asks for: 1" in output


def test_a_montage_goes_through_the_body_in_one_window(archive: Path) -> None:
    manifest, _ = imported(archive, "--montage", "2x2", "--window=0/4096")
    (grid,) = pixels(manifest)
    assert grid.shape == (16, 16)
    levels = [int(grid[y, x]) for y in (0, 8) for x in (0, 8)]
    assert levels == sorted(levels)
    assert len(set(levels)) == 4


def test_pictures_are_made_smaller_and_limited_in_number(archive: Path) -> None:
    manifest, output = imported(
        archive, "--max-side", "5", "--max-images", "1", lines=("study,question,answer", "4.5,What?,x")
    )
    assert [picture.shape for picture in pixels(manifest)] == [(5, 3)]
    assert "series beyond" not in output


def test_series_are_taken_by_their_number_and_bad_ones_are_left_out(archive: Path) -> None:
    ct_series(archive / "mixed", [1, 2], SeriesInstanceUID="m", SeriesNumber=2)
    ct_series(archive / "mixed2", [1], SeriesInstanceUID="m", SeriesNumber=2, orientation=CORONAL)
    cut = ct_series(archive / "cut", [9], SeriesInstanceUID="c", SeriesNumber=3)[0]
    cut.write_bytes(cut.read_bytes()[:-40])
    ct_series(archive / "last", [2024], SeriesInstanceUID="l", SeriesNumber=0)
    manifest, output = imported(archive)
    assert [int(picture[0, 0]) for picture in pixels(manifest)] == [255, 128]
    assert told(output, faults.MIXED) == told(output, faults.SHORT_PIXELS) == 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"PixelData": None}, f"{importer.NO_PICTURE}: {faults.NO_PIXELS}"),
        ({"PatientID": ""}, f"its study has {faults.NO_PATIENT}"),
        ({"BurnedInAnnotation": "YES"}, f"{importer.NO_PICTURE}: refused by the gate: burned-in"),
    ],
)
def test_one_bad_study_costs_its_own_rows(archive: Path, spoil: dict[str, Any], reason: str) -> None:
    bad = image(np.zeros((4, 4), np.uint16), **{"StudyInstanceUID": "7", "SeriesInstanceUID": "7.1", **spoil})
    save(archive / "bad", bad)
    manifest, output = imported(archive, lines=("study,question,answer", "7,Is it?,no", "1.2.3,Is it?,no"))
    assert len(manifest.examples) == 1
    assert told(output, reason) == 1


def test_ultrasound_is_taken_where_a_person_has_looked_at_it(archive: Path) -> None:
    save(archive / "us", image(np.zeros((4, 4, 3), np.uint8), "US", StudyInstanceUID="7", SeriesInstanceUID="7.1"))
    lines = ("study,question,answer", "7,Is it?,no")
    table = write_table(archive.parent / "reports.csv", *lines)
    refused = run(archive, archive.parent / "no", "--reports", table, "--modality", "us")
    assert told(refused.output, f"{importer.NO_PICTURE}: refused by the gate: burned-in-likely") == 1
    manifest, _ = imported(archive, "--modality", "US", "--gate", "burned-in-likely=report", lines=lines)
    assert pixels(manifest)[0].shape == (4, 4, 3)


def test_rows_of_a_study_that_stand_apart_share_its_pictures_and_count_its_faults_once(archive: Path) -> None:
    cut = ct_series(archive / "cut", [9], SeriesInstanceUID="c", SeriesNumber=3)[0]
    cut.write_bytes(cut.read_bytes()[:-40])
    lines = ("study,question,answer", "1.2.3,Is it?,no", "4.5,Is it?,no", "1.2.3,What?,x")
    manifest, output = imported(archive, lines=lines)
    assert manifest.examples[0].images == manifest.examples[2].images
    assert told(output, faults.SHORT_PIXELS) == 1


def test_a_row_that_names_its_patient_is_refused_unless_the_policy_reports(archive: Path) -> None:
    lines = (
        "study,question,answer",
        "1.2.3,Does Quux have a mass?,no",
        "1.2.3,A mass?,no",
        "4.5,A mass?,as on 14.3.2021",
    )
    manifest, output = imported(archive, lines=lines)
    assert len(manifest.examples) == 1
    assert told(output, "refused by the gate: text-name") == told(output, "refused by the gate: text-date") == 1
    assert "text-date         1 (refuse): answer 1" in output
    table = archive.parent / "reports.csv"
    again = run(archive, archive.parent / "all", "--reports", table, "--gate", "text=report")
    assert "3 rows read: 3 examples" in again.output
    assert "text-name         1 (report): question 1" in again.output


def test_the_gates_findings_go_into_a_file_and_no_value_of_the_archive_into_any_output(archive: Path) -> None:
    save(
        archive / "Quuxfile",
        image(np.zeros((4, 4), np.uint16), StudyDescription="Quux 14.3.2021", PatientName="Quux^A"),
    )
    (archive / "Quuxbroken").write_bytes(b"\0" * 128 + b"DICM" + b"\7" * 99)
    findings = archive.parent / "gate.json"
    _, output = imported(
        archive, "--gate-report", findings, lines=("study,question,answer", "1.2.3,Quux has what?,no", "4.5,What?,x")
    )
    report = json.loads(findings.read_text())
    assert report["kinds"]["text-in-tags"]["tags"] == {"StudyDescription: date": 1, "StudyDescription: name": 1}
    assert report["kinds"]["face"]["found"] == 0
    assert "face              no finding" in output
    for secret in ("quux", "p-001", "acc-", "1.2.3", "14.3"):
        assert secret not in (output + findings.read_text()).casefold()
    assert "clean" not in output


def test_a_dry_run_reads_all_and_writes_nothing(archive: Path) -> None:
    table = write_table(archive.parent / "reports.csv", "study,question,answer", "1.2.3,Is it?,no")
    result = run(archive, archive.parent / "out", "--reports", table, "--dry-run")
    assert result.exit_code == 0
    assert "1 rows read: 1 examples, none written" in result.output
    assert not (archive.parent / "out").exists()


def test_what_an_administrator_can_get_wrong_is_said_in_a_line_and_a_hint(archive: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "reports.csv", "study,question,answer", "1.2.3,Is it?,no")
    for arguments, said in (
        ((archive / "none", "--reports", table), "none is not a folder"),
        ((tmp_path / "empty", "--reports", table), "holds no study of CT, MR, CR, DX, MG, PT: 0 files"),
        ((archive, "--reports", table, "--modality", "MR"), "asked for: CT: 5"),
        ((archive, "--reports", tmp_path / "no.csv"), "no.csv cannot be read: No such file"),
        ((archive, "--reports", table, "--window", "wide"), "--window 'wide' is neither"),
        ((archive, "--reports", table, "--montage", "3"), "--montage '3' is not ROWSxCOLUMNS"),
        ((archive, "--reports", table, "--gate", "all=off"), "--gate 'all=off' is not of the form"),
        ((archive, "--reports", table, "--split", "new"), "dicom has no split 'new'"),
        ((archive, "--reports", table, "--gate-report", tmp_path / "no/gate.json"), "no is not a folder"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        source, *rest = arguments
        error = error_of(source, tmp_path / "out", *rest)
        assert said in error.message
        assert error.hint or "expected" in error.message


def test_a_table_that_matches_nothing_says_what_was_read(archive: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "reports.csv", "study,question,answer", "9.9,Is it?,no")
    result = run(archive, tmp_path / "out", "--reports", table)
    assert isinstance(result.exception, FedMedError)
    assert result.exception.message == f"none of the 1 rows of reports.csv can be used: {importer.NO_STUDY}: 1"
    assert "text-name         nothing looked at" in result.output
    assert told(result.output, importer.NO_STUDY) == 1
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_a_row_that_names_another_patient_than_its_study_is_left_out(archive: Path) -> None:
    """Its text would be counted, and forgotten on request, as the wrong person's."""
    lines = ("study,patient,question,answer", "1.2.3,p-001,Is it?,no", "1.2.3,p-002,What?,a mass", "4.5,,What?,a mass",
             "4.5,unknown,And?,a mass")  # fmt: skip
    manifest, output = imported(archive, lines=lines)
    assert [item.patient for item in manifest.examples] == ["p-001", "p-002", "p-002"]
    assert [item.question for item in manifest.examples] == ["Is it?", "What?", "And?"]
    assert told(output, importer.OTHER_PATIENT) == 1


def test_nobody_is_in_two_splits(archive: Path) -> None:
    save(archive / "later", image(np.zeros((4, 4), np.uint16), StudyInstanceUID="8", PatientID="p-001"))
    lines = ("study,split,question,answer", "1.2.3,test,Is it?,no", "8,train,Is it?,no", "4.5,train,What?,a mass")
    manifest, output = imported(archive, lines=lines)
    assert [(item.patient, item.split) for item in manifest.examples] == [("p-001", "test"), ("p-002", "train")]
    assert told(output, TWO_SPLITS) == 1


def test_no_more_pictures_are_made_of_a_series_than_are_used(archive: Path) -> None:
    last = save(archive / "xray9", image(np.zeros((10, 6), np.uint16), "DX", PatientID="p-002", StudyInstanceUID="4.5",
                                         SeriesInstanceUID="4.5.1", InstanceNumber=9))  # fmt: skip
    last.write_bytes(last.read_bytes()[:-40])
    manifest, output = imported(archive, "--max-images", "2", lines=("study,question,answer", "4.5,What?,x"))
    assert len(pixels(manifest)) == 2 and told(output, faults.SHORT_PIXELS) == 0


def test_a_key_that_several_studies_share_joins_nothing(archive: Path) -> None:
    save(archive / "second", image(np.zeros((4, 4), np.uint16), StudyInstanceUID="8", PatientID="p-002"))
    manifest, output = imported(archive, lines=("patient,question,answer", "p-001,Is it?,no", "p-002,Is it?,no"))
    assert [item.patient for item in manifest.examples] == ["p-001"]
    assert told(output, importer.SEVERAL) == 1


def test_the_shipped_files_of_pydicom_are_imported_from_their_folder(tmp_path: Path) -> None:
    """Eight studies of CT, MR and CR, nested, without endings, between DICOMDIRs, reports, doses and broken files."""
    from hospital_client.dicom.archive import read_archive
    from hospital_client.dicom.gate import Gate

    uids = list(read_archive(TEST_FILES, importer.MODALITIES, Gate()).studies)
    table = write_table(
        tmp_path / "reports.csv", "study,question,answer", *(f"{uid},What is shown?,a body" for uid in uids)
    )
    result = run(TEST_FILES, tmp_path / "out", "--reports", table, "--montage", "2x2")
    manifest = load_manifest(tmp_path / "out")
    assert f"{len(uids)} rows read: {len(manifest.examples)} examples" in result.output
    assert len(manifest.examples) >= 8
    assert {item.attributes["modality"] for item in manifest.examples} == {"CT", "MR", "CR"}
    assert manifest.quarantined == 0


def test_the_commands_of_import_are_told_apart(tmp_path: Path) -> None:
    help_text = CliRunner().invoke(app, ["import", "--help"]).output
    assert "dicom" in help_text
    assert "NAME" in help_text
    assert "SOURCE" in CliRunner().invoke(app, ["import", "vqa_rad", "--help"]).output
    error = CliRunner().invoke(app, ["import", "nothing", str(tmp_path), str(tmp_path / "out")]).exception
    assert isinstance(error, FedMedError)
    assert "unknown data source 'nothing'" in error.message
