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
| wording    | a cue inside another says something else, so such wordings are made plain first: "no change in" is no    |
|            | absence and goes, "cannot be excluded" becomes "is possible", "has not resolved" goes                    |
| part       | ends before "but", "however", "although", "though", "except", "with", and where a clause begins with     |
|            | "and there is", ", there is", ", and the"                                                                |
| mention    | a phrase of the lexicon, as whole words; of phrases that overlap the longest; "is mildly" and "is not"   |
|            | stand for "is" in it                                                                                     |
| scope      | a cue before a mention holds for all mentions of its part, of several the nearest; a cue behind one      |
|            | ("is not seen", "has resolved") holds for those before it in its part, and goes before                   |
| assertion  | absent with a cue of absence, uncertain with a cue of doubt, else present                                |
| text       | a finding mentioned several times is present before uncertain before absent                              |
| No Finding | present when nothing is present or uncertain and the text says that something is normal or clear         |

A comma ends no part: in "possible edema, large effusion" both are uncertain.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

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
_ABSENT = (
    "no|not|nothing|without|free of|negative for|rules out|ruled out|absence of|denies|never|resolved|clear of|nor|neither|"
    "resolution of|removal of"
)
_ABSENT_BEHIND = (
    "not seen|not identified|not present|absent|resolved|ruled out|excluded|not evident|not visualized|removed|"
    "no longer (?:seen|identified|present|evident|visualized|visible|appreciated)"
)
_DOUBT = (
    "possible|possibly|probable|probably|may|might|could|suspected|suspicious for|questionable|question of|suggests|suggesting|"
    "versus|likely|concerning for|consider"
)
_DOUBT_BEHIND = (
    "is possible|are possible|is suspected|is questionable|is unlikely|are unlikely|(?:is|are) likely(?=,|$)"
)
_EXTENT = "mildly|moderately|severely|markedly|massively|slightly|minimally|significantly|grossly|borderline|again|still|also|not"
_FULLY = r"(?: (?:be|been|entirely|completely|fully|definitely|definitively|reliably|possible to|able to))*"
_SIZE = r"(?: (?:significant|interval|appreciable|substantial|definite|obvious|other|further|new))*"
_HINTS = "suggest(?:s|ing|ive of)?|indicate|suspicious for|concerning for|that (?:may|might|could)"
# What a wording with a cue inside is to be read as: with one cue of its real meaning, or with none. In this order.
_PLAIN = tuple(
    (re.compile(rf"\b(?:{wording})\b"), meaning)
    for wording, meaning in (
        (rf"(?:cannot|can not|not){_FULLY} (?:excluded|ruled out)", "is possible"),
        (rf"(?:cannot|can not|not|impossible to|unable to|difficult to){_FULLY} (?:exclude|rule out)", "possible"),
        ("rule out|r/o|(?:evaluat|assess)(?:e|ion|ment) for", "possible"),
        (rf"(no|not|nothing|without)\b([^,]{{0,80}}?) (?:{_HINTS})", r"\1\2"),
        ("not without", ""),
        (f"(?:no|without){_SIZE} (?:change|increase|decrease)", ""),
        ("not(?: [a-z]+)? (?:changed|increased|decreased|worsened|improved|progressed|resolved)", ""),
        ("(?:partial|incomplete|near)(?:ly|[ -]complete)? (?:resolution of|resolved)", ""),
        ("ha(?:s|ve)(?: [a-z]+)? resolved", "is absent"),
    )
)
_NORMAL = re.compile(r"\b(normal|unremarkable|clear|no acute|no evidence of|negative)\b")
_SENTENCE = re.compile(r"[;:!?\n]+|\.(?!\d)")
_PART = re.compile(
    r"\b(?:but|however|although|though|except|with)\b(?!out)|,? and (?=there (?:is|are)\b)|, (?=there (?:is|are)\b)|, and (?=the\b)"
)
_BEFORE = {kind: re.compile(rf"\b(?:{cues})\b") for kind, cues in (("absent", _ABSENT), ("uncertain", _DOUBT))}
_BEHIND = {
    kind: re.compile(rf"\b(?:{cues})(?!\w)")
    for kind, cues in (("uncertain", _DOUBT_BEHIND), ("absent", _ABSENT_BEHIND))
}
_RANK = ("absent", "uncertain", "present")
_PHRASES = {phrase: name for name, phrases in LEXICON.items() for phrase in phrases}
_IS = re.compile(rf"\bis (?:(?:{_EXTENT}) )+")


def _pattern(phrase: str) -> str:
    return re.escape(phrase).replace(r"\ is\ ", rf"\ is\ (?:(?:{_EXTENT})\ )*")


_MENTION = re.compile(rf"\b(?:{'|'.join(map(_pattern, sorted(_PHRASES, key=len, reverse=True)))})\b")


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
        for part in _PART.split(_plain(sentence)):
            for name, assertion in _assertions(part.strip()):
                found[name] = max(found.get(name, "absent"), assertion, key=_RANK.index)
    if all(assertion == "absent" for assertion in found.values()) and _NORMAL.search(text.lower()):
        found[NO_FINDING] = "present"
    return {name: found[name] for name in OBSERVATIONS if name in found}


def finding_f1(pairs: Iterable[tuple[str, str]]) -> FindingScores:
    """Scores of (text, true text) pairs."""
    known = [(findings(text), findings(truth)) for text, truth in pairs]
    by_finding = {name: _f1(known, [name], "present") for name in OBSERVATIONS}
    return FindingScores(_f1(known, OBSERVATIONS, "present"), _f1(known, OBSERVATIONS, "absent"), by_finding)


def _plain(sentence: str) -> str:
    """Without wordings that hold a cue and mean something else."""
    for wording, plain in _PLAIN:
        sentence = wording.sub(plain, sentence)
    return sentence


def _assertions(part: str) -> list[tuple[str, str]]:
    before = sorted((cue.end(), kind) for kind, cues in _BEFORE.items() for cue in cues.finditer(part))
    behind = {kind: max((cue.start() for cue in cues.finditer(part)), default=-1) for kind, cues in _BEHIND.items()}
    found = []
    for mention in _MENTION.finditer(part):
        name = _PHRASES[_IS.sub("is ", mention[0])]
        # Of cues before it those up to its end: "is not enlarged" has its cue inside.
        place = bisect_right(before, mention.end(), key=itemgetter(0))
        nearest = before[place - 1][1] if place else "present"
        found.append((name, next((kind for kind in behind if behind[kind] >= mention.end()), nearest)))
    return found


def _f1(known: Sequence[tuple[dict[str, str], dict[str, str]]], names: Sequence[str], assertion: str) -> float | None:
    given = sum(own.get(name) == assertion for own, _ in known for name in names)
    true = sum(truth.get(name) == assertion for _, truth in known for name in names)
    both = sum(own.get(name) == assertion == truth.get(name) for own, truth in known for name in names)
    return 2 * both / (given + true) if given + true else None
