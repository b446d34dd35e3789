"""LLaVA-Med's files (Li et al., NeurIPS 2023): captions to align by, conversations, questions in the same form.

    {id, image, domain: {chest_xray: bool, ...}, conversations: [{from: human | gpt, value}], answer_type}

| importer             | reads                                                                    | task     |
| -------------------- | ------------------------------------------------------------------------ | -------- |
| `llava_med_align`    | a JSON list of single turns, such as llava_med_alignment_500k.json        | caption  |
| `llava_med_instruct` | a JSON list of conversations, such as llava_med_instruct_60k.json         | instruct |
| `llava_med_vqa`      | a folder of train.json, test.json and perhaps val.json: VQA in that form   | vqa      |
| `llava_med_eval`     | JSON Lines of {question_id, image, text, gpt4_answer}; all of it is test    | instruct |

Images lie in `images/` beside the file or, as in LLaVA-Med's own `data/`, beside its folder. A conversation of k answers
is k examples, each with what was said before as its history. The patient is the PMC article: the number before `_` in
the id (`32432162_F1`), else the one that begins the image's path; in VQA files it is the image, by its path without
ending, since ids number the questions. Attribute: modality, the true keys of `domain`, joined by commas.

Splits: by hash of the patient. `llava_med_vqa` under the official rule takes the files, with a tenth of train.json's
images as val where there is no val.json; under `image` it, too, goes by hash, over all files.

| in the real files                                                    | what happens                                        |
| -------------------------------------------------------------------- | --------------------------------------------------- |
| `<image>` before or after the first question                         | stays there                                         |
| no `<image>`, in another turn, or twice (the cleaning of LLaVA-Med's  | taken out: the image stands before the first        |
| instruct_postprocess.py drops whole turns, with their marks)          | question                                            |
| an image that no download brought (microsoft/LLaVA-Med issue 48)      | quarantined                                         |
| the key `conversatons` (its remove_instructions.py, run_eval.py)      | read as conversations                               |
| a conversation that the answerer opens                               | that turn is skipped, as LLaVA's training does      |
| two turns of one speaker; more than 256 answers                      | quarantined                                         |
| a last question without answer                                       | left off                                            |
| `user` and `assistant` for human and gpt; no image at all; line breaks | read; text alone; spaces                          |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.rows import json_rows, text, wrong_field
from fedmed.data.importers.rowwise import (
    MAX_ANSWERS,
    TOO_MANY_ANSWERS,
    Images,
    Row,
    Unusable,
    answer_type_of,
    clean,
    counted,
    find_table,
    hashed_split,
    optional,
    require_texts,
    table_rows,
    whole,
    without_ending,
    without_marks,
)
from fedmed.data.importers.sifting import plain_yes_no
from fedmed.data.schema import IMAGE_MARK, Example, Exchange, Split, Task
from fedmed.errors import DataError

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_KEYS = ("conversations", "conversatons")
_ARTICLE_OF_ID = re.compile(r"(?:PMC)?\d+(?=_)")
_ARTICLE_OF_IMAGE = re.compile(r"(?:PMC)?\d+(?=[_/])")
_VQA_FILES: dict[str, Split] = {"train.json": "train", "val.json": "val", "test.json": "test"}


@dataclass(frozen=True)
class LlavaMed(Importer):
    """Importer of a file of conversations.

    Attributes:
        task: what its examples are.
    """

    name: str
    description: str
    filename: str
    task: Task

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split, by hash of the article.

        Raises:
            DataError: file missing, not JSON, or a row whose field is missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        table = find_table(path, (f"{self.name}.json",))
        rows = (
            (where, row) for where, row in table_rows(table) if hashed_split("llava_med", _article(row, where)) == kind
        )
        images = _images(table.parent)
        return counted(rows, lambda row, where: self._examples(row, where, images, kind), tally)

    def _examples(self, row: Row, where: str, images: Images, split: Split) -> list[Example]:
        return _conversation(
            row, where, images, Example(_article(row, where), (), "", "", "open", self.task, self.name, split)
        )


@dataclass(frozen=True)
class LlavaMedVqa(Importer):
    """Importer of a folder of questions in conversation form."""

    name: str = "llava_med_vqa"
    description: str = "VQA as LLaVA-Med wants it: train.json, test.json and images/ in a folder"
    filename: str = "llava_med_vqa"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split, by the rules in the module's docstring. Raises DataError as LlavaMed does."""
        kind = require_split(self.name, split, split_rule)
        rows = self._rows(path, kind, split_rule)
        images = _images(path)
        return counted(rows, lambda row, where: self._examples(row, where, images, kind), tally)

    def _rows(self, folder: Path, split: Split, rule: str) -> Iterator[tuple[str, Row]]:
        has_val = (folder / "val.json").exists()
        for name, of_file in _VQA_FILES.items():
            if name == "val.json" and not has_val:
                continue
            for number, row in json_rows(folder / name):
                where = f"{name} row {number}"
                hashed = hashed_split(self.name, _image_as_patient(row, where))
                own = "val" if of_file == "train" and not has_val and hashed == "val" else of_file
                if (hashed if rule == "image" else own) == split:
                    yield where, row

    def _examples(self, row: Row, where: str, images: Images, split: Split) -> list[Example]:
        patient = _image_as_patient(row, where)
        written = optional(row, "answer_type", where)
        found = _conversation(row, where, images, Example(patient, (), "", "", "open", "vqa", self.name, split))
        return [_with_answer_type(example, written) for example in found]


