"""What the publishing tests share: one MLflow store for the session, an untrained base model, and a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aggregator.registry import MlflowRegistry, open_registry
from aggregator.rounds.store import RoundRecord, RoundStore, SiteReport
from aggregator.watching.events import EventLog
from fedmed.config import Experiment, load_experiment, to_dict
from fedmed.data.images import encode_png
from fedmed.data.manifest import write_manifest
from fedmed.data.schema import Example, ImageRef
from fedmed.metrics.scores import Scores
from fedmed.models.adapter import adapter_state, add_adapter
from fedmed.models.base import load_base
from fedmed.models.tiny import build_model, build_processor, save

QUESTION = "Does this chest X-ray show pneumonia?"
RunFactory = Callable[..., tuple[Path, Experiment]]


@pytest.fixture(scope="session")
def mlflow_registry(tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    """One store for the whole session: its tables take seconds to make."""
    return open_registry("", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny model whose greedy answers are some text (noise, and the same noise every time)."""
    folder = tmp_path_factory.mktemp("base")
    processor = build_processor([QUESTION, "yes", "no"])
    model: Any = build_model(len(processor.tokenizer), seed=1)
    with torch.no_grad():  # as drawn, it would repeat its prompt's last token, which is markup
        for name, weight in model.named_parameters():
            weight.mul_(8 if "layers" in name and weight.dim() == 2 else 1)
        model.get_input_embeddings().weight[:6] = 0
    save(model, processor, folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(base_folder: Path) -> RunFactory:
    """finished_run(folder, *overrides, accuracies=..., seed=...) -> a run's folder as the round loop leaves it."""

    def make(
        folder: Path, *overrides: str, accuracies: tuple[float, ...] = (0.5, 0.7, 0.7, 0.8), seed: int = 0
    ) -> tuple[Path, Experiment]:
        experiment = load_experiment("demo", [f"base_model.name={base_folder}", "lora.rank=2", *overrides])
        folder.mkdir(parents=True)
        (folder / "experiment.json").write_text(json.dumps(to_dict(experiment)))
        (folder / "run.json").write_text(json.dumps({"key": f"demo-{seed}", "data_source": "phantom", "notes": ["n"]}))
        _write_public(folder / "public")
        _write_events(folder, experiment)
        _write_rounds(folder, experiment, base_folder, accuracies, seed)
        return folder, experiment

    return make


def _write_public(folder: Path) -> None:
    pixels = torch.arange(28 * 28, dtype=torch.uint8).reshape(28, 28).numpy()
    image = ImageRef(data=encode_png(pixels))
    pairs = [(f"p{index}", "yes" if index % 2 else "no") for index in range(4)]
    write_manifest(
        folder, [Example(patient, (image,), QUESTION, answer, "closed", "vqa", "phantom") for patient, answer in pairs]
    )


def _write_events(folder: Path, experiment: Experiment) -> None:
    log = EventLog(folder / "events.jsonl")
    for site in experiment.partition.sites:
        log.emit("joined", site=site, num_patients=600)


def _write_rounds(
    folder: Path, experiment: Experiment, base_folder: Path, accuracies: tuple[float, ...], seed: int
) -> None:
    """Round 0, then one round per further accuracy; a round whose accuracy did not move was skipped."""
    state = adapter_state(add_adapter(load_base(str(base_folder)).model, experiment.lora.spec, seed))
    store = RoundStore(folder / "rounds")
    generator = torch.Generator().manual_seed(seed)
    for number, accuracy in enumerate(accuracies):
        skipped = number > 0 and accuracy == accuracies[number - 1]
        if number and not skipped:
            state = {key: torch.randn(value.shape, generator=generator) * 0.05 for key, value in state.items()}
        store.commit(_record(experiment, number, accuracy, skipped), state)


def _record(experiment: Experiment, number: int, accuracy: float, skipped: bool) -> RoundRecord:
    sites = experiment.partition.sites if number else ()
    present = sites[:1] if skipped else sites
    epsilon = -1.0 if experiment.privacy.mode == "none" else 0.5 * number
    replies = tuple(
        SiteReport(site, 600, 10, epsilon, 1e-5, epsilon, 2.0, 90_000, f"fingerprint-{site}", 600.0) for site in present
    )
    return RoundRecord(
        round=number,
        skipped=skipped,
        replies=replies,
        left_out={site: "no reply within 300 s" for site in sites if site not in present},
        scores=Scores(4, accuracy, None, None, accuracy, 0.5),
        bytes_up=90_000 * len(replies),
        bytes_down=90_000 * len(sites),
        seconds=6.5,
        reply_seconds=2.0,
        config_sha256=experiment.sha256,
    )
