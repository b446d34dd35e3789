"""Two sets of answers: differences, McNemar's counts, the sentences, and who gets whose images."""

from __future__ import annotations

import pytest

from fedmed.data.schema import Example, ImageRef
from fedmed.metrics.controls import donors
from fedmed.metrics.pairs import (
    blank_sentence,
    changes,
    comparison_sentence,
    control_sentence,
    main_changes,
    right_alone,
)


def closed(values: list[float]) -> list[dict[str, tuple[float, ...]]]:
    return [{"closed_accuracy": (value, 1.0), "exact_match": (value, 1.0)} for value in values]


PATIENTS = [f"p{place // 2}" for place in range(80)]


def test_a_difference_is_that_of_the_scores_over_the_items_of_both() -> None:
    first, second = closed([1.0, 0.0, 0.0]), closed([1.0, 1.0, 1.0])
    del first[2]["closed_accuracy"]
    rows = {row.score: row for row in changes(first, second, ["a", "a", "b"], resamples=50)}
    row = rows["closed_accuracy"]
    assert (row.first, row.second, row.difference.value, row.items, row.patients) == (0.5, 1.0, 0.5, 2, 1)
    assert rows["exact_match"].difference.value == pytest.approx(2 / 3)
    assert [row.score for row in main_changes(list(rows.values()))] == ["closed_accuracy"]


def test_a_pooled_score_differs_as_a_whole() -> None:
    # 1 of 1 counted against 1 of 2 counted.
    first, second = (
        [{"legacy_llava_med_closed": part} for part in parts] for parts in ([(1, 1), (0, 1)], [(1, 1), (0, 0)])
    )
    assert changes(first, second, ["a", "b"], resamples=20)[0].difference.value == pytest.approx(0.5)


def test_the_sentence_about_two_versions() -> None:
    better = changes(closed([0.0] * 40 + [1.0] * 40), closed([1.0] * 80), PATIENTS)
    assert "m:2 is better, and the difference is real" in comparison_sentence(main_changes(better)[0], "m:1", "m:2")
    worse = changes(closed([1.0] * 80), closed([0.0] * 40 + [1.0] * 40), PATIENTS)
    assert "m:1 is better, and the difference is real" in comparison_sentence(main_changes(worse)[0], "m:1", "m:2")
    same = changes(closed([0.0] + [1.0] * 79), closed([1.0] * 79 + [0.0]), PATIENTS)
    assert "not shown to be real" in comparison_sentence(main_changes(same)[0], "m:1", "m:2")


def test_the_sentence_about_blank_images() -> None:
    def told(blank: list[float], real: list[float]) -> str:
        return blank_sentence(main_changes(changes(closed(blank), closed(real), PATIENTS))[0], 7)

    some = [0.0, 1.0] * 40
    assert "scores the same on blank images" in told(some, some) and "7 of 80 answers change" in told(some, some)
    assert "scores the same on blank images" in told([0.0, *some[1:]], [1.0, *some[1:]])
    assert "The images help" in told(some, [1.0] * 80)
    assert "The images harm" in told([1.0] * 80, some)


def test_few_patients_say_nothing_however_narrow_the_interval() -> None:
    one = main_changes(changes(closed([0.0] * 30), closed([1.0] * 30), ["p"] * 30, resamples=50))[0]
    assert one.difference.real and not one.real
    assert "too few patients to say" in comparison_sentence(one, "m:1", "m:2") and "1 patient)" in comparison_sentence(
        one, "a", "b"
    )
    assert "too few patients to say whether the images help" in blank_sentence(one, 30)
    assert "1 patient, too few" in control_sentence(one, "without any image")
    same = main_changes(changes(closed([1.0] * 30), closed([1.0] * 30), ["p"] * 30, resamples=50))[0]
    assert "scores the same on blank images" in blank_sentence(same, 0)  # no answer changes: that needs no interval


def test_the_sentence_about_a_control() -> None:
    def told(control: list[float], real: list[float]) -> str:
        return control_sentence(main_changes(changes(closed(control), closed(real), PATIENTS))[0], "without any image")

    some = [0.0, 1.0] * 40
    assert told(some, [1.0] * 80).endswith("50.0 % without any image: it is better by a real difference.")
    assert told([1.0] * 80, some).endswith("it is WORSE by a real difference.")
    assert told(some, some).endswith("no difference is shown.")


def test_items_that_one_alone_gets_right() -> None:
    found = right_alone([True] * 8 + [False] * 2 + [True], [False] * 8 + [True] * 2 + [True])
    assert (found.first, found.second, round(found.p, 4)) == (8, 2, 0.1094)


def test_images_come_from_another_patient_with_as_many() -> None:
    def asked(patient: str, *images: str) -> Example:
        return Example(patient, tuple(ImageRef(path=name) for name in images), "?", "yes", "closed", "vqa", "made")

    examples = [
        asked("a", "a1"),
        asked("a", "a1"),
        asked("a", "a2"),
        asked("b", "b1"),
        asked("c", "c1"),
        asked("a", "a1", "a2"),
        asked("b", "b1", "b2"),
        asked("d", "1", "2", "3"),
        asked("e"),
    ]
    for seed in range(20):
        given = donors(examples, seed)
        assert given == donors(examples, seed)
        for place, donor in enumerate(given):
            if donor is not None:
                assert examples[donor].patient != examples[place].patient
                assert len(examples[donor].images) == len(examples[place].images)
        assert [donor is None for donor in given] == [False] * 7 + [True, True]  # alone with three images; without any
        assert given[0] == given[1]  # questions about one image stay about one image
    assert len({tuple(donors(examples, seed)) for seed in range(20)}) > 1
