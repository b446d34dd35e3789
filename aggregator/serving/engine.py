"""A verified model folder in, answers out: one model, one request at a time, text as it is made.

    engine = Engine.load(Path("runs/demo/model"), device="auto")
    job = engine.prepare(prompt, Settings(max_tokens=24))        # a wrong request fails here, before any text
    for item in engine.run(job): ...                             # str pieces, then one Finish

| case                                        | result                                              |
| ------------------------------------------- | --------------------------------------------------- |
| a file's hash is not the manifest's         | RegistryError, nothing is loaded                    |
| prompt and max_tokens exceed the context    | ApiError 400 context_length_exceeded                |
| more text than the context can hold at all  | the same, before it is cut into tokens              |
| a text holds a special token of the model   | ApiError 400: it would move images or turns         |
| the reader stops reading                    | generation ends at the next token                   |
| more requests wait than `MAX_WAITING`       | ApiError 503 overloaded                             |
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from aggregator.registry.model_folder import verify_model
from aggregator.serving.prompts import Prompt
from aggregator.serving.schema import ApiError
from fedmed.models.base import BaseModel, load_base

MAX_WAITING = 32
DEFAULT_MAX_TOKENS = 256
MIN_TEMPERATURE = 1e-6  # logits that are divided by less overflow; the limit is greedy


@dataclass(frozen=True, slots=True)
class Settings:
    """How to generate. `max_tokens` 0: what the context leaves, at most 256. `seed`: of sampling, None for any."""

    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended. `reason`: stop or length."""

    reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is ready to run: `inputs` are the processor's tensors, batch of 1."""

    inputs: dict[str, torch.Tensor]
    settings: Settings
    max_tokens: int


