"""`fedmed agent`: a registered version answers a question with the help of tools."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed.errors import ConfigError, DataError, ToolError

if TYPE_CHECKING:
    from aggregator.agent.chat import Chat
    from aggregator.agent.loop import Transcript
    from aggregator.agent.toolbox import Toolbox
    from aggregator.registry import Registry

MAX_STEPS = 4  # as aggregator.agent.loop, which a help text need not load


def agent(
    reference: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME:VERSION")],
    question: Annotated[str, typer.Option(help="what the model is asked")],
    image: Annotated[
        list[Path] | None, typer.Option(help="PNG or JPEG; may be given again", show_default=False)
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="folder of .txt, .md, .jsonl for retrieval", show_default=False)
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="NAME=ADDRESS of a tool over HTTP; may be given again", show_default=False)
    ] = None,
    classifier: Annotated[str, typer.Option(help="version that classifies and reports; default: the same")] = "",
    label_form: Annotated[
        str, typer.Option(help="question about a label, {} in its place")
    ] = "Does this image show {}?",
    url: Annotated[str, typer.Option(help="of a running server (.../v1) in place of loading the version here")] = "",
    max_steps: Annotated[int, typer.Option(min=1, max=16, help="answers of the model at most")] = MAX_STEPS,
    max_tokens: Annotated[int, typer.Option(min=0, help="of one answer; 0: what the context leaves, at most 256")] = 0,
    transcript: Annotated[Path | None, typer.Option(help="FILE.json for all that was said", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print all that was said")] = False,
    device: str = "auto",
    uri: Annotated[str, typer.Option(help="MLflow tracking URI; default: sqlite under the runs folder")] = "",
    runs_dir: Annotated[Path, typer.Option(help="where run folders and the sqlite MLflow store live")] = Path("runs"),
) -> None:
    """Ask a version that may use tools: classification, grounding, segmentation, report, retrieval (see docs/tools.md).

    fedmed agent fedmed@champion --image chest.png --question "What is seen?" --corpus library
    """
    from aggregator.registry import open_registry, parse_reference

    for name in filter(None, (reference, classifier)):
        parse_reference(name)  # a mistake is told before anything large is imported
    addresses = _addresses(tool or [])
    if label_form.count("{}") != 1 or label_form.count("{") != 1 or label_form.count("}") != 1:
        raise ConfigError([f"--label-form {label_form!r}: expected one {{}} where the label belongs"])
    if not question.strip():
        raise ConfigError(["--question is empty, expected a text"])
    pictures = [_picture(path) for path in image or []]
    registry = None if url else open_registry(uri, runs_dir.resolve())
    with tempfile.TemporaryDirectory(prefix="fedmed-") as cache:
        chats = _chats([reference, classifier or reference], registry, url, max_tokens, device, Path(cache))
        toolbox = _toolbox(chats[-1], corpus, addresses, label_form)
        from aggregator.agent.loop import run_agent

        said = run_agent(chats[0], toolbox, question, pictures, max_steps)
    if transcript:
        transcript.write_text(json.dumps(said.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    _show(said, as_json)


def _show(said: Transcript, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(said.to_json(), indent=2, ensure_ascii=False))
    else:
        for number, step in enumerate(said.steps, start=1):
            for output in step.outputs:
                typer.echo(f"step {number}: {output.tool}: {output.text}", err=True)
        typer.echo(said.answer)
    if said.outcome in ("no_answer", "out_of_steps"):
        raise ToolError(
            f"no answer after {len(said.steps)} steps ({said.outcome})", "see --json; raise --max-steps or --max-tokens"
        )


def _addresses(tools: Sequence[str]) -> dict[str, str]:
    from fedmed.tools import find_spec

    found = {}
    for item in tools:
        name, equals, address = item.partition("=")
        if not equals:
            raise ConfigError(
                [f"--tool {item}: expected NAME=ADDRESS, such as grounding=http://127.0.0.1:21001/worker_generate"]
            )
        found[find_spec(name).name] = address
    return found


def _picture(path: Path) -> bytes:
    """An image file as PNG or JPEG that decodes."""
    from fedmed.data.images import is_readable

    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "name a PNG or JPEG file") from None
    if not is_readable(data):
        raise DataError(f"{path} is not a whole PNG or JPEG image", "convert it first")
    return data


def _chats(
    references: Sequence[str], registry: Registry | None, url: str, max_tokens: int, device: str, cache: Path
) -> list[Chat]:
    """What answers for each reference; equal ones are loaded once."""
    from aggregator.agent.chat import EngineChat, ServerChat

    if registry is None:
        from openai import OpenAI

        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300.0)
        return [ServerChat(client, name, max_tokens) for name in references]
    from aggregator.serving.engine import Engine

    engines = {}
    for place, name in enumerate(dict.fromkeys(references)):
        version = registry.get(name)
        engines[name] = Engine.load(registry.fetch(version.reference, cache / str(place)), device)
    return [EngineChat(engines[name], max_tokens) for name in references]


def _toolbox(chat: Chat, corpus: Path | None, addresses: dict[str, str], label_form: str) -> Toolbox:
    from aggregator.agent.external import external
    from aggregator.agent.served import classification, report
    from aggregator.agent.toolbox import Run, Toolbox

    runs: dict[str, Run] = {"classification": classification(chat, label_form), "report": report(chat)}
    if corpus is not None:
        from aggregator.agent.retrieval import load_corpus, retrieval

        runs["retrieval"] = retrieval(load_corpus(corpus))
    return Toolbox(runs | {name: external(name, address) for name, address in addresses.items()})
