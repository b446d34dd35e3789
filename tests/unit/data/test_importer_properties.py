"""What holds for every importer: nothing is lost and nothing is materialised. Damage: tests/fuzz/importer_target.py."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_public_sets import SOURCES, medmnist, pmc_row, pmc_vqa, slake, slake_row, write_csv

from fedmed.data.importers import IMPORTERS, importer
from fedmed.data.importers.base import Tally
from fedmed.data.importers.medmnist import MedMnist
from fedmed.data.manifest import write_manifest
from fedmed.data.manifest_line import format_line, parse_line
from fedmed.data.schema import SPLITS, Example
from fedmed.errors import DataError


def rows_of(name: str, examples: int) -> int:
    """How many rows made so many examples."""
    entry = IMPORTERS[name]
    return examples // entry.width if isinstance(entry, MedMnist) else examples


def rules_of(name: str) -> tuple[str, ...]:
    return ("official",) if isinstance(IMPORTERS[name], MedMnist) else ("official", "image")


def require_line(example: Example) -> None:
    """A manifest takes it, and gives it back."""
    paths = [f"images/{place}.png" for place, _ in enumerate(example.images)]
    parsed = parse_line(format_line(example, paths), 1)
    assert (parsed.question, parsed.answer, parsed.choices, parsed.patient) == (
        example.question,
        example.answer,
        example.choices,
        example.patient,
    )


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_is_kept_or_quarantined_and_every_example_fits_a_manifest(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    for rule in rules_of(name):
        for split in SPLITS:
            imported = importer(name).read(source, split=split, split_rule=rule)
            assert imported.examples, (rule, split)
            assert imported.rows_read == rows_of(name, len(imported.examples)) + sum(imported.quarantined.values())
            assert {(item.source, item.split) for item in imported.examples} == {(name, split)}
            for example in imported.examples:
                require_line(example)


@pytest.mark.parametrize("name", SOURCES)
def test_a_split_that_is_not_there_is_said_before_the_source_is_looked_at(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split 'dev'"):
        importer(name).stream(tmp_path / "none", Tally(), split="dev")
    with pytest.raises(DataError):
        list(importer(name).stream(tmp_path / "none", Tally(), split="train"))


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_example_comes_when_one_row_was_read(name: str, tmp_path: Path) -> None:
    tally = Tally()
    examples = importer(name).stream(SOURCES[name](tmp_path), tally, split="train")
    assert isinstance(examples, Iterator)
    assert tally.rows_read == 0
    next(examples)
    assert tally.rows_read == 1


def test_a_manifest_is_written_from_a_stream(tmp_path: Path) -> None:
    for name in ("slake_zh", "pmc_vqa", "medqa", "chestmnist"):
        source = SOURCES[name](tmp_path / f"{name}_source")
        manifest = write_manifest(tmp_path / name, importer(name).stream(source, Tally(), split="train"))
        assert manifest.examples
        assert manifest.quarantined == 0


def peak_of(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["slake_en", "pmc_vqa_blank", "tissuemnist"])
def test_memory_does_not_grow_with_the_source(name: str, tmp_path: Path) -> None:
    """Six megabytes and more pass through less."""
    if name == "slake_en":
        source = slake(tmp_path, train=[slake_row(question="what? " * 4000, qid=number) for number in range(270)])
        size = (source / "train.json").stat().st_size
    elif name == "pmc_vqa_blank":
        source = pmc_vqa(tmp_path)
        rows = [pmc_row(Question=f"what of {number}? " * 4000) for number in range(130)]
        size = write_csv(source / "test.csv", rows).stat().st_size
    else:
        entry = IMPORTERS[name]
        assert isinstance(entry, MedMnist)
        source = medmnist(tmp_path / "tissuemnist_224.npz", entry, count=130, side=224)
        size = source.stat().st_size
    split = "test" if name == "pmc_vqa_blank" else "train"
    tally = Tally()

    def drain() -> None:
        for _ in importer(name).stream(source, tally, split=split):
            pass

    assert peak_of(drain) < 5_000_000 < 6_000_000 < size
    assert tally.rows_read > 100
