"""What accounting by record hides from a patient with several. In: the settings of record-level DP-SGD; out: epsilon. Pure.

    >>> round(patient_epsilon_of_record_accounting(2.0, 0.0256, 800, records_per_patient=1, delta=1e-5), 2)
    1.55
    >>> round(patient_epsilon_of_record_accounting(2.0, 0.0256, 800, records_per_patient=2, delta=1e-5), 2)
    3.38

Most DP training code draws and clips each record on its own and reports the epsilon of one record. A patient with k records
then moves a step's sum by up to k clipping norms: how many of the k are drawn is Binomial(k, sample_rate), so a step is a
mixture of Gaussians with sensitivities 0 to k (Choquette-Choo et al., arXiv 2401.10294), which dp_accounting composes
exactly. FedMed draws and clips whole patients (fedmed.privacy.mechanism), so its epsilon does not grow with k.

| case                  | what holds                                                                           |
| --------------------- | ------------------------------------------------------------------------------------ |
| records_per_patient 1 | the ordinary epsilon: the patient is the record                                      |
| more                  | grows with k; less than the bound of group privacy, which knows nothing of the draws |
| noise 0, delta 0      | infinity                                                                             |
"""

from __future__ import annotations

import math

from fedmed.errors import PrivacyError
from fedmed.privacy import loss
from fedmed.privacy.accounting import check_delta
from fedmed.privacy.events import PrivacyEvent, check_event


def patient_epsilon_of_record_accounting(
    noise_multiplier: float, sample_rate: float, steps: int, records_per_patient: int, delta: float
) -> float:
    """Epsilon of a patient with `records_per_patient` records when every record is drawn and clipped on its own.

    Raises:
        PrivacyError: a value is outside its range.
    """
    check_delta(delta)
    check_event(PrivacyEvent(noise_multiplier, sample_rate, steps))
    if records_per_patient < 1:
        raise PrivacyError(f"records_per_patient={records_per_patient}: expected >= 1")
    if not steps or not sample_rate:
        return 0.0
    if delta == 0 or noise_multiplier == 0:
        return math.inf
    from dp_accounting.pld import privacy_loss_distribution as pld  # slow to import, as in fedmed.privacy.loss

    counts = range(records_per_patient + 1)
    shares = [
        math.comb(records_per_patient, count) * sample_rate**count * (1 - sample_rate) ** (records_per_patient - count)
        for count in counts
    ]
    # As faint or as strong as a patient whose records are all drawn whenever one is: for the width of the buckets alone.
    strongest = PrivacyEvent(noise_multiplier / records_per_patient, 1 - shares[0], steps)
    step = pld.from_mixture_gaussian_mechanism(
        noise_multiplier,
        [float(count) for count in counts],
        shares,
        value_discretization_interval=loss.width([strongest]),
    )
    return float(loss.repeat(step, steps).get_epsilon_for_delta(delta))
