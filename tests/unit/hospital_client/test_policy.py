"""The policy refuses what the hospital did not allow, names every breach, and tells nothing of the cohort."""

from typing import Any

import pytest

from fedmed.errors import PolicyRefusal
from fedmed.messages import OptimizerSpec
from hospital_client.fakes import example_policy, example_task
from hospital_client.policy import check_task


def test_an_ordinary_task_passes() -> None:
    check_task(example_policy(), example_task(), num_patients=20)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base_sha256": "00" * 32}, "base_sha256"),
        ({"method": "krum"}, "method"),
        ({"rank": 65}, "rank=65"),
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha"),
        ({"virtual_tokens": -1}, "virtual_tokens=-1, expected 0 to 512"),
        ({"virtual_tokens": 513}, "virtual_tokens=513"),
        ({"virtual_kind": "soft"}, "virtual_kind='soft', expected prompt or prefix"),
        ({"noise_multiplier": 0.49}, "noise_multiplier=0.49"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"mode": "none"}, "allow_no_privacy"),
        ({"mode": "trust me"}, "privacy.mode"),
        ({"delta": 1e-4}, "delta"),
        ({"delta": 0.0}, "delta"),
        ({"sample_rate": 0.6}, "sample_rate"),
        ({"sample_rate": 0.0}, "sample_rate"),
        ({"steps": 201}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": -5}, "steps"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": 1e-45}, "max_grad_norm"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm"),
        ({"max_grad_norm": 1e30}, "max_grad_norm"),
        ({"clipping": "batch"}, "clipping='batch'"),
        ({"insecure_noise_seed": 0}, "insecure_noise_seed=0, expected -1"),
        ({"metrics_noise_multiplier": 100.0}, "allow_metrics is false"),
        ({"optimizer": OptimizerSpec("lion", 1e-3, 0.9, 0.0, True)}, "optimizer.name='lion'"),
        ({"records_per_patient": 0}, "records_per_patient"),
        ({"round": 0}, "round=0"),
        ({"round": 6}, "round=6"),
        ({"rounds": 101}, "rounds=101"),
        ({"run": "../../etc"}, "run:"),
        ({"run": "a" * 129}, "run:"),
        ({"trainable": ("lm_head",)}, "trainable"),
        ({"trainable": ()}, "trainable"),
        ({"returned": ()}, "returned"),
        ({"returned": ("lora_A", "saved")}, "returned"),
        ({"optimizer": OptimizerSpec("sgd", 1e-3, 0.9, 0.0, True, -1.0)}, "proximal_mu=-1"),
        ({"max_patients": 10}, "max_patients=10, expected at least 11"),
        ({"max_patients": -1}, "max_patients=-1"),
        ({"dtype": "float16"}, "dtype"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_each_breach_is_refused_and_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(PolicyRefusal, match=named):
        check_task(example_policy(), example_task(**change), num_patients=100)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metrics_noise_multiplier": 1.9}, "metrics_noise_multiplier=1.9, expected at least 2"),
        ({"metrics_noise_multiplier": -3.0}, "expected at least 2"),
        ({"metrics_noise_multiplier": 5.0, "mode": "none"}, "expected 0 without mode dp"),
    ],
)
def test_counts_leave_only_with_noise_and_where_the_hospital_allows_them(change: dict[str, Any], named: str) -> None:
    rules = example_policy(allow_metrics=True, allow_no_privacy=True)
    check_task(rules, example_task(metrics_noise_multiplier=2.0), num_patients=100)
    with pytest.raises(PolicyRefusal, match=named):
        check_task(rules, example_task(**change), num_patients=100)


@pytest.mark.parametrize("rule", ["flat", "automatic", "per_layer"])
def test_every_clipping_rule_and_optimizer_of_the_configuration_passes(rule: str) -> None:
    for name in ("adamw", "sgd", "adam_bc"):
        optimizer = OptimizerSpec(name, 1e-3, 0.9, 0.0, True)
        check_task(example_policy(), example_task(clipping=rule, optimizer=optimizer), num_patients=100)


def test_noise_from_a_seed_passes_only_where_the_hospital_allows_it() -> None:
    check_task(example_policy(allow_insecure_noise=True), example_task(insecure_noise_seed=7), num_patients=100)


def test_every_breach_is_named_at_once() -> None:
    with pytest.raises(PolicyRefusal, match=r"method=.*rank=.*sample_rate="):
        check_task(example_policy(), example_task(method="krum", rank=1000, sample_rate=1.0), num_patients=100)


def test_too_few_patients_are_refused_without_telling_how_many() -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check_task(example_policy(), example_task(), num_patients=17)
    assert "17" not in str(caught.value)


def test_no_privacy_passes_only_where_the_hospital_allows_it() -> None:
    task = example_task(mode="none", noise_multiplier=0.0, delta=0.0)
    check_task(example_policy(allow_no_privacy=True), task, num_patients=100)


@pytest.mark.parametrize(
    ("kind", "patients", "released", "nominal"),
    [
        ("exact", 23, 23, 23),
        ("rounded", 3, 10, 10),
        ("rounded", 24, 20, 20),
        ("rounded", 25, 30, 30),
        ("hidden", 500, 0, 20),
    ],
)
def test_the_patient_count_that_leaves(kind: str, patients: int, released: int, nominal: int) -> None:
    rules = example_policy(patient_count=kind)
    assert (rules.released_patients(patients), rules.nominal_patients(patients)) == (released, nominal)


@pytest.mark.parametrize(
    ("kind", "patients", "most"),
    [("exact", 23, 24), ("rounded", 3, 15), ("rounded", 24, 25), ("rounded", 25, 35), ("hidden", 500, 0)],
)
def test_a_public_number_above_the_count(kind: str, patients: int, most: int) -> None:
    assert example_policy(patient_count=kind).most_patients(patients) == most


def test_the_public_bound_is_above_every_count_that_is_released_alike() -> None:
    rules = example_policy()
    assert all(rules.most_patients(count) > count for count in range(1, 300))


def test_a_cap_needs_a_count_that_is_public() -> None:
    check_task(example_policy(), example_task(max_patients=11), num_patients=100)
    with pytest.raises(PolicyRefusal, match=r"max_patients=90, expected 0: .* hidden") as caught:
        check_task(example_policy(patient_count="hidden"), example_task(max_patients=90), num_patients=137)
    assert "137" not in str(caught.value)
