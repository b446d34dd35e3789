"""The table that goes with an archive: rows, roles and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_dicom import write_table

from fedmed.data.importers.reports import INSTRUCTIONS
from fedmed.errors import ConfigError, DataError
from hospital_client.dicom import reports
from hospital_client.dicom.reports import Row, Table, parse_columns


def rows(tmp_path: Path, *lines: str, **options: Any) -> list[Row]:
    return list(Table(write_table(tmp_path / "table.csv", *lines), **options).rows())


def error(tmp_path: Path, *lines: str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        rows(tmp_path, *lines, **options)
    return caught.value


def test_questions_and_answers(tmp_path: Path) -> None:
    first, second, third = rows(
        tmp_path,
        "Study,Question,Answer,answer_type,split",
        "1.2,Is it?,No,,",
        "1.3,What?,a mass,,test",
        "1.4,Which?,left,closed,VAL",
    )
    assert first == Row("study", "1.2", "Is it?", "no", "closed", "vqa", "train")
    assert second == Row("study", "1.3", "What?", "a mass", "open", "vqa", "test")
    assert third == Row("study", "1.4", "Which?", "left", "closed", "vqa", "val")


def test_reports_of_findings_and_impression(tmp_path: Path) -> None:
    both, one = rows(tmp_path, "accession;findings;impression", '7;"Clear; lungs.\nNo mass.";Normal.', "8;;Normal.")
    assert (both.key, both.task, both.question) == ("accession", "report", INSTRUCTIONS["findings", "impression"])
    assert both.answer == "Findings: Clear; lungs.\nNo mass.\nImpression: Normal."
    assert (one.question, one.answer) == (INSTRUCTIONS["impression",], "Impression: Normal.")
    (single,) = rows(tmp_path, "study,Findings", "1.2,Clear lungs.")
    assert (single.question, single.answer) == (INSTRUCTIONS["findings",], "Clear lungs.")


def test_the_first_key_that_a_row_fills_joins_it(tmp_path: Path) -> None:
    found = rows(tmp_path, "patient,accession,study,answer,question", "p,a,s,x,q", "p,a,,x,q", "p,,,x,q", ",,,x,q")
    assert [(row.key, row.value, row.patient, row.fault) for row in found] == [
        ("study", "s", "p", ""), ("accession", "a", "p", ""), ("patient", "p", "p", ""), ("", "", "", reports.NO_KEY),
    ]  # fmt: skip


def test_columns_of_other_names_tabs_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffAcc No\tBefund\textra\r\n7\tkein Tumor\tx\r\n\r\n\t\t\r\n".encode())
    (row,) = Table(path, {"accession": "acc no", "answer": "Befund"}, "Was ist zu sehen?").rows()
    assert (row.value, row.question, row.answer) == ("7", "Was ist zu sehen?", "kein Tumor")
    (row,) = rows(tmp_path, "study,question,answer,,", "1.2,q,x,,,")
    assert (row.value, row.answer, row.fault) == ("1.2", "x", "")


def test_rows_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    found = rows(
        tmp_path, "study,question,answer,split,answer_type",
        "1,q", "1,q,a,train,open,more", "1,q,nan,,", "1,,a,,", "1,q,a,late,", "1,q,a,,maybe", "1,q," + "a" * 100_001 + ",,",
    )  # fmt: skip
    assert [row.fault for row in found[:4]] == [
        reports.BAD_ROW,
        reports.BAD_ROW,
        reports.NO_ANSWER,
        reports.NO_QUESTION,
    ]
    assert [row.fault for row in found[4:]] == [reports.BAD_SPLIT, reports.BAD_TYPE, reports.TOO_LONG]
    assert {row.answer for row in found} == {""}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["question,answer", "q,a"], "no column to join by: expected one of study, accession, patient"),
        (["study,question", "1,q"], "no column to learn from: expected one of answer, findings, impression"),
        (["study,Study ,answer", "1,1,a"], "two columns of the same name"),
        (["study,question,answer", '1,q,"secret', "2,q,a"], "table.csv: the row that begins in line 2 is not CSV"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_that_shows_nothing_of_it(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    found = error(tmp_path, *lines)
    assert said in found.message
    assert found.hint
    assert "secret" not in found.message + found.hint


def test_no_table_bytes_that_are_no_text_and_a_column_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in error_of(Table(tmp_path / "none.csv")).message
    path = tmp_path / "latin.csv"
    path.write_bytes("study,question,answer\n1,q,größer".encode("latin-1"))
    assert "UTF-8" in error_of(Table(path)).message
    assert "no column 'ACC' for accession" in error(tmp_path, "study,answer", columns={"accession": "ACC"}).message


def error_of(table: Table) -> DataError:
    with pytest.raises(DataError) as caught:
        list(table.rows())
    return caught.value


def test_roles_on_the_command_line() -> None:
    assert parse_columns(["accession=ACC = NO", "answer=x"]) == {"accession": "ACC = NO", "answer": "x"}
    with pytest.raises(ConfigError) as caught:
        parse_columns(["acession=A", "answer", "study= "])
    assert caught.value.problems == [
        "--column 'answer' has no name: expected ROLE=NAME",
        "--column 'study' has no name: expected ROLE=NAME",
        "--column: no role is called 'acession'",
    ]
    assert "impression" in caught.value.hint
