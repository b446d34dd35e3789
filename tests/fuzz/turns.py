"""Damaged turns of tool dialogues, for the target `turn`: a text, the actions inside a text, or a dialogue as JSON.

>>> parse_turn(damaged_turn(Random(0)))        # a turn, or TurnError
"""

from __future__ import annotations

from random import Random
from typing import Any

from fedmed.tools import Action, Dialogue, Turn, read_turn, write_turn
from tests.fuzz.mutate import dump, mutate_bytes, mutate_json

TURN = Turn("t", (Action("grounding", {"prompts": ["nodule"], "boxes": [[0.1, 0.2, 0.3, 0.4]]}),), "wait")
TEXT = write_turn(TURN).encode()
ROW = Dialogue("1", "1.png", (("<image> Where?", TURN), ("output", Turn("", (), "left")))).to_json()


def damaged_turn(rng: Random) -> Any:
    kind = rng.random()
    if kind < 0.4:
        return mutate_bytes(rng, TEXT, [TEXT]).decode("utf-8", "surrogateescape")
    if kind < 0.8:
        actions = dump(rng, mutate_json(rng, TURN.to_json()["actions"])).decode("utf-8", "surrogatepass")
        return f'"actions🚀" {actions}\n"value👉" v'
    return mutate_json(rng, ROW)


def parse_turn(made: Any) -> object:
    """Read; and a text that is a turn must be the same turn once it is written again."""
    if not isinstance(made, str):
        return Dialogue.from_json(made)
    found = read_turn(made)
    if read_turn(write_turn(found)) != found:
        raise ValueError("what was written is read as another turn")
    return found