@dataclass(frozen=True)
class LlavaMedEval(Importer):
    """Importer of the questions of LLaVA-Med's chat evaluation, with GPT-4's answers as truth."""

    name: str = "llava_med_eval"
    description: str = "LLaVA-Med's evaluation questions, JSON Lines; all of them test"
    filename: str = "llava_med_eval_qa50_qa.jsonl"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """All rows for `test`, none for the others. Raises DataError as LlavaMed does."""
        kind = require_split(self.name, split, split_rule, rules=("official",))
        table = find_table(path, (self.filename,))
        images = _images(table.parent)
        rows = table_rows(table) if kind == "test" else iter(())
        return counted(rows, lambda row, where: self._examples(row, where, images), tally)

    def _examples(self, row: Row, where: str, images: Images) -> list[Example]:
        answer = "gpt4_answer" if "gpt4_answer" in row else "answer"
        said = [("human", whole(text(row, "text", where))), ("gpt", clean(row, answer, where))]
        patient = _article(row | {"id": row.get("pair_id", row.get("question_id"))}, where)
        attributes = {"type": optional(row, "type", where)} if row.get("type") else {}
        like = Example(patient, (), "", "", "open", "instruct", self.name, "test", attributes)
        return _examples_of(said, row, where, images, like)


def _images(folder: Path) -> Images:
    return Images(folder / "images", folder.parent / "images", folder)


def _article(row: Row, where: str) -> str:
    """The PMC article that id or image name; where neither does, the image or the id itself."""
    given = clean(row, "id", where, (str, int))
    image = optional(row, "image", where)
    for found in (_ARTICLE_OF_ID.match(given), _ARTICLE_OF_IMAGE.match(image)):
        if found:
            return found[0]
    return without_ending(image) or given or "unknown"


def _image_as_patient(row: Row, where: str) -> str:
    """The image's path without ending; a text alone is a patient of its own."""
    return without_ending(optional(row, "image", where)) or f"text-{where}"


def _with_answer_type(example: Example, written: str) -> Example:
    kind = answer_type_of(written, example.answer)
    answer = plain_yes_no(example.answer) if kind == "closed" else example.answer
    return replace(example, answer=answer, answer_type=kind, attributes={**example.attributes, "answer_type": kind})


def _conversation(row: Row, where: str, images: Images, like: Example) -> list[Example]:
    return _examples_of(_turns(row, where), row, where, images, like)


def _turns(row: Row, where: str) -> list[tuple[str, str]]:
    """Who says what, in order: human or gpt, and the text."""
    key = next((key for key in _KEYS if key in row), _KEYS[0])
    listed = row.get(key)
    if not isinstance(listed, list):
        raise wrong_field(row, key, where, "a list of turns")
    turns = []
    for place, turn in enumerate(listed):
        here = f"{where} {key}[{place}]"
        if not isinstance(turn, dict):
            raise DataError(f"{here} is {type(turn).__name__}, expected an object")
        role = _ROLES.get(text(turn, "from", here))
        if role is None:
            raise DataError(f"{here}: from is another speaker, expected {' or '.join(_ROLES)}")
        turns.append((role, whole(text(turn, "value", here))))
    return turns


def _examples_of(
    turns: Sequence[tuple[str, str]], row: Row, where: str, images: Images, like: Example
) -> list[Example]:
    """One example for each answer."""
    name = optional(row, "image", where)
    attributes = {**like.attributes, "modality": _modality(row, where)}
    said = _exchanges(turns, placed=bool(name))
    shown = (images.load(name),) if name else ()
    return [
        replace(
            like, images=shown, question=now.question, answer=now.answer, history=said[:place], attributes=attributes
        )
        for place, now in enumerate(said)
    ]


def _exchanges(turns: Sequence[tuple[str, str]], *, placed: bool) -> tuple[Exchange, ...]:
    """Questions with their answers; the one image mark stays where it stands in the first question (`placed`)."""
    turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
    if any(role != ("human", "gpt")[place % 2] for place, (role, _) in enumerate(turns)):
        raise Unusable("two turns of one speaker follow each other")
    questions, answers = [value for _, value in turns[::2]], [without_marks(value) for _, value in turns[1::2]]
    if not answers:
        raise Unusable("conversation has no answer")
    if len(answers) > MAX_ANSWERS:
        raise Unusable(TOO_MANY_ANSWERS)
    marks = sum(question.count(IMAGE_MARK) for question in questions[: len(answers)])
    keep = placed and marks == 1
    asked = [
        question if keep and not place else without_marks(question)
        for place, question in enumerate(questions[: len(answers)])
    ]
    require_texts(*asked, *answers)
    return tuple(Exchange(*pair) for pair in zip(asked, answers, strict=True))


def _modality(row: Row, where: str) -> str:
    domain = row.get("domain")
    if domain is None:
        return "unknown"
    if not isinstance(domain, dict) or not all(isinstance(value, bool) for value in domain.values()):
        raise wrong_field(row, "domain", where, "an object of true and false")
    return ",".join(sorted(whole(key) for key, value in domain.items() if value)) or "other"


ALIGN = LlavaMed(
    name="llava_med_align",
    description="LLaVA-Med's captions of PMC figures, single turns to align a projector by",
    filename="llava_med_align",
    task="caption",
)
INSTRUCT = LlavaMed(
    name="llava_med_instruct",
    description="LLaVA-Med's conversations about PMC figures",
    filename="llava_med_instruct",
    task="instruct",
)
LLAVA_MED: tuple[Importer, ...] = (ALIGN, INSTRUCT, LlavaMedVqa(), LlavaMedEval())
