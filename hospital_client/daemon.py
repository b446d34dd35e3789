"""The process that owns a site's data: gRPC on a unix socket in front of `Site`, until SIGTERM or SIGINT.

    site folder -> lock -> manifests (counts) -> consent, ledger -> socket -> base model loaded -> "fedmed-site NAME ready SOCKET"

    >>> run_daemon(load_site(Path("/srv/fedmed/north")))        # doctest: +SKIP

| event                            | what happens                                                                    |
| -------------------------------- | ------------------------------------------------------------------------------- |
| a second daemon on the folder    | FederationError naming the first one's process                                  |
| the socket file is there         | removed when nobody listens; FederationError when somebody does                 |
| the socket's path is too long    | FederationError before anything is opened                                       |
| a task while the base loads      | waits for it; status says `loading`                                             |
| the base model cannot be loaded  | the daemon ends with that error                                                 |
| SIGTERM, SIGINT                  | no new task; training ends between two steps; exit 0 within STOP_S; what was    |
|                                  | reserved stays spent                                                            |
| a step outlasts STOP_S           | the process ends under it: nothing leaves, the ledger is on disk since before   |
| kill -9                          | the next start reads the ledger: what was reserved counts as spent              |
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from types import FrameType
from typing import Protocol

import grpc

from fedmed.data.manifest import Manifest, load_manifest
from fedmed.errors import FederationError, FedMedError, WireError
from fedmed.messages import EvaluateTask, TrainTask
from fedmed.wire import site_pb2, site_pb2_grpc
from fedmed.wire.channel import chunks, join
from hospital_client.audit import Audit
from hospital_client.consent import Withdrawals
from hospital_client.held_out import Evaluator, HeldOut, Score, load_held_out
from hospital_client.ledger import Ledger
from hospital_client.process import claim_socket, log_to, only_daemon
from hospital_client.results import ResultStore
from hospital_client.settings import SiteFolder
from hospital_client.site import Cohort, Site, Trainer, TrainRound, log

STOP_S = 9.0
_WORKERS = 8


class LoadedTrainer(Trainer, Evaluator, Protocol):
    """A trainer whose base model is in memory."""

    base_name: str
    base_sha256: str


MakeTrainer = Callable[[SiteFolder, Manifest, Manifest | None], LoadedTrainer]


def make_local_trainer(folder: SiteFolder, manifest: Manifest, held_out: Manifest | None) -> LoadedTrainer:
    """The real trainer; imports torch and loads the first base model of site.yaml."""
    from hospital_client.trainer import SiteTrainer

    return SiteTrainer(folder, manifest, held_out=held_out)


class BackgroundTrainer:
    """A trainer that is made in a thread of its own, so that the socket answers at once. `prepare` waits for it."""

    def __init__(self, make: Callable[[], LoadedTrainer]) -> None:
        self.made: Future[LoadedTrainer] = Future()
        self._make = make
        self._thread = threading.Thread(target=self._run, name="load-base-model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        return self.made.result().prepare(task, payload, lot_size)

    def prepare_evaluation(self, task: EvaluateTask, payload: memoryview) -> Score:
        return self.made.result().prepare_evaluation(task, payload)

    @property
    def trainer(self) -> LoadedTrainer | None:
        """None while it is being made, or when that failed."""
        return self.made.result() if self.made.done() and self.made.exception() is None else None

    def _run(self) -> None:
        try:
            self.made.set_result(self._make())
        except Exception as error:  # noqa: BLE001  carried to the main thread, which ends the daemon with it
            self.made.set_exception(error)


class Service(site_pb2_grpc.SiteServicer):
    """The gRPC methods of fedmed/wire/site.proto."""

    def __init__(self, site: Site, trainer: BackgroundTrainer) -> None:
        self._site = site
        self._trainer = trainer

    def Handle(
        self, request_iterator: Iterator[site_pb2.Chunk], context: grpc.ServicerContext
    ) -> Iterator[site_pb2.Chunk]:
        try:
            frame = join(piece.data for piece in request_iterator)
        except WireError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)
        reply = self._site.handle(frame)
        del frame
        yield from chunks(reply)

    def Status(self, request: site_pb2.StatusRequest, context: grpc.ServicerContext) -> site_pb2.StatusReply:
        progress, trainer = self._site.progress, self._trainer.trainer
        return self._site.release.status(
            state=self._state(),
            base_model=trainer.base_name if trainer else "",
            base_sha256=trainer.base_sha256 if trainer else "",
            run=progress.run,
            round=progress.round,
            pid=os.getpid(),
            tasks_done=progress.done,
            tasks_refused=progress.refused,
        )

    def _state(self) -> str:
        if self._site.stopping:
            return "stopping"
        if self._trainer.trainer is None:
            return "loading"
        return "training" if self._site.progress.training else "ready"


def run_daemon(
    folder: SiteFolder,
    announce: Callable[[str], None],
    make_trainer: MakeTrainer = make_local_trainer,
) -> None:
    """Serves one site until SIGTERM or SIGINT; must be called from the main thread.

    Args:
        folder: of the site.
        announce: gets "fedmed-site NAME ready SOCKET" once a task can be trained.
        make_trainer: makes the trainer; tests bring their own.

    Raises:
        FederationError: another daemon runs here, or the socket cannot be had.
        DataError, LedgerError, ModelError: the manifest, ledger or base model cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(only_daemon(folder.root / "daemon.lock"))
        stack.enter_context(log_to(folder.root / "daemon.log"))
        try:
            _serve(folder, announce, make_trainer, stack)
        except FedMedError as error:
            log.error("%s", error.message)
            raise


