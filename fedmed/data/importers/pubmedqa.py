"""PubMedQA (Jin et al., EMNLP 2019): does an abstract answer its title's question with yes, no or maybe? Text alone.

    pubmedqa/ori_pqal.json             {PMID: {QUESTION, CONTEXTS: [...], LONG_ANSWER, final_decision, ...}}; also in data/
    pubmedqa/test_ground_truth.json    {PMID: decision}: its 500 keys are the test split

    >>> PubMedQa("pubmedqa").read(Path("data/pubmedqa"), split="test").rows_read
    500

`pubmedqa` asks for the decision (closed), `pubmedqa_long` for the conclusion (open, LONG_ANSWER). The patient is the PMID, the
official test split that of github.com/pubmedqa/pubmedqa (preprocess/split_dataset.py makes it; data/test_ground_truth.json
keeps it). The authors train on ten folds of the other 500; here a tenth of them, by a hash of the PMID, is `val`. Without
the file of the test split there is no official one: DataError, and `image` (no patient in two splits) takes a fifth of the
abstracts for test by the same hash. Attribute: `year`, where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.rows import json_entries, text, wrong_field
from fedmed.data.importers.rowwise import EMPTY, TEST_SHARE, VAL_SHARE, hash_share
from fedmed.data.importers.sifting import sifted
from fedmed.data.schema import Example, Split
from fedmed.errors import DataError

DECISIONS = ("yes", "no", "maybe")
DECISION = "decision is none of yes, no and maybe"
_ROWS, _TEST = "ori_pqal.json", "test_ground_truth.json"


class PubMedQa(Importer):
    """Importer of the folder that holds the JSON files; `pubmedqa_long` asks for the conclusion."""

    filename = "pubmedqa"

    def __init__(self, name: str) -> None:
        self.name = name
        self._long = name.endswith("_long")
        asked = "their conclusions" if self._long else "yes, no or maybe"
        self.description = f"1,000 questions about abstracts: {asked}; text alone (MIT)"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split.

        Raises:
            DataError: folder or file missing, not JSON, or a field missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        return sifted(self._made(path / "data" if (path / "data").is_dir() else path, kind, split_rule), tally)

    def _made(self, folder: Path, split: Split, rule: str) -> Iterator[Example | str]:
        test = _test_keys(folder, rule)
        for number, pmid, row in json_entries(folder / _ROWS):
            where = f"{_ROWS} row {number}"
            question, contexts = text(row, "QUESTION", where), _contexts(row, where)
            answer = text(row, "LONG_ANSWER" if self._long else "final_decision", where)
            year = text(row, "YEAR", where) if isinstance(row.get("YEAR"), str) else ""
            if _split_of(pmid, test) != split:
                continue
            known = self._long or not answer or answer.lower() in DECISIONS
            if not known or not question:
                yield EMPTY if not question else DECISION
            else:
                yield self._example(pmid, f"Context: {contexts} Question: {question}", answer, split, year)

    def _example(self, pmid: str, question: str, answer: str, split: Split, year: str) -> Example:
        asked = "What do the authors conclude?" if self._long else "Answer yes, no or maybe."
        return Example(
            patient=pmid,
            images=(),
            question=f"{question} {asked}",
            answer=answer if self._long else answer.lower(),
            answer_type="open" if self._long else "closed",
            task="instruct" if self._long else "choice",
            source=self.name,
            split=split,
            attributes={"year": year} if year else {},
            choices=() if self._long else DECISIONS,
        )


def _split_of(pmid: str, test: frozenset[str] | None) -> str:
    """`test` is None where a hash decides."""
    share = hash_share("pubmedqa", pmid)
    if share < TEST_SHARE if test is None else pmid in test:
        return "test"
    low = TEST_SHARE if test is None else 0.0
    return "val" if low <= share < low + VAL_SHARE else "train"


def _test_keys(folder: Path, rule: str) -> frozenset[str] | None:
    path = folder / _TEST
    if not path.exists():
        if rule == "official":
            raise DataError(
                f"{folder} has no {_TEST}, which says what the official test split is",
                "get it from the authors' repository, or set data.split to image for a split by a hash of the PMID",
            )
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{_TEST} is not JSON", "get it again: it may be cut off") from None
    if not isinstance(content, dict):
        raise DataError(f"{_TEST} holds a JSON {type(content).__name__}, expected an object of PMIDs with decisions")
    return frozenset(content)


def _contexts(row: dict[str, Any], where: str) -> str:
    contexts = row.get("CONTEXTS")
    if not isinstance(contexts, list) or not all(isinstance(item, str) for item in contexts):
        raise wrong_field(row, "CONTEXTS", where, "a list of texts")
    return " ".join(" ".join(contexts).split())
