"""A case of several modalities laid out as one question: images at their marks, reports, laboratory, genomics. Pure.

    >>> case = Case("Is there a change?", images=(CaseImage("now.png"), CaseImage("then.png", "prior", 30)))
    >>> lay_out(case)
    'Question: Is there a change?\\nCurrent image: <image>\\nPrior image, 30 days before: <image>'

| section, in this order  | its lines                                              | sorted by                            |
| ----------------------- | ------------------------------------------------------ | ------------------------------------ |
| question                | one, first: what is too long loses its end             |                                      |
| images                  | current, then prior; modality, view, days before, mark | days before, modality, view, name    |
| indication              | one                                                    |                                      |
| prior reports           | one each, days before                                  | days before, text                    |
| laboratory              | test value unit (reference)                            | days before, test, value             |
| genomic findings        | gene variant (significance)                            | gene, variant                        |

The text follows from what the case holds, not from the order in which it was written down: two sites that list the same
findings in another order ask the same. `ordered_images` gives the images in the order of their marks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from fedmed.data.schema import IMAGE_MARK

Role = Literal["current", "prior"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class CaseImage:
    """An image of a case.

    Attributes:
        name: where it lies.
        role: of the study that is asked about, or of one before it.
        days_before: how long before the current study it was taken; 0 for current ones, None where nobody knows.
        modality, view: as a person would say them (`CT`, `axial`); may be empty.
    """

    name: str = field(repr=False)
    role: Role = "current"
    days_before: int | None = None
    modality: str = ""
    view: str = ""


@dataclass(frozen=True)
class PriorReport:
    """The report on an earlier study."""

    text: str = field(repr=False)
    days_before: int | None = None


@dataclass(frozen=True)
class Laboratory:
    """One value of a laboratory table; unit and reference may be empty."""

    test: str
    value: str = field(repr=False)
    unit: str = ""
    reference: str = ""
    days_before: int | None = None


@dataclass(frozen=True)
class Genomic:
    """One finding of a genomic report; the significance may be empty."""

    gene: str
    variant: str = field(repr=False)
    significance: str = ""


@dataclass(frozen=True)
class Case:
    """What is known of a case, and what is asked (with its choices, where it has any). No text holds an image mark."""

    question: str = field(repr=False)
    images: tuple[CaseImage, ...] = ()
    indication: str = field(default="", repr=False)
    reports: tuple[PriorReport, ...] = ()
    laboratory: tuple[Laboratory, ...] = ()
    genomics: tuple[Genomic, ...] = ()


def ordered_images(case: Case) -> tuple[CaseImage, ...]:
    """The images as their marks stand: current ones first, then the most recent; one of unknown time last."""
    return tuple(
        sorted(
            case.images,
            key=lambda image: (
                ROLES.index(image.role),
                _age(image.days_before),
                image.modality,
                image.view,
                image.name,
            ),
        )
    )


def lay_out(case: Case) -> str:
    """The question text, with one image mark for each image in the order of `ordered_images`."""
    sections = (_images(case), _indication(case), _reports(case), _laboratory(case), _genomics(case))
    return "\n".join([f"Question: {case.question}", *(line for section in sections for line in section)])


def _images(case: Case) -> Iterable[str]:
    for image in ordered_images(case):
        kind = " ".join(part for part in (image.modality, image.view) if part) or "image"
        yield f"{image.role.capitalize()} {kind}{_when(image.days_before)}: {IMAGE_MARK}"


def _indication(case: Case) -> Iterable[str]:
    if case.indication:
        yield f"Indication: {case.indication}"


def _reports(case: Case) -> Iterable[str]:
    for report in sorted(case.reports, key=lambda report: (_age(report.days_before), report.text)):
        yield f"Prior report{_when(report.days_before)}: {report.text}"


def _laboratory(case: Case) -> Iterable[str]:
    for found in sorted(
        case.laboratory, key=lambda found: (_age(found.days_before), found.test, found.value, found.unit)
    ):
        reference = f" (reference {found.reference})" if found.reference else ""
        measured = " ".join(part for part in (found.test, found.value, found.unit) if part)
        yield f"Laboratory{_when(found.days_before)}: {measured}{reference}"


def _genomics(case: Case) -> Iterable[str]:
    for found in sorted(case.genomics, key=lambda found: (found.gene, found.variant, found.significance)):
        significance = f" ({found.significance})" if found.significance else ""
        yield f"Genomic finding: {found.gene} {found.variant}{significance}"


def _age(days_before: int | None) -> float:
    return float("inf") if days_before is None else days_before


def _when(days_before: int | None) -> str:
    if not days_before:
        return ""
    return f", {days_before} day{'' if days_before == 1 else 's'} before"
