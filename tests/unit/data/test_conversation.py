"""Where images stand in a conversation, and what goes first when it is too long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from fedmed.data.collate import IGNORE, Collator
from fedmed.data.conversation import Conversation
from fedmed.data.schema import Example, Exchange, ImageRef
from fedmed.errors import DataError
from fedmed.models.base import load_base

PICTURE = Image.new("RGB", (32, 32))


def example(question: str, *history: tuple[str, str], images: int = 1, answer: str = "yes") -> Example:
    return Example(
        patient="p",
        images=(ImageRef(data=b"x"),) * images,
        question=question,
        answer=answer,
        answer_type="closed",
        task="vqa",
        source="test",
        history=tuple(Exchange(*said) for said in history),
    )


def shown(said: Conversation, answer: str | None = None) -> list[list[str]]:
    """Of each message its parts: the text, or IMAGE."""
    return [
        ["IMAGE" if part["type"] == "image" else part["text"] for part in message["content"]]
        for message in said.messages(answer)
    ]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (example("q"), [["IMAGE", "q"]]),
        (example("before <image> now <image>", images=2), [["before", "IMAGE", "now", "IMAGE"]]),
        (example("<image><image>", images=2), [["IMAGE", "IMAGE", ""]]),
        (example("a <image> b", images=2), [["IMAGE", "IMAGE", "a  b"]]),  # another number: they are no marks
        (example("now?", ("q", "a")), [["IMAGE", "q"], ["a"], ["now?"]]),
        (
            example("now <image>?", ("then <image>?", "a"), images=2),
            [["then", "IMAGE", "?"], ["a"], ["now", "IMAGE", "?"]],
        ),
        (example("q", images=0), [["q"]]),
    ],
)
def test_images_stand_where_the_marks_are(item: Example, expected: list[list[str]]) -> None:
    said = Conversation.of(item, len(item.images), str.strip)
    assert [[" ".join(part.split()) for part in message] for message in shown(said)] == [
        [" ".join(part.split()) for part in message] for message in expected
    ]
    assert shown(said, "yes")[-1] == ["yes"]


def test_words_go_before_exchanges_and_images_never() -> None:
    said: Any = Conversation.of(
        example("one two <image> three", ("old", "a"), ("see <image>", "b"), images=2), 2, str.strip
    )
    steps = []
    while said is not None:
        steps.append((said.question, len(said.exchanges)))
        said = said.shorter(1, lambda text: len(text.split()))
    assert steps[-2:] == [("<image>", 2), ("<image>", 1)]
    assert all("<image>" in question for question, _ in steps)
    assert [len(question) for question, _ in steps] == sorted((len(question) for question, _ in steps), reverse=True)


def test_a_batch_learns_the_last_answer_alone() -> None:
    base = load_base("fedmed-tiny")
    collator, tokenizer = Collator(base.processor), base.processor.tokenizer
    item = example("Is it large?", ("Is there an opacity?", "no"))
    batch = collator.train_batch([item], [[PICTURE]])
    learnt = batch.labels[0][batch.labels[0] != IGNORE]
    assert tokenizer.decode(learnt, skip_special_tokens=True).strip() == "yes"
    whole = tokenizer.decode(batch.inputs["input_ids"][0]).replace(" ", "")
    assert whole.index("opacity") < whole.index("no</s>") < whole.index("large")


def test_marks_move_the_images() -> None:
    base = load_base("fedmed-tiny")
    collator = Collator(base.processor)
    image_token = base.processor.tokenizer.convert_tokens_to_ids("<image>")

    def places(question: str) -> list[int]:
        ids = collator.prompt_batch([example(question, images=2)], [[PICTURE] * 2])["input_ids"][0]
        return [place for place, token in enumerate(ids.tolist()) if token == image_token]

    apart, together = places("Before: <image> and now: <image>"), places("Before: and now:")
    assert len(apart) == len(together)
    assert together == list(range(together[0], together[0] + len(together)))
    assert apart != list(range(apart[0], apart[0] + len(apart)))


def test_a_long_conversation_loses_its_oldest_exchange_and_keeps_its_answer() -> None:
    base = load_base("fedmed-tiny")
    history = [("Is there an opacity?", "no")] * 30
    item = example("Is it large?", *history, images=0)
    whole = Collator(base.processor).encode(item, [])
    cut = Collator(base.processor, max_length=whole.length - 20).encode(item, [])
    assert cut.length <= whole.length - 20
    assert cut.answer.tolist() == whole.answer.tolist()
    with pytest.raises(DataError, match="tokens without its question"):
        Collator(base.processor, max_length=3).encode(replace(item, history=()), [])
