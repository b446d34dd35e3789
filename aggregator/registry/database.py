"""The sqlite database of an MLflow store: there with all of its tables, or not there.

    create_database(Path("runs/mlflow/mlflow.db"))

MLflow makes its tables in some forty migrations, each committed alone. A process that is killed in between, or two that begin at
the same time, leave tables that the next migration wants to create, and that database never opens again.

| what happens                          | what the next one sees                                                         |
| ------------------------------------- | ------------------------------------------------------------------------------ |
| killed while the tables are made      | `mlflow.db.part`, which is thrown away and made again; never half a database   |
| two processes begin at the same time  | one makes it, the other waits and finds it                                     |
| no room, or a read-only disk          | the error of sqlite or of the lock; no database                                |
| a database is there                   | nothing is done: MLflow itself says when it is of another version              |
"""

from __future__ import annotations

from pathlib import Path

from aggregator.runs import locks
from fedmed.errors import FederationError, RegistryError
from fedmed.files import sync_folder

# Seconds on a good machine, and a minute on one that trains meanwhile.
WAIT_S = 120.0


def create_database(database: Path) -> None:
    """Makes the database with all its tables, and its folder, unless it is there.

    Raises:
        RegistryError: the lock beside it cannot be had.
        Exception: whatever MLflow and SQLAlchemy raise for a disk that fails.
    """
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = database.with_name(f"{database.name}.lock")
    try:
        with locks.hold(lock, "another command that makes the database", wait_s=WAIT_S):
            if not database.exists():
                _create(database)
    except FederationError as error:
        raise RegistryError(error.message, error.hint) from None


def _create(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    part = database.with_name(f"{database.name}.part")
    for left in database.parent.glob(f"{part.name}*"):  # its journal too: sqlite would play it into the new file
        left.unlink()
    store = SqlAlchemyStore(f"sqlite:///{part}", (database.parent / "artifacts").as_uri())
    store.engine.dispose()
    part.rename(database)
    sync_folder(database.parent)
