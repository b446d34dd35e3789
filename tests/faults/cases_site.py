"""Faults at a hospital with its real model: no budget left, told to stop in the middle of a step, out of memory, code that
came with data."""

from __future__ import annotations

import json
import pickle
import resource
import time
from pathlib import Path

from fedmed.messages import Refusal, TrainResult
from fedmed.models.checkpoint import ASSETS, EMBEDDED
from tests.faults.case import Facts, case
from tests.faults.hospital import OWN, Hospital, error_lines, make_hospital
from tests.faults.lab import Lab, json_lines

GRACE_S = 20.0  # STOP_S of the daemon, and the exit of a process on a busy machine


@case(
    7,
    "a task that would exceed the budget, at a site whose images are gone",
    "refused ({code}); {reserved} reserved; audit: {audit}; a task within the budget then meets the missing images: {other}",
    code="budget_exhausted",
    reserved=0,
    audit="started refused",
    other="failed, and stays spent",
)
def over_budget(lab: Lab) -> Facts:
    from tests.faults.model import adapter_bytes, real_task

    site = make_hospital(lab, base_models=OWN).start(real=True)
    images = lab.root / "data" / "north" / "images"
    images.rename(images.with_name("gone"))
    over = site.ask(real_task(steps=200, noise_multiplier=0.5, sample_rate=0.5), adapter_bytes())
    reserved, audit = site.ledger()[0], " ".join(site.decisions())
    within = site.ask(real_task(2, sample_rate=0.5), adapter_bytes())
    assert isinstance(over, Refusal) and isinstance(within, Refusal)
    other = f"{within.code}, and stays spent" if site.ledger() == (1, 0) else within.message
    return {"code": over.code, "reserved": reserved, "audit": audit, "other": other}


@case(
    31,
    "SIGTERM in the middle of a step",
    "exit {exit} within its grace time: {in_time}; the task is refused, to come again: {retry}; {reserved} reserved, "
    "{committed} committed; audit: {audit}; epsilon after the next start is that before: {kept}",
    exit=0,
    in_time=True,
    retry=True,
    reserved=1,
    committed=0,
    audit="started accepted refused stopped",
    kept=True,
)
def told_to_stop(lab: Lab) -> Facts:
    from tests.faults.model import adapter_bytes, real_task

    site = make_hospital(lab, base_models=OWN, max_local_steps="100000").start(real=True)
    thread = site.ask_aside(real_task(steps=20_000, noise_multiplier=50.0), adapter_bytes())
    site.wait_until_training()
    before, begin = site.epsilon(), time.monotonic()
    code = site.stop()
    in_time = time.monotonic() - begin < GRACE_S
    thread.join(30)
    answer, (reserved, committed), audit = site.answers[0], site.ledger(), " ".join(site.decisions())
    kept = site.start().epsilon() == before > 0
    retry = isinstance(answer, Refusal) and answer.retry
    return {
        "exit": code,
        "in_time": in_time,
        "retry": retry,
        "reserved": reserved,
        "committed": committed,
        "audit": audit,
        "kept": kept,
    }


