"""What each answer gives to each score: of every task the published scores beside the ones to report. Pure.

    >>> parts = answer_sums([closed_question], ["no"])                     # its truth: "yes"
    >>> parts[0]["closed_accuracy"], parts[0]["legacy_llava_med_closed"]   # wrong; and not counted at all
    ((0.0, 1.0), (0.0, 0.0))

| items                    | to report                                          | published, `legacy_...`                      |
| ------------------------ | -------------------------------------------------- | -------------------------------------------- |
| all                      | exact_match                                        |                                              |
| closed questions         | closed_accuracy                                    | llava_med_closed, prefix_accuracy            |
| open questions,          | open_recall, open_f1, bleu1 to 4; of instructions  | llava_med_recall, _precision, _f1, _bleu,    |
| instructions, tools      | rougeL                                             | _exact_match, _bleu1 to 3, _open_accuracy;   |
|                          |                                                    | prefix_bleu1, prefix_accuracy                |
| multiple choice          | choice_accuracy                                    | pmc_vqa_choice, pmc_vqa_letter,              |
|                          |                                                    | pmc_vqa_last_character                       |
| tool dialogues           | tool_readable, tool_accuracy, tool_answer_f1,      |                                              |
|                          | tool_arguments_valid, tool_arguments_equal         |                                              |
| reports, captions        | bleu1 to 4, rouge1, rouge2, rougeL, cider_d,       | coco_bleu1 to 4, coco_rouge_l                |
|                          | rouge_l_med, rouge_w_med, rouge_s_med, finding_f1, |                                              |
|                          | finding_absent_f1                                  |                                              |

`legacy_pmc_vqa_last_character` is missing for an empty answer: the published program ends there with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedmed.data.schema import Example
from fedmed.errors import DataError
from fedmed.metrics import legacy, legacy_coco
from fedmed.metrics.choices import choice_of
from fedmed.metrics.cider import cider_d
from fedmed.metrics.findings import OBSERVATIONS, findings
from fedmed.metrics.rouge_med import rouge_l_med, rouge_s_med, rouge_w_med
from fedmed.metrics.scores import exact_match, token_f1, token_recall
from fedmed.metrics.sums import F1, MEAN, RATIO_OR_ZERO, Kind, Sums
from fedmed.metrics.text import BLEU_ORDERS, bleu_of, bleu_sums, each_rouge
from fedmed.metrics.tools import tool_scores

LEGACY = "legacy_"
Parts = dict[str, Sums]
REPORTS = ("report", "caption")
# What a model is judged by, and an item by the first of these that it has and that is a mean. Of a report the findings come
# before rougeL, which hardly moves where a negation is lost.
MAIN = ("choice_accuracy", "closed_accuracy", "tool_accuracy", "open_f1", "finding_f1", "rougeL")
# Published score -> the one to report in its place.
CORRECTED = {
    "legacy_llava_med_closed": "closed_accuracy",
    "legacy_llava_med_recall": "open_recall",
    "legacy_llava_med_precision": "open_f1",
    "legacy_llava_med_f1": "open_f1",
    "legacy_llava_med_exact_match": "exact_match",
    "legacy_llava_med_open_accuracy": "exact_match",
    "legacy_llava_med_bleu": "bleu4",
    "legacy_llava_med_bleu1": "bleu1",
    "legacy_llava_med_bleu2": "bleu2",
    "legacy_llava_med_bleu3": "bleu3",
    "legacy_pmc_vqa_choice": "choice_accuracy",
    "legacy_pmc_vqa_letter": "choice_accuracy",
    "legacy_pmc_vqa_last_character": "choice_accuracy",
    "legacy_prefix_accuracy": "exact_match",
    "legacy_prefix_bleu1": "bleu1",
    "legacy_coco_rouge_l": "rougeL",
    **{f"legacy_coco_bleu{order}": f"bleu{order}" for order in BLEU_ORDERS},
}


def _kinds() -> dict[str, Kind]:
    def bleu(name: str, of: Callable[[Sequence[float], int], float], order: int) -> Kind:
        return Kind(name, lambda sums: of(sums, order))

    kinds = {"finding_f1": F1, "finding_absent_f1": F1, "legacy_llava_med_closed": RATIO_OR_ZERO}
    for order in BLEU_ORDERS:
        kinds[f"bleu{order}"] = bleu("bleu", bleu_of, order)
        kinds[f"legacy_coco_bleu{order}"] = bleu("coco_bleu", legacy_coco.coco_bleu, order)
    return kinds


_KINDS = _kinds()


def kind_of(score: str) -> Kind:
    """How a score's sums make it: a mean, unless it is pooled over all items."""
    return _KINDS.get(score, MEAN)


