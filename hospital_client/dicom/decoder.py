"""Decodes frames in a process of its own: a damaged JPEG can end the process that decodes it (GDCM calls abort).

    with Decoder() as decoder:
        stored = decoder.read(path, frame)      # UnusableError also where the child died or did not answer in time

    parent  {"path": ..., "frame": 0}\\n             ->  child's stdin
    parent  <-  {"shape": [..], "dtype": "<i2"}\\n and the bytes, or {"fault": "..."}\\n  on the child's stdout

The child's stderr goes nowhere: the decoders write into it what they like.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from hospital_client.dicom.faults import BAD_PIXELS, UnusableError
from hospital_client.dicom.frames import read_frame
from hospital_client.dicom.headers import quiet

SECONDS = 120.0


class Decoder:
    """Starts its child when it is first needed, and anew after each that died."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, path: Path, frame: int) -> np.ndarray:
        """As `read_frame`."""
        child = self._child = self._child or _start()
        requests, replies = cast(BinaryIO, child.stdin), cast(BinaryIO, child.stdout)
        try:
            requests.write(json.dumps({"path": str(path), "frame": frame}).encode() + b"\n")
            requests.flush()
            if not select.select([replies], [], [], self._seconds)[0]:
                raise EOFError
            return _receive(replies)
        except (OSError, EOFError, ValueError):
            self._end()
            raise UnusableError(BAD_PIXELS) from None

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hospital_client.dicom.decoder"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _receive(stream: BinaryIO) -> np.ndarray:
    line = stream.readline()
    if not line:
        raise EOFError
    told = json.loads(line)
    if "fault" in told:
        raise UnusableError(told["fault"])
    found = np.empty(told["shape"], dtype=told["dtype"])
    view = memoryview(cast(Any, found)).cast("B")
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return found


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    for line in requests:
        asked = json.loads(line)
        try:
            with quiet():
                found = np.ascontiguousarray(read_frame(Path(asked["path"]), asked["frame"]))
            head, data = {"shape": found.shape, "dtype": found.dtype.str}, found.data.cast("B")
        except UnusableError as fault:
            head, data = {"fault": fault.reason}, memoryview(b"")
        replies.write(json.dumps(head).encode() + b"\n")
        replies.write(data)
        replies.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
