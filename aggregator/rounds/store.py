"""The rounds of a run on disk: a round is there with its adapter and record, or it is not there at all.

    rounds/run_id            the run's name on the wire, drawn once
    rounds/000/              the initial adapter and its zero-shot scores
    rounds/001/              adapter.safetensors, round.json, and memory.safetensors where the aggregator keeps one
    rounds/.new-*            a commit that did not finish: ignored, and removed by the next commit

    >>> store = RoundStore(run_dir / "rounds")                  # doctest: +SKIP
    >>> record = store.commit(record, state)                    # doctest: +SKIP
    >>> store.state(record.round)                               # doctest: +SKIP
    >>> store.stored(record.round)                              # doctest: +SKIP

| what happens                                   | what a reader sees                                 |
| ---------------------------------------------- | -------------------------------------------------- |
| killed while a round is written                | the rounds before it, whole                        |
| disk full or read-only                         | FederationError, the rounds before it, whole       |
| round.json or the adapter is missing or broken | it and those after it do not count; committed anew |
| the tensors of the newest round were changed   | the round before counts, this one is committed anew |
| those of an older round were                   | FederationError from `state`, naming both hashes   |
| a round is committed twice                     | FederationError, the first stays                   |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmed.errors import FederationError
from fedmed.files import READABLE, sync_folder, write_atomic, write_new
from fedmed.messages import sha256_of
from fedmed.metrics.scores import Scores

# Adapters are decoded with torch, which takes seconds to import: reading records alone does not need it.
if TYPE_CHECKING:
    from torch import Tensor

    from fedmed.models.encoding import State

ADAPTER_FILE = "adapter.safetensors"
RECORD_FILE = "round.json"
MEMORY_FILE = "memory.safetensors"


@dataclass(frozen=True, slots=True)
class SiteReport:
    """What one site reported for a round. `weight` is what its adapter counted, `reply_seconds` passed between sending the
    task and its reply; `update_norm` is the length of its update, `update_bound` what that was scaled down to, None where it
    was not; the rest is as in TrainResult."""

    site: str
    num_patients: int
    steps: int
    epsilon: float
    delta: float
    epsilon_total: float
    reply_seconds: float
    bytes_up: int
    dataset_fingerprint: str
    weight: float
    noisy_correct: float = 0.0
    noisy_patients: float = 0.0
    update_norm: float = 0.0
    update_bound: float | None = None


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One committed round.

    Attributes:
        skipped: fewer valid replies than the quorum; the adapter is the round's before.
        left_out: site (or node) -> why it took no part.
        scores: of the adapter after this round, on the public test set.
        bytes_up, bytes_down: frames received and sent, in bytes, over all sites.
        seconds: wall time of the round, evaluation included; reply_seconds: from the task to the slowest site's reply.
        local_accuracy, local_error: of the adapter that the round began with, on the sites' own patients, and its standard
            error from the noise; None where no counts were asked for, or too few patients drawn to tell.
        adapter_sha256: of adapter.safetensors; parent_sha256: of the round's before, empty at round 0. Both are
            filled in by `RoundStore.commit`.
        memory_sha256: of memory.safetensors; empty where there is none.
        stage: its name, where the experiment has stages; ends_stage: the next round is another stage's, or there is none.
        val_scores: of the adapter after this round, on the public validation split, where stages are judged by it.
        verdict: why the adapter is not what this round trained, but an earlier round's; empty where it is.
    """

    round: int
    skipped: bool
    replies: tuple[SiteReport, ...]
    left_out: Mapping[str, str]
    scores: Scores | None
    bytes_up: int
    bytes_down: int
    seconds: float
    reply_seconds: float
    config_sha256: str
    adapter_sha256: str = field(default="")
    parent_sha256: str = field(default="")
    local_accuracy: float | None = None
    local_error: float | None = None
    memory_sha256: str = ""
    stage: str = ""
    ends_stage: bool = False
    val_scores: Scores | None = None
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoundRecord:
        """What `to_dict` gave. Raises TypeError or KeyError for anything else."""
        scores = {key: Scores(**data[key]) for key in ("scores", "val_scores") if data.get(key) is not None}
        return cls(**{**data, "replies": tuple(SiteReport(**reply) for reply in data["replies"]), **scores})


