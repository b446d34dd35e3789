"""Rows of files from elsewhere, streamed, and their fields, checked. What is wrong is named by row and field, never shown.

    >>> for number, row in json_rows(Path("train.json")):
    ...     question = text(row, "question", f"train.json row {number}")

| the file                                          | what happens                                              |
| ------------------------------------------------- | --------------------------------------------------------- |
| missing, unreadable, a folder                     | DataError naming it                                       |
| JSON: cut off, not JSON, not a list of objects    | DataError; a list is read row by row, never as a whole    |
| JSON Lines: a line that is not an object          | DataError with the line's number; blank lines are skipped |
| CSV: no header, a row with another number of cells | DataError with the row's number, counted without header  |
| CSV: empty cells at the end of header or rows     | are not there                                             |
| CSV: an open quote, or text behind a closed one   | DataError: an open one swallows the rows behind it        |
| JSON that nests more than a hundred levels         | DataError: ijson's memory grows with the square of them   |
| byte order mark, CRLF                             | read as if they were not there                            |
| a byte that is not UTF-8                          | DataError                                                 |
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import ijson

from fedmed.data.importers.shallow import Shallow, TooDeepError
from fedmed.errors import DataError

_CUT_OFF = "get it again: it may be cut off"
_MOST_HEADER = 1 << 16
csv.field_size_limit(1 << 24)


def json_rows(path: Path, under: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered from 1, the objects of a JSON list, or of the list under the key `under` of one object."""
    with _opened(path, "rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        prefix = f"{under}.item" if under else "item"
        number = 0
        try:
            for number, row in enumerate(ijson.items(Shallow(file), prefix, use_float=True), start=1):
                yield number, _object(row, f"{path.name} row {number}")
        except (ijson.JSONError, UnicodeDecodeError, TooDeepError):
            raise DataError(f"{path.name} is not JSON after row {number}", _CUT_OFF) from None
    if not number:
        _require(list, path, under)


def json_entries(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Numbered from 1, the keys of one JSON object, each with the object that it holds."""
    with _opened(path, "rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        number = 0
        try:
            for number, (key, row) in enumerate(ijson.kvitems(Shallow(file), "", use_float=True), start=1):
                yield number, key, _object(row, f"{path.name} row {number}")
        except (ijson.JSONError, UnicodeDecodeError, TooDeepError):
            raise DataError(f"{path.name} is not JSON after row {number}", _CUT_OFF) from None
    if not number:
        _require(dict, path)


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered from 1, the objects of a file of JSON Lines."""
    with _opened(path, "r") as file:
        for number, line in _numbered(file, path):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    raise DataError(f"{path.name} row {number} is not JSON", _CUT_OFF) from None
                yield number, _object(row, f"{path.name} row {number}")


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered from 1, the rows under the header of a CSV file."""
    with _opened(path, "r") as file:
        lists = csv_lists(file, path.name)
        header = without_empty_end([name.strip() for name in next(lists, [])], 0)
        if not header or len(set(header)) != len(header):
            raise DataError(f"{path.name} has no header, or a name twice in it", "expected names in the first row")
        for number, row in enumerate((row for row in lists if row), start=1):
            cells = without_empty_end(row, len(header))
            if len(cells) != len(header):
                raise DataError(
                    f"{path.name} row {number} has {len(row)} cells, expected {len(header)}",
                    "is a separator in a text that has no quotes, or a text in a column that has no name?",
                )
            yield number, dict(zip(header, cells, strict=True))


def csv_lists(file: IO[str], name: str) -> Iterator[list[str]]:
    """The rows of a CSV file, header first; of comma, semicolon and tab the one separates that the header has most of.

    Raises:
        DataError: it is not UTF-8, or not CSV; names the line in which the row begins: an open quote is noticed far behind.
    """
    start = 1
    try:
        first = file.readline(_MOST_HEADER)
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
        for row in reader:
            yield row
            start = reader.line_num + 1
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8", 'save it as "CSV UTF-8"') from None
    except csv.Error:
        raise DataError(
            f"{name}: the row that begins in line {start} is not CSV",
            f"close every quote, with nothing before the next separator, and write one inside a text twice; or {_CUT_OFF}",
        ) from None


def without_empty_end(cells: list[str], least: int) -> list[str]:
    """Without the cells behind the `least` first that a spreadsheet adds at a row's end."""
    end = len(cells)
    while end > least and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def text(row: Mapping[str, Any], field: str, where: str, kinds: tuple[type, ...] = (str,)) -> str:
    """A field as a text without stray spaces; numbers and others where `kinds` allows them.

    Raises:
        DataError: the field is missing or of another type; names `where`, the field and what was expected.
    """
    if type(row.get(field)) not in kinds:
        raise wrong_field(row, field, where, " or ".join(kind.__name__ for kind in kinds))
    return " ".join(str(row[field]).split())


def wrong_field(row: Mapping[str, Any], field: str, where: str, expected: str) -> DataError:
    """The error that a field is missing or of another type than `expected`."""
    found = type(row[field]).__name__ if field in row else "missing"
    return DataError(f"{where}: {field} is {found}, expected {expected}")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a JSON {type(row).__name__}, expected an object")
    return row


def _require(kind: type, path: Path, under: str = "") -> None:
    """A file without a row must at least be a list or an object, or have one under that key."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f"{path.name} is not JSON", _CUT_OFF) from None
    found = content.get(under) if under and isinstance(content, dict) else content
    if not isinstance(found, kind):
        place = f" under {under!r}" if under else ""
        expected = "a list" if kind is list else "an object"
        raise DataError(f"{path.name} holds a JSON {type(found).__name__}{place}, expected {expected} of rows")


def _numbered(file: IO[str], path: Path) -> Iterator[tuple[int, str]]:
    try:
        yield from enumerate(file, start=1)
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not a text in UTF-8", _CUT_OFF) from None


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[Any]]:
    try:
        binary = "b" in mode
        with path.open(mode, encoding=None if binary else "utf-8-sig", newline=None if binary else "") as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            "see docs/data.md for the layout; `fedmed data fetch NAME` gets a public set, or tells the steps",
        ) from None
