"""`fedmed evaluate` from the command line: two registered versions, a data set, and everything that is left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import fedmed

from aggregator.evaluating.evaluate import LOCK, Options, evaluate
from aggregator.registry import MemoryRegistry, MlflowRegistry, RunInfo, Version
from aggregator.registry.model_folder import write_manifest
from aggregator.runs.locks import hold
from fedmed.data.manifest import write_manifest as write_data
from fedmed.data.phantom import phantom_examples
from fedmed.errors import DataError, FederationError, ModelError, RegistryError
from fedmed.metrics import legacy
from fedmed.models.base import load_base
from fedmed.models.tiny import save


def publish(registry: MlflowRegistry | MemoryRegistry, folder: Path, key: str, *, blind: bool) -> Version:
    """fedmed-tiny as a version; a blind one's projector gives the same for every image."""
    base: Any = load_base("fedmed-tiny")
    if blind:
        with torch.no_grad():
            for name, weight in base.model.named_parameters():
                if "projector" in name and weight.dim() == 2:
                    weight.zero_()
    save(base.model, base.processor, folder / "merged")
    write_manifest(folder, {"data": {"source": "phantom", "split": "by patient"}})
    return registry.publish(folder, RunInfo("asked", key, key, tags={"run": key}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set: a manifest with a split to test on and one to draw examples from."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    examples = [
        *phantom_examples(14, 3, domain="hospital", split="test"),
        *phantom_examples(6, 3, domain="hospital", split="train"),
    ]
    write_data(folder, examples)
    return folder


def test_a_version_that_does_not_look_is_told_so(tmp_path: Path, site: Path, mlflow_registry: MlflowRegistry) -> None:
    registry = mlflow_registry
    publish(registry, tmp_path / "one", "run-1", blind=False)
    blind = publish(registry, tmp_path / "two", "run-2", blind=True)
    registry.set_alias(blind, "champion")
    out = tmp_path / "out"
    done = fedmed(
        "evaluate", "asked@champion", str(site), "--compare", "asked:1", "--shots", "1", "--out", str(out),
        "--uri", registry.uri, "--max-new-tokens", "6", "--resamples", "200", "--device", "cpu", "--no-model-scores",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "scores.json").read_text())

    assert "scores the same on blank images" in done.stdout
    blank = results["controls"]["blank"]
    assert blank["same"] == [True] * len(blank["same"]) and blank["changed_answers"] == 0
    assert results["controls"]["shuffled"]["changed_answers"] == 0
    assert (results["overlap"]["images"], results["overlap"]["in_train"]) == (14, 0)
    assert results["model"]["name"] == "asked:2" and results["model"]["asked"] == "asked@champion"
    assert results["comparisons"][0]["with"] == "asked:1" and results["comparisons"][0]["sentences"]
    assert results["generation"]["prompt"].count("<image>") == 2

    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    truths = json.loads((out / "questions.json").read_text())
    pairs = [
        (line["text"], truth["conversations"][1]["value"])
        for line, truth in zip(lines, truths, strict=True)
        if truth["answer_type"] == "CLOSED"
    ]
    right = [re.sub(r"\W+", " ", said).strip().lower() == true for said, true in pairs]
    assert results["scores"]["closed_accuracy"]["estimate"] == pytest.approx(sum(right) / len(right))
    published = results["scores"]["legacy_llava_med_closed"]["estimate"]
    assert published == pytest.approx(legacy.llava_med_closed(pairs))
    page = (out / "report.html").read_text()
    assert "scores the same on blank images" in page and "data:image/png;base64," in page

    _check_logged(registry, registry.get("asked:2"), results)


def _check_logged(registry: MlflowRegistry, version: Version, results: dict[str, Any]) -> None:
    place = "evaluations/phantoms-test-of-the-manifest-1shot"
    accuracy = results["scores"]["closed_accuracy"]
    assert version.tags[place].startswith(f"closed_accuracy {accuracy['estimate']:.4f} [{accuracy['low']:.4f}, ")
    with registry._store() as client:
        run = client.get_run(version.run_id)
        assert run.data.metrics[f"{place}/closed_accuracy"] == pytest.approx(accuracy["estimate"])
        files = {Path(item.path).name for item in client.list_artifacts(version.run_id, place)}
    assert files == {"predictions.jsonl", "questions.json", "candidates.json", "scores.json", "report.html"}


