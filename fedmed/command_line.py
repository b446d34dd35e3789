"""The edge of the command-line tools: what a person can mend is two lines on stderr and an exit code, never a traceback.

| what ends the command         | stderr                                        | exit code              |
| ----------------------------- | --------------------------------------------- | ---------------------- |
| a FedMedError                 | what is wrong; what to do                     | that of its class      |
| an OSError: disk, permissions | the file, where it is known, and the reason   | 1                      |
| Ctrl-C                        | that it was stopped                           | 130                    |
| anything else                 | its traceback: it is a fault of FedMed        | 1                      |
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from fedmed.errors import FedMedError

STOPPED = 130  # the exit code of Ctrl-C


def run(command: Callable[[], object]) -> None:
    """Runs a tool's typer app and ends the process as the table says."""
    try:
        command()
    except FedMedError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        print_error(of_system(error))
        sys.exit(FedMedError.exit_code)
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as ended:
        if ended.code == STOPPED:  # typer has caught the Ctrl-C itself, and says nothing
            _stopped()
        raise


def _stopped() -> NoReturn:
    typer.echo("stopped; everything that this command started has been ended", err=True)
    sys.exit(STOPPED)


def print_error(error: FedMedError) -> None:
    """What is wrong, and what to do, on stderr."""
    typer.echo(f"error: {error.message}", err=True)
    if error.hint:
        typer.echo(f"  hint: {error.hint}", err=True)


def of_system(error: OSError) -> FedMedError:
    """An error of the operating system as one that a person can read."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return FedMedError(reason, "mend it, then give the command again")
    return FedMedError(f"{error.filename}: {reason}", "make room or mend the permissions, then give the command again")
