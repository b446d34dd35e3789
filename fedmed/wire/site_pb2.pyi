from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("site", "version", "state", "base_model", "base_sha256", "run", "round", "num_patients", "epsilon_spent", "epsilon_budget", "delta", "pid", "tasks_done", "tasks_refused")
    SITE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUM_PATIENTS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_SPENT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_BUDGET_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TASKS_DONE_FIELD_NUMBER: _ClassVar[int]
    TASKS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    site: str
    version: str
    state: str
    base_model: str
    base_sha256: str
    run: str
    round: int
    num_patients: int
    epsilon_spent: float
    epsilon_budget: float
    delta: float
    pid: int
    tasks_done: int
    tasks_refused: int
    def __init__(self, site: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., base_model: _Optional[str] = ..., base_sha256: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., num_patients: _Optional[int] = ..., epsilon_spent: _Optional[float] = ..., epsilon_budget: _Optional[float] = ..., delta: _Optional[float] = ..., pid: _Optional[int] = ..., tasks_done: _Optional[int] = ..., tasks_refused: _Optional[int] = ...) -> None: ...
