"""The error tree. Command-line tools catch `FedMedError` alone and print two lines: what is wrong, what to do.

    FedMedError                 anything a user can mend
      ConfigError               an experiment or site file is wrong (every problem at once)
      DataError                 a manifest, an image folder or a public set is wrong
      ModelError                a base model or adapter is not what was asked for
      PrivacyError              a guarantee cannot be given
        BudgetExhausted         the next round would spend more than the site allows
        LedgerError             the ledger is corrupt, locked or cannot be written: fail closed
      PolicyRefusal             the site's policy does not allow the task
      WireError                 a message is not one of ours, or arrived damaged
      FederationError           a process, port or peer is missing; the quorum was not met
        AdmissionError          a certificate, a node key or a clock keeps a peer out
      RegistryError             a version, alias or store is missing or refuses
      ServingError              a request or model cannot be served
      ToolError                 a tool is unknown, not configured, or failed
        TurnError               a turn of a tool dialogue is not one

Every error names the thing, its value and what was expected in `message`, and what to do next in `hint`.
Neither may hold a patient field: messages of these classes cross the wire as refusals.
"""

from __future__ import annotations


class FedMedError(Exception):
    """Base of all errors a user can mend.

    Args:
        message: one line: the thing, its value, what was expected.
        hint: one line: what to do next; empty when the message says it all.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(FedMedError):
    """One or more problems in a configuration; `problems` holds one line each, with the full key path."""

    code = "config"
    exit_code = 2

    def __init__(self, problems: list[str], hint: str = "") -> None:
        count = len(problems)
        lead = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n  ".join([lead, *problems]), hint)
        self.problems = problems


class DataError(FedMedError):
    """A manifest, image folder or public data set is missing, broken or not what its hash says."""

    code = "data"
    exit_code = 3


class ModelError(FedMedError):
    """A base model or adapter cannot be loaded, or its hash, keys or shapes are not the expected ones."""

    code = "model"
    exit_code = 4


class PrivacyError(FedMedError):
    """A privacy guarantee cannot be given as asked."""

    code = "privacy"
    exit_code = 5


class BudgetExhausted(PrivacyError):
    """The task would bring the cohort's epsilon above the site's budget; nothing was read or spent."""

    code = "budget_exhausted"


class LedgerError(PrivacyError):
    """The ledger cannot be trusted or written. The site trains nothing until a person has looked."""

    code = "ledger"


class PolicyRefusal(FedMedError):
    """The site's policy does not allow the task."""

    code = "policy"
    exit_code = 6


class WireError(FedMedError):
    """Bytes that are not a message of this protocol version, or that arrived damaged."""

    code = "wire"
    exit_code = 7


class FederationError(FedMedError):
    """A process, port, socket or peer that is needed is missing or taken, or the quorum was not met."""

    code = "federation"
    exit_code = 8


class AdmissionError(FederationError):
    """A certificate or node key is unknown, revoked, out of date or another's, or a clock is wrong."""

    code = "admission"
    exit_code = 11


class RegistryError(FedMedError):
    """The model registry lacks the version or alias, refuses the change, or cannot be reached."""

    code = "registry"
    exit_code = 9


class ServingError(FedMedError):
    """A model or request cannot be served."""

    code = "serving"
    exit_code = 10


class ToolError(FedMedError):
    """A tool of a tool dialogue is unknown or not configured, its arguments are wrong, or it failed."""

    code = "tool"
    exit_code = 12


class TurnError(ToolError):
    """A text or an object is not a turn of a tool dialogue. Never holds what a model said."""

    code = "turn"
