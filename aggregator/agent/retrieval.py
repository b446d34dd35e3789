"""Passages of a local folder of texts, ranked by BM25 (Robertson and Zaragoza, 2009; Lucene's variant, bm25s by Lù, 2024).

    >>> retrieval(load_corpus(Path("library")))(Call({"query": "galactosemia diet"}, "", []))
    Result(...)

| file in the folder or below it | passages                                                                   |
| ------------------------------ | -------------------------------------------------------------------------- |
| *.txt, *.md                    | its paragraphs (apart by an empty line); a heading goes with the next one  |
| *.jsonl                        | the `text` of every line, with its `title` before it where there is one    |
| any other                      | none                                                                       |

score(query, passage) = sum over the query's words of idf(word) * tf / (tf + k1 * (1 - b + b * length / mean length)), k1 = 1.5,
b = 0.75, idf = ln(1 + (N - n + 0.5) / (n + 0.5)). Words are those of fedmed.metrics.scores. Passages without a word of the query
are never given; where there is none, the output says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bm25s

from aggregator.agent.toolbox import Call, Result, Run
from fedmed.data.importers.rows import jsonl_rows, text
from fedmed.errors import DataError
from fedmed.metrics.scores import tokens

NUM_PASSAGES = 2
MAX_WORDS = 300


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with the file it is from, relative to the folder."""

    source: str
    text: str = field(repr=False)


def load_corpus(folder: Path) -> list[Passage]:
    """All passages of a folder, in the order of the file names.

    Raises:
        DataError: no such folder, a file that cannot be read, or no passage at all.
    """
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".txt", ".md", ".jsonl") and path.is_file()
    )
    found = [Passage(file.relative_to(folder).as_posix(), passage) for file in files for passage in _passages(file)]
    if not found:
        raise DataError(
            f"{folder} holds no text, expected .txt, .md or .jsonl files with some", "name a folder of texts"
        )
    return found


def retrieval(corpus: Sequence[Passage], num_passages: int = NUM_PASSAGES) -> Run:
    """The tool `retrieval` over these passages (at least one)."""
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index([tokens(passage.text) for passage in corpus], show_progress=False)

    def run(call: Call) -> Result:
        words = tokens(str(call.params.get("query") or call.question))
        known = [[word for word in words if word in index.vocab_dict]]
        if not known[0]:
            return Result("nothing was found", [])
        places, scores = index.retrieve(known, k=min(num_passages, len(corpus)), show_progress=False)
        hits = [
            (corpus[place], float(score))
            for place, score in zip(places[0].tolist(), scores[0].tolist(), strict=True)
            if score > 0
        ]
        data = [{"source": hit.source, "score": round(score, 3), "text": hit.text} for hit, score in hits]
        return Result("\n".join(f"{hit.text} ({hit.source})" for hit, _ in hits), data)

    return run


def _passages(file: Path) -> Iterator[str]:
    if file.suffix.lower() == ".jsonl":
        for number, row in jsonl_rows(file):
            title = f"{row['title']}: " if isinstance(row.get("title"), str) else ""
            yield from _cut(title + text(row, "text", f"{file.name} row {number}"))
        return
    try:
        content = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{file.name} is not a text in UTF-8", "mend it, or take it out of the folder") from None
    heading = ""
    for block in content.replace("\r\n", "\n").split("\n\n"):
        words = " ".join(block.split())
        if words.startswith("#") and "\n" not in block.strip():
            heading = f"{words.lstrip('# ')}: "
        elif words:
            yield from _cut(heading + words.lstrip("# "))
            heading = ""


def _cut(passage: str) -> Iterator[str]:
    """A passage in pieces that a model can read."""
    words = passage.split()
    for start in range(0, len(words), MAX_WORDS):
        yield " ".join(words[start : start + MAX_WORDS])
