"""One data set in, one list of examples per hospital out: a local federation's stand-in for real sites.

    >>> parts = partition(examples, ["north", "harbour", "valley"], "dirichlet", "label", alpha=0.5, seed=0)
    >>> sum(len(part) for part in parts.values()) == len(examples)
    True

Guarantees, for every scheme: each example goes to exactly one site, all examples of a patient to the same one, no
site is empty, the order of the examples is kept, and the same arguments give the same parts.

| scheme    | what a site gets                                                                                     |
| --------- | ---------------------------------------------------------------------------------------------------- |
| iid       | patients at random; sizes differ by one at most                                                      |
| dirichlet | of the patients of each value of `field`, a share drawn from Dirichlet(alpha) over the sites (Hsu et |
|           | al., 2019): small alpha, unequal sizes and unequal mixtures                                          |
| field     | the patients of one value of `field`. A site named like a value (in any case) gets that value; the   |
|           | other sites get the other values in sorted order                                                     |

A patient whose examples differ in `field` counts under its most frequent value, the first in sorted order on a tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedmed.data.schema import Example
from fedmed.errors import DataError

MAX_DRAWS = 200  # of a Dirichlet partition that leaves a site empty


def partition(
    examples: Sequence[Example], sites: Sequence[str], scheme: str, field: str, alpha: float, seed: int
) -> dict[str, list[Example]]:
    """Examples per site, in the order of `sites`.

    Args:
        scheme: iid, dirichlet or field, as in the table above.
        field: attribute of the examples; not used by iid.
        alpha: Dirichlet concentration; used by dirichlet only.
        seed: of iid and dirichlet.

    Raises:
        DataError: fewer patients than sites, an example without the attribute, as many values as sites not found
            (field), or no draw without an empty site (dirichlet).
    """
    patients = sorted({example.patient for example in examples})
    if not sites or len(patients) < len(sites):
        raise DataError(
            f"{len(patients)} patients cannot be shared among {len(sites)} sites, expected at least one each",
            "take fewer partition.sites or more data",
        )
    rng = np.random.default_rng(seed)
    if scheme == "iid":
        site_of = _iid(patients, sites, rng)
    elif scheme == "dirichlet":
        site_of = _dirichlet(_by_value(examples, field), sites, alpha, rng)
    elif scheme == "field":
        site_of = _field(_by_value(examples, field), sites, field)
    else:
        raise DataError(f"unknown partition scheme {scheme!r}, expected iid, dirichlet or field")
    parts: dict[str, list[Example]] = {site: [] for site in sites}
    for example in examples:
        parts[site_of[example.patient]].append(example)
    return parts


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """A site's examples in two: to train on, and of `share` of its patients, at least one, held out. All of a patient on one side.

    Args:
        share: in [0, 1); 0 holds nobody out.

    Raises:
        DataError: a single patient, of whom nobody is left to train on.
    """
    patients = sorted({example.patient for example in examples})
    if not share:
        return list(examples), []
    count = min(max(1, round(share * len(patients))), len(patients) - 1)
    if count < 1:
        raise DataError(
            "partition.held_out: a site has one patient, expected at least two", "set it to 0, or take more data"
        )
    chosen = np.random.default_rng(seed).permutation(len(patients))[:count]
    gone = {patients[index] for index in chosen}
    return [example for example in examples if example.patient not in gone], [
        example for example in examples if example.patient in gone
    ]


def _by_value(examples: Sequence[Example], field: str) -> dict[str, list[str]]:
    """Attribute value -> its patients, both sorted."""
    counts: dict[str, Counter[str]] = {}
    for example in examples:
        if field not in example.attributes:
            raise DataError(
                f"partition.field={field!r}: the data set has no such attribute on every example",
                f"expected one of: {', '.join(sorted(example.attributes)) or 'none; use partition.scheme=iid'}",
            )
        counts.setdefault(example.patient, Counter())[example.attributes[field]] += 1
    groups: dict[str, list[str]] = {}
    for patient in sorted(counts):
        value = min(counts[patient].items(), key=lambda item: (-item[1], item[0]))[0]
        groups.setdefault(value, []).append(patient)
    return dict(sorted(groups.items()))


def _iid(patients: list[str], sites: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    shares = np.array_split(rng.permutation(len(patients)), len(sites))
    return {patients[index]: site for site, share in zip(sites, shares, strict=True) for index in share}


def _dirichlet(
    groups: dict[str, list[str]], sites: Sequence[str], alpha: float, rng: np.random.Generator
) -> dict[str, str]:
    for _ in range(MAX_DRAWS):
        site_of: dict[str, str] = {}
        for patients in groups.values():
            site_of |= _draw_shares(patients, sites, alpha, rng)
        if len(set(site_of.values())) == len(sites):
            return site_of
    raise DataError(
        f"partition.alpha={alpha:g} left a site empty in each of {MAX_DRAWS} draws over {len(sites)} sites",
        "raise partition.alpha or take fewer partition.sites",
    )


def _draw_shares(patients: list[str], sites: Sequence[str], alpha: float, rng: np.random.Generator) -> dict[str, str]:
    """Patients of one value, at random, cut at the cumulated Dirichlet shares."""
    shares = rng.dirichlet([alpha] * len(sites))
    if not np.isfinite(shares).all():  # underflow of a tiny alpha, whose limit is one site that takes all
        shares = np.eye(len(sites))[rng.integers(len(sites))]
    order = rng.permutation(len(patients))
    cuts = np.round(np.cumsum(shares)[:-1] * len(patients)).astype(int)
    return {patients[index]: site for site, part in zip(sites, np.split(order, cuts), strict=True) for index in part}


def _field(groups: dict[str, list[str]], sites: Sequence[str], field: str) -> dict[str, str]:
    if len(groups) != len(sites):
        raise DataError(
            f"partition.field={field!r} has {len(groups)} values ({', '.join(groups)}) for {len(sites)} sites",
            "expected one value per site: change partition.sites or partition.field",
        )
    by_name = {value.casefold(): value for value in groups}
    value_of = {site: by_name[site.casefold()] for site in sites if site.casefold() in by_name}
    if len(set(value_of.values())) != len(value_of):
        raise DataError("partition.sites: two sites are named like the same value", "expected names that differ")
    unnamed = [site for site in sites if site not in value_of]
    left = [value for value in groups if value not in value_of.values()]
    value_of |= dict(zip(unnamed, left, strict=True))
    return {patient: site for site, value in value_of.items() for patient in groups[value]}
