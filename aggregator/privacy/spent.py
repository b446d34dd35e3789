"""What a site's patients have spent, as the site itself printed it. In: a JSON file; out: a Spent for the plan.

    fedmed-site budget DIR --public > north.json;  north.json -> read_spent -> Spent

Within a hospital the output of `--json` does too; it counts patients, so it should not leave.

| in the file          | what becomes of it                                                   |
| -------------------- | -------------------------------------------------------------------- |
| one cohort           | taken                                                                |
| several              | `cohort` chooses; without it the site's present one                  |
| anything else        | ConfigError: another file, or one of an older release without events |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmed.errors import ConfigError
from fedmed.privacy.events import PrivacyEvent, group_events
from fedmed.privacy.planning import Spent

_HINT = "make the file at the site: fedmed-site budget DIR --public > FILE"


def read_spent(path: Path, cohort: str = "") -> Spent:
    """The events, delta and budget of a cohort.

    Raises:
        ConfigError: the file cannot be read, is another, or does not have the cohort.
        PrivacyError: an event out of range.
    """
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"], _HINT) from None
    except ValueError:
        raise ConfigError([f"{path}: not JSON"], _HINT) from None
    try:
        return _spent(report, cohort)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError([f"{path}: not what `fedmed-site budget --public` of this release prints"], _HINT) from None


def _spent(report: dict[str, Any], cohort: str) -> Spent:
    found = {item["cohort"]: item for item in report["cohorts"]}
    name = cohort or report["cohort"]
    if name not in found:
        raise ConfigError([f"--cohort {name}: not in the file, which has {', '.join(found)}"])
    events = group_events([PrivacyEvent(**event) for event in found[name]["events"]])
    return Spent(name, events, float(report["delta"]), float(report["budget"]))
