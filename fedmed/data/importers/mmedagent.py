"""Tool dialogues as MMedAgent (Li et al., EMNLP Findings 2024) publishes them: a model that asks for tools, and answers.

    mmedagent/train.jsonl, val.jsonl, test.jsonl   [{image_id, image, conversations: [{from, value, thoughts, actions}]}]
    mmedagent/images/*.jpg                         as the rows' `image` names them

    >>> MMedAgent().read(Path("data/mmedagent"), split="train", split_rule="image").examples[0].task
    'tool'

A dialogue of k answers is k examples, each with what was said before as its history; its answer is the turn as text
(fedmed.tools.text), so that a model learns to write turns. The patient is the image; a dialogue without one is its own.

| rule     | train                          | val                     | test                     |
| -------- | ------------------------------ | ----------------------- | ------------------------ |
| official | train.jsonl or train.json      | val, where it is there  | test, where it is there  |
| image    | seven tenths of the images of  | a tenth                 | a fifth                  |
|          | all these files, by SHA-256    |                         |                          |

| the row has                                                        | what happens                                          |
| ------------------------------------------------------------------ | ----------------------------------------------------- |
| a field that is missing or of another type                         | DataError naming file, row and field                  |
| two turns of one speaker, or no last answer; an empty question or  | quarantined                                           |
| answer; a marker of the text's parts inside a text; no such image; |                                                       |
| more than 256 answers                                              |                                                       |
| an image mark too many, or without an image                        | all marks are taken out: the image then stands first  |
| lines in place of a JSON list (the name is .jsonl in either case)  | read too                                              |

Attributes: `tool` (of fedmed.tools, `none`, or `unknown`), `turn` (call or answer).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.rowwise import (
    MAX_ANSWERS,
    TOO_MANY_ANSWERS,
    Images,
    Row,
    Unusable,
    counted,
    table_rows,
    without_ending,
)
from fedmed.data.schema import IMAGE_MARK, SPLITS, Example, Exchange, ImageRef, Split
from fedmed.errors import DataError, TurnError
from fedmed.tools import Dialogue, Turn, tools_of, write_turn

TEST_SHARE, VAL_SHARE = 0.2, 0.1
_ENDINGS = (".jsonl", ".json")


class MMedAgent(Importer):
    """Importer of the folder that holds the files of dialogues and `images/`."""

    name = "mmedagent"
    description = "dialogues in which a model asks for medical tools, in MMedAgent's layout"
    filename = "mmedagent"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split, by the rules in the module's table.

        Raises:
            DataError: no such file, not JSON, or a row whose field is missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        images = Images(path / "images")
        return counted(_rows_of(path, kind, split_rule), lambda row, where: _examples(row, where, images, kind), tally)


class _Said(NamedTuple):
    question: str
    text: str
    turn: Turn


def _rows_of(folder: Path, split: Split, rule: str) -> Iterator[tuple[str, Row]]:
    """Of a split, with where each stands."""
    for file in _files(folder, SPLITS if rule == "image" else (split,)):
        for where, row in table_rows(file):
            if rule != "image" or _split_of(_owner(row, where)) == split:
                yield where, row


def _examples(row: Row, where: str, images: Images, split: Split) -> list[Example]:
    dialogue = _dialogue(row, where)
    said = _said(dialogue)
    shown = (images.load(dialogue.image),) if dialogue.image else ()
    return list(_turns(said, shown, _owner(row, where), split))


def _files(folder: Path, splits: tuple[str, ...]) -> list[Path]:
    """The files of these splits that are there. Raises DataError where there is none of any split."""
    known = {split: [folder / f"{split}{ending}" for ending in _ENDINGS] for split in SPLITS}
    if not any(file.is_file() for files in known.values() for file in files):
        raise DataError(
            f"{folder} holds no dialogues, expected train.jsonl, and val.jsonl and test.jsonl where there are such",
            "name the files of MMedAgent so; images belong into the folder images beside them",
        )
    return [file for split in splits for file in known[split] if file.is_file()]


def _owner(row: Mapping[str, Any], where: str) -> str:
    """Who the dialogue is about: its image, or itself."""
    for field in ("image", "image_id", "id"):
        if type(row.get(field)) in (str, int) and (name := str(row[field]).strip()):
            return without_ending(name) if field == "image" else name
    return where


def _split_of(owner: str) -> str:
    share = int.from_bytes(hashlib.sha256(f"mmedagent/{owner}".encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    if share < TEST_SHARE:
        return "test"
    return "val" if share < TEST_SHARE + VAL_SHARE else "train"


def _dialogue(row: Mapping[str, Any], where: str) -> Dialogue:
    """Raises DataError for a field of another type, Unusable where the speakers do not take turns."""
    said = row.get("conversations")
    if isinstance(said, list) and all(isinstance(turn, dict) and isinstance(turn.get("from"), str) for turn in said):
        speakers = [turn["from"] in ("human", "user") for turn in said]
        if not said or speakers != [True, False] * (len(said) // 2):
            raise Unusable("the speakers do not take turns, question and answer")
        if len(speakers) // 2 > MAX_ANSWERS:
            raise Unusable(TOO_MANY_ANSWERS)
    try:
        return Dialogue.from_json(row)
    except TurnError as error:
        raise DataError(f"{where}: {error.message}", "mend or leave out that row; see fedmed/tools/turns.py") from None


def _said(dialogue: Dialogue) -> list[_Said]:
    marks = sum(question.count(IMAGE_MARK) for question, _ in dialogue.exchanges)
    found = []
    for text, turn in dialogue.exchanges:
        question = text if marks == bool(dialogue.image) else " ".join(text.split(IMAGE_MARK)).strip()
        if not question.replace(IMAGE_MARK, "").strip() or not (turn.actions or turn.value):
            raise Unusable("question or answer is empty")
        try:
            found.append(_Said(question, write_turn(turn), turn))
        except TurnError:
            raise Unusable("a turn is too long, or holds a marker of its parts") from None
    return found


def _turns(said: list[_Said], shown: tuple[ImageRef, ...], owner: str, split: Split) -> Iterator[Example]:
    for place, last in enumerate(said):
        yield Example(
            patient=owner,
            images=shown,
            question=last.question,
            answer=last.text,
            answer_type="open",
            task="tool",
            source="mmedagent",
            split=split,
            attributes={"tool": tools_of(last.turn), "turn": "call" if last.turn.actions else "answer"},
            history=tuple(Exchange(before.question, before.text) for before in said[:place]),
        )
