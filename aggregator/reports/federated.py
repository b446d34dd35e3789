"""The report's `federated_evaluation`: what the hospitals' held-out patients say of the final adapter. See docs/report.md.

    EvaluationRecord -> {scores: [{name, value, error, worst_site, sites: [...]}], left_out, ...}, or None

| case                                    | in the report                                              |
| --------------------------------------- | ---------------------------------------------------------- |
| too few to tell, of a site or of all    | `value`, `error` and `patients` null: never a number       |
| fewer than two sites can be told        | `worst_site`, `worst`, `worst_error` null                  |
| without privacy                         | `epsilon` null, `error` 0                                  |
"""

from __future__ import annotations

import math
from typing import Any

from aggregator.rounds.evaluation import EvaluationRecord, ToldScore, told_scores
from fedmed.privacy.patient_scores import Told


def federated_section(record: EvaluationRecord | None) -> dict[str, Any] | None:
    """As plain JSON types; None where there was no evaluation."""
    if record is None:
        return None
    return {
        "round": record.round,
        "noise_multiplier": round(record.noise_multiplier, 6),
        "epsilon": None if record.epsilon is None else math.ceil(record.epsilon * 1e4 - 1e-6) / 1e4,
        "delta": record.delta,
        "replies": len(record.replies),
        "left_out": dict(record.left_out),
        "scores": [_score(item) for item in told_scores(record)],
    }


def _score(item: ToldScore) -> dict[str, Any]:
    worst = _told(item.sites[item.worst]) if item.worst else {"value": None, "error": None}
    return {
        "name": item.name,
        **_told(item.all),
        "worst_site": item.worst or None,
        "worst": worst["value"],
        "worst_error": worst["error"],
        "sites": [{"site": site, **_told(own)} for site, own in item.sites.items()],
    }


def _told(own: Told) -> dict[str, Any]:
    """`patients`: as the noisy weight has them."""
    if own.value is None or own.error is None:
        return {"value": None, "error": None, "patients": None}
    return {"value": round(own.value, 4), "error": round(own.error, 4), "patients": round(own.weight, 1)}
