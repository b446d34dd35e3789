"""The noise of a run is planned once, for all that its rounds release."""

import pytest

from aggregator.rounds.tasks import plan_privacy
from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from tests.unit.aggregator.test_strategy import settings


def test_noise_is_planned_for_the_whole_run():
    experiment = settings("privacy.noise_multiplier=0.0", "training.rounds=3", "training.local_steps=10")
    plan = plan_privacy(experiment)
    spent = epsilon([PrivacyEvent(plan.noise_multiplier, plan.sample_rate, 30)], plan.delta)
    assert experiment.privacy.epsilon * 0.97 < spent <= experiment.privacy.epsilon
    assert plan.steps == 10


def test_noise_is_planned_for_the_evaluation_counts_and_for_a_cap_at_the_largest_site():
    common = ["privacy.noise_multiplier=0.0", "training.rounds=3", "training.local_steps=5", "privacy.sample_rate=0.1"]
    common.append("privacy.epsilon=1")
    plain = plan_privacy(settings(*common)).noise_multiplier
    plan = plan_privacy(settings(*common, "privacy.metrics_noise_multiplier=2.0"))
    counts, steps = PrivacyEvent(2.0, 0.1, 3), PrivacyEvent(plan.noise_multiplier, 0.1, 15)
    assert plan.noise_multiplier > plain
    assert epsilon([steps, counts], plan.delta) <= 1
    capped = plan_privacy(settings(*common, "privacy.max_patients=25", "privacy.site_patients=200"))
    assert (capped.max_patients, capped.noise_multiplier > plain) == (25, True)
    # A smaller site spends no more than the plan says.
    for patients in (120, 200):
        event = PrivacyEvent(capped.noise_multiplier, 0.1, 15, 25, patients)
        assert epsilon([event], capped.delta) <= 1


def test_given_noise_is_kept_and_no_privacy_means_none():
    assert plan_privacy(settings("privacy.noise_multiplier=2.5")).noise_multiplier == 2.5
    none = plan_privacy(settings("privacy.mode=none", "privacy.noise_multiplier=2.5"))
    assert none.noise_multiplier == 0.0
    assert none.mode == "none"


def test_an_epsilon_out_of_reach_is_an_error():
    with pytest.raises(PrivacyError):
        plan_privacy(settings("privacy.noise_multiplier=0.0", "privacy.epsilon=1.0e-9"))
