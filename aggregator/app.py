"""The ServerApp: takes the run's folder from Flower's run config, loads what the round loop needs, and runs it.

    run-dir/experiment.json, run-dir/public/ -> base model, initial adapter -> run_federation -> rounds/, model/, events.jsonl

Flower hides a ServerApp's output, so what went wrong is written to run-dir: one event `failed` for people, and
logs/server-app.log with the traceback for whoever mends it.

| what happens                               | what this ServerApp does                                            |
| ------------------------------------------ | ------------------------------------------------------------------- |
| another one works in run-dir               | waits ORPHAN_S for its end, then leaves without an event            |
| its SuperLink dies                         | ends at once: rounds on disk are whole, another one goes on         |
| its SuperLink refuses it, or is cut off    | event `interrupted`: submitted again, the run goes on               |
| a fault that would come again              | event `failed`: a person has to look                                |
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aggregator.rounds.lookout import ALIVE_FILE, lookout
from aggregator.runs import locks
from aggregator.runs.folder import EVENTS_FILE, EXPERIMENT_FILE, PUBLIC, VALIDATION, read_experiment
from aggregator.runs.orphan import end_with_superlink
from aggregator.watching.events import EventLog
from fedmed.errors import FederationError, FedMedError

if TYPE_CHECKING:
    from aggregator.rounds.exchange import Exchange

RUN_DIR_KEY = "run-dir"
# A ServerApp whose SuperLink was killed ends by itself well within this time, in seconds.
ORPHAN_S = 30.0
# Whose exceptions mean that the SuperLink is gone or does not want this run any more.
CONNECTION_ERRORS = {"flwr", "httpx", "httpcore", "grpc"}
log = logging.getLogger("fedmed.server_app")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry point. Raises after the failure is written down, so that Flower marks the run as failed."""
    from aggregator.rounds.exchange import FlowerExchange

    run_dir = Path(str(context.run_config[RUN_DIR_KEY]))
    if not (run_dir / EXPERIMENT_FILE).is_file():
        raise FederationError(
            f"{RUN_DIR_KEY}={str(run_dir)!r}: expected a folder with {EXPERIMENT_FILE} on the aggregator's host",
            "start runs with `fedmed run`",
        )
    end_with_superlink()
    serve(run_dir, FlowerExchange(grid))


def serve(run_dir: Path, exchange: Exchange) -> None:
    """Runs the experiment in `run_dir` over `exchange`; whatever goes wrong becomes the run's last event.

    Raises:
        FederationError: another ServerApp works in `run_dir`; that one writes the events, so there is none of it.
    """
    (run_dir / "logs").mkdir(exist_ok=True)
    handler = logging.FileHandler(run_dir / "logs" / "server-app.log")
    handler.setFormatter(logging.Formatter("%(asctime)s process %(process)d: %(message)s"))
    log.addHandler(handler)
    try:
        with locks.hold(run_dir / locks.SERVER_LOCK, "another server app", wait_s=ORPHAN_S):
            (run_dir / ALIVE_FILE).unlink(missing_ok=True)  # of one that was killed
            _serve(run_dir, exchange, EventLog(run_dir / EVENTS_FILE), handler.baseFilename)
    except Exception:  # _serve has named it in events.jsonl; its traceback is kept here
        log.exception("the run did not finish")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _serve(run_dir: Path, exchange: Exchange, events: EventLog, log_file: str) -> None:
    try:
        run(run_dir, exchange, events)
        events.emit("finished")
    except FedMedError as error:
        events.emit("failed", message=error.message, hint=error.hint)
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if type(error).__module__.split(".")[0] in CONNECTION_ERRORS:
            events.emit("interrupted", message=message)
        else:
            events.emit("failed", message=message, hint=f"this is a fault in FedMed; see {log_file}")
        raise


def run(run_dir: Path, exchange: Exchange, events: EventLog) -> None:
    """Loads the base model and the public test set, runs all rounds, and leaves the merged model in the run's folder."""
    from aggregator.registry.publish import build_model
    from aggregator.rounds.store import RoundStore
    from aggregator.rounds.strategy import run_federation
    from fedmed.data.manifest import Manifest, load_manifest
    from fedmed.metrics.scores import Scores
    from fedmed.models.adapter import State, adapter_state, add_adapter, load_adapter_state, remove_adapter
    from fedmed.models.base import load_base
    from fedmed.models.prompts import adapted_processor
    from fedmed.training.evaluate import evaluate

    experiment = read_experiment(run_dir)
    settings = experiment.evaluation
    base = load_base(experiment.base_model.name, device=experiment.device, expected_sha256=experiment.base_model.sha256)
    public, validation = load_manifest(run_dir / PUBLIC), run_dir / VALIDATION
    held_out = load_manifest(validation) if validation.exists() else None
    spec, store = experiment.lora.spec, RoundStore(run_dir / "rounds")
    model, processor = add_adapter(base.model, spec, experiment.seed), adapted_processor(base, spec)

    def score(manifest: Manifest, state: State) -> Scores:
        load_adapter_state(model, state)
        scores, _ = evaluate(
            model,
            # Zero-shot is the base: the first adapter changes nothing where its virtual tokens are not in the prompt.
            base.processor if store.last() is None else processor,
            manifest,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
        )
        return scores

    watch = partial(lookout, run_dir)
    evaluate_public, validate = partial(score, public), partial(score, held_out) if held_out else None
    # The first adapter is named nowhere here, so that the round loop can let go of it.
    run_federation(
        experiment, exchange, store, evaluate_public, events, adapter_state(model), base.sha256, watch, validate
    )
    remove_adapter(model)
    build_model(run_dir, experiment, base)  # here, where torch and the base model are loaded
