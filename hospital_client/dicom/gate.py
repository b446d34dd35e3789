"""The de-identification gate: what in a file or a text may identify the patient, counted by kind and tag.

    gate = Gate({"overlay": "refuse"})
    refused = gate.look(header)                            the kind for which a file is left out, or ""
    refused = gate.look_text({"question": ...}, known)     the kind for which a row is left out, or ""
    gate.report()                                          kinds, tags and counts; never a value

| kind              | found where                                                                  | by default |
| ----------------- | ---------------------------------------------------------------------------- | ---------- |
| attribute         | an attribute of PS3.15 table E.1-1 has a value                                | report     |
| uid               | one of the table's UIDs has a value                                           | report     |
| private           | a private attribute has a value                                               | report     |
| overlay           | an overlay plane, its comment, or a curve; none of them is drawn               | report     |
| text-in-tags      | a free text of the header shows signs of a name, date, number, ...             | report     |
| face              | RecognizableVisualFeatures is there and not NO                                | report     |
| burned-in         | BurnedInAnnotation is there and not NO                                        | refuse     |
| burned-in-likely  | a modality or class that often carries text in its pixels, and no NO there    | refuse     |
| text-name, ...    | a text that would be trained on shows signs of a name, date, phone, ...        | refuse     |

The tags stay at the site: of a header nothing but PatientID (with its issuer) and the modality goes into the manifest.
So what is found there says how far an archive is de-identified; what is found in pixels and texts would be learned.
That nothing was found does not say that there is nothing: no pattern knows every name, and no one looks at the pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from fedmed.errors import ConfigError
from hospital_client.dicom import phi
from hospital_client.dicom.confidential import is_curve, is_overlay, is_private, table
from hospital_client.dicom.headers import text

REFUSE, REPORT = "refuse", "report"
TEXT_KINDS = tuple(f"text-{kind}" for kind in phi.KINDS)
DEFAULTS: dict[str, str] = {
    "attribute": REPORT,
    "uid": REPORT,
    "private": REPORT,
    "overlay": REPORT,
    "text-in-tags": REPORT,
    "face": REPORT,
    "burned-in": REFUSE,
    "burned-in-likely": REFUSE,
    **dict.fromkeys(TEXT_KINDS, REFUSE),
}
_FREE_TEXT = ("LO", "LT", "ST", "UC", "UT")
# Ultrasound, secondary capture, endoscopy and photographs, screenshots of other devices; fluoroscopy and film.
BURNED_IN_MODALITIES = ("US", "IVUS", "SC", "OT", "ES", "GM", "XC", "OP", "SM", "XA", "RF", "DG", "BI", "TG")
_CAPTURE_CLASSES = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, and its multi-frame kinds below it
_NAMES = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ResponsiblePerson",
    "PatientID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
)


class Gate:
    """Counts what it finds, and says what the policy refuses.

    Attributes:
        policy: kind -> "refuse" or "report".
        found: kind -> files, or rows of the table, in which it was found.
        tags: kind -> tag (or column) -> files, or rows.
        files, rows: looked at.
        said_removed: files that say PatientIdentityRemoved = YES.
    """

    def __init__(self, policy: Mapping[str, str] | None = None) -> None:
        self.policy = {**DEFAULTS, **(policy or {})}
        self.found: Counter[str] = Counter()
        self.tags: dict[str, Counter[str]] = {}
        self.files = self.rows = self.said_removed = 0

    def look(self, header: Dataset) -> str:
        """Counts a file's findings. The kind for which the policy leaves it out; empty where it may be used."""
        self.files += 1
        self.said_removed += text(header, "PatientIdentityRemoved").upper() == "YES"
        return self._count({*_header_findings(header), *_pixel_findings(header)})

    def look_text(self, texts: Mapping[str, str], known: frozenset[str]) -> str:
        """As `look`, of a row's texts by the name of their column; `known` is what `known_words` gives for its study."""
        self.rows += 1
        return self._count({(f"text-{kind}", at) for at, value in texts.items() for kind in phi.kinds_in(value, known)})

    def report(self) -> dict[str, Any]:
        """What was found, for JSON."""
        return {
            "files": self.files,
            "files_that_say_identity_removed": self.said_removed,
            "rows": self.rows,
            "kinds": {
                kind: {
                    "policy": policy,
                    "found": self.found[kind],
                    "tags": dict(sorted(self.tags.get(kind, {}).items())),
                }
                for kind, policy in self.policy.items()
            },
        }

    def _count(self, findings: set[tuple[str, str]]) -> str:
        kinds = {kind for kind, _ in findings}
        self.found.update(kinds)
        for kind, tag in findings:
            self.tags.setdefault(kind, Counter())[tag] += 1
        return next((kind for kind, policy in self.policy.items() if policy == REFUSE and kind in kinds), "")