def _serve(folder: SiteFolder, announce: Callable[[str], None], make_trainer: MakeTrainer, stack: ExitStack) -> None:
    path = claim_socket(folder.socket)
    manifest = load_manifest(folder.data)
    held_out = load_held_out(folder, manifest)
    quarantined = manifest.quarantined + (held_out.quarantined if held_out else 0)
    log.info("manifest read, %d examples quarantined", quarantined)
    Withdrawals(folder.consent, ())()  # consent that cannot be trusted ends the daemon before its socket is there
    ledger = Ledger(folder.ledger)
    stack.callback(ledger.close)
    audit = Audit(folder.audit)
    stack.callback(audit.close)
    trainer = BackgroundTrainer(lambda: make_trainer(folder, manifest, held_out))
    name, cohort = folder.settings.name, folder.settings.cohort
    site = Site(
        name,
        folder.policy,
        Cohort.of(cohort, manifest, folder.key),
        ledger=ledger,
        audit=audit,
        results=ResultStore(folder.root / "results"),
        trainer=trainer,
        held_out=HeldOut.of(folder, held_out, trainer),
    )
    server = listen(Service(site, trainer), path, folder.socket_mode)
    audit.write("started", epsilon=site.epsilon_spent())
    try:
        _wait_for_end(trainer, lambda: announce(f"fedmed-site {name} ready {path}"))
    finally:
        _shut_down(server, site, trainer, audit)


def _wait_for_end(trainer: BackgroundTrainer, ready: Callable[[], None]) -> None:
    """Returns on SIGTERM or SIGINT; raises what kept the trainer from being made."""
    events: SimpleQueue[str] = SimpleQueue()

    def on_signal(number: int, frame: FrameType | None) -> None:
        events.put(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    trainer.made.add_done_callback(lambda _: events.put("made"))
    trainer.start()
    if (event := events.get()) == "made":
        trainer.made.result()
        log.info("ready")
        ready()
        event = events.get()
    log.info("%s: stopping", event)


def _shut_down(server: grpc.Server, site: Site, trainer: BackgroundTrainer, audit: Audit) -> None:
    """Lets a training task end between two steps; after STOP_S the process goes without it."""
    site.stop()
    server.stop(STOP_S).wait(STOP_S + 0.5)
    audit.write("stopped", epsilon=site.epsilon_spent())
    log.info("stopped")
    if site.progress.training or not trainer.made.done():
        log.warning("a step or the loading of the base model did not end in time: leaving it behind")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)  # an ordinary exit would wait for that thread; ledger and audit are on disk


def listen(service: Service, path: str, mode: int) -> grpc.Server:
    """A running server on the socket, which is closed to others from its first moment until it has its mode."""
    server = grpc.server(ThreadPoolExecutor(_WORKERS), maximum_concurrent_rpcs=_WORKERS)
    site_pb2_grpc.add_SiteServicer_to_server(service, server)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise FederationError(f"the socket {path} cannot be bound", "set another `socket` in site.yaml") from None
    finally:
        os.umask(before)
    os.chmod(path, mode)
    server.start()
    return server
