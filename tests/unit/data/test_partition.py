"""Partitions: every example once, no patient at two sites, no site empty, whatever the scheme."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedmed.data.partition import hold_out, partition
from fedmed.data.schema import Example
from fedmed.errors import DataError

SITES = ("north", "harbour", "valley")


def examples(num_patients: int, values: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> list[Example]:
    """One to four records a patient, mixed in order; a patient's records mostly share one value."""
    rng = np.random.default_rng(seed)
    made = []
    for patient in range(num_patients):
        main = values[patient % len(values)]
        for record in range(int(rng.integers(1, 5))):
            value = main if record != 2 else str(rng.choice(values))
            made.append(
                Example(f"p{patient}", (), f"q{record}", "yes", "closed", "vqa", "made", attributes={"label": value})
            )
    return [made[index] for index in rng.permutation(len(made))]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "field"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_every_example_once_and_no_patient_at_two_sites(scheme: str, seed: int, alpha: float) -> None:
    made = examples(50, seed=seed)
    parts = partition(made, SITES, scheme, "label", alpha, seed)
    assert list(parts) == list(SITES)
    assert all(parts.values())
    assert Counter(map(id, made)) == Counter(id(item) for part in parts.values() for item in part)
    patients = [{item.patient for item in part} for part in parts.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 50
    place = {id(item): index for index, item in enumerate(made)}
    assert all(part == sorted(part, key=lambda item: place[id(item)]) for part in parts.values())
    assert parts == partition(made, SITES, scheme, "label", alpha, seed)


def test_iid_sizes_differ_by_one_and_follow_the_seed() -> None:
    made = examples(50)
    draws = [partition(made, SITES, "iid", "", 1.0, seed) for seed in (0, 1)]
    assert sorted(len({item.patient for item in part}) for part in draws[0].values()) == [16, 17, 17]
    assert draws[0] != draws[1]


def test_small_alpha_is_more_unequal() -> None:
    made = examples(600, values=("a", "b"))

    def largest_share(alpha: float) -> float:
        parts = [partition(made, SITES, "dirichlet", "label", alpha, seed) for seed in range(10)]
        return float(np.mean([max(map(len, part.values())) / len(made) for part in parts]))

    assert largest_share(0.2) > largest_share(2.0) > largest_share(200.0)
    assert largest_share(200.0) == pytest.approx(1 / 3, abs=0.05)


def test_field_matches_names_in_any_case_and_gives_the_rest_in_sorted_order() -> None:
    made = examples(30, values=("HEAD", "CHEST", "ABD"))
    parts = partition(made, ["chest", "belly", "Head"], "field", "label", 1.0, 0)
    majority = {
        site: Counter(item.attributes["label"] for item in part).most_common(1)[0][0] for site, part in parts.items()
    }
    assert majority == {"chest": "CHEST", "belly": "ABD", "Head": "HEAD"}


def test_a_patient_counts_under_its_most_frequent_value() -> None:
    def record(patient: str, value: str) -> Example:
        return Example(patient, (), "q", "yes", "closed", "vqa", "made", attributes={"label": value})

    made = [record("p1", "b"), record("p1", "a"), record("p1", "b"), record("p2", "b"), record("p2", "a")]
    parts = partition(made, ["a", "b"], "field", "label", 1.0, 0)
    assert {site: {item.patient for item in part} for site, part in parts.items()} == {"a": {"p2"}, "b": {"p1"}}


@pytest.mark.parametrize(
    ("scheme", "field", "sites", "expected"),
    [
        ("iid", "label", [f"s{number}" for number in range(31)], "30 patients cannot be shared among 31 sites"),
        ("iid", "label", [], "30 patients cannot be shared among 0 sites"),
        ("dirichlet", "organ", SITES, "partition.field='organ'"),
        ("field", "organ", SITES, "partition.field='organ'"),
        ("field", "label", SITES[:2], "has 3 values"),
        ("field", "label", ["a", "A", "c"], "two sites are named like the same value"),
        ("random", "label", SITES, "unknown partition scheme 'random'"),
    ],
)
def test_what_cannot_be_partitioned_is_named(scheme: str, field: str, sites: list[str], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        partition(examples(30), sites, scheme, field, 1.0, 0)


def test_an_alpha_that_leaves_sites_empty_is_refused() -> None:
    with pytest.raises(DataError, match="left a site empty") as caught:
        partition(examples(30, values=("a",)), SITES, "dirichlet", "label", 1e-9, 0)
    assert "alpha" in caught.value.hint


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.2, 4), (0.01, 1), (0.99, 19)])
def test_a_share_of_the_patients_is_held_out_with_all_their_examples(share: float, held: int) -> None:
    made = examples(20)
    train, out = hold_out(made, share, seed=3)
    patients = [{example.patient for example in part} for part in (train, out)]
    assert (len(patients[0]), len(patients[1])) == (20 - held, held) and not patients[0] & patients[1]
    assert len(train) + len(out) == len(made) and hold_out(made, share, seed=3) == (train, out)


def test_a_site_of_one_patient_can_hold_nobody_out() -> None:
    with pytest.raises(DataError, match="one patient, expected at least two"):
        hold_out(examples(1), 0.5, seed=0)