def answer_sums(examples: Sequence[Example], answers: Sequence[str]) -> list[Parts]:
    """Of each answer, score -> what it gives to that score's sums (fedmed.metrics.sums).

    Raises:
        DataError: no examples, or another number of answers.
    """
    if not examples or len(examples) != len(answers):
        raise DataError(f"{len(answers)} answers for {len(examples)} examples, expected one each, and at least one")
    pairs = list(zip(examples, answers, strict=True))
    candidates = sorted({example.answer for example in examples if _is_open(example)})
    found = [_parts(example, answer, candidates) for example, answer in pairs]
    reports = [place for place, example in enumerate(examples) if example.task in REPORTS]
    texts, truths = [answers[place] for place in reports], [[examples[place].answer] for place in reports]
    for place, cider in zip(reports, cider_d(texts, truths), strict=True):
        found[place]["cider_d"] = _mean(cider)
    return found


def main_score(parts: Parts) -> tuple[str, float]:
    """(score, value) that an item is judged by: the first of MAIN that is a mean."""
    name = next(name for name in MAIN if name in parts and kind_of(name) is MEAN)
    return name, parts[name][0]


def is_right(example: Example, answer: str) -> bool:
    """Whether an answer counts as right where only right and wrong are asked: McNemar's test, and the table of errors."""
    if example.choices:
        return choice_of(answer, example.choices) == example.choices.index(example.answer)
    return exact_match(answer, example.answer)


def _parts(example: Example, answer: str, candidates: Sequence[str]) -> Parts:
    truth = example.answer
    found = {"exact_match": _mean(exact_match(answer, truth))}
    if example.choices:
        return found | _choice(example, answer)
    if example.task in REPORTS:
        return found | _text(answer, truth) | _report(answer, truth)
    if example.answer_type == "closed":
        return found | _closed(answer, truth)
    rouges = ("rougeL",) if example.task == "instruct" else ()
    found |= _text(answer, truth, rouges) | _open(answer, truth, candidates)
    return found | _tool(answer, truth) if example.task == "tool" else found


def _is_open(example: Example) -> bool:
    return example.answer_type == "open" and not example.choices and example.task not in REPORTS


def _choice(example: Example, answer: str) -> Parts:
    lettered = [f"{chr(ord('A') + place)}: {choice}" for place, choice in enumerate(example.choices)]
    place = example.choices.index(example.answer)
    truth = lettered[place]
    found = {
        "choice_accuracy": _mean(is_right(example, answer)),
        "legacy_pmc_vqa_choice": _mean(legacy.pmc_vqa_choice(answer, truth, lettered)),
        "legacy_pmc_vqa_letter": _mean(legacy.pmc_vqa_letter(answer, place, len(lettered))),
    }
    if answer:
        found["legacy_pmc_vqa_last_character"] = _mean(legacy.pmc_vqa_last_character(answer, truth, lettered))
    return found


