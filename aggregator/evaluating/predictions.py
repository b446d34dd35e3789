"""Answers in the files that LLaVA-Med's own evaluator reads, so that other people's scripts give their numbers for them.

    write_predictions(Path("out"), test, answers, "fedmed:3")
    python run_eval.py --gt out/questions.json --candidate out/candidates.json --pred out/predictions.jsonl

| file              | holds                                                                                              |
| ----------------- | -------------------------------------------------------------------------------------------------- |
| predictions.jsonl | a line an answer: question_id, prompt, text, answer_id, model_id, metadata                         |
| questions.json    | a list: id, conversations (the question of `human`, the truth of `gpt`), answer_type OPEN or CLOSED |
| candidates.json   | under the key "0" the different true answers of open questions: what its open accuracy chooses from |

Give the paths with a folder, as above: the evaluator takes the folder's name for the data set's, and fails without one.
`metadata` holds the task, the answer type and the example's attributes; the patient is in none of the files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from aggregator.evaluating.dataset import TestSet
from fedmed.data.schema import Example
from fedmed.files import write_atomic

PREDICTIONS, QUESTIONS, CANDIDATES = "predictions.jsonl", "questions.json", "candidates.json"


def write_predictions(folder: Path, test: TestSet, answers: Sequence[str], model_id: str) -> list[Path]:
    """The three files, readable by their owner alone; an `answer_id` follows from model and question."""
    rows = [
        {
            "question_id": question_id(test, place),
            "prompt": example.question,
            "text": answer,
            "answer_id": f"{model_id}/{question_id(test, place)}",
            "model_id": model_id,
            "metadata": {"task": example.task, "answer_type": example.answer_type, **example.attributes},
        }
        for place, (example, answer) in enumerate(zip(test.examples, answers, strict=True))
    ]
    truths = [_truth(test, place, example) for place, example in enumerate(test.examples)]
    candidates = sorted({example.answer for example in test.examples if example.answer_type == "open"})
    contents = {
        PREDICTIONS: "".join(f"{_json(row)}\n" for row in rows),
        QUESTIONS: _json(truths),
        CANDIDATES: _json({"0": candidates}),
    }
    for name, text in contents.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in contents]


def question_id(test: TestSet, place: int) -> str:
    """Names a question of a test set in all files about it."""
    return f"{test.name}-{test.split}-{place:06d}"


def _truth(test: TestSet, place: int, example: Example) -> dict[str, object]:
    said = [{"from": "human", "value": example.question}, {"from": "gpt", "value": example.answer}]
    return {"id": question_id(test, place), "conversations": said, "answer_type": example.answer_type.upper()}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