class Engine:
    """Answers prompts with one model. Safe to call from several threads.

    Args:
        base: model in eval mode on its device, with its processor.
        manifest: of the published folder it came from.
    """

    def __init__(self, base: BaseModel, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self._model: Any = base.model
        self._processor: Any = base.processor
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_WAITING)
        config = base.model.config.get_text_config()
        self._context = int(getattr(config, "max_position_embeddings", 0)) or 1 << 20
        self._most_characters = self._context * max(map(len, base.processor.tokenizer.get_vocab()))
        self._ends = _end_tokens(base)

    @classmethod
    def load(cls, folder: Path, device: str) -> Engine:
        """The merged model of a published folder, after every hash was verified, warmed up.

        Raises:
            RegistryError: a file is not what the manifest says.
            ModelError: it cannot be loaded.
        """
        manifest = verify_model(folder)
        engine = cls(load_base(str(folder / "merged"), device=device), manifest)
        engine.warm_up()
        return engine

    def warm_up(self) -> None:
        """One token for one grey image: the first real request then takes no longer than the others."""
        content = [{"type": "image"}, {"type": "text", "text": "Ready?"}]
        prompt = Prompt([{"role": "user", "content": content}], [Image.new("RGB", (64, 64), "grey")])
        list(self.run(self.prepare(prompt, Settings(max_tokens=1))))

    def prepare(self, prompt: Prompt, settings: Settings) -> Job:
        """Tokens and pixels of a prompt.

        Raises:
            ApiError: 400, the prompt does not fit the model.
        """
        self._refuse_endless(prompt)
        self._refuse_markup(prompt)
        try:
            encoded = self._encode(prompt)
        # Templates and processors raise whatever their authors chose; for the caller it is one thing: a wrong prompt.
        except Exception as error:
            message = f"the model's chat template does not take these messages ({type(error).__name__})"
            raise ApiError(400, message, code="invalid_messages", param="messages") from error
        length = int(encoded["input_ids"].shape[1])
        room = self._context - length
        wanted = settings.max_tokens or max(1, min(DEFAULT_MAX_TOKENS, room))
        if wanted > room:
            message = (
                f"the prompt has {length} tokens and max_tokens is {wanted}; the context holds {self._context} in all"
            )
            raise ApiError(400, message, code="context_length_exceeded", param="messages")
        return Job(encoded, settings, wanted)

    def run(self, job: Job) -> Iterator[str | Finish]:
        """Pieces of the answer as they are made, then how it ended."""
        if not self._places.acquire(blocking=False):
            raise ApiError(503, f"more than {MAX_WAITING} requests are waiting; try again later", code="overloaded")
        generation = _Generation(self, job)
        try:
            yield from generation.items()
        finally:
            generation.cancelled.set()
            self._places.release()

    def _encode(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        text = self._processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        # As in training (fedmed.data.collate): a start token that the template writes must not come twice.
        start = self._processor.tokenizer.bos_token
        special = not (start and text.startswith(start))
        pictures = {"images": [prompt.images]} if prompt.images else {}
        return dict(self._processor(text=[text], **pictures, add_special_tokens=special, return_tensors="pt"))

    def _refuse_endless(self, prompt: Prompt) -> None:
        """Before the tokenizer, which takes seconds for a megabyte: no token stands for more than the longest of them."""
        count = sum(map(len, _texts(prompt)))
        if count > self._most_characters:
            message = f"the prompt has {count} characters, which cannot fit the context of {self._context} tokens"
            raise ApiError(400, message, code="context_length_exceeded", param="messages")

    def _refuse_markup(self, prompt: Prompt) -> None:
        for marker in self._processor.tokenizer.all_special_tokens:
            if any(marker in text for text in _texts(prompt)):
                message = f"a text holds {marker}, which is markup of this model; images go into image_url parts"
                raise ApiError(400, message, code="invalid_messages", param="messages")

    def generate(self, job: Job, streamer: TextIteratorStreamer, cancelled: threading.Event) -> tuple[int, bool]:
        """Generate into `streamer`; returns the number of new tokens and whether the model ended by itself."""
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if job.settings.temperature >= MIN_TEMPERATURE:
            options = {"do_sample": True, "temperature": job.settings.temperature, "top_p": job.settings.top_p}
        with self._lock, torch.inference_mode():
            if job.settings.seed is not None:
                torch.manual_seed(job.settings.seed)
            output = self._model.generate(
                **{name: tensor.to(self._model.device) for name, tensor in job.inputs.items()},
                **options,
                max_new_tokens=job.max_tokens,
                pad_token_id=self._processor.tokenizer.pad_token_id,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)]),
            )
        count = int(output.shape[1]) - int(job.inputs["input_ids"].shape[1])
        return count, int(output[0, -1]) in self._ends

    def new_streamer(self) -> TextIteratorStreamer:
        """A queue of text for one answer."""
        return TextIteratorStreamer(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


class _Generation:
    """One answer being made in its own thread, so that a slow reader does not hold the model."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.cancelled = threading.Event()
        self._engine, self._job = engine, job
        self._streamer = engine.new_streamer()
        self._result = (0, False)
        self._error: BaseException | None = None

    def items(self) -> Iterator[str | Finish]:
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        pieces = cut_at(self._stripped(), self._job.settings.stop)
        stopped = yield from pieces
        self.cancelled.set()
        thread.join()
        if self._error is not None:
            raise self._error
        count, ended = self._result
        reason = "stop" if stopped or ended else "length"
        yield Finish(reason, int(self._job.inputs["input_ids"].shape[1]), count)

    def _work(self) -> None:
        try:
            self._result = self._engine.generate(self._job, self._streamer, self.cancelled)
        except BaseException as error:  # noqa: BLE001  raised again where the answer is read
            self._error = error
            self._streamer.text_queue.put(self._streamer.stop_signal)

    def _stripped(self) -> Iterator[str]:
        """The streamed text without the white space before it."""
        begun = False
        for piece in self._streamer:
            text = piece if begun else piece.lstrip()
            if text:
                begun = True
                yield text


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)  # type: ignore[return-value]


def cut_at(pieces: Iterator[str], stops: tuple[str, ...]) -> Any:
    """Yield the text up to the first of `stops`; the generator's value is whether one was met.

    Text that may be the beginning of a stop is held back until it is clear.
    """
    held = ""
    keep = max((len(stop) for stop in stops), default=1) - 1
    for piece in pieces:
        held += piece
        places = [place for stop in stops if stop and (place := held.find(stop)) >= 0]
        if places:
            if before := held[: min(places)]:
                yield before
            return True
        ready = max(0, len(held) - keep)
        if ready:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held
    return False


def _texts(prompt: Prompt) -> list[str]:
    return [part.get("text", "") for message in prompt.messages for part in message["content"]]


def _end_tokens(base: BaseModel) -> set[int]:
    config: Any = base.model.generation_config
    ends = config.eos_token_id if config is not None else None
    return set(ends) if isinstance(ends, list) else {-1 if ends is None else int(ends)}
