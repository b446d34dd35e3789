"""The arithmetic of the overhead benchmark, and that both its apps can be shipped."""

import pytest
from flwr.cli.build import build_fab_from_disk

from benchmarks.round_overhead import APPS, gaps, settled, summary
from benchmarks.round_overhead_adapter import adapter
from fedmed.models.adapter import encode_state


def test_a_round_lasts_from_the_end_of_the_one_before():
    assert gaps([10.0, 12.5, 13.0]) == [2.5, 0.5]
    assert gaps([10.0]) == []


def test_the_first_round_of_a_turn_is_left_out_unless_it_is_the_only_one():
    assert settled([9.0, 1.0, 2.0]) == [1.0, 2.0]
    assert settled([9.0]) == [9.0]


def test_the_ratio_is_of_medians_over_all_turns():
    got = summary({"fedmed": [[50.0, 1.0, 2.0], [50.0, 3.0]], "stock": [[99.0, 10.0], [99.0, 30.0]]})
    assert (got["fedmed_overhead_s"], got["stock_overhead_s"], got["ratio"]) == (2.0, 20.0, 0.1)
    assert got["rounds_s"]["stock"] == [[99.0, 10.0], [99.0, 30.0]]


def test_the_adapter_has_ten_megabytes():
    size = len(encode_state(adapter(), "float32"))
    assert 10e6 < size < 11e6
    assert abs(summary({"fedmed": [[1.0]], "stock": [[1.0]]})["adapter_bytes"] - size) < 10_000


@pytest.mark.parametrize("app", ["stock", "fedmed"])
def test_both_apps_can_be_shipped(app):
    assert 0 < len(build_fab_from_disk(APPS / app)) < 10_000
