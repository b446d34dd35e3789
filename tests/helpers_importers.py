"""What every importer must survive. Import as `helpers_importers` (see tests/conftest.py)."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmed.data.images import encode_png
from fedmed.data.importers import Importer
from fedmed.data.manifest import MAX_LINE_BYTES
from fedmed.data.manifest_line import format_line, parse_line
from fedmed.data.schema import SPLITS, Example, ImageRef
from fedmed.errors import DataError

# What a field may hold in place of what it should: wrong types, nothing, marks, half a character, a way out of the folder.
VALUES: tuple[Any, ...] = (
    None, True, 7, -1.5, float("nan"), 10**30, "", " \n", "x", "\ud800", "<image>", "<ima<image>ge>", "../../etc", "\0", "/",
    "x" * 200_000, [], ["x"], [[]], [None], {}, {"a": 1}, "nan", ";", "|",
)  # fmt: skip


def case_row(**changes: Any) -> dict[str, Any]:
    """A line of the importer `cases` with all its parts, but for what `changes` says is "left out"."""
    fields = {
        "patient": 17,
        "question": "Has it grown?",
        "answer": "yes",
        "split": "train",
        "indication": "follow-up",
        "images": [
            {"path": "then.png", "role": "prior", "days_before": 90, "modality": "CT"},
            {"path": "now.png", "role": "current", "modality": "CT", "view": "axial"},
        ],
        "reports": [{"text": "A mass of 2 cm.", "days_before": 90}],
        "laboratory": [{"test": "CRP", "value": 12, "unit": "mg/L", "reference": "0-5"}],
        "genomics": [{"gene": "EGFR", "variant": "L858R", "significance": "pathogenic"}],
        "ward": "3",
    } | changes
    return {key: value for key, value in fields.items() if value != "left out"}


def save_images(folder: Path, *names: str) -> None:
    """A small picture of its own under each name; one that is there stays, since opening files takes longest here."""
    for seed, name in enumerate(names):
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.random.default_rng(seed).integers(0, 255, (4, 4), np.uint8)))


def save_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def save_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_all(entry: Importer, path: Path, rule: str = "official") -> list[Example]:
    """Of all splits, with what must hold of any read."""
    found: list[Example] = []
    for split in SPLITS:
        imported = entry.read(path, split=split, split_rule=rule)
        first_of_row = [example for example in imported.examples if not example.history]
        assert imported.rows_read == len(first_of_row) + sum(imported.quarantined.values())
        for example in imported.examples:
            assert example.split == split and example.source == entry.name
            require_manifest_takes(example)
        found += imported.examples
    return found


def quarantined(entry: Importer, path: Path, rule: str = "official") -> dict[str, int]:
    """Reason -> rows, of all splits."""
    found: Counter[str] = Counter()
    for split in SPLITS:
        found.update(entry.read(path, split=split, split_rule=rule).quarantined)
    return dict(found)


def require_manifest_takes(example: Example) -> None:
    """A line of a manifest holds it and gives it back."""
    paths = [f"images/{place}.png" for place, _ in enumerate(example.images)]
    line = format_line(example, paths)
    assert len(line) <= MAX_LINE_BYTES, "a line of a manifest would be too long"
    try:
        found = parse_line(line, 1)
    except DataError as error:  # an importer's own DataError means something else
        raise AssertionError(error.message) from None
    assert found == replace(example, images=tuple(ImageRef(path=path) for path in paths))


def require_survives_damage(
    entry: Importer, rows: Any, save: Callable[[Any], Path], times: int = 150, rule: str = "official"
) -> None:
    """Any field damaged: a DataError, or the row is quarantined, or still good; never another exception."""
    rng = random.Random(7)
    refused = 0
    for _ in range(times):
        path = save(damaged(rows, rng))
        try:
            read_all(entry, path, rule)
        except DataError:
            refused += 1
    assert 0 < refused < times


def damaged(content: Any, rng: random.Random) -> Any:
    """A copy with one value, anywhere inside, taken out or replaced."""
    whole = copy.deepcopy(content)
    holder = whole
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or (holder is not whole and rng.random() < 0.3):
            break
        holder = inner
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return whole


def require_survives_bytes(entry: Importer, path: Path, file: Path, times: int = 100) -> None:
    """Any bytes of the file damaged: as above."""
    rng, good = random.Random(8), file.read_bytes()
    for _ in range(times):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        with suppress(DataError):
            read_all(entry, path)
    file.write_bytes(good)
