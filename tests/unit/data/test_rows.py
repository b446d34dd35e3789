"""Rows of foreign files: what is wrong is named by row and field."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from fedmed.data.importers.rows import csv_rows, json_entries, json_rows, jsonl_rows, text
from fedmed.data.importers.shallow import Shallow, TooDeepError
from fedmed.errors import DataError

ROWS = [{"a": "x", "n": 1}, {"a": "é\n", "n": 2.5}, {"a": '"quoted", text', "n": None}]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_rows_come_as_they_were_written(tmp_path: Path, mark: bytes) -> None:
    listed = mark + json.dumps(ROWS).encode()
    lines = mark + b"\r\n\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n"
    table = mark + b'a,n\r\nx,1\r\n\r\n"two\nlines",2\r\n'
    assert list(json_rows(written(tmp_path / "a.json", listed))) == list(enumerate(ROWS, start=1))
    assert [row for _, row in jsonl_rows(written(tmp_path / "a.jsonl", lines))] == ROWS
    assert list(csv_rows(written(tmp_path / "a.csv", table))) == [
        (1, {"a": "x", "n": "1"}),
        (2, {"a": "two\nlines", "n": "2"}),
    ]
    under = mark + json.dumps({"train": ROWS, "val": []}).encode()
    assert [row for _, row in json_rows(written(tmp_path / "b.json", under), under="train")] == ROWS
    assert list(json_rows(tmp_path / "b.json", under="val")) == []


@pytest.mark.parametrize(
    ("read", "content", "expected"),
    [
        (json_rows, b'[{"a": 1}, {"a"', "is not JSON after row 1"),
        (json_rows, b"", "is not JSON"),
        (json_rows, b'[{"a": 1}, 7]', "row 2 is a JSON int, expected an object"),
        (json_rows, b'{"a": 1}', "holds a JSON dict, expected a list of rows"),
        (json_rows, b'[{"a": "\xff"}]', "is not JSON"),
        (jsonl_rows, b'{"a": 1}\n[1]\n', "row 2 is a JSON list, expected an object"),
        (jsonl_rows, b'{"a": 1}\n{"a"\n', "row 2 is not JSON"),
        (jsonl_rows, b"\xff", "is not a text in UTF-8"),
        (csv_rows, b"a,b\n1,2\n3\n", "row 2 has 1 cells, expected 2"),
        (csv_rows, b"a,a\n1,2\n", "a name twice"),
        (csv_rows, b"", "has no header"),
        (csv_rows, b"a\n\xff\n", "is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, read: Any, content: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        list(read(written(tmp_path / "file", content)))


@pytest.mark.parametrize("read", [json_rows, jsonl_rows, csv_rows])
def test_a_missing_file_is_said(tmp_path: Path, read: Any) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read(tmp_path / "none"))


def test_a_list_is_read_row_by_row(tmp_path: Path) -> None:
    """The first row is there although the file is broken further on."""
    rows = json_rows(written(tmp_path / "a.json", b'[{"a": 1}, ' + b'{"a": 2}, ' * 100_000 + b"oops"))
    assert next(rows) == (1, {"a": 1})


def test_a_field_is_named_with_what_was_expected() -> None:
    assert text({"a": "  two  words "}, "a", "x row 1") == "two words"
    with pytest.raises(DataError, match="x row 1: a is int, expected str"):
        text({"a": 1}, "a", "x row 1")
    with pytest.raises(DataError, match="x row 1: b is missing, expected str or int"):
        text({"a": 1}, "b", "x row 1", (str, int))


@pytest.mark.parametrize("text_", ["[" * 100_000, '[{"a": ' * 60_000, '{"a": ' * 500, '[{"a": "\\\\"}, ' + "[" * 200])
def test_nesting_without_end_is_refused_before_it_takes_memory(tmp_path: Path, text_: str) -> None:
    path = written(tmp_path / "a.json", text_.encode())
    for read in (json_rows, json_entries):
        with pytest.raises(DataError, match="is not JSON"):
            list(read(path))


def test_a_long_text_full_of_quotes_is_read_in_a_moment() -> None:
    """An export that wrapped JSON in JSON: it once took the square of its length."""
    content = b'["' + b'\\"' * 200_000 + b'"]'
    file, started = Shallow(io.BytesIO(content)), time.process_time()
    assert b"".join(iter(lambda: file.read(1 << 16), b"")) == content
    assert time.process_time() - started < 2  # hundredths of a second; 47 s as it was


def test_brackets_in_strings_do_not_nest() -> None:
    """Whatever the size of the pieces in which the file is read."""
    content = json.dumps([{"a": '["\\' * 300, "b\\": [[[]]], "c": "{" * 500}] * 3).encode()
    for size in (1, 2, 7, 64, 100_000):
        file = Shallow(io.BytesIO(content))
        assert b"".join(iter(lambda file=file, size=size: file.read(size), b"")) == content
        with pytest.raises(TooDeepError):
            Shallow(io.BytesIO(content + b"[" * 101)).read()
