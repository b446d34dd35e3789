"""What a site's data is made of, before it joins: counts, lengths, sizes, balance, repeats and leaks.

    >>> report = check_manifests([Path("north-data")])
    >>> report.parts[0].patients, report.parts[0].repeated, report.shared
    (4708, 17, ())
    >>> for line in report_lines(report): print(line)

A part is one split of one manifest, or of an importer's source. Exact numbers, for the site's own eyes: where few patients are,
they single some out. No patient's id, question, file name or free answer is in a report, nor any answer but those of closed
questions that have few; searching for names and other marks of a person is another tool's work.

| number                  | of what                                                                                     |
| ----------------------- | ------------------------------------------------------------------------------------------- |
| images                  | that differ in their bytes                                                                  |
| images_of_several       | of them those that more than one patient has: one person under two ids is protected less   |
| question_characters     | the questions of an example, with what was said before                                      |
| tokens                  | the same with the answer, by a base's tokenizer, where one is given; images and template not |
| repeated                | examples with images, questions and answer of an earlier one of the part                    |
| contradicted            | examples with images and questions of an earlier one and another answer                     |
| kinds                   | attribute question_type, content_type or finding, else task; and the answer type            |
| majority                | share of a kind's commonest answer: what a model gets that does not look                    |
| shared                  | what two parts have in common: patients by id, images by bytes, whole examples              |
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median_low

from fedmed.data.images import image_size, read_image
from fedmed.data.importers import Importer, Tally
from fedmed.data.manifest import load_manifest, pseudonym
from fedmed.data.schema import SPLITS, Example, ImageRef

TokenCount = Callable[[str], int]
KIND_FIELDS = ("question_type", "content_type", "finding")
MAX_ANSWERS, MAX_SHOWN = 12, 40  # answers of a kind that are told; characters of a name that are


@dataclass(frozen=True)
class Spread:
    """The least, the middle (one that occurs) and the greatest of some numbers."""

    least: int
    median: int
    greatest: int


@dataclass(frozen=True)
class Kind:
    """The answers to one kind of question; `counts` is empty where they are free or many."""

    name: str
    examples: int
    answers: int
    majority: float
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """What one split holds. A spread is None where there is nothing to measure."""

    name: str
    patients: int
    examples: int
    images: int
    images_of_several: int
    rows_read: int
    quarantined: Mapping[str, int]
    examples_per_patient: Spread | None
    question_characters: Spread | None
    answer_characters: Spread | None
    tokens: Spread | None
    width: Spread | None
    height: Spread | None
    repeated: int
    contradicted: int
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Shared:
    """What two parts have in common; at least one number is not 0."""

    parts: tuple[str, str]
    patients: int
    images: int
    examples: int


@dataclass(frozen=True)
class Report:
    parts: tuple[Part, ...]
    shared: tuple[Shared, ...]


def check_manifests(folders: Sequence[Path], num_tokens: TokenCount | None = None) -> Report:
    """Of one manifest, or of several side by side. Raises DataError as `load_manifest`."""
    counts: list[_Counts] = []
    for number, folder in enumerate(folders, start=1):
        manifest = load_manifest(folder)
        own: dict[str, _Counts] = {}
        images = _Images(folder)
        for example in manifest.examples:
            name = f"manifest {number}, {example.split}" if len(folders) > 1 else example.split
            own.setdefault(example.split, _Counts(name, images, num_tokens)).add(example)
        found = [own[split] for split in SPLITS if split in own]
        if manifest.quarantined:  # which split they were of is not known any more
            found[0].quarantined["image is unreadable (of any split)"] = manifest.quarantined
        counts += found
    return _report(counts)


def check_source(
    entry: Importer, path: Path, split_rule: str = "official", num_tokens: TokenCount | None = None
) -> Report:
    """Of all splits of an importer's source that have rows. Raises DataError as the importer."""
    counts = []
    for split in SPLITS:
        tally, count = Tally(), _Counts(split, _Images(None), num_tokens)
        for example in entry.stream(path, tally, split=split, split_rule=split_rule):
            count.add(example)
        count.rows_read, count.quarantined = tally.rows_read, tally.quarantined
        counts += [count] if tally.rows_read else []
    return _report(counts)


