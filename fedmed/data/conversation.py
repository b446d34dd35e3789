"""An example as the messages of a chat, and how it gets shorter when it does not fit. Pure; no tokenizer in sight.

    >>> said = Conversation.of(example, num_images=2, clean=str.strip)
    >>> said.messages(answer=None)[0]["content"]
    [{'type': 'text', 'text': 'Before:'}, {'type': 'image'}, {'type': 'text', 'text': 'now:'}, {'type': 'image'}]

| the questions have                     | images stand                                                     |
| -------------------------------------- | ---------------------------------------------------------------- |
| as many image marks as there are images | each at its mark                                                |
| no image mark, or another number       | all before the first question; the marks are taken out           |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fedmed.data.schema import IMAGE_MARK, Example


@dataclass(frozen=True)
class Conversation:
    """What is said before an answer.

    Attributes:
        exchanges: earlier questions with their answers, oldest first.
        question: the last one.
        images_first: images before the first question; 0 where they stand at marks.
    """

    exchanges: tuple[tuple[str, str], ...] = field(repr=False)
    question: str = field(repr=False)
    images_first: int

    @classmethod
    def of(cls, example: Example, num_images: int, clean: Callable[[str], str]) -> Conversation:
        """An example's own, its texts passed through `clean` (which must not see a mark that stays)."""
        placed = sum(question.count(IMAGE_MARK) for question in example.questions) == num_images
        mark = f" {IMAGE_MARK} " if placed else " "

        def cleaned(question: str) -> str:
            return mark.join(clean(piece) for piece in question.split(IMAGE_MARK)).strip()

        exchanges = tuple((cleaned(said.question), clean(said.answer)) for said in example.history)
        return cls(exchanges, cleaned(example.question), 0 if placed else num_images)

    def messages(self, answer: str | None) -> list[dict[str, Any]]:
        """As chat templates take them; ends with the question, or with the answer where one is given."""
        found: list[dict[str, Any]] = []
        for question, said in (*self.exchanges, (self.question, answer)):
            first = [{"type": "image"}] * (0 if found else self.images_first)
            found.append({"role": "user", "content": first + _content(question)})
            if said is not None:
                found.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        return found

    def shorter(self, excess: int, num_tokens: Callable[[str], int]) -> Conversation | None:
        """With about `excess` tokens less in the question, or without its oldest exchange that shows no image; None when
        neither is left."""
        words = self.question.split()
        movable = [place for place, word in enumerate(words) if word != IMAGE_MARK]
        if movable:
            tokens = max(1, num_tokens(self.question))
            kept = min(len(movable) - 1, len(movable) * max(0, tokens - excess) // tokens)
            gone = set(movable[kept:])
            return replace(self, question=" ".join(word for place, word in enumerate(words) if place not in gone))
        for place, (question, _) in enumerate(self.exchanges):
            if IMAGE_MARK not in question:
                return replace(self, exchanges=self.exchanges[:place] + self.exchanges[place + 1 :])
        return None


def _content(question: str) -> list[dict[str, str]]:
    """A question's texts with the images between them; at least one text."""
    found: list[dict[str, str]] = []
    for place, piece in enumerate(question.split(IMAGE_MARK)):
        found += [{"type": "image"}] if place else []
        found += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return found if any(part["type"] == "text" for part in found) else [*found, {"type": "text", "text": ""}]
