"""scores.json and the page: numbers computed by hand, the sentences about controls, and nothing unescaped."""

from __future__ import annotations

import json

import pytest
from helpers_evaluation import image, inputs, made_set, question

from aggregator.evaluating.evaluate_cli import table
from aggregator.evaluating.model_scores import Unavailable
from aggregator.evaluating.page import render_page
from aggregator.evaluating.record import summary
from aggregator.evaluating.results import build_results, scored_parts
from aggregator.evaluating.worst import worst_errors

MANY = [question(f"p{place // 2}", "yes" if place % 2 else "no", images=[image(place // 2)]) for place in range(40)]
TRUTHS = [example.answer for example in MANY]
YES = ["yes"] * 40


def test_numbers_by_hand() -> None:
    examples = [
        question("a", "yes", images=[image(1)]),
        question("a", "no", images=[image(1)]),
        question("b", "left lung", "open", asked="Where?", images=[image(2)], organ="brain"),
        question("c", "heart", "closed", task="choice", choices=("liver", "heart")),
    ]
    results = build_results(inputs(made_set(examples), ["Yes.", "It is abnormal", "in the left lung", "B"]))
    scores = results["scores"]
    assert scores["closed_accuracy"] | {"low": 0, "high": 0} == {
        "estimate": 0.5, "low": 0, "high": 0, "items": 2, "patients": 1, "legacy": False,
    }  # fmt: skip
    assert scores["legacy_llava_med_closed"]["estimate"] == 1.0 and scores["legacy_llava_med_closed"]["legacy"]
    assert scores["exact_match"]["estimate"] == 0.25  # "B" is the right choice and not its text
    assert scores["choice_accuracy"]["estimate"] == 1.0
    assert scores["open_f1"]["estimate"] == pytest.approx(2 * 2 / 6)
    assert scores["legacy_llava_med_recall"]["estimate"] == 1.0
    assert results["corrected"]["legacy_llava_med_closed"] == "closed_accuracy"
    assert results["data"]["items"] == 4 and results["data"]["patients"] == 3
    brain = [row for row in results["groups"] if (row["field"], row["value"]) == ("organ", "brain")]
    assert {row["score"]: row["items"] for row in brain}["open_f1"] == 1
    assert [row["value"] for row in results["groups"] if row["field"] == "task" and row["score"] == "exact_match"] == [
        "choice",
        "vqa",
    ]
    assert results["overlap"]["in_train"] is None and "unknown" in results["overlap"]["sentence"]
    json.dumps(results, allow_nan=False)


def test_reports_are_judged_by_their_findings_before_their_words() -> None:
    """One version turns every other negation round, which ROUGE-L hardly sees."""
    truths = ["There is a pleural effusion. No pneumothorax.", "No pleural effusion. There is a pneumothorax."] * 20
    turned = [truths[0].replace("No ", "A "), truths[1]] * 20
    reports = [question(f"p{place}", truth, "open", task="report") for place, truth in enumerate(truths)]
    results = build_results(inputs(made_set(reports), truths, others={"fedmed:1": turned}))
    findings, words = results["comparisons"][0]["sentences"][:2]
    assert findings.startswith("finding_f1 is 100.0 %") and "80.0 % with fedmed:1" in findings
    assert words.startswith("rougeL is 100.0 %")
    assert summary(results).startswith("finding_f1 1.0000")


def test_a_model_that_does_not_look_is_told_so() -> None:
    results = build_results(inputs(made_set(MANY), YES, controls={"blank": YES}))
    blank = results["controls"]["blank"]
    assert blank["same"] == [True] and blank["changed_answers"] == 0
    assert "scores the same on blank images" in blank["sentences"][0] and blank["sentences"][0] in results["verdicts"]
    assert "scores the same on blank images" in table(results)
    page = render_page(results, [])
    assert 'role="alert"' in page and page.count("scores the same on blank images") == 1


def test_a_model_that_looks_is_not() -> None:
    results = build_results(inputs(made_set(MANY), TRUTHS, controls={"blank": YES, "shuffled": YES, "text_only": YES}))
    blank = results["controls"]["blank"]
    assert blank["same"] == [False] and blank["changed_answers"] == 20
    row = next(row for row in blank["scores"] if row["score"] == "closed_accuracy")
    assert (row["first"], row["second"], row["difference"], row["real"]) == (0.5, 1.0, 0.5, True)
    assert "The images help" in blank["sentences"][0]
    assert "better by a real difference" in results["controls"]["shuffled"]["sentences"][0]
    assert 'role="alert"' not in render_page(results, [])


def test_a_control_is_over_the_items_that_it_can_be_made_of() -> None:
    control = [None if place < 30 else "yes" for place in range(40)]
    results = build_results(
        inputs(made_set(MANY), TRUTHS, controls={"shuffled": control, "text_only": "needs an image"})
    )
    shuffled = results["controls"]["shuffled"]
    assert shuffled["items"] == 10 and {row["items"] for row in shuffled["scores"]} == {10}
    assert next(row["second"] for row in shuffled["scores"] if row["score"] == "closed_accuracy") == 1.0
    assert results["controls"]["text_only"]["reason"] == "needs an image"
    assert "No control text_only: needs an image." in results["verdicts"]
    assert "needs an image" in render_page(results, [])


def test_without_controls_the_report_says_that_it_does_not_know() -> None:
    results = build_results(inputs(made_set(MANY), TRUTHS))
    assert results["controls"] is None and "--no-controls" in results["verdicts"][0]
    assert "nothing here shows whether the model uses the images" in render_page(results, [])


def test_two_versions_are_compared_on_the_same_items() -> None:
    results = build_results(inputs(made_set(MANY), TRUTHS, others={"m:1": YES}))
    other = results["comparisons"][0]
    assert other["with"] == "m:1"
    assert (other["right_alone"]["first"], other["right_alone"]["second"]) == (0, 20)
    assert other["right_alone"]["p"] == pytest.approx(2 / 2**20)
    assert "m:2 is better, and the difference is real" in other["sentences"][0]
    same = build_results(inputs(made_set(MANY), YES, others={"m:1": YES}))["comparisons"][0]
    assert "not shown to be real" in same["sentences"][0] and same["right_alone"]["p"] == 1.0


def test_scores_that_need_a_model_are_values_or_unavailable_and_never_zero() -> None:
    extra = {
        "embedding_cosine": {0: 0.5, 1: 0.7},
        "f1chexbert": 0.25,
        "ratescore": Unavailable("not installed", "install it"),
    }
    results = build_results(inputs(made_set(MANY), TRUTHS, extra=extra))
    assert results["scores"]["embedding_cosine"]["estimate"] == pytest.approx(0.6)
    assert results["scores"]["embedding_cosine"]["items"] == 2
    assert results["scores"]["f1chexbert"]["estimate"] == 0.25 and results["scores"]["f1chexbert"]["low"] is None
    assert "ratescore" not in results["scores"] and results["unavailable"]["ratescore"]["hint"] == "install it"
    page = render_page(results, [])
    assert "unavailable" in page and "not installed. install it" in page
    assert "ratescore                        unavailable: not installed" in table(results)


def test_the_page_escapes_whatever_a_data_set_or_a_model_says() -> None:
    bad = '<script>alert("x")</script>'
    examples = [question("a", bad, "open", asked=f"{bad}?", images=[image(1)], organ=bad), question("b", "no")]
    given = inputs(made_set(examples), [f"not {bad}", ""])
    results = build_results(given)
    errors = worst_errors(given.test, given.answers, scored_parts(given), count=5, seed=0)
    assert [error.truth for error in errors] == ["no", bad]
    page = render_page(results, errors)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert 'src="data:image/png;base64,' in page and "(empty)" in page
    assert '<tr class="few"><td><b>closed_accuracy</b>' in page  # of one patient


def test_worst_errors_are_the_lowest_and_wrong_ones() -> None:
    given = inputs(made_set(MANY), [*YES[:39], "nonsense"])
    errors = worst_errors(given.test, given.answers, scored_parts(given), count=100, seed=3)
    assert len(errors) == 21 and all(error.value == 0 and error.answer != error.truth for error in errors)
    assert len(worst_errors(given.test, given.answers, scored_parts(given), count=4, seed=3)) == 4


def test_one_line_for_the_version() -> None:
    line = summary(build_results(inputs(made_set(MANY), TRUTHS)))
    assert line == "closed_accuracy 1.0000 [1.0000, 1.0000]; 40 items"
