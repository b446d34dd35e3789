"""Builds fedmed-tiny from public phantoms in LLaVA-Med's public stages, deterministically by seed.

    phantoms -> unimodal: vision tower on their attributes (throw-away heads), decoder on their report text
             -> align: projector only, on reports -> instruct: decoder and projector, on questions and reports
             -> measured on phantoms it has not seen -> saved with build.json

    $ fedmed base build runs/base --seed 0        # or: python -m fedmed.models.pretrain runs/base --seed 0

No real image is read. The same seed on the same machine with the same number of threads gives the same hash.
Paper: Li et al., LLaVA-Med, 2023 (stages); Liu et al., Visual Instruction Tuning, 2023.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedmed.errors import FedMedError
from fedmed.models import pretrain_data, pretrain_stages, tiny
from fedmed.models.checkpoint import checkpoint_sha256


@dataclass(frozen=True)
class Schedule:
    """How long each stage is. Steps of `batch_size` images or texts.

    Attributes:
        num_train, num_heldout: phantoms drawn for training, and for the metrics of build.json.
        vision_steps, text_steps, align_steps, instruct_steps: optimizer steps of each stage.
    """

    num_train: int = 8000
    num_heldout: int = 400
    vision_steps: int = 800
    text_steps: int = 120
    align_steps: int = 50
    instruct_steps: int = 350
    batch_size: int = 64


def build_base(
    out_folder: Path,
    seed: int,
    *,
    schedule: Schedule | None = None,
    threads: int = 1,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Pre-trains fedmed-tiny and saves it to `out_folder`.

    Args:
        out_folder: made if missing; its files are overwritten.
        seed: draws phantoms, first weights and batches.
        schedule: lengths of the stages; None takes the shipped ones.
        threads: torch threads. One by default: sums are then added in one order on every machine.
        report: called with a line of text per stage.

    Returns:
        what is written to build.json: command, seed, schedule, metrics, versions, seconds, sha256.
    """
    schedule = schedule or Schedule()
    started = time.monotonic()
    torch.set_num_threads(threads)
    train = pretrain_data.make_phantom_set(schedule.num_train, seed, "train")
    processor = tiny.build_processor(pretrain_data.tokenizer_texts(train))
    model = tiny.build_model(len(processor.tokenizer), seed)
    report(f"{schedule.num_train} phantoms, {sum(p.numel() for p in model.parameters()):,} parameters")
    stages = pretrain_stages.Stages(model, processor, train, seed, schedule.batch_size, report)
    stages.vision(schedule.vision_steps)
    stages.text(schedule.text_steps)
    stages.align(schedule.align_steps)
    stages.instruct(schedule.instruct_steps)
    tiny.save(model, processor, out_folder)
    heldout = pretrain_data.make_phantom_set(schedule.num_heldout, seed, "test")
    build = {
        "command": f"fedmed base build {out_folder.name} --seed {seed}",
        "seed": seed,
        "schedule": asdict(schedule),
        "threads": threads,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "metrics": pretrain_stages.measure(model, processor, heldout),
        "seconds": round(time.monotonic() - started, 1),
        "sha256": checkpoint_sha256(out_folder),
    }
    (out_folder / "build.json").write_text(json.dumps(build, indent=2) + "\n")
    return build


def main(arguments: list[str] | None = None) -> int:
    """`python -m fedmed.models.pretrain OUT --seed N`."""
    parser = argparse.ArgumentParser(prog="fedmed.models.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        build = build_base(options.out, options.seed, threads=options.threads)
    except FedMedError as error:
        print(f"error: {error.message}\nhint: {error.hint}")
        return error.exit_code
    print(json.dumps(build["metrics"], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
