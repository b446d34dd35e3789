"""Patients who are not trained on, for evaluations: `held_out` of site.yaml. A cohort of their own, with a budget of its own.

    site.yaml, manifests -> load_held_out -> Manifest, or None where the site has none -> HeldOut, for Site

| case                                        | what happens                                                              |
| ------------------------------------------- | ------------------------------------------------------------------------- |
| held_out: ""                                | an evaluate task is refused                                               |
| a patient of the training manifest is in it | DataError saying how many: neither `check` nor `start` goes on            |
| its name in the ledger                      | COHORT.held_out, which no cohort of site.yaml can be called               |
| a patient who was trained on earlier        | what was spent then counts (hospital_client.membership); `check` tells it |
| a patient who is trained on later           | what the evaluation spent counts                                          |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedmed.data.manifest import Manifest, load_manifest
from fedmed.errors import DataError
from fedmed.held_out_plan import SUFFIX
from fedmed.messages import EvaluateTask
from fedmed.privacy.patient_scores import NoisyScores
from hospital_client.cohort import Cohort
from hospital_client.settings import SiteFolder

Score = Callable[[Callable[[], bool]], NoisyScores]


class Evaluator(Protocol):
    """Scores an adapter. hospital_client.trainer holds the real one; tests bring their own."""

    def prepare_evaluation(self, task: EvaluateTask, payload: memoryview) -> Score:
        """Everything that can be checked without the data; the returned call reads it and gives the noisy sums.

        Raises:
            TaskMismatch: base model, frozen tensors, keys or shapes are not the site's.
            WireError: the payload is not an adapter.

        The returned call takes `should_stop` and raises FederationError when that told it to stop.
        """
        ...


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out patients of a site, and who scores their answers."""

    cohort: Cohort
    evaluator: Evaluator

    @classmethod
    def of(cls, folder: SiteFolder, manifest: Manifest | None, evaluator: Evaluator) -> HeldOut | None:
        """None where the site has no held-out manifest."""
        if manifest is None:
            return None
        return cls(Cohort.of(cohort_name(folder), manifest, folder.key), evaluator)


def cohort_name(folder: SiteFolder) -> str:
    """Of the held-out patients, in the ledger."""
    return folder.settings.cohort + SUFFIX


def load_held_out(folder: SiteFolder, training: Manifest) -> Manifest | None:
    """The held-out manifest, None where site.yaml names none.

    Raises:
        DataError: as `load_manifest`, or it holds patients of the training manifest.
    """
    if folder.held_out is None:
        return None
    manifest = load_manifest(folder.held_out)
    members = frozenset(manifest.pseudonyms(folder.key))
    if common := len(members & frozenset(training.pseudonyms(folder.key))):
        raise DataError(
            f"held_out: {common} of its {len(members)} patients are in the training manifest too, expected none",
            "import them into one of the two: scores of patients who were trained on say nothing",
        )
    return manifest
