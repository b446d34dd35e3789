"""From answers to scores.json: scores with intervals, rows by kind of question, controls, comparisons, in plain JSON types.

    results = build_results(inputs)      # docs/evaluation.md says what each key means

Nothing is read or asked here; the same inputs give the same results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator.evaluating.dataset import TestSet
from aggregator.evaluating.model_scores import Unavailable
from aggregator.evaluating.overlap import Overlap
from fedmed.metrics.answers import CORRECTED, LEGACY, Parts, answer_sums, is_right, kind_of
from fedmed.metrics.breakdown import Scored, breakdown
from fedmed.metrics.pairs import (
    Change,
    RightAlone,
    blank_sentence,
    changes,
    comparison_sentence,
    control_sentence,
    main_changes,
    right_alone,
    same_on_blank,
)
from fedmed.metrics.sums import RESAMPLES

SCHEMA_VERSION = 1
FIELDS = ("task", "answer_type", "question_type", "content_type", "organ", "modality", "site", "image_in_train")


@dataclass(frozen=True)
class Inputs:
    """All that an evaluation found out.

    Attributes:
        model, generation: facts about the model and about how it was asked, as they stand in scores.json.
        answers: of the model. controls: control -> answers, None for items it cannot be made of; or why it could not be made.
        others: name of another model -> its answers.
        extra: scores that need a model of their own (model_scores), each a value an item, for all, or unavailable.
    """

    model: Mapping[str, Any]
    generation: Mapping[str, Any]
    test: TestSet
    answers: Sequence[str] = field(repr=False)
    overlap: Overlap
    controls: Mapping[str, Sequence[str | None] | str] = field(repr=False)
    others: Mapping[str, Sequence[str]] = field(repr=False)
    extra: Mapping[str, Mapping[int, float] | float | Unavailable] = field(repr=False)
    created: str
    seed: int = 0
    resamples: int = RESAMPLES


def build_results(inputs: Inputs) -> dict[str, Any]:
    """The content of scores.json."""
    test, parts = inputs.test, scored_parts(inputs)
    rows = breakdown(_items(inputs, parts), _fields(inputs), kind_of, seed=inputs.seed, resamples=inputs.resamples)
    scores = {row.score: _row(row) for row in rows if not row.field}
    scores |= {
        name: {
            "estimate": value,
            "low": None,
            "high": None,
            "items": len(test.examples),
            "patients": None,
            "legacy": False,
        }
        for name, value in inputs.extra.items()
        if isinstance(value, float)
    }
    controls = {name: _control(inputs, parts, name) for name in inputs.controls}
    comparisons = [_comparison(inputs, parts, name) for name in inputs.others]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": inputs.created,
        "model": dict(inputs.model),
        "data": _data(inputs),
        "generation": dict(inputs.generation),
        "statistics": {"level": 0.95, "resamples": inputs.resamples, "seed": inputs.seed, "drawn": "patients"},
        "scores": scores,
        "corrected": {name: CORRECTED[name] for name in scores if name in CORRECTED},
        "unavailable": {
            name: {"reason": value.reason, "hint": value.hint}
            for name, value in inputs.extra.items()
            if isinstance(value, Unavailable)
        },
        "groups": [
            {"field": row.field, "value": row.value, "score": row.score, **_row(row)} for row in rows if row.field
        ],
        "controls": controls or None,
        "overlap": {
            "images": inputs.overlap.images,
            "in_train": inputs.overlap.in_train,
            "items": inputs.overlap.items,
            "sentence": inputs.overlap.sentence(),
        },
        "comparisons": comparisons,
        "verdicts": _verdicts(inputs, controls, comparisons),
    }


def scored_parts(inputs: Inputs) -> list[Parts]:
    """Of each item what it gives to each score, those of model_scores included."""
    parts = answer_sums(inputs.test.examples, inputs.answers)
    for name, values in inputs.extra.items():
        if isinstance(values, Mapping):
            for place, value in values.items():
                parts[place][name] = (value, 1.0)
    return parts


def _items(inputs: Inputs, parts: Sequence[Parts]) -> list[Scored]:
    return [
        Scored(
            example.patient,
            {**example.attributes, "task": example.task, "answer_type": example.answer_type, "image_in_train": seen},
            own,
        )
        for example, own, seen in zip(inputs.test.examples, parts, inputs.overlap.seen, strict=True)
    ]


def _fields(inputs: Inputs) -> list[str]:
    """Those of FIELDS that some example has; where no example of the train split is known, the last has no value."""
    known = {name for example in inputs.test.examples for name, value in example.attributes.items() if value}
    known |= {"task", "answer_type"} | ({"image_in_train"} if any(inputs.overlap.seen) else set())
    return [name for name in FIELDS if name in known]


def _data(inputs: Inputs) -> dict[str, Any]:
    test = inputs.test
    return {
        "name": test.name,
        "split": test.split,
        "split_rule": test.split_rule,
        "items": len(test.examples),
        "first": test.first,
        "patients": len(set(test.patients)),
        "sha256": test.sha256(),
        "notes": list(test.notes),
    }


def _row(row: Any) -> dict[str, Any]:
    numbers = {name: getattr(row, name) for name in ("estimate", "low", "high", "items", "patients")}
    return numbers | {"legacy": row.score.startswith(LEGACY)}


def _control(inputs: Inputs, real: Sequence[Parts], name: str) -> dict[str, Any]:
    """Scores under a control beside the real ones of the same items, and the paired differences."""
    answers = inputs.controls[name]
    if isinstance(answers, str):
        return _NO_CONTROL | {"reason": answers}
    places = [place for place, answer in enumerate(answers) if answer is not None]
    if not places:
        return _NO_CONTROL | {"reason": "no item of the test set allows it"}
    examples = [inputs.test.examples[place] for place in places]
    given = [str(answers[place]) for place in places]
    changed = [place for answer, place in zip(given, places, strict=True) if answer != inputs.answers[place]]
    rows = changes(
        answer_sums(examples, given),
        [real[place] for place in places],
        [example.patient for example in examples],
        seed=inputs.seed,
        resamples=inputs.resamples,
    )
    judged = main_changes(rows)

    def of(row: Change) -> int:
        """Items of a score whose answer changes."""
        return sum(row.score in real[place] for place in changed)

    return {
        "reason": "",
        "items": len(places),
        "changed_answers": len(changed),
        "scores": [_change(row) for row in rows],
        "sentences": [
            blank_sentence(row, of(row)) if name == "blank" else control_sentence(row, _WORDS[name]) for row in judged
        ],
        "same": [same_on_blank(row, of(row)) for row in judged],
    }


_NO_CONTROL: dict[str, Any] = {"items": 0, "changed_answers": None, "scores": [], "sentences": [], "same": []}
_WORDS = {
    "majority": "for always giving the most frequent answer of the question",
    "shuffled": "with another patient's images",
    "text_only": "without any image",
}


def _comparison(inputs: Inputs, real: Sequence[Parts], name: str) -> dict[str, Any]:
    """The other model first, the evaluated one second."""
    test, others = inputs.test, inputs.others[name]
    rows = changes(
        answer_sums(test.examples, others), real, test.patients, seed=inputs.seed, resamples=inputs.resamples
    )
    right = [
        [is_right(example, answer) for example, answer in zip(test.examples, answers, strict=True)]
        for answers in (others, inputs.answers)
    ]
    alone = right_alone(*right)
    return {
        "with": name,
        "scores": [_change(row) for row in rows],
        "right_alone": dataclasses.asdict(alone),
        "sentences": [
            *(comparison_sentence(row, name, inputs.model["name"]) for row in main_changes(rows)),
            _mcnemar_sentence(alone, name, inputs.model["name"]),
        ],
    }


def _mcnemar_sentence(alone: RightAlone, first: str, second: str) -> str:
    verdict = "an uneven split that chance rarely makes" if alone.p < 0.05 else "as even as chance makes it"
    return (
        f"{alone.second} items are right with {second} alone and {alone.first} with {first} alone: {verdict} "
        f"(McNemar's exact p = {alone.p:.2g}, items taken as independent)."
    )


def _change(row: Change) -> dict[str, Any]:
    return {
        "score": row.score,
        "first": row.first,
        "second": row.second,
        "difference": row.difference.value,
        "low": row.difference.low,
        "high": row.difference.high,
        "real": row.real,
        "items": row.items,
        "patients": row.patients,
        "legacy": row.score.startswith(LEGACY),
    }


def _verdicts(
    inputs: Inputs, controls: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What a reader has to know before any number."""
    if not controls:
        found = ["No controls were run (--no-controls): nothing here shows whether the model uses the images."]
    else:
        found = [sentence for control in controls.values() for sentence in control["sentences"]]
        found += [f"No control {name}: {control['reason']}." for name, control in controls.items() if control["reason"]]
    return [*found, inputs.overlap.sentence(), *(said for other in comparisons for said in other["sentences"])]
