"""How well a model answers a site's held-out patients. In: a model, patients; out: one PatientScores each, which do not leave.

    manifest -> greedy answers -> each item's scores -> mean over the patient's items -> fedmed.privacy.patient_scores -> noisy sums

| score                  | of an item                                            | items that have it                        |
| ---------------------- | ----------------------------------------------------- | ----------------------------------------- |
| exact_match            | the same answer, as fedmed.metrics.scores compares    | all                                       |
| closed_accuracy        | the same                                              | closed questions                          |
| open_recall, open_f1   | share of the truth's tokens; token F1                 | open questions, instructions, tools       |
| choice_accuracy        | the right choice is named (fedmed.metrics.choices)    | multiple choice                           |
| finding_f1             | F1 of the findings that are present, pooled           | reports and captions                      |

Every patient counts once, however many items it has. finding_f1 pools findings, not patients: a patient's value is F1 over its
reports, its weight the number of findings a report (the mean of those said and those true) over MOST_FINDINGS, at most 1. Where
no patient has more findings, the federated score is the F1 of all patients' mean counts; one with more is scaled down to that.

| case                                     | what holds                                                                  |
| ---------------------------------------- | --------------------------------------------------------------------------- |
| consent withdrawn, before or meanwhile   | the patient is left out                                                     |
| out of memory                            | the same part again in smaller batches; answers do not depend on it         |
| a question too long for the model, with  | the item is answered with nothing: a failure would tell that somebody has it |
| max_new_tokens of answer after it        |                                                                             |
| stopped                                  | FederationError, nothing leaves                                             |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from torch import nn
from transformers import ProcessorMixin

from fedmed.data.collate import MAX_LENGTH, TooLongError
from fedmed.data.manifest import Manifest
from fedmed.data.schema import Example
from fedmed.errors import FederationError
from fedmed.metrics.choices import choice_of
from fedmed.metrics.findings import OBSERVATIONS, findings
from fedmed.metrics.scores import exact_match, token_f1, token_recall
from fedmed.models.base import positions_of
from fedmed.privacy.patient_scores import PatientScores
from fedmed.training.device_memory import PhysicalBatch
from fedmed.training.evaluate import generate_answers

# Findings of a report with which a patient counts whole. More of them would drown the others, or ask for more noise for all.
MOST_FINDINGS = 4
_REPORTS = ("report", "caption")
_BATCH = 16


def score_patients(
    model: nn.Module,
    processor: ProcessorMixin,
    manifest: Manifest,
    *,
    batch: PhysicalBatch,
    max_new_tokens: int,
    should_stop: Callable[[], bool] = bool,
    withdrawn: Callable[[], Collection[int]] = frozenset,
) -> list[PatientScores]:
    """Of every patient of the manifest who is not withdrawn.

    Args:
        batch: items in a forward pass; one that is not chosen yet stays so.
        withdrawn: indices into `manifest.patients`; asked before and after, may raise.

    Raises:
        FederationError: `should_stop` said so, before a forward pass.
        DataError: an image is gone since the manifest was read.
    """
    gone = set(withdrawn())
    wanted = [index for place, patient in enumerate(manifest.patients) if place not in gone for index in patient]
    used = batch if batch.size else PhysicalBatch(_BATCH)
    ask = partial(_answers, model, processor, manifest, used, max_new_tokens)
    answers: dict[int, str] = {}
    # Not in one batch: there a prompt that is too long would be cut, and alone it is answered with nothing.
    for with_images in (True, False):
        left = [index for index in wanted if bool(manifest.examples[index].images) is with_images]
        while left:
            if should_stop():
                raise FederationError("the evaluation was stopped", "what it had reserved stays spent")
            part, left = left[: used.size], left[used.size :]
            answers |= zip(part, ask(part), strict=True)
    gone |= set(withdrawn())
    return [
        patient_scores([manifest.examples[index] for index in patient], [answers[index] for index in patient])
        for place, patient in enumerate(manifest.patients)
        if place not in gone
    ]


def patient_scores(examples: Sequence[Example], answers: Sequence[str]) -> PatientScores:
    """One patient's scores, of all its items and the answers to them."""
    items = [item_scores(example, given) for example, given in zip(examples, answers, strict=True)]
    means = {
        name: _mean([item[name] for item in items if name in item]) for name in {key for item in items for key in item}
    }
    kinds = {_group(example) for example in examples}
    weights = {"all": 1.0, **{kind: 1.0 for kind in kinds if kind != "findings"}}
    if "findings" in kinds:
        counts = [
            _finding_counts(example, given)
            for example, given in zip(examples, answers, strict=True)
            if _is_report(example)
        ]
        both, known = (math.fsum(column) for column in zip(*counts, strict=True))
        weights["findings"] = min(1.0, known / len(counts) / MOST_FINDINGS)
        means["finding_f1"] = both / known if known else 0.0
    return PatientScores(means, weights)


def item_scores(example: Example, given: str) -> Mapping[str, float]:
    """Score -> value in [0, 1], of the scores that are means over items."""
    truth = example.answer
    found = {"exact_match": float(exact_match(given, truth))}
    match _group(example):
        case "choice":
            found["choice_accuracy"] = float(choice_of(given, example.choices) == example.choices.index(truth))
        case "closed":
            found["closed_accuracy"] = found["exact_match"]
        case "open":
            found |= {"open_recall": token_recall(given, truth), "open_f1": token_f1(given, truth)}
    return found


def _group(example: Example) -> str:
    """The group of fedmed.privacy.patient_scores that the item belongs to beside `all`."""
    if example.choices:
        return "choice"
    return "findings" if _is_report(example) else example.answer_type


def _is_report(example: Example) -> bool:
    return example.task in _REPORTS and not example.choices


def _finding_counts(example: Example, given: str) -> tuple[int, float]:
    """Findings that both texts say are present, and the mean of those that either says."""
    said, true = findings(given), findings(example.answer)
    mine, theirs = ({name for name in OBSERVATIONS if known.get(name) == "present"} for known in (said, true))
    return len(mine & theirs), (len(mine) + len(theirs)) / 2


def _answers(
    model: nn.Module,
    processor: ProcessorMixin,
    manifest: Manifest,
    batch: PhysicalBatch,
    max_new_tokens: int,
    part: Sequence[int],
) -> list[str]:
    longest = min(MAX_LENGTH, positions_of(model) - max_new_tokens)
    examples = [manifest.examples[index] for index in part]
    images = [manifest.images(example) for example in examples]
    try:
        return batch.within_memory(
            lambda: generate_answers(
                model,
                processor,
                examples,
                images,
                batch_size=batch.size,
                max_new_tokens=max_new_tokens,
                max_length=longest,
            )
        )
    except TooLongError:
        if len(part) == 1:
            return [""]
    return [_answers(model, processor, manifest, batch, max_new_tokens, [one])[0] for one in part]


def _mean(values: Sequence[float]) -> float:
    return min(1.0, math.fsum(values) / len(values))
