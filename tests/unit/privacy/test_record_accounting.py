"""What accounting by record hides: a patient with several records loses more than one record does."""

from __future__ import annotations

import math

import pytest

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.privacy.record_accounting import patient_epsilon_of_record_accounting

NOISE, RATE, STEPS, DELTA = 2.0, 0.0256, 800, 1e-5


def test_one_record_is_the_ordinary_epsilon() -> None:
    ordinary = epsilon([PrivacyEvent(NOISE, RATE, STEPS)], DELTA)
    assert patient_epsilon_of_record_accounting(NOISE, RATE, STEPS, 1, DELTA) == pytest.approx(ordinary, abs=2e-3)


def test_two_records_lose_more_than_twice_but_less_than_group_privacy_says() -> None:
    # Group privacy of the same mechanism for 2 records: epsilon 9.8 (measured with dp_accounting's conversion).
    ordinary = epsilon([PrivacyEvent(NOISE, RATE, STEPS)], DELTA)
    assert 2 * ordinary < patient_epsilon_of_record_accounting(NOISE, RATE, STEPS, 2, DELTA) < 9.8


def test_every_further_record_loses_more() -> None:
    losses = [patient_epsilon_of_record_accounting(8.0, RATE, STEPS, records, DELTA) for records in (1, 2, 4, 7)]
    shares = [loss / records for loss, records in zip(losses, (1, 2, 4, 7), strict=True)]
    assert shares == sorted(shares)


def test_everything_drawn_is_one_gaussian_with_the_sensitivity_of_all_records() -> None:
    assert patient_epsilon_of_record_accounting(12.0, 1.0, 5, 3, DELTA) == pytest.approx(
        epsilon([PrivacyEvent(4.0, 1.0, 5)], DELTA), rel=5e-3
    )


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta", "expected"),
    [(1.0, 0.1, 0, 1e-5, 0.0), (1.0, 0.0, 5, 1e-5, 0.0), (0.0, 0.1, 5, 1e-5, math.inf), (1.0, 0.1, 5, 0.0, math.inf)],
)
def test_edge_cases(noise: float, rate: float, steps: int, delta: float, expected: float) -> None:
    assert patient_epsilon_of_record_accounting(noise, rate, steps, 3, delta) == expected


def test_no_records_are_refused() -> None:
    with pytest.raises(PrivacyError, match="records_per_patient=0"):
        patient_epsilon_of_record_accounting(1.0, 0.1, 1, 0, DELTA)
