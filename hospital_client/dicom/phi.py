"""Finds in free text what may identify a patient. Gives kinds alone, never what was found.

    >>> sorted(kinds_in("Seen by Dr. Example on 3 May 2021, call 555-867-5309", frozenset()))
    ['date', 'name', 'phone']

Patterns find much and not all: an empty answer is no proof that a text names nobody. A year alone is no date here, and
neither are sizes, ratios and levels of the spine (3.5 x 2 cm, 120/80, L4/5).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?|januar|februar|märz|mai|juni|juli|oktober|dezember|janvier|février|mars|avril|juin"
    r"|juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre"
    r"|octubre|noviembre|diciembre)"
)
_DAY, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d\d"
_STREET = (
    r"(?:street|st|road|rd|avenue|ave|boulevard|blvd|lane|drive|court|square|highway|terrace|parkway|crescent|rue|calle"
    r"|via)"
)
PATTERNS: dict[str, re.Pattern[str]] = {
    kind: re.compile(pattern, re.IGNORECASE)
    for kind, pattern in {
        "date": rf"(?<![\d.])(?:{_YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}|{_DAY}[-/.]{_DAY}[-/.](?:{_YEAR}|\d\d))(?![\d.]\d|\d)"
        rf"|\b{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\b"
        rf"|\b{_DAY}(?:st|nd|rd|th)?\.?(?:\s+(?:of|de)\s+|[\s-]+){_MONTH}\b"
        rf"|\b{_MONTH}\.?\s+{_DAY}(?:st|nd|rd|th)?\b(?!\s*[x×.%]|\s*(?:mm|cm|ml))"
        rf"|\b{_MONTH}\.?,?\s+(?:of\s+|de\s+)?{_YEAR}\b",
        "phone": r"(?<![\w.])(?:\+\d{1,3}[\s.-]?)?(?:\(\d{2,5}\)\s?|\d{3,5}[\s/.-])\d{3,4}[\s.-]\d{3,4}(?![\w.])"
        r"|(?<!\w)\+\d[\d\s./-]{7,15}\d\b"
        r"|\b(?:tel(?:efon|ephone)?|phone|fax|mobile|pager|ext)\b[.:#\s]{1,3}\+?[\d(][\d\s()./-]{3,}",
        "email": r"[\w.+-]+@[\w-]+\.[\w.-]+",
        "number": r"\b(?:mrn|medical\s+record|patient\s*(?:id|number|no)|accession|case\s*(?:number|no)|ssn|nhs|insurance)"
        r"\b[\s.:#]*(?:number|no|id)?[\s.:#]*[a-z]{0,4}-?\d[\w-]{2,}"
        r"|\b\d{3}-\d{2}-\d{4}\b|(?<![\d.,])\d{7,}(?![\d.,])",
        "address": rf"\b\d{{1,5}}\s+(?:[a-z'.]+\s+){{1,3}}{_STREET}\b(?!\w)"
        r"|\b\w{3,}(?:straße|strasse|gasse|weg|platz)\s+\d{1,4}\b|\bp\.?\s?o\.?\s+box\s+\d+|\bhttps?://\S+",
    }.items()
}
# Looks at case: a capital letter tells "Dr. Lee" from "dr. will see", and the dot "MR. LEE" from "MR FLAIR".
_TITLED = re.compile(
    r"\b(?:(?:[Dd]r|Mrs?|Ms|Prof|Herr|Frau|Mme|Sra?)\.?|(?:DR|MRS?|MS|PROF)\.)\s*(?:[Mm]ed\.?\s+)?[A-ZÀ-Þ][\w'-]+"
    r"|\b[Mm]iss\s+[A-ZÀ-Þ][\w'-]+"
)
KINDS = ("name", *PATTERNS)
# Shorter parts of a name are initials and particles, shorter numbers are sizes and doses: both stand in any text.
_LEAST_NAME, _LEAST_NUMBER = 3, 5
# What stands in PatientName after somebody de-identified a file, and in any report.
_PLACEHOLDERS = frozenset(
    re.split(
        " ", "anonymous anonymized anonymised anonym patient unknown name none test case subject study male female"
    )
)


def kinds_in(text: str, known: frozenset[str]) -> frozenset[str]:
    """What a text shows signs of: some of KINDS.

    Args:
        known: as `words_of` gives them: the patient's own names and numbers.
    """
    plain = unicodedata.normalize("NFC", text)
    found = {kind for kind, pattern in PATTERNS.items() if pattern.search(plain)}
    if _TITLED.search(plain) or known & words_of([plain]):
        found.add("name")
    return frozenset(found)


def words_of(values: Iterable[str]) -> frozenset[str]:
    """The words of names and numbers, folded: what is looked for in a text, and a text to look in."""
    words: set[str] = set()
    for value in values:
        folded = unicodedata.normalize("NFC", value).casefold()
        words |= {word for word in re.split(r"[\W_]+", folded) if len(word) >= _least(word)}
    return frozenset(words - _PLACEHOLDERS)


def _least(word: str) -> int:
    if any(letter.isdigit() for letter in word):
        return _LEAST_NUMBER
    return _LEAST_NAME if word[:1].isascii() else 2  # names of East Asian scripts are short
