"""A round's selection of records. In: a site's examples by patient; out: of each patient the records that may be drawn.

| the selection                  | what a patient offers to the draw                                                  |
| ------------------------------ | ---------------------------------------------------------------------------------- |
| tasks, sources                 | records of one of these                                                            |
| max_difficulty, grading `text` | records of at most that grade (fedmed.data.difficulty)                             |
| max_difficulty, grading `loss` | the same by the mean loss of an answer token under the present adapter, measured   |
|                                | when the patient is drawn: below 0.5 nats grade 1, below 1, 2 and 4 grades 2 to 4  |
| easiest_share below 1          | records among that share of the site's, by `effort`; only without privacy          |
| nothing left                   | the patient can be drawn and adds nothing: who is drawn does not depend on records |

Why this costs no privacy, and what is refused: fedmed.privacy.selection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from fedmed.data.collate import IGNORE, Batch
from fedmed.data.difficulty import HARDEST, difficulty, effort
from fedmed.data.schema import Example
from fedmed.errors import PrivacyError
from fedmed.messages import PrivacySpec, Selection
from fedmed.privacy.selection import selection_problems
from fedmed.training.answers import answer_logits

LOSS_GRADES = (0.5, 1.0, 2.0, 4.0)  # nats a token: below the first is grade 1, from the last on 5
LOSS_BATCH = 16  # records in a forward pass before training has chosen a physical batch


def require_selection(selection: Selection, privacy: PrivacySpec) -> None:
    """Raises PrivacyError for what `selection_problems` names."""
    if problems := selection_problems(selection, privacy.mode):
        raise PrivacyError(f"selection: {problems[0]}")


def selected_records(
    examples: Sequence[Example], patients: Sequence[Sequence[int]], selection: Selection
) -> tuple[tuple[int, ...], ...]:
    """Of each patient the indices of the records that may be drawn; the loss is not looked at here."""
    if selection == Selection():
        return tuple(tuple(own) for own in patients)
    chosen = {index for index, example in enumerate(examples) if _is_chosen(example, selection)}
    if selection.easiest_share < 1:
        ordered = sorted(chosen, key=lambda index: (effort(examples[index]), index))
        chosen = set(ordered[: math.ceil(selection.easiest_share * len(ordered))])
    return tuple(tuple(index for index in own if index in chosen) for own in patients)


def easy_by_loss(
    model: nn.Module, batch: Batch, precision: str, records: Sequence[int], max_difficulty: int
) -> set[int]:
    """Those of `records` [B], the rows of `batch`, whose grade by loss is at most `max_difficulty`."""
    with torch.inference_mode():
        logits, targets = answer_logits(model, batch, precision)
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        means = losses.sum(dim=1) / (targets != IGNORE).sum(dim=1).clamp(min=1)
    most = LOSS_GRADES[max_difficulty - 1] if max_difficulty < HARDEST else math.inf
    return {record for record, mean in zip(records, means.tolist(), strict=True) if mean < most}


def _is_chosen(example: Example, selection: Selection) -> bool:
    return (
        (not selection.tasks or example.task in selection.tasks)
        and (not selection.sources or example.source in selection.sources)
        and (selection.grading != "text" or difficulty(example) <= selection.max_difficulty)
    )