class RoundStore:
    """Commits rounds to a folder and reads them back. One process writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_id(self, name: str) -> str:
        """`name` with eight random digits, drawn at the first call: a run started anew is another run to the sites."""
        path = self.folder / "run_id"
        if not path.exists():
            self._make_folder()
            write_atomic(path, f"{name}-{secrets.token_hex(4)}".encode(), READABLE)
        return path.read_text(encoding="utf-8")

    def records(self) -> list[RoundRecord]:
        """All rounds from 0 up to the first that is missing, broken or does not follow from the one before; the newest one's
        tensors are those committed."""
        records: list[RoundRecord] = []
        while (record := self._record(len(records))) is not None:
            # A round made anew leaves those behind it in their folders: they go on from another adapter.
            if record.parent_sha256 != (records[-1].adapter_sha256 if records else ""):
                break
            records.append(record)
        while records and not self._is_whole(records[-1]):  # what a run goes on from must load
            records.pop()
        return records

    def committed_at(self, number: int) -> float:
        """When round `number` was committed, in seconds since 1970."""
        return (self._path(number) / RECORD_FILE).stat().st_mtime

    def last(self) -> RoundRecord | None:
        """The latest round, None before the first commit."""
        records = self.records()
        return records[-1] if records else None

    def state(self, number: int) -> State:
        """The adapter after round `number`, its hash verified.

        Raises:
            FederationError: the round is not there, or its bytes are not those that were committed.
        """
        record = self._record(number)
        if record is None:
            raise FederationError(f"round {number} is not in {self.folder}")
        return self._tensors(number, ADAPTER_FILE, record.adapter_sha256)

    def stored(self, number: int) -> Mapping[str, Tensor]:
        """As `state`, but each tensor is read from the file when it is asked for: takes no memory. Raises as `state`."""
        from fedmed.models.tensor_bytes import StoredTensors

        path = self._path(number) / ADAPTER_FILE
        record = self._record(number)
        if record is None:
            raise FederationError(f"round {number} is not in {self.folder}")
        self._require(path, record.adapter_sha256)
        return StoredTensors(path)

    def memory(self, number: int) -> State:
        """What the aggregator carried on from round `number`: empty where it keeps nothing. Raises as `state`."""
        record = self._record(number)
        if record is None:
            raise FederationError(f"round {number} is not in {self.folder}")
        return self._tensors(number, MEMORY_FILE, record.memory_sha256) if record.memory_sha256 else {}

    def commit(
        self, record: RoundRecord, state: Mapping[str, Tensor], memory: Mapping[str, Tensor] | None = None
    ) -> RoundRecord:
        """Writes a round, or nothing. Returns the record with its hashes.

        Args:
            memory: what the aggregator itself carries on to the next round.

        Raises:
            FederationError: it is committed already, is not the next round, or the disk does not take it.
        """
        from fedmed.models.encoding import encode_parts

        last = self.last()
        expected = 0 if last is None else last.round + 1
        if record.round != expected:
            raise FederationError(f"cannot commit round {record.round}: expected round {expected}")
        files: dict[str, list[bytes | memoryview]] = {ADAPTER_FILE: encode_parts(state, "float32")}
        if memory:
            files[MEMORY_FILE] = encode_parts(memory, "float32")
        record = dataclasses.replace(
            record,
            adapter_sha256=sha256_of(files[ADAPTER_FILE]),
            parent_sha256="" if last is None else last.adapter_sha256,
            memory_sha256=sha256_of(files[MEMORY_FILE]) if memory else "",
        )
        text = json.dumps(record.to_dict(), indent=1, sort_keys=True, allow_nan=False)
        try:
            self._publish(record.round, files | {RECORD_FILE: [text.encode()]})
        except OSError as error:
            raise FederationError(
                f"round {record.round} cannot be written to {self.folder}: {error.strerror}",
                "make room or mend the disk; the rounds before it are whole and the run goes on from there",
            ) from error
        return record

    def _tensors(self, number: int, name: str, sha256: str) -> State:
        from fedmed.models.encoding import decode_state

        path = self._path(number) / name
        self._require(path, sha256)
        return decode_state(path.read_bytes(), "float32")

    def _require(self, path: Path, sha256: str) -> None:
        if (found := _file_sha256(path)) != sha256:
            raise FederationError(
                f"{path.name} of round {int(path.parent.name)} has SHA-256 {found[:12]}, expected {sha256[:12]}",
                f"move {path.parent} away; the run goes on from the round before",
            )

    def _publish(self, number: int, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        self._make_folder()
        for torn in self.folder.glob(".new-*"):
            shutil.rmtree(torn)
        if self._path(number).exists():  # `commit` found it broken
            os.rename(self._path(number), self.folder / f".broken-{number:03d}-{secrets.token_hex(4)}")
        new = self.folder / f".new-{number:03d}"
        new.mkdir()
        for name, data in files.items():
            write_new(new / name, data, READABLE)
        os.rename(new, self._path(number))
        sync_folder(self.folder)

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}"

    def _record(self, number: int) -> RoundRecord | None:
        path = self._path(number)
        try:
            record = RoundRecord.from_dict(json.loads((path / RECORD_FILE).read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if record.round == number and (path / ADAPTER_FILE).is_file() else None

    def _is_whole(self, record: RoundRecord) -> bool:
        """Whether the tensors of a round are those that were committed."""
        files = {ADAPTER_FILE: record.adapter_sha256, MEMORY_FILE: record.memory_sha256}
        try:
            return all(
                _file_sha256(self._path(record.round) / name) == sha256 for name, sha256 in files.items() if sha256
            )
        except OSError:
            return False


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
