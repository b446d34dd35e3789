"""`fedmed evaluate`: where it writes to."""

from __future__ import annotations

from aggregator.evaluating.evaluate_cli import evaluation_folder


def test_evaluations_of_one_version_that_differ_are_not_written_over_each_other() -> None:
    asked = [
        ("test", "official", 0, 0),
        ("test", "image", 0, 0),
        ("val", "image", 0, 0),
        ("test", "image", 3, 0),
        ("test", "image", 3, 20),
        ("test", "image", 3, 2),
    ]
    assert len({evaluation_folder("fedmed:1", "vqa_rad", *words) for words in asked}) == len(asked)


def test_a_folders_name_holds_nothing_that_is_a_path() -> None:
    name = evaluation_folder("../bases/x", "/data/vqa rad", "test", "image", 0, 0)
    assert name == "bases-x--data-vqa-rad-test-image-0shot"