def _closed(answer: str, truth: str) -> Parts:
    counted, hit = _llava_med_closed(answer, truth)
    return {
        "closed_accuracy": _mean(exact_match(answer, truth)),
        "legacy_llava_med_closed": (hit, counted),
        "legacy_prefix_accuracy": _mean(legacy.prefix_accuracy(answer, truth)),
    }


def _llava_med_closed(answer: str, truth: str) -> tuple[float, float]:
    """(counted, hit) of one pair: `legacy.llava_med_closed` is hits over counted."""
    hit = legacy.llava_med_closed([(answer, truth)])
    # A pair that is not counted adds nothing to the published list; one that is wrong and counted halves a hit beside it.
    beside = legacy.llava_med_closed([("yes", "yes"), (answer, truth)])
    return (1.0, hit) if hit or beside < 1 else (0.0, 0.0)


def _open(answer: str, truth: str, candidates: Sequence[str]) -> Parts:
    f1, precision, recall = legacy.llava_med_f1(answer, truth)
    values = {
        "open_recall": token_recall(answer, truth),
        "open_f1": token_f1(answer, truth),
        "legacy_llava_med_f1": f1,
        "legacy_llava_med_precision": precision,
        "legacy_llava_med_recall": recall,
        "legacy_llava_med_exact_match": legacy.llava_med_exact_match(answer, truth),
        "legacy_llava_med_open_accuracy": legacy.llava_med_open_accuracy(answer, truth, candidates),
        "legacy_llava_med_bleu": legacy.llava_med_bleu(answer, truth),
        **{f"legacy_llava_med_bleu{order}": legacy.llava_med_bleu(answer, truth, order) for order in (1, 2, 3)},
        "legacy_prefix_bleu1": legacy.prefix_bleu1(answer, truth),
        "legacy_prefix_accuracy": legacy.prefix_accuracy(answer, truth),
    }
    return {name: _mean(value) for name, value in values.items()}


def _tool(answer: str, truth: str) -> Parts:
    """fedmed.metrics.tools of one turn; nothing where the truth is no turn."""
    try:
        scores = tool_scores([answer], [truth])
    except DataError:
        return {}
    values = {
        "tool_readable": scores.readable,
        "tool_accuracy": scores.tool_accuracy,
        "tool_arguments_valid": scores.arguments_valid,
        "tool_arguments_equal": scores.arguments_equal,
        "tool_answer_f1": scores.answer_f1,
    }
    return {name: _mean(value) for name, value in values.items() if value is not None}


def _text(answer: str, truth: str, rouges: Sequence[str] = ("rouge1", "rouge2", "rougeL")) -> Parts:
    sums = bleu_sums(answer, truth)
    rouge = each_rouge([answer], [[truth]])[0] if rouges else {}
    return {f"bleu{order}": sums for order in BLEU_ORDERS} | {name: _mean(rouge[name]) for name in rouges}


def _report(answer: str, truth: str) -> Parts:
    said, true = findings(answer), findings(truth)
    coco = legacy_coco.coco_bleu_sums(answer, truth)
    return {
        "rouge_l_med": _mean(rouge_l_med(answer, truth)),
        "rouge_w_med": _mean(rouge_w_med(answer, truth)),
        "rouge_s_med": _mean(rouge_s_med(answer, truth)),
        "finding_f1": _agreement(said, true, "present"),
        "finding_absent_f1": _agreement(said, true, "absent"),
        "legacy_coco_rouge_l": _mean(legacy_coco.coco_rouge_l(answer, truth)),
        **{f"legacy_coco_bleu{order}": coco for order in BLEU_ORDERS},
    }


def _agreement(said: dict[str, str], true: dict[str, str], assertion: str) -> Sums:
    """(both, said, true) over the findings: the sums of F1."""
    mine, theirs = ({name for name in OBSERVATIONS if known.get(name) == assertion} for known in (said, true))
    return float(len(mine & theirs)), float(len(mine)), float(len(theirs))


def _mean(value: float) -> Sums:
    return float(value), 1.0
