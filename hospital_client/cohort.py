"""Whom a task is about: patients by pseudonym, data by fingerprint. What a site knows of its data without reading a record."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmed.data.manifest import Manifest
from hospital_client.release import cohort_hash


@dataclass(frozen=True, slots=True)
class Cohort:
    """What the site knows of its data without reading a record.

    Attributes:
        members: keyed pseudonyms of its patients (fedmed.data.manifest.pseudonym).
        fingerprint, name_hash: of the data and of the name, both under the site's key (hospital_client/release.py).
    """

    name: str
    members: frozenset[bytes] = field(repr=False)
    fingerprint: str
    name_hash: str = ""

    @classmethod
    def of(cls, name: str, manifest: Manifest, key: bytes) -> Cohort:
        """The patients of a manifest under a name of site.yaml."""
        members = frozenset(manifest.pseudonyms(key))
        return cls(name, members, manifest.fingerprint(key), cohort_hash(key, name))

    @property
    def num_patients(self) -> int:
        """With those who withdrew consent: the public number does not tell when somebody does."""
        return len(self.members)
