"""fedmed-tiny with tool turns in its vocabulary and habits: `fedmed base turns OUT`, the base of the recipe mmedagent_tiny.

    fedmed-tiny -> words of a turn become tokens -> decoder learns, from public phantoms, turns that it is told to write
                -> saved with build.json

What it is told and what it writes, beside the questions that it knew before:

| asked                                                    | answered by a turn                                      |
| -------------------------------------------------------- | ------------------------------------------------------- |
| `Use grounding with nodule.`: a tool by its name         | that calls the tool with that argument                  |
| words that ask nothing, the last after `the` or `is`     | that calls some tool, drawn at random, with those words |
| the output of a tool, with a text, yes or no             | without a call, that says the same                      |
| `Without a tool: Are the lungs clear?`                   | without a call, that answers                            |

So it can write a turn, and does not know which tool a person's question needs: no question of `phantom_tools` names one, but
those for a report. That is what a federation teaches. MMedAgent starts likewise, from a LLaVA-Med that has met no tool.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken

from fedmed.data.phantom import Record
from fedmed.data.phantom_tools import ANSWERED, NO_TOOL, WAIT, needs
from fedmed.models import pretrain_data, pretrain_stages, tiny
from fedmed.models.base import load_base
from fedmed.models.checkpoint import EMBEDDED, checkpoint_sha256
from fedmed.models.pretrain_data import MEDICAL_WORDS
from fedmed.tools import SPECS, Action, Output, Turn, write_outputs, write_turn
from fedmed.tools.text import ACTIONS, THOUGHTS, VALUE

TOLD = ("Use {} with {}.", "Call {} on {}.", "Ask {} for {}.")
ARTICLES = ("the", "a", "an", "is", "are")
WITHOUT = "Without a tool: "
CALLS, REPLIES, PLAIN = 6, 5, 3  # of one phantom
BATCH = 12
FORM = (
    *(f"{THOUGHTS} ", f"\n{ACTIONS} ", f"\n{VALUE} ", "[]", '[{"API_name": "', '", "API_params": {', "}}]", '"]', '["'),
    *(" output: ", "\n\nAnswer my first question: ", WAIT, ANSWERED, NO_TOOL),
)


def build_turns_base(
    out: Path,
    seed: int,
    *,
    phantoms: int = 3000,
    steps: int = 1000,
    measured: int = 200,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes the base to `out` and returns what is in its build.json.

    Args:
        seed: draws phantoms, words and batches.
        phantoms, steps: public phantoms, and optimizer steps of BATCH of them, five dialogues each.
        measured: further phantoms, whose scores go into build.json.
        report: called with a line of text per stage.
    """
    started = time.monotonic()
    torch.set_num_threads(1)
    base = load_base(EMBEDDED)
    add_words(base.model, base.processor)
    train = _phantoms(phantoms, seed, "train")
    stages = pretrain_stages.Stages(base.model, base.processor, train, seed, BATCH, report)
    stages.instruct(steps)
    tiny.save(base.model, base.processor, out)  # type: ignore[arg-type]
    build = {
        "command": f"fedmed base turns {out.name} --seed {seed}",
        "seed": seed,
        "phantoms": phantoms,
        "steps": steps,
        "torch": torch.__version__,
        "metrics": pretrain_stages.measure(base.model, base.processor, _phantoms(measured, seed, "test")),
        "seconds": round(time.monotonic() - started, 1),
        "sha256": checkpoint_sha256(out),
    }
    (out / "build.json").write_text(json.dumps(build, indent=2) + "\n")
    return build


def words_of_turns() -> list[str]:
    """What a turn is made of, beside its own words: markers, JSON around a call, names of tools and of arguments."""
    names = [spec.name for spec in SPECS]
    arguments = sorted({f'"{parameter.name}": ' for spec in SPECS for parameter in spec.parameters})
    return [*FORM, *names, *arguments]


def add_words(model: Any, processor: Any) -> None:
    """Each word of a turn becomes one token, whose embedding begins as the mean of the tokens that it was before."""
    tokenizer = processor.tokenizer
    words = words_of_turns()
    before = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    embedding = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for word, parts in zip(words, before, strict=True):
            token = tokenizer.convert_tokens_to_ids(word)
            model.get_input_embeddings().weight[token] = embedding[parts].mean(0)


def _phantoms(count: int, seed: int, split: str) -> pretrain_data.PhantomSet:
    public = pretrain_data.make_phantom_set(count, seed, split)
    rng = np.random.default_rng([seed, split == "train"])
    return dataclasses.replace(public, records=[list(turn_records(records, rng)) for records in public.records])


def turn_records(known: list[Record], rng: np.random.Generator) -> Iterator[Record]:
    """The turns about one phantom."""
    for place in range(CALLS):
        question, turn = _call(rng, told=place % 2 == 0)
        yield question, write_turn(turn), "open", "tool", "call"
    for _ in range(REPLIES):
        question, turn = _call(rng, told=rng.random() < 0.5)
        said, answer = _output(known, rng)
        told = write_outputs([Output(turn.actions[0].name, said)], question)
        yield (
            f"{question}{tiny.ASSISTANT}{write_turn(turn)}{tiny.EOS}{tiny.USER}{told}",
            write_turn(Turn(ANSWERED, (), answer)),
            "open",
            "tool",
            "reply",
        )
    for place in rng.choice(len(known), PLAIN, replace=False):
        question, answer = known[place][:2]
        yield WITHOUT + question, write_turn(Turn(NO_TOOL, (), answer)), "open", "tool", "plain"


def _call(rng: np.random.Generator, *, told: bool) -> tuple[str, Turn]:
    """A call of any tool; the question names the tool where it is `told`, and otherwise nothing says which is right."""
    spec = SPECS[rng.integers(len(SPECS))]
    words = _some_words(rng, 1, 2)
    params: dict[str, Any] = {}
    for parameter in spec.parameters[:1]:
        params = {parameter.name: words if parameter.kind == "text" else [words]}
    if told:
        question = TOLD[rng.integers(len(TOLD))].format(spec.name, words)
    else:
        question = f"{_some_words(rng, 1, 5).capitalize()} {ARTICLES[rng.integers(len(ARTICLES))]} {words}?"
    return question, Turn(needs(spec.name), (Action(spec.name, params),), WAIT)


def _output(known: list[Record], rng: np.random.Generator) -> tuple[str, str]:
    """What a tool says, and what is then to be said."""
    draw = rng.integers(3)
    if draw == 0:
        truth = ("yes", "no")[rng.integers(2)]
        return str({_some_words(rng, 1, 2): truth}), truth
    text = known[-1][1] if draw == 1 else f"{_some_words(rng, 4, 10).capitalize()}."
    return text, text


def _some_words(rng: np.random.Generator, least: int, most: int) -> str:
    words = MEDICAL_WORDS.split()
    return " ".join(words[place] for place in rng.integers(len(words), size=rng.integers(least, most + 1)))
