"""Dialogues in which a model asks for tools: typed turns, the text a model writes and reads, and the table of tools.

    >>> turn = read_turn('"thoughts🤔" Look closer.\\n"actions🚀" []\\n"value👉" yes')
    >>> turn.value, write_turn(turn) == '"thoughts🤔" Look closer.\\n"actions🚀" []\\n"value👉" yes'
    ('yes', True)

| module   | what is in it                                                                                        |
| -------- | ---------------------------------------------------------------------------------------------------- |
| turns    | Action, Turn, Dialogue: frozen, JSON in and out as MMedAgent's files have it                         |
| text     | a turn as the text a model is trained on and answers with; the outputs of tools as the next question |
| specs    | the tools: name, description, parameters with kinds; which arguments are valid                       |

The form is MMedAgent's (Li et al., EMNLP Findings 2024), which took it over from LLaVA-Plus (Liu et al., ECCV 2024). The agent
itself, which runs tools, is aggregator.agent; the scores are fedmed.metrics.tools. Pure: no torch, no files, no network.
"""

from fedmed.tools.specs import NONE, SPECS, UNKNOWN, Parameter, ToolSpec, find_spec, tools_of
from fedmed.tools.text import Output, has_parts, read_outputs, read_turn, write_outputs, write_turn
from fedmed.tools.turns import Action, Dialogue, Turn

__all__ = [
    "NONE",
    "SPECS",
    "UNKNOWN",
    "Action",
    "Dialogue",
    "Output",
    "Parameter",
    "ToolSpec",
    "Turn",
    "find_spec",
    "has_parts",
    "read_outputs",
    "read_turn",
    "tools_of",
    "write_outputs",
    "write_turn",
]