class _Images:
    """Digest and size of images; a file that several examples name is read once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._digests: dict[str, bytes] = {}
        self.sizes: dict[bytes, tuple[int, int]] = {}

    def digest(self, ref: ImageRef) -> bytes:
        if ref.path and ref.path in self._digests:
            return self._digests[ref.path]
        data = read_image(ref, self._folder)
        digest = _digest(data)
        if digest not in self.sizes:
            self.sizes[digest] = image_size(data)
        if ref.path:
            self._digests[ref.path] = digest
        return digest


@dataclass
class _Counts:
    """A part while its examples pass by: numbers and digests, never a text but those that a report shows."""

    name: str
    seen: _Images
    num_tokens: TokenCount | None
    rows_read: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    patients: Counter[bytes] = field(default_factory=Counter)
    images: dict[bytes, bytes] = field(default_factory=dict)  # the patient who had it first, by pseudonym
    of_several: set[bytes] = field(default_factory=set)
    examples: set[bytes] = field(default_factory=set)
    asked: dict[bytes, bytes] = field(default_factory=dict)
    kinds: dict[str, Counter[bytes]] = field(default_factory=dict)
    texts: dict[bytes, str] = field(default_factory=dict)  # of closed answers, by digest
    questions: array[int] = field(default_factory=lambda: array("q"))
    answers: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    repeated: int = 0
    contradicted: int = 0

    def add(self, example: Example) -> None:
        images = [self.seen.digest(ref) for ref in example.images]
        said = [*(text for pair in example.history for text in (pair.question, pair.answer)), example.question]
        patient = pseudonym(example.patient, b"check")
        self.patients[patient] += 1
        self.of_several.update(image for image in images if self.images.setdefault(image, patient) != patient)
        self.questions.append(sum(map(len, said)))
        self.answers.append(len(example.answer))
        if self.num_tokens:
            self.tokens.append(sum(map(self.num_tokens, (*said, example.answer))))
        truth = _digest(_bytes(example.answer.casefold()))
        self._compare(_digest(b"".join(images) + _bytes(json.dumps(said).casefold())), truth)
        self.kinds.setdefault(kind_of(example), Counter())[truth] += 1
        if example.answer_type == "closed" and not example.choices:
            self.texts.setdefault(truth, example.answer)

    def _compare(self, asked: bytes, truth: bytes) -> None:
        """With the examples before it."""
        whole = _digest(asked + truth)
        self.repeated += whole in self.examples
        self.contradicted += self.asked.setdefault(asked, truth) != truth and whole not in self.examples
        self.examples.add(whole)

    def part(self) -> Part:
        sizes = [self.seen.sizes[image] for image in self.images]
        return Part(
            name=self.name,
            patients=len(self.patients),
            examples=len(self.questions),
            images=len(self.images),
            images_of_several=len(self.of_several),
            rows_read=self.rows_read or len(self.questions) + self.quarantined.total(),
            quarantined=dict(sorted(self.quarantined.items())),
            examples_per_patient=_spread(self.patients.values()),
            question_characters=_spread(self.questions),
            answer_characters=_spread(self.answers),
            tokens=_spread(self.tokens),
            width=_spread(width for width, _ in sizes),
            height=_spread(height for _, height in sizes),
            repeated=self.repeated,
            contradicted=self.contradicted,
            kinds=tuple(self._kind(name, counts) for name, counts in sorted(self.kinds.items())),
        )

    def _kind(self, name: str, counts: Counter[bytes]) -> Kind:
        few = len(counts) <= MAX_ANSWERS and all(truth in self.texts for truth in counts)
        told = {shown(self.texts[truth]): count for truth, count in counts.most_common()} if few else {}
        return Kind(shown(name), counts.total(), len(counts), counts.most_common(1)[0][1] / counts.total(), told)


def kind_of(example: Example) -> str:
    """What kind of question it is, by its attributes or its task, and whether it is closed."""
    named = (example.attributes.get(key) for key in KIND_FIELDS)
    return f"{next(filter(None, named), example.task)}, {example.answer_type}"


def shown(text: str) -> str:
    """A name from the data as a terminal may show it: short, and without control characters."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return plain if len(plain) <= MAX_SHOWN else plain[: MAX_SHOWN - 3] + "..."


def _report(counts: Sequence[_Counts]) -> Report:
    pairs = (_shared(one, other) for one, other in combinations(counts, 2))
    return Report(
        tuple(count.part() for count in counts),
        tuple(pair for pair in pairs if pair.patients or pair.images or pair.examples),
    )


def _shared(one: _Counts, other: _Counts) -> Shared:
    return Shared(
        (one.name, other.name),
        patients=len(one.patients.keys() & other.patients.keys()),
        images=len(one.images.keys() & other.images.keys()),
        examples=len(one.examples & other.examples),
    )


def _spread(numbers: Iterable[int]) -> Spread | None:
    known = list(numbers)
    return Spread(min(known), median_low(known), max(known)) if known else None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def report_lines(report: Report) -> Iterator[str]:
    """The report as a person reads it."""
    for part in report.parts:
        yield f"{part.name}: {part.examples} examples of {part.patients} patients with {part.images} images"
        left_out = "".join(f"; {reason}: {count}" for reason, count in part.quarantined.items())
        yield f"  rows read            {part.rows_read}, left out {part.rows_read - _rows_kept(part)}{left_out}"
        for name in ("examples_per_patient", "question_characters", "answer_characters", "tokens", "width", "height"):
            if (spread := getattr(part, name)) is not None:
                label = name.replace("_", " ")
                yield f"  {label:20} {spread.least} to {spread.greatest}, median {spread.median}"
        if part.images_of_several:
            yield f"  WARN  more than one patient has the same image, of {part.images_of_several}: one person under two ids?"
        yield f"  repeats              {part.repeated} examples; {part.contradicted} with another answer than before"
        yield f"  {'kind of question':40} examples  answers  majority"
        for kind in part.kinds:
            counts = "".join(f"  {told}: {count}" for told, count in kind.counts.items())
            yield f"  {kind.name:40} {kind.examples:8} {kind.answers:8}  {kind.majority:8.3f}{counts}"
    for pair in report.shared:
        yield f"LEAK  {pair.parts[0]} and {pair.parts[1]} share {_of_pair(pair)}"
    if len(report.parts) > 1 and not report.shared:
        yield "no two parts share a patient, an image or an example"


def _rows_kept(part: Part) -> int:
    return part.rows_read - sum(part.quarantined.values())


def _of_pair(pair: Shared) -> str:
    counts = {"patients": pair.patients, "images": pair.images, "whole examples": pair.examples}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
