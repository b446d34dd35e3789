"""What the site's own log says of an error: more than may leave, and still no record."""

from __future__ import annotations

import traceback

from fedmed.errors import FedMedError


def describe_fault(error: Exception) -> str:
    """An error for the site's log: our own in one line, others with where they arose.

    The text of a foreign exception may quote a record (a KeyError does), so it is left out, save for kinds that speak
    of shapes, memory and the system.
    """
    if isinstance(error, FedMedError):
        cause = error.__cause__
        return error.message + (f"\n{describe_fault(cause)}" if isinstance(cause, Exception) else "")
    text = (
        (error.strerror or "") if isinstance(error, OSError) else str(error) if isinstance(error, RuntimeError) else ""
    )
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return f"{type(error).__name__} {text}".rstrip() + (f"\n{frames}" if frames else "")
