"""PMC-VQA (Zhang et al., 2023): questions with four choices about figures of open-access papers.

    pmc_vqa/train.csv, test.csv        Figure_path, Question, Answer, Choice A .. Choice D, Answer_label
    pmc_vqa/train_2.csv, test_2.csv    version 2: index, Figure_path, Caption, Question, Choice A .. Choice D, Answer, split
    pmc_vqa/images/, figures/, images_2/    PMC1064097_F1.jpg, ...: whichever are there are looked through

| entry              | files                  | an example                                                                    |
| ------------------ | ---------------------- | ----------------------------------------------------------------------------- |
| pmc_vqa            | version 1, else 2      | task choice: the question with its lettered choices, the answer is one of them |
| pmc_vqa_blank      | version 1, else 2      | the same question without choices, its answer open                            |
| pmc_vqa_2          | version 2              | as pmc_vqa                                                                    |
| pmc_vqa_2_blank    | version 2              | as pmc_vqa_blank                                                              |
| pmc_vqa_captions   | version 2, else 1      | task caption: each figure once, with its caption                              |

The patient is the paper (the PMC number in Figure_path). There is no val file: a tenth of the papers of train is `val`. Under
`image` a row whose paper is also in a later split is quarantined: figures of one paper are alike.

What real files hold, by readers of them: `Anwser` for Answer, a Caption or none, choices that begin with " A: " or "B:"
(github.com/xiaoman-zhang/PMC-VQA, src/MedVInT_TD/Dataset/PMC_QA_Dataset.py), an Answer that is the choice's text with
Answer_label its letter (src/MedVInT_TE/dataset/dataset.py there), or a letter itself, in version 2. What is right then is in
`fedmed.data.importers.lettered`. The attribute `label` is the right letter: choices that are always the same would show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.folder_images import MISSING, FolderImages
from fedmed.data.importers.lettered import right_choice, unlettered
from fedmed.data.importers.rows import csv_rows, text
from fedmed.data.importers.rowwise import VAL_SHARE, hash_share, listed
from fedmed.data.importers.sifting import ELSEWHERE, held_back, sifted
from fedmed.data.schema import Example, ImageRef, Split

LETTERS = "ABCD"
CAPTION_QUESTION = "Write the caption of this figure."
NO_PAPER, NO_CHOICE, SEEN = "figure names no paper", "a choice is empty", "repeats a figure"
_FOLDERS = ("images", "figures", "images_2")
_PAPER = re.compile(r"PMC\d+")


class PmcVqa(Importer):
    """Importer of the folder that holds the CSV files and the figures.

    Args:
        kind: choice, blank or caption.
        versions: what stands behind `train` and `test` in the files' names; the first that is there is read.
    """

    filename = "pmc_vqa"

    def __init__(self, name: str, kind: str, versions: tuple[str, ...], description: str) -> None:
        self.name = name
        self.description = f"{description} (CC BY-SA 4.0)"
        self._kind = kind
        self._versions = versions

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split, by the module's tables.

        Raises:
            DataError: folder or file missing, not CSV in UTF-8, or a row without a field.
        """
        kind = require_split(self.name, split, split_rule)
        made = (
            self._captions(path, kind, split_rule) if self._kind == "caption" else self._asked(path, kind, split_rule)
        )
        return sifted(made, tally)

    def _asked(self, folder: Path, split: Split, rule: str) -> Iterator[Example | str]:
        figures, elsewhere = _Figures(folder), self._elsewhere(folder, split, rule)
        for where, row in self._rows(folder, split):
            answer_field = "Anwser" if "Anwser" in row and "Answer" not in row else "Answer"
            question, said = text(row, "Question", where), text(row, answer_field, where)
            label = text(row, "Answer_label", where) if "Answer_label" in row else ""
            choices = [unlettered(text(row, f"Choice {letter}", where), letter) for letter in LETTERS]
            right = right_choice(choices, label, said)
            paper, data, reason = _of_figure(row, figures, elsewhere)
            reason = ("" if all(choices) else NO_CHOICE) or (right if isinstance(right, str) else "") or reason
            if reason or isinstance(right, str):
                yield reason
            elif self._kind == "choice":
                about = {"label": LETTERS[right]}
                lettered = listed(question, choices) if question else ""
                yield self._example(paper, data, lettered, choices[right], split, about, tuple(choices))
            else:
                yield self._example(paper, data, question, choices[right], split)

    def _captions(self, folder: Path, split: Split, rule: str) -> Iterator[Example | str]:
        figures, elsewhere = _Figures(folder), self._elsewhere(folder, split, rule)
        seen: set[str] = set()
        for where, row in self._rows(folder, split):
            caption = text(row, "Caption", where)
            if row["Figure_path"] in seen:
                yield SEEN
                continue
            paper, data, reason = _of_figure(row, figures, elsewhere)
            seen.add(row["Figure_path"])
            yield reason or self._example(paper, data, CAPTION_QUESTION, caption, split)

    def _example(
        self,
        paper: str,
        data: bytes,
        question: str,
        answer: str,
        split: Split,
        attributes: Mapping[str, str] | None = None,
        choices: tuple[str, ...] = (),
    ) -> Example:
        return Example(
            patient=paper,
            images=(ImageRef(data=data),),
            question=question,
            answer=answer,
            answer_type="closed" if choices else "open",
            task="choice" if choices else "caption" if self._kind == "caption" else "vqa",
            source=self.name,
            split=split,
            attributes=attributes or {},
            choices=choices,
        )

    def _rows(self, folder: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Of a split, with where each stands; Figure_path is there in all of them, without stray spaces."""
        stem = "test" if split == "test" else "train"
        versions = [version for version in self._versions if (folder / f"train{version}.csv").exists()]
        path = folder / f"{stem}{(versions or self._versions)[0]}.csv"
        for number, row in csv_rows(path):
            where = f"{path.name} row {number}"
            row["Figure_path"] = text(row, "Figure_path", where)
            if split == "test" or (split == "val") == (hash_share("pmc_vqa", _paper(row)) < VAL_SHARE):
                yield where, row

    def _elsewhere(self, folder: Path, split: str, rule: str) -> frozenset[str]:
        return held_back(split, rule, lambda other: (_paper(row) for _, row in self._rows(folder, other)))


class _Figures:
    """The figures of all folders that are there."""

    def __init__(self, folder: Path) -> None:
        self._folders = [FolderImages(folder / name) for name in _FOLDERS]

    def load(self, name: str) -> tuple[bytes, str]:
        for folder in self._folders:
            data, reason = folder.load(name)
            if reason != MISSING:
                return data, reason
        return b"", MISSING


def _of_figure(row: dict[str, Any], figures: _Figures, elsewhere: Iterable[str]) -> tuple[str, bytes, str]:
    """The paper, the figure's bytes, and why a row about it cannot be used."""
    paper = _paper(row)
    data, unusable = figures.load(row["Figure_path"])
    return paper, data, ("" if paper else NO_PAPER) or unusable or (ELSEWHERE if paper in elsewhere else "")


def _paper(row: dict[str, Any]) -> str:
    """The number of the paper in a figure's name; empty where there is none."""
    found = _PAPER.match(row["Figure_path"].rpartition("/")[2])
    return found[0] if found else ""


PMC_VQA = (
    PmcVqa("pmc_vqa", "choice", ("", "_2"), "questions with four choices about figures of papers"),
    PmcVqa("pmc_vqa_blank", "blank", ("", "_2"), "the same questions, open"),
    PmcVqa("pmc_vqa_2", "choice", ("_2",), "its version 2: figures cut into their parts"),
    PmcVqa("pmc_vqa_2_blank", "blank", ("_2",), "version 2, open"),
    PmcVqa("pmc_vqa_captions", "caption", ("_2", ""), "figures of papers with their captions"),
)