@case(
    22,
    "memory runs out in the middle of a step: on a CPU, by a cap on the daemon's address space that the kernel keeps",
    "the physical batch shrinks: {shrinks}; the round gives a {answer}; the ledger holds the noise, rate and steps that were "
    "asked for: {same}; {reserved} reserved, {committed} committed",
    shrinks=True,
    answer="TrainResult",
    same=True,
    reserved=2,
    committed=2,
)
def out_of_memory(lab: Lab) -> Facts:
    from tests.faults.model import adapter_bytes, real_task

    site = make_hospital(lab, base_models=OWN, epsilon_budget="50.0", patients=300)
    text = (site.root / "site.yaml").read_text()
    (site.root / "site.yaml").write_text(text.replace("physical_batch: 0", "physical_batch: 256"))
    site.start(real=True)
    few = site.ask(real_task(1, sample_rate=0.01, steps=1), adapter_bytes())  # loads what every round needs
    assert isinstance(few, TrainResult), few
    cap_memory(site, spare=160 << 20)  # two steps of 256 records take twice that
    many = real_task(2, sample_rate=0.5)
    answer = site.ask(many, adapter_bytes())
    assert site.daemon is not None
    line = [line for line in json_lines(site.root / "ledger.jsonl") if line["kind"] == "reserve"][-1]
    asked = {key: getattr(many.privacy, key) for key in ("noise_multiplier", "sample_rate", "steps")}
    reserved, committed = site.ledger()
    return {
        "shrinks": "out of memory: the physical batch is" in site.daemon.log.read_text(),
        "answer": type(answer).__name__,
        "same": {key: line[key] for key in asked} == asked,
        "reserved": reserved,
        "committed": committed,
    }


def cap_memory(site: Hospital, spare: int) -> None:
    """From outside: the daemon's process may map `spare` bytes more than it has now, and the kernel refuses the rest."""
    assert site.daemon is not None
    pid = site.daemon.process.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


class Bomb:
    """Unpickled, it touches a file: what a malicious checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def poisoned(lab: Lab, name: str) -> tuple[Path, Path]:
    """A copy of the embedded checkpoint, and the file that its code would make."""
    folder = lab.root / name
    folder.mkdir()
    for path in (ASSETS / EMBEDDED).iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder, lab.root / f"{name}.ran"


def refused_base(lab: Lab, name: str, folder: Path) -> tuple[int, str]:
    """Exit code and error of `fedmed-site start` on a site that was given this base model."""
    site = make_hospital(lab, name, base_models=OWN)
    text = (site.root / "site.yaml").read_text()
    start = text.index("base_models:")
    line = text[start : text.index("\n", start)]
    (site.root / "site.yaml").write_text(text.replace(line, f"base_models: {{fedmed-tiny: {folder}}}"))
    done = site.fails_to_start()
    return done.returncode, error_lines(done)


@case(
    28,
    "a base model that brings its own code, and one whose weights are a pickle",
    "start ends with status {code_exit} and {pickle_exit}, {code_ran} and {pickle_ran} of them ran; {says}",
    part="base model",
    code_exit=4,
    pickle_exit=4,
    code_ran=0,
    pickle_ran=0,
    says="both errors name the base model: True",
)
def malicious_base(lab: Lab) -> Facts:
    folder, code_ran = poisoned(lab, "code")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(code_ran)!r}, 'w')\nclass Evil: pass\n")
    code_exit, first = refused_base(lab, "one", folder)
    folder, pickle_ran = poisoned(lab, "pickle")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(pickle_ran)))
    pickle_exit, second = refused_base(lab, "two", folder)
    named = all(text.startswith("base model ") and "cannot be loaded" in text for text in (first, second))
    return {
        "code_exit": code_exit,
        "pickle_exit": pickle_exit,
        "code_ran": int(code_ran.exists()),
        "pickle_ran": int(pickle_ran.exists()),
        "says": f"both errors name the base model: {named}",
    }


@case(
    28,
    "an adapter that is a pickle",
    "refused ({code}): {says}; {ran} ran; {reserved} reserved",
    part="adapter",
    code="wire",
    says="not safetensors: True",
    ran=0,
    reserved=0,
)
def malicious_adapter(lab: Lab) -> Facts:
    from tests.faults.model import real_task

    ran = lab.root / "ran"
    site = make_hospital(lab, base_models=OWN).start(real=True)
    answer = site.ask(real_task(), pickle.dumps(Bomb(ran)))
    assert isinstance(answer, Refusal)
    says = f"not safetensors: {'is not safetensors' in answer.message}"
    return {"code": answer.code, "says": says, "ran": int(ran.exists()), "reserved": site.ledger()[0]}
