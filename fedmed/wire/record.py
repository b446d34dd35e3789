"""A frame as Flower carries it: the raw bytes of the only Array in the only ArrayRecord. Used by aggregator and relay.

frame -> pack -> RecordDict -> Flower -> RecordDict -> unpack -> frame

>>> unpack(pack(b"FEDM"))
b'FEDM'
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from fedmed.errors import WireError
from fedmed.messages import ARRAY_KEY, ARRAY_STYPE, RECORD_KEY


def pack(frame: bytes) -> RecordDict:
    """The RecordDict that holds `frame`; the bytes are not copied."""
    array = Array(dtype="uint8", shape=(len(frame),), stype=ARRAY_STYPE, data=frame)
    return RecordDict({RECORD_KEY: ArrayRecord({ARRAY_KEY: array})})


def unpack(content: RecordDict) -> bytes:
    """The frame that `pack` wrote. Raises WireError for any other content."""
    record = content.array_records.get(RECORD_KEY)
    array = None if record is None else record.get(ARRAY_KEY)
    if array is None or array.stype != ARRAY_STYPE:
        raise WireError(
            f"a Flower message with the records {sorted(content)} holds no FedMed frame",
            "only FedMed's own app may be run on this federation",
        )
    return bytes(array.data)


def take(content: RecordDict) -> bytes:
    """As `unpack`, and `content` holds the frame no more."""
    frame = unpack(content)
    release(content)
    return frame


def release(content: RecordDict) -> None:
    """Lets go of the frame in `content`. Flower's records refer to themselves, so that what they hold is not freed with their last
    name but when Python looks for such cycles: frames of many megabytes would add up until then."""
    for record in content.array_records.values():
        for key in list(record):
            del record[key]
