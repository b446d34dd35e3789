"""Who is and was in which cohort, as keyed pseudonyms: what makes a budget follow patients and not a name. Pure.

    cohort entries of the ledger -> Membership -> names of cohorts whose spending counts for a cohort

    >>> membership = Membership()
    >>> for name, members in [("north", {b"1", b"2"}), ("renamed", {b"2"}), ("south", {b"3"})]:
    ...     membership.add(name, frozenset(members))
    >>> sorted(membership.sharing("renamed", {"north", "renamed", "south"}))
    ['north', 'renamed']

| cohort                          | whose spending counts for it                                                    |
| ------------------------------- | ------------------------------------------------------------------------------- |
| any                             | its own, and that of every cohort that ever held one of its present patients    |
| renamed                         | the old name's: nothing is gained                                               |
| patients moved to another name  | the old name's, for all who came from it                                        |
| of other patients               | its own alone                                                                   |
| grown or shrunk                 | its own goes on, for the newcomers too: that can only overstate what they lost  |
| never noted in the ledger       | everybody's, and its own for everybody: fail closed                             |

So whatever a present patient took part in is counted: it happened under a cohort that held the patient then.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable

PSEUDONYM_BYTES = 8


class Membership:
    """Members of every cohort, now and ever."""

    def __init__(self) -> None:
        self._now: dict[str, frozenset[bytes]] = {}
        self._ever: dict[str, frozenset[bytes]] = {}

    def add(self, cohort: str, members: frozenset[bytes]) -> None:
        """Takes up that a cohort consists of `members` from here on."""
        self._ever[cohort] = self._ever.get(cohort, frozenset()) | members
        self._now[cohort] = members

    def members(self, cohort: str) -> frozenset[bytes] | None:
        """The present ones; None for a cohort that was never noted."""
        return self._now.get(cohort)

    def sharing(self, cohort: str, names: Iterable[str]) -> set[str]:
        """Those of `names` whose spending counts for `cohort`, itself among them."""
        now = self._now.get(cohort)
        return {name for name in names if name == cohort or now is None or self._ever_held(name, now)}

    def _ever_held(self, name: str, members: frozenset[bytes]) -> bool:
        ever = self._ever.get(name)
        return ever is None or not ever.isdisjoint(members)


def pack(members: frozenset[bytes]) -> str:
    """Pseudonyms as one text, sorted: their order tells nothing of the manifest's."""
    return b64encode(b"".join(sorted(members))).decode()


def unpack(text: str) -> frozenset[bytes]:
    """The inverse of `pack`. Raises ValueError for any other text."""
    joined = b64decode(text, validate=True)
    if len(joined) % PSEUDONYM_BYTES:
        raise ValueError("not a whole number of pseudonyms")
    return frozenset(joined[start : start + PSEUDONYM_BYTES] for start in range(0, len(joined), PSEUDONYM_BYTES))


def fingerprint(members: frozenset[bytes], key: bytes) -> str:
    """HMAC-SHA256 of a cohort's patients under the site's key, whatever their number of records and their order."""
    return hmac.new(key, b"cohort\0" + b"".join(sorted(members)), hashlib.sha256).hexdigest()