def test_the_same_evaluation_again_adds_nothing(tmp_path: Path, site: Path) -> None:
    registry = MemoryRegistry()
    version = publish(registry, tmp_path / "one", "run-1", blind=False)
    options = Options(limit=4, controls=False, resamples=100, max_new_tokens=4, model_scores=False, device="cpu")
    first = evaluate("asked:1", str(site), options, registry, tmp_path / "out")
    evaluate("asked:1", str(site), options, registry, tmp_path / "out")
    assert len(registry.measured) == 1
    place = "evaluations/phantoms-test-of-the-manifest-0shot-first4"  # a whole evaluation's place stays its own
    assert f"{place}/report.html" in registry.files[version.run_id] and place in registry.get("asked:1").tags
    assert first["controls"] is None and "--no-controls" in first["verdicts"][0]
    assert any("first 4 of" in note for note in first["data"]["notes"])


def test_an_end_that_fails_leaves_no_scores_of_other_answers(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = MemoryRegistry()
    publish(registry, tmp_path / "one", "run-1", blind=False)
    options = Options(limit=2, controls=False, resamples=100, max_new_tokens=2, model_scores=False, device="cpu")
    out = tmp_path / "out"

    def refuse(*given: object) -> None:
        raise RegistryError("the store is full")

    monkeypatch.setattr(registry, "measure", refuse)
    with pytest.raises(RegistryError, match="out, but not logged: the store is full"):
        evaluate("asked:1", str(site), options, registry, out)
    assert (out / "scores.json").is_file()

    def full(*given: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aggregator.evaluating.evaluate.write_json", full)
    with pytest.raises(OSError, match="No space"):
        evaluate("asked:1", str(site), options, registry, out)
    assert (out / "predictions.jsonl").is_file() and not (out / "scores.json").exists()
    assert not (out / "report.html").exists()


def test_a_folder_is_evaluated_and_nothing_is_logged(tmp_path: Path, site: Path) -> None:
    registry = MemoryRegistry()
    publish(registry, tmp_path / "one", "run-1", blind=False)
    registry.down = True
    options = Options(limit=2, controls=False, resamples=100, max_new_tokens=2, model_scores=False, device="cpu")
    found = evaluate(str(tmp_path / "one"), str(site), options, registry, tmp_path / "out")
    assert not found["model"]["registered"] and found["model"]["trained_on"]["source"] == "phantom"


@pytest.mark.parametrize("mistake", ["compare", "folder", "beside"])
def test_what_would_spoil_the_end_is_told_before_a_question_is_asked(
    tmp_path: Path, site: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*given: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr("aggregator.evaluating.evaluate.opened", ask)
    out = tmp_path / "out"
    options = Options(compare=("asked@nobody",) if mistake == "compare" else ())
    if mistake == "folder":
        out.write_text("a file in its place")
    expected = {"compare": RegistryError, "folder": FileExistsError, "beside": FederationError}[mistake]
    if mistake == "beside":
        out.mkdir()
    other = hold(out / LOCK, "another evaluation") if mistake == "beside" else contextlib.nullcontext()
    with other, pytest.raises(expected):
        evaluate("fedmed-tiny", str(site), options, MemoryRegistry(), out)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["evaluate", "nosuch", "phantom"], ModelError.exit_code, "model 'nosuch' is neither NAME@ALIAS"),
        (["evaluate", "fedmed-tiny", "nosuch"], DataError.exit_code, "no data set 'nosuch'"),
        (["evaluate", "fedmed-tiny", "phantom", "--split", "final"], DataError.exit_code, "split 'final'"),
    ],
)
def test_a_mistake_is_two_lines_and_a_code(arguments: list[str], code: int, said: str) -> None:
    done = fedmed(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
