"""Questions to answers: the test set as it is, or with other images in place of a question's own. Greedy, so repeatable.

    asker = Asker(test, with_shots(test, 0, seed=0), batch_size=32, max_new_tokens=64)
    answers = asker.answers(base)
    blank = asker.control(base, "blank", seed=0)      # None where the control cannot be made of an item

A control changes a question's own images; examples in the prompt stay as they are, but text_only takes all images away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from aggregator.evaluating.dataset import TestSet
from fedmed.data.conversation import Conversation
from fedmed.data.schema import Example
from fedmed.errors import ModelError
from fedmed.metrics.controls import donors
from fedmed.metrics.scores import majority_answers

if TYPE_CHECKING:
    from fedmed.models.base import BaseModel

GREY = (127, 127, 127)
Pictures = list[Image.Image]


class Asker:
    """Asks models the same questions.

    Args:
        asked: the test set's examples as they are asked, with examples before them or without.
        batch_size: questions a forward pass. max_new_tokens: at most so many tokens an answer.
    """

    def __init__(self, test: TestSet, asked: Sequence[Example], *, batch_size: int, max_new_tokens: int) -> None:
        self._test, self._asked = test, asked
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens

    def answers(self, base: BaseModel) -> list[str]:
        """One answer a question, in order."""
        return self._generate(base, list(enumerate(self._asked)), self._pictures)

    def control(self, base: BaseModel, control: str, seed: int) -> list[str | None]:
        """The answers under a control of fedmed.metrics.controls; None for items that it cannot be made of."""
        if control == "majority":
            return list(majority_answers(self._test.examples))
        given: list[int | None] = [None] * len(self._asked)
        if control == "shuffled":
            given = donors(self._test.examples, seed)
            places = [place for place, donor in enumerate(given) if donor is not None]
        else:
            places = [place for place, example in enumerate(self._test.examples) if example.images]
        items = [(place, self._under(control, self._asked[place])) for place in places]

        def pictures(place: int, example: Example) -> Pictures:
            return self._other_pictures(control, place, example, given[place])

        found: list[str | None] = [None] * len(self._asked)
        for place, answer in zip(places, self._generate(base, items, pictures), strict=True):
            found[place] = answer
        return found

    def likeliest_right(self, base: BaseModel) -> dict[int, float]:
        """Of each multiple-choice question by its place: 1.0 where the likeliest choice is the right one, else 0.0."""
        from fedmed.training.evaluate import likeliest_choices

        found = {}
        for place, example in enumerate(self._asked):
            if example.choices:
                chosen = likeliest_choices(base, [example], [self._pictures(place, example)])[0]
                found[place] = float(example.choices[chosen] == example.answer)
        return found

    def prompt(self, base: BaseModel, place: int = 0) -> str:
        """What the model is given for one question, as its own chat template writes it; images are that template's marks."""
        example = self._asked[place]
        said = Conversation.of(example, len(example.images), str.strip)
        processor: Any = base.processor
        return str(processor.apply_chat_template(said.messages(None), tokenize=False, add_generation_prompt=True))

    def _under(self, control: str, example: Example) -> Example:
        return replace(example, images=()) if control == "text_only" else example

    def _other_pictures(self, control: str, place: int, example: Example, donor: int | None) -> Pictures:
        if control == "text_only":
            return []
        pictures = self._pictures(place, example)
        own = len(self._test.examples[place].images)
        if donor is not None:
            others = self._test.images(self._test.examples[donor])
        else:
            others = [Image.new("RGB", picture.size, GREY) for picture in pictures[-own:]]
        return pictures[:-own] + others

    def _pictures(self, place: int, example: Example) -> Pictures:
        return self._test.images(example)

    def _generate(self, base: BaseModel, items: Sequence[tuple[int, Example]], pictures: Any) -> list[str]:
        from fedmed.training.evaluate import generate_answers

        answers: list[str] = []
        for part in _parts(items, self._batch_size):
            examples = [example for _, example in part]
            images = [pictures(place, example) for place, example in part]
            try:
                answers += generate_answers(
                    base,
                    base.processor,
                    examples,
                    images,
                    batch_size=self._batch_size,
                    max_new_tokens=self._max_new_tokens,
                )
            except (ValueError, RuntimeError, IndexError) as error:  # what models raise for a prompt they do not take
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                raise ModelError(
                    f"the model does not take {'these prompts' if examples[0].images else 'prompts without an image'}: {reason}",
                    "evaluate with fewer --shots, a smaller --batch-size, or another model",
                ) from error
        return answers


def _parts(items: Sequence[tuple[int, Example]], size: int) -> Iterator[Sequence[tuple[int, Example]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
