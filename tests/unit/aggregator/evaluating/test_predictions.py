"""The files of answers: LLaVA-Med's evaluating loop, written anew, finds in them the published scores of scores.json."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers_evaluation import image, inputs, made_set, question

from aggregator.evaluating.predictions import write_predictions
from aggregator.evaluating.results import build_results
from fedmed.metrics import legacy

FIELDS = {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}


def published_scores(folder: Path) -> dict[str, float]:
    """What run_eval.py of LLaVA-Med 1.0 makes of the three files: lists of hits, with a wrong yes or no in none."""
    truths = json.loads((folder / "questions.json").read_text())
    candidates = json.loads((folder / "candidates.json").read_text())["0"]
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [truth["id"] for truth in truths] == [line["question_id"] for line in lines]
    closed: list[int] = []
    opened: dict[str, list[float]] = {"exact": [], "f1": [], "recall": [], "appearance": []}
    for truth, line in zip(truths, lines, strict=True):
        true = legacy.vqa_words(truth["conversations"][1]["value"].lower())
        said = legacy.vqa_words(line["text"].lower())
        if truth["answer_type"] == "OPEN":
            words, known = legacy.vqa_words(said).split(), legacy.vqa_words(true).split()
            shared, missed = sum(word in known for word in words), sum(word not in words for word in known)
            precision = shared / len(words) if words else 0.0
            recall = shared / (shared + missed) if shared else 0.0
            opened["exact"].append(sum(word in words for word in set(known)) / len(words) if words else 0.0)
            opened["f1"].append(2 * precision * recall / (precision + recall) if shared else 0.0)
            opened["recall"].append(recall)
            shares = [sum(word in set(words) for word in set(legacy.vqa_words(one).split())) for one in candidates]
            sizes = [max(1, len(set(legacy.vqa_words(one).split()))) for one in candidates]
            near = [share / size for share, size in zip(shares, sizes, strict=True)]
            opened["appearance"].append(legacy.vqa_words(candidates[near.index(max(near))]) == true)
        elif "yes" in said or "no" in said:
            closed += [1] if true in said else []
        else:
            closed.append(0)
    means = {name: sum(values) / len(values) for name, values in opened.items()}
    return means | {"closed": sum(closed) / len(closed)}


def test_the_published_evaluator_finds_the_published_scores(tmp_path: Path) -> None:
    rng = random.Random(4)
    words = ["yes", "no", "left", "right", "lung", "abnormal", "mass", "two"]
    examples, answers = [], []
    for place in range(120):
        kind = "closed" if place % 2 else "open"
        truth = rng.choice(["yes", "no", "left"]) if kind == "closed" else " ".join(rng.choices(words, k=2))
        examples.append(question(f"p{place // 4}", truth, kind, images=[image(place // 4)]))  # type: ignore[arg-type]
        answers.append(" ".join(rng.choices(words, k=rng.randint(0, 3))))
    test = made_set(examples)
    write_predictions(tmp_path, test, answers, "m:2")
    scores = build_results(inputs(test, answers))["scores"]
    found = published_scores(tmp_path)
    for name, score in (
        ("closed", "legacy_llava_med_closed"),
        ("exact", "legacy_llava_med_exact_match"),
        ("f1", "legacy_llava_med_f1"),
        ("recall", "legacy_llava_med_recall"),
        ("appearance", "legacy_llava_med_open_accuracy"),
    ):
        assert scores[score]["estimate"] == pytest.approx(found[name], abs=1e-12), name
        assert 0 < found[name] < 1
    assert found["closed"] > scores["closed_accuracy"]["estimate"]  # what the fault is worth here


def test_a_line_holds_the_published_fields_and_no_patient(tmp_path: Path) -> None:
    test = made_set([question("patient-7", "yes", asked="Ist das größer?\nJa?"), question("b", "x", "open")])
    paths = write_predictions(tmp_path, test, ["ja\n ö", ""], "m:2")
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()
    ]
    assert [set(line) for line in lines] == [FIELDS, FIELDS]
    assert lines[0]["prompt"] == "Ist das größer?\nJa?" and lines[0]["text"] == "ja\n ö"
    assert lines[0]["model_id"] == "m:2" and lines[0]["metadata"]["organ"] == "chest"
    assert len({line["answer_id"] for line in lines}) == 2
    assert all("patient-7" not in path.read_text() and path.stat().st_mode & 0o077 == 0 for path in paths)
