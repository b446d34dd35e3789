"""One line of a manifest: text in, Example out, and back. An error names the line and the key, never a value.

    >>> parse_line(format_line(example, ["images/000001.png"]), number=1) == example
    True

Nine keys, all of them required, and two that may be left out:

| key                                     | value                                                                 |
| --------------------------------------- | --------------------------------------------------------------------- |
| patient, question, answer, source       | a text, not empty                                                     |
| answer_type, task, split                | one of ANSWER_TYPES, TASKS, SPLITS of fedmed.data.schema              |
| images                                  | a list of paths relative to the manifest's folder; may be empty       |
| attributes                              | an object of texts; may be empty                                      |
| history (optional)                      | a list of pairs [question, answer] of texts that are not empty        |
| choices (optional)                      | a list of texts that differ, one of them the answer; or empty         |

Image marks in the questions, where there are any, are as many as the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fedmed.data.schema import ANSWER_TYPES, IMAGE_MARK, SPLITS, TASKS, Example, Exchange, ImageRef, marks_fit
from fedmed.errors import DataError

MANIFEST_NAME = "manifest.jsonl"
KEYS = ("patient", "images", "question", "answer", "answer_type", "task", "source", "split", "attributes")
OPTIONAL = ("history", "choices")
_TEXTS = ("patient", "question", "answer", "answer_type", "task", "source", "split")
_ALLOWED = {"answer_type": ANSWER_TYPES, "task": TASKS, "split": SPLITS}


def parse_line(line: bytes, number: int) -> Example:
    """One line of the file as an Example; `number` is for the error.

    Raises:
        DataError: names the line's number and the key, never a value.
    """
    try:
        row = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        raise line_error(number, "is not valid JSON in UTF-8, or has the same key twice") from None
    if not isinstance(row, dict):
        raise line_error(number, f"is a JSON {type(row).__name__}, expected an object")
    if missing := [key for key in KEYS if key not in row]:
        raise line_error(number, f"lacks {', '.join(missing)}")
    if unknown := len(row.keys() - {*KEYS, *OPTIONAL}):
        raise line_error(number, f"has {unknown} unknown keys, expected only {', '.join((*KEYS, *OPTIONAL))}")
    for key in _TEXTS:
        if not _is_text(row[key]) or not row[key].strip():
            raise line_error(number, f"{key} is not a text, or is empty")
    for key, allowed in _ALLOWED.items():
        if row[key] not in allowed:
            raise line_error(number, f"{key} is unknown, expected one of {', '.join(allowed)}")
    if not isinstance(row["images"], list) or not all(_is_text(path) and path for path in row["images"]):
        raise line_error(number, "images is not a list of paths")
    if not isinstance(row["attributes"], dict) or not all(
        _is_text(text) for pair in row["attributes"].items() for text in pair
    ):
        raise line_error(number, "attributes is not an object of texts")
    example = Example(**{**row, "images": tuple(ImageRef(path=path) for path in row["images"]), **_extras(row, number)})
    if not marks_fit(example):
        raise line_error(
            number, f"the questions have another number of {IMAGE_MARK} than there are images, and not none"
        )
    return example


def format_line(example: Example, paths: Iterable[str]) -> bytes:
    """An example as a line of the file, with its images' paths; the inverse of `parse_line`."""
    row = {key: getattr(example, key) for key in KEYS}
    row |= {"images": list(paths), "attributes": dict(example.attributes)}
    if example.history:
        row["history"] = [[said.question, said.answer] for said in example.history]
    if example.choices:
        row["choices"] = list(example.choices)
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def line_error(number: int, problem: str) -> DataError:
    """An error at a line; `problem` must not show the line's contents."""
    return DataError(f"{MANIFEST_NAME} line {number}: {problem}", "mend that line or leave it out; see docs/data.md")


def _extras(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The optional keys, checked."""
    history, choices = row.get("history", []), row.get("choices", [])
    if not isinstance(history, list) or not all(_is_pair(said) for said in history):
        raise line_error(number, "history is not a list of pairs of texts")
    if not isinstance(choices, list) or not all(_is_text(choice) for choice in choices):
        raise line_error(number, "choices is not a list of texts")
    if choices and (len(set(choices)) != len(choices) or row["answer"] not in choices):
        raise line_error(number, "the answer is not one of the choices, or two choices are the same")
    return {"history": tuple(Exchange(*said) for said in history), "choices": tuple(choices)}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_text(text) and text.strip() for text in value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("duplicated key")
    return row


def _is_text(value: Any) -> bool:
    """A str that can be written as UTF-8: JSON may hold half of a surrogate pair, which breaks whoever hashes it."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