def parse_policy(pairs: list[str]) -> dict[str, str]:
    """KIND=refuse or KIND=report of the command line; `text` stands for all kinds of findings in a row's texts.

    Raises:
        ConfigError: any other form, every problem at once.
    """
    policy: dict[str, str] = {}
    problems = []
    for pair in pairs:
        kind, _, action = pair.partition("=")
        kinds = TEXT_KINDS if kind == "text" else (kind,)
        if action not in (REFUSE, REPORT):
            problems.append(f"--gate {pair!r} is not of the form KIND=refuse or KIND=report")
        elif not set(kinds) <= set(DEFAULTS):
            problems.append(f"--gate {pair!r}: the gate has no kind {kind!r}")
        policy |= dict.fromkeys(kinds, action)
    if problems:
        raise ConfigError(problems, f"the kinds are text, {', '.join(DEFAULTS)}")
    return policy


def known_words(header: Dataset) -> frozenset[str]:
    """The words of the names and numbers of a file's people, to look for in the texts that go with it."""
    return phi.words_of(text(header, keyword) for keyword in _NAMES)


def _header_findings(header: Dataset) -> Iterator[tuple[str, str]]:
    known = known_words(header)
    for tag, kind_of_value, value in _elements(header):
        if not _has_value(value):
            continue
        yield from _tag_findings(tag)
        if kind_of_value in _FREE_TEXT and not is_private(tag) and keyword_for_tag(tag) not in _NAMES:
            for kind in phi.kinds_in(str(value), known):
                yield "text-in-tags", f"{_name(tag)}: {kind}"


def _tag_findings(tag: int) -> Iterator[tuple[str, str]]:
    if is_private(tag):
        yield "private", f"group {tag >> 16:04X}"
    elif is_overlay(tag) or is_curve(tag):
        yield "overlay", _name(tag)
    elif tag in table():
        action, keyword = table()[tag]
        yield ("uid" if action == "U" else "attribute"), keyword


def _pixel_findings(header: Dataset) -> Iterator[tuple[str, str]]:
    modality = text(header, "Modality")
    if _may_be(header, "BurnedInAnnotation"):
        yield "burned-in", "BurnedInAnnotation"
    elif not text(header, "BurnedInAnnotation"):
        if text(header, "SOPClassUID").startswith(_CAPTURE_CLASSES) or text(header, "ConversionType"):
            yield "burned-in-likely", "secondary capture"
        elif modality in BURNED_IN_MODALITIES:
            yield "burned-in-likely", f"Modality {modality}"
    if _may_be(header, "RecognizableVisualFeatures"):
        yield "face", "RecognizableVisualFeatures"


def _may_be(header: Dataset, flag: str) -> bool:
    """Whether a flag is there and does not say NO: `yes` and `Y`, which the standard does not know, are no NO."""
    return text(header, flag).upper() not in ("", "NO")


def _elements(header: Dataset) -> Iterator[tuple[int, str, Any]]:
    """Tag, value representation and value of all elements, those in sequences too."""
    for tag in header.keys():  # noqa: SIM118  iterating over a Dataset gives elements, and stops at one that is broken
        try:
            item = header[tag]
            representation, value = str(item.VR), item.value
        except Exception:  # noqa: BLE001  a value of a broken form fails when it is looked at, in any way
            representation, value = "", "unreadable, so it has a value"
        yield int(tag), representation, value
        if representation == "SQ":
            for inner in value:
                yield from _elements(inner)


def _has_value(value: Any) -> bool:
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


def _name(tag: int) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
