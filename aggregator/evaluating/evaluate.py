"""`fedmed evaluate`: a model and a data set in; predictions, scores, a page, and the numbers at the model's version out.

    evaluate("fedmed@champion", "vqa_rad", Options(), registry, Path("runs/evaluations/champion"))

| in the folder                                     | is                                                          |
| ------------------------------------------------- | ----------------------------------------------------------- |
| predictions.jsonl, questions.json, candidates.json | the answers, as LLaVA-Med's evaluator reads them            |
| scores.json                                       | every number (docs/evaluation.md)                           |
| report.html                                       | the same for a person, with the worst errors                |

The model is asked once for its scores and three times more for its controls; every model that it is compared with once.

| what happens                                        | what comes of it                                                     |
| --------------------------------------------------- | -------------------------------------------------------------------- |
| a model, data set or folder that cannot be had      | told before a question is asked, --compare's models too              |
| another evaluation writes into the folder           | FederationError, also before: it names the process                   |
| stopped or killed before the end                    | the folder has the files that it had; nothing is logged              |
| the disk is full at the end                         | OSError; no scores.json, rather than one of other answers            |
| the store does not take the numbers at the end      | RegistryError; the files are in the folder, the same again logs them |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aggregator.evaluating.answering import GREY, Asker
from aggregator.evaluating.dataset import TestSet, load_test_set
from aggregator.evaluating.few_shot import with_shots
from aggregator.evaluating.model import Candidate, is_registered, opened
from aggregator.evaluating.model_scores import OF_OPEN, OF_REPORTS, Unavailable, model_scores
from aggregator.evaluating.overlap import overlap
from aggregator.evaluating.page import render_page
from aggregator.evaluating.predictions import write_predictions
from aggregator.evaluating.record import log_results
from aggregator.evaluating.results import Inputs, build_results, scored_parts
from aggregator.evaluating.worst import worst_errors
from aggregator.registry import Registry
from aggregator.runs.locks import hold
from fedmed.errors import DataError, ModelError, RegistryError
from fedmed.files import write_atomic, write_json
from fedmed.metrics.answers import REPORTS
from fedmed.metrics.controls import CONTROLS
from fedmed.metrics.medical_terms import LEXICON_VERSION
from fedmed.metrics.sums import RESAMPLES

SCORES, REPORT, LOCK = "scores.json", "report.html", "evaluation.lock"
LIKELIEST = "choice_likelihood_accuracy"
MAX_ERRORS = 12
Extra = dict[str, Mapping[int, float] | float | Unavailable]


@dataclass(frozen=True, slots=True)
class Options:
    """How to evaluate.

    Attributes:
        split, split_rule, limit: see load_test_set.
        shots: answered examples before each question.
        seed: of phantoms, examples in the prompt, shuffled images and resamples.
        controls: whether to ask three times more.
        compare: models to compare with, as MODEL is given.
        model_scores: whether scores that need a model of their own are tried.
    """

    split: str = "test"
    split_rule: str = "official"
    limit: int = 0
    shots: int = 0
    seed: int = 0
    controls: bool = True
    compare: tuple[str, ...] = ()
    device: str = "auto"
    batch_size: int = 32
    max_new_tokens: int = 64
    resamples: int = RESAMPLES
    model_scores: bool = True


def evaluate(
    model: str,
    dataset: str,
    options: Options,
    registry: Registry,
    out: Path,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the files of the table into `out`, logs them to the model's version, and returns what scores.json holds.

    Args:
        model: see aggregator.evaluating.model. dataset: see aggregator.evaluating.dataset.
        say: told what is being done.

    Raises:
        DataError, ModelError, RegistryError: what was asked for is missing, or a model does not take these questions.
        FederationError: another evaluation writes into `out`.
        OSError: the disk does not take it.
    """
    for each in (model, *options.compare):
        if is_registered(each):
            registry.get(each)
    test = load_test_set(
        dataset, split=options.split, split_rule=options.split_rule, limit=options.limit, seed=options.seed
    )
    asked = with_shots(test, options.shots, options.seed)
    asker = Asker(test, asked, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    with hold(out / LOCK, "another evaluation", hint="wait for it, or name another folder with --out"):
        return _evaluated(model, test, asker, options, registry, out, say)


def _evaluated(
    model: str,
    test: TestSet,
    asker: Asker,
    options: Options,
    registry: Registry,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    with opened(model, registry, options.device) as candidate:
        say(f"asking {candidate.name}: {len(test.examples)} questions of {test.name}")
        answers = asker.answers(candidate.base)
        controls = _controls(asker, candidate, options, say) if options.controls else {}
        likeliest = asker.likeliest_right(candidate.base)
        facts, generation = _model_facts(candidate), _generation(asker, candidate, options)
        version = candidate.version
    inputs = Inputs(
        model=facts,
        generation=generation,
        test=test,
        answers=answers,
        overlap=overlap(test),
        controls=controls,
        others=_others(asker, facts, options, registry, say),
        extra=(_extra(test, answers) if options.model_scores else {}) | ({LIKELIEST: likeliest} if likeliest else {}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=options.seed,
        resamples=options.resamples,
    )
    say("scoring")
    results = build_results(inputs)
    files = _write(out, inputs, results)
    if version is not None:
        try:
            log_results(registry, version, results, files)
        except RegistryError as error:
            raise RegistryError(
                f"the evaluation is in {out}, but not logged: {error.message}",
                "mend the store, then give the command again: it asks anew",
            ) from error
    return results


def _controls(
    asker: Asker, candidate: Candidate, options: Options, say: Callable[[str], None]
) -> dict[str, Sequence[str | None] | str]:
    """Answers under each control; where a model does not take prompts of such a kind, its reason."""
    found: dict[str, Sequence[str | None] | str] = {}
    for control in CONTROLS:
        say(f"control: {control}")
        try:
            found[control] = asker.control(candidate.base, control, options.seed)
        except (ModelError, DataError) as error:
            found[control] = error.message
    return found


def _others(
    asker: Asker, facts: Mapping[str, Any], options: Options, registry: Registry, say: Callable[[str], None]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for other in options.compare:
        with opened(other, registry, options.device) as candidate:
            name = candidate.name if candidate.name not in (facts["name"], *found) else f"{candidate.name} (again)"
            say(f"asking {name} for comparison")
            found[name] = asker.answers(candidate.base)
    return found


def _extra(test: TestSet, answers: Sequence[str]) -> Extra:
    """model_scores of open answers and of reports, by the place of the item."""
    found: Extra = {}
    for names, places in (
        (OF_OPEN, [place for place, example in enumerate(test.examples) if example.answer_type == "open"]),
        (OF_REPORTS, [place for place, example in enumerate(test.examples) if example.task in REPORTS]),
    ):
        names = tuple(name for name in names if name not in found)
        if places and names:
            texts, truths = [answers[place] for place in places], [test.examples[place].answer for place in places]
            for name, values in model_scores(texts, truths, names).items():
                whole = isinstance(values, float | Unavailable)
                found[name] = values if whole else dict(zip(places, values, strict=True))  # type: ignore[arg-type, assignment]
    return found


def _model_facts(candidate: Candidate) -> dict[str, Any]:
    version = candidate.version
    return {
        "name": candidate.name,
        "asked": candidate.asked,
        "sha256": candidate.base.sha256,
        "registered": version is not None,
        "run_id": version.run_id if version else "",
        "trained_on": candidate.manifest.get("data", {}),
    }


def _generation(asker: Asker, candidate: Candidate, options: Options) -> dict[str, Any]:
    return {
        "decoding": "greedy",
        "max_new_tokens": options.max_new_tokens,
        "shots": options.shots,
        "blank": list(GREY),
        "lexicon_version": LEXICON_VERSION,
        "prompt": asker.prompt(candidate.base),
    }


def _write(out: Path, inputs: Inputs, results: Mapping[str, Any]) -> list[Path]:
    """For the owner alone: predictions and worst errors show what the data set holds."""
    for name in (SCORES, REPORT):
        (out / name).unlink(missing_ok=True)  # an earlier evaluation's beside these answers, were the disk full now
    files = write_predictions(out, inputs.test, inputs.answers, inputs.model["name"])
    write_json(out / SCORES, results, mode=0o600)
    errors = worst_errors(inputs.test, inputs.answers, scored_parts(inputs), count=MAX_ERRORS, seed=inputs.seed)
    write_atomic(out / REPORT, render_page(results, errors).encode())
    return [*files, out / SCORES, out / REPORT]
