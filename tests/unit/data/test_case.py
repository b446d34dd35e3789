"""Cases of several modalities: one text, its images at their marks, whatever order the case was written in."""

from __future__ import annotations

import random
from dataclasses import replace

from PIL import Image

from fedmed.data.case import Case, CaseImage, Genomic, Laboratory, PriorReport, lay_out, ordered_images
from fedmed.data.collate import Collator
from fedmed.data.schema import IMAGE_MARK, Example, ImageRef, marks_fit
from fedmed.models.base import BaseModel, load_base

CASE = Case(
    question="Has the mass grown?",
    images=(
        CaseImage("old.png", "prior", 400, "CT"),
        CaseImage("now.png", "current", None, "CT", "axial"),
        CaseImage("then.png", "prior", 1, "X-ray"),
        CaseImage("when.png", "prior"),
    ),
    indication="Cough.",
    reports=(PriorReport("A mass of 3 cm.", 30), PriorReport("A mass.", 400)),
    laboratory=(Laboratory("CRP", "12", "mg/L", "0-5"), Laboratory("Hb", "9.1", days_before=2)),
    genomics=(Genomic("KRAS", "G12C", "pathogenic"), Genomic("EGFR", "wild type")),
)


def test_sections_stand_in_their_order() -> None:
    assert lay_out(CASE).split("\n") == [
        "Question: Has the mass grown?",
        "Current CT axial: <image>",
        "Prior X-ray, 1 day before: <image>",
        "Prior CT, 400 days before: <image>",
        "Prior image: <image>",
        "Indication: Cough.",
        "Prior report, 30 days before: A mass of 3 cm.",
        "Prior report, 400 days before: A mass.",
        "Laboratory, 2 days before: Hb 9.1",
        "Laboratory: CRP 12 mg/L (reference 0-5)",
        "Genomic finding: EGFR wild type",
        "Genomic finding: KRAS G12C (pathogenic)",
    ]
    assert [image.name for image in ordered_images(CASE)] == ["now.png", "then.png", "old.png", "when.png"]
    assert lay_out(Case("Why?")) == "Question: Why?"


def test_the_order_it_was_written_in_makes_no_difference() -> None:
    rng = random.Random(3)

    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(rng.sample(items, len(items)))

    for _ in range(50):
        parts = {name: shuffled(getattr(CASE, name)) for name in ("images", "reports", "laboratory", "genomics")}
        other = replace(CASE, **parts)  # type: ignore[arg-type]
        assert lay_out(other) == lay_out(CASE) and ordered_images(other) == ordered_images(CASE)


def example(case: Case) -> Example:
    refs = tuple(ImageRef(path=image.name) for image in ordered_images(case))
    return Example("p", refs, lay_out(case), "yes", "closed", "vqa", "test")


def test_every_image_has_its_mark_and_the_processor_places_it_there() -> None:
    """Each image's tokens stand right behind the words of its own line, in the order of the marks."""
    item = example(CASE)
    assert marks_fit(item) and item.question.count(IMAGE_MARK) == 4
    shades = [10, 90, 170, 250]
    pictures = [Image.new("RGB", (32, 32), (shade, shade, shade)) for shade in shades]
    processor = load_base("fedmed-tiny").processor
    tokenizer = processor.tokenizer
    encoded = Collator(processor).encode(item, pictures)
    token = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    runs = image_runs(encoded.prompt.tolist(), token)
    assert len(runs) == 4 and len({end - start for start, end in runs}) == 1
    lines = ["axial:", "day before:", "days before:", "Prior image:"]
    for (start, _), line in zip(runs, lines, strict=True):
        before = tokenizer.decode(encoded.prompt[:start][encoded.prompt[:start] != token], skip_special_tokens=True)
        assert before.replace(" ", "").endswith(line.replace(" ", ""))
    pixels = encoded.vision["pixel_values"]
    means = [float(pixels[place].mean()) for place in range(4)]
    assert means == sorted(means) and means[0] < means[-1]


def image_runs(ids: list[int], token: int) -> list[tuple[int, int]]:
    """Where runs of image tokens begin and end."""
    runs: list[tuple[int, int]] = []
    for place, found in enumerate(ids):
        if found == token:
            start = runs.pop()[0] if runs and runs[-1][1] == place else place
            runs.append((start, place + 1))
    return runs


def test_a_case_too_long_loses_its_end_and_neither_question_nor_images(tiny_base: BaseModel) -> None:
    tokenizer = tiny_base.processor.tokenizer
    long = replace(CASE, reports=tuple(PriorReport("The heart is normal. " * 30, days) for days in range(4)))
    pictures = [Image.new("RGB", (32, 32))] * 4
    whole = Collator(tiny_base.processor, 4096).encode(example(CASE), pictures)
    encoded = Collator(tiny_base.processor, whole.length).encode(example(long), pictures)
    assert encoded.length <= whole.length
    token = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    assert int((encoded.prompt == token).sum()) == int((whole.prompt == token).sum())
    said = tokenizer.decode(encoded.prompt, skip_special_tokens=True).replace(" ", "")
    assert "Hasthemassgrown?" in said and "KRAS" not in said
