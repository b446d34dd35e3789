"""The tools that a model may ask for: one table. What runs them is aggregator.agent.

| tool           | MMedAgent's names for it             | arguments                                                   |
| -------------- | ------------------------------------ | ----------------------------------------------------------- |
| classification | BiomedCLIP                           | `labels`: what may be seen; without, the question is asked  |
| grounding      | grounding dino                       | `prompts`: what to find (required)                          |
| segmentation   | MedSAM, grounding dino + MedSAM      | `prompts` or `boxes`: what to outline                       |
| report         | ChatCAD-G                            | none                                                        |
| retrieval      | ChatCAD-R                            | `query`; without, the question is looked up                 |

Every tool takes `image` too: published calls have it, as a placeholder; a tool always sees the images of the conversation.
Boxes are [left, top, right, bottom] as shares of the image's width and height, as Grounding DINO's are in those files.

    >>> find_spec("Grounding DINO").problems({"prompts": "tumor"})
    ['prompts is str, expected a list of texts, not empty']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedmed.errors import ToolError
from fedmed.tools.turns import Turn

NONE, UNKNOWN = "none", "unknown"
Kind = Literal["text", "texts", "boxes"]
_EXPECTED = {
    "text": "a text, not empty",
    "texts": "a list of texts, not empty",
    "boxes": "a list of boxes of 4 numbers from 0 to 1, not empty",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool."""

    name: str
    kind: Kind
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model and its scores know it.

    Attributes:
        name: in our own dialogues and configuration.
        description: one line for a person who chooses, and for a model that is told its tools.
        parameters: besides `image`, which every tool takes.
        aliases: other names, compared without case and spaces.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...] = ()
    aliases: tuple[str, ...] = ()

    def problems(self, params: Mapping[str, Any]) -> list[str]:
        """What is wrong with these arguments, one line each; empty when they are valid. No value is shown."""
        known = {parameter.name: parameter for parameter in (*self.parameters, _IMAGE)}
        found = [
            f"{parameter.name} is {_kind_of(params, parameter.name)}, expected {_EXPECTED[parameter.kind]}"
            for parameter in known.values()
            if (parameter.required or parameter.name in params)
            and not _fits(params.get(parameter.name), parameter.kind)
        ]
        if unknown := len(params.keys() - known.keys()):
            found.append(f"{unknown} unknown arguments, expected only {', '.join(known)}")
        return found


_IMAGE = Parameter("image", "text", "placeholder; the images of the conversation are always used")
_PROMPTS = Parameter("prompts", "texts", 'what to look for, such as ["nodule"]')

SPECS: tuple[ToolSpec, ...] = (
    ToolSpec(
        "classification",
        "says whether the image shows each of some findings, or answers a closed question about it",
        (Parameter("labels", "texts", 'what may be seen, such as ["pleural effusion"]'),),
        ("BiomedCLIP",),
    ),
    ToolSpec(
        "grounding",
        "finds things in the image and gives a box around each",
        (Parameter("prompts", "texts", _PROMPTS.description, required=True),),
        ("grounding dino", "grounding_dino"),
    ),
    ToolSpec(
        "segmentation",
        "outlines things in the image, named or given by boxes",
        (_PROMPTS, Parameter("boxes", "boxes", "[left, top, right, bottom] each, as shares of width and height")),
        ("MedSAM", "grounding dino + MedSAM", "grounded_medsam"),
    ),
    ToolSpec("report", "writes a report of the image", (), ("ChatCAD-G",)),
    ToolSpec(
        "retrieval",
        "looks a medical subject up in a library of texts",
        (Parameter("query", "text", "what to look up"),),
        ("ChatCAD-R",),
    ),
)


def find_spec(name: str) -> ToolSpec:
    """The tool of that name or alias. Raises ToolError listing the known ones; the name itself may be a model's words."""
    try:
        return _BY_NAME[_folded(name)]
    except KeyError:
        raise ToolError(f"unknown tool, expected one of {', '.join(spec.name for spec in SPECS)}") from None


def tools_of(turn: Turn) -> str:
    """The tools that a turn asks for as one word: `none`, a name (never an alias), `a+b`; `unknown` stands for any other."""
    names = sorted(
        _BY_NAME[folded].name if (folded := _folded(action.name)) in _BY_NAME else UNKNOWN for action in turn.actions
    )
    return "+".join(names) or NONE


def _folded(name: str) -> str:
    return "".join(name.casefold().split())


_BY_NAME = {_folded(name): spec for spec in SPECS for name in (spec.name, *spec.aliases)}


def _fits(value: Any, kind: Kind) -> bool:
    if kind == "text":
        return isinstance(value, str) and bool(value.strip())
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(_fits(item, "text") if kind == "texts" else _is_box(item) for item in value)


def _is_box(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    return all(isinstance(side, int | float) and not isinstance(side, bool) and 0 <= side <= 1 for side in value)


def _kind_of(params: Mapping[str, Any], name: str) -> str:
    return type(params[name]).__name__ if name in params else "missing"
