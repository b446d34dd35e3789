"""Findings of a chest report, each present, absent or uncertain, and how well a text agrees with the true one. Pure.

    >>> findings("No pleural effusion. The heart is enlarged; possible edema.")
    {'Cardiomegaly': 'present', 'Edema': 'uncertain', 'Pleural Effusion': 'absent'}
    >>> finding_f1([("Pleural effusion.", "No pleural effusion.")]).present
    0.0

The fourteen observations are those of CheXpert (Irvin et al., AAAI 2019). The rules are in the spirit of its labeller and of
NegEx (Chapman et al., 2001), far fewer and simpler: they measure whether two texts say the same, and are no labels to train on.

| step       | rule                                                                                                     |
| ---------- | -------------------------------------------------------------------------------------------------------- |
| sentence   | ends at . ; : ! ? or a line's end; a number's point ends none                                            |
| mention    | a phrase of the lexicon, as whole words; of phrases that overlap the longest                             |
| scope      | a cue before a mention holds for all mentions up to the next "but", "however", "although", "except" or   |
|            | "with"; a cue behind a mention ("is not seen", "has resolved") holds for those before it in its part     |
| assertion  | absent with a cue of absence, else uncertain with a cue of doubt, else present                           |
| text       | a finding mentioned several times is present before uncertain before absent                              |
| No Finding | present when nothing is present or uncertain and the text says that something is normal or clear         |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEXICON: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        "enlarged cardiomediastinum",
        "mediastinal widening",
        "widened mediastinum",
        "mediastinum is widened",
        "enlarged mediastinum",
    ),
    "Cardiomegaly": (
        "cardiomegaly",
        "enlarged heart",
        "heart is enlarged",
        "large heart",
        "cardiac enlargement",
        "enlarged cardiac silhouette",
        "cardiac silhouette is enlarged",
        "heart size is enlarged",
    ),
    "Lung Opacity": ("opacity", "opacities", "infiltrate", "infiltrates", "airspace disease", "haziness"),
    "Lung Lesion": ("nodule", "nodules", "mass", "masses", "lung lesion", "lesion", "lesions", "tumor"),
    "Edema": ("edema", "oedema", "vascular congestion", "heart failure"),
    "Consolidation": ("consolidation", "consolidations"),
    "Pneumonia": ("pneumonia", "infection", "infectious process"),
    "Atelectasis": ("atelectasis", "atelectases", "collapse", "volume loss"),
    "Pneumothorax": ("pneumothorax", "pneumothoraces"),
    "Pleural Effusion": ("pleural effusion", "pleural effusions", "effusion", "effusions", "pleural fluid"),
    "Pleural Other": ("pleural thickening", "pleural plaque", "pleural plaques", "fibrothorax"),
    "Fracture": ("fracture", "fractures", "fractured"),
    "Support Devices": (
        "pacemaker",
        "catheter",
        "endotracheal tube",
        "tracheostomy",
        "chest tube",
        "feeding tube",
        "nasogastric tube",
        "picc",
        "central line",
        "sternotomy wires",
        "valve replacement",
    ),
}
NO_FINDING = "No Finding"
OBSERVATIONS = (NO_FINDING, *LEXICON)
_ABSENT = "no|not|without|free of|negative for|rule out|ruled out|absence of|denies|never|resolved|clear of|nor"
_ABSENT_BEHIND = "not seen|not identified|not present|absent|resolved|ruled out|excluded|not evident|not visualized"
_DOUBT = (
    "possible|possibly|probable|probably|may|might|could|suspected|suspicious for|questionable|question of|suggests|suggesting|"
    "cannot be excluded|cannot exclude|not excluded|versus|likely|concerning for|consider"
)
_DOUBT_BEHIND = "cannot be excluded|not excluded|is possible|are possible|is suspected|is questionable|not ruled out"
_NORMAL = re.compile(r"\b(normal|unremarkable|clear|no acute|no evidence of|negative)\b")
_SENTENCE = re.compile(r"[;:!?\n]+|\.(?!\d)")
_PART = re.compile(r"\b(?:but|however|although|except|with)\b(?!out)")
_BEFORE = {kind: re.compile(rf"\b(?:{cues})\b") for kind, cues in (("absent", _ABSENT), ("uncertain", _DOUBT))}
_BEHIND = {
    kind: re.compile(rf"\b(?:{cues})\b") for kind, cues in (("absent", _ABSENT_BEHIND), ("uncertain", _DOUBT_BEHIND))
}
_RANK = ("absent", "uncertain", "present")
_PHRASES = {phrase: name for name, phrases in LEXICON.items() for phrase in phrases}
_MENTION = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(_PHRASES, key=len, reverse=True)))})\b")


@dataclass(frozen=True, slots=True)
class FindingScores:
    """Agreement over all pairs, each in [0, 1]; None where neither text of any pair says such a thing.

    Attributes:
        present: F1 of the (pair, finding) that are present, pooled over all findings; No Finding is one of them.
        absent: the same of those that are said to be absent.
        by_finding: finding -> F1 of its being present.
    """

    present: float | None
    absent: float | None
    by_finding: dict[str, float | None]


def findings(text: str) -> dict[str, str]:
    """Finding -> "present", "absent" or "uncertain", in the order of OBSERVATIONS; what is not mentioned is not in it."""
    found: dict[str, str] = {}
    for sentence in _SENTENCE.split(text.lower()):
        for part in _PART.split(sentence):
            for name, assertion in _assertions(part):
                found[name] = max(found.get(name, "absent"), assertion, key=_RANK.index)
    if all(assertion == "absent" for assertion in found.values()) and _NORMAL.search(text.lower()):
        found[NO_FINDING] = "present"
    return {name: found[name] for name in OBSERVATIONS if name in found}


def finding_f1(pairs: Iterable[tuple[str, str]]) -> FindingScores:
    """Scores of (text, true text) pairs."""
    known = [(findings(text), findings(truth)) for text, truth in pairs]
    by_finding = {name: _f1(known, [name], "present") for name in OBSERVATIONS}
    return FindingScores(_f1(known, OBSERVATIONS, "present"), _f1(known, OBSERVATIONS, "absent"), by_finding)


def _assertions(part: str) -> list[tuple[str, str]]:
    return [(_PHRASES[mention[0]], _assertion(part, mention)) for mention in _MENTION.finditer(part)]


def _assertion(part: str, mention: re.Match[str]) -> str:
    before, behind = part[: mention.start()], part[mention.end() :]
    if _BEHIND["uncertain"].search(behind):  # "cannot be excluded" holds "excluded"
        return "uncertain"
    if _BEFORE["absent"].search(before) or _BEHIND["absent"].search(behind):
        return "absent"
    return "uncertain" if _BEFORE["uncertain"].search(before) else "present"


def _f1(known: Sequence[tuple[dict[str, str], dict[str, str]]], names: Sequence[str], assertion: str) -> float | None:
    given = sum(own.get(name) == assertion for own, _ in known for name in names)
    true = sum(truth.get(name) == assertion for _, truth in known for name in names)
    both = sum(own.get(name) == assertion == truth.get(name) for own, truth in known for name in names)
    return 2 * both / (given + true) if given + true else None
