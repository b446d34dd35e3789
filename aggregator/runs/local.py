"""A whole federation on this machine: what `fedmed run` starts when nobody else has.

    fedmed-site init (one folder a hospital) -> site daemons -> SuperLink -> connectors -> control address

Each hospital is its own trusted daemon with its own folder, manifest, policy, ledger and audit; the processes talk over
loopback gRPC and unix sockets exactly as they would between machines. The consortium's code starts the hospital's
programs by command line only: it imports none of them.

| started again over                    | what happens                                                                     |
| ------------------------------------- | -------------------------------------------------------------------------------- |
| sites that were set up                | they are taken as they are: their ledgers and stored results decide what is done |
| a site whose `init` was cut off       | nothing was ever reserved there: its half-made files are removed, and made anew  |
| a SuperLink that died (`revive`)      | a new one on the same ports; daemons and connectors stay, and keep training what |
|                                       | they were given                                                                  |
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.runs.folder import HELD_OUT
from aggregator.runs.processes import Managed, ProcessGroup
from aggregator.superlink.launcher import SUPERLINK, Superlink, flower_env, start_superlink, without_credentials
from fedmed.config import Experiment
from fedmed.errors import FederationError
from fedmed.held_out_plan import plan_evaluation, release_cost
from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256

READY_TIMEOUT_S = 180.0
EMBEDDED = "fedmed-tiny"
# Records in one forward pass of the embedded model. 256 is an eighth faster, and takes 2 to 4 GB a site with VQA-RAD.
PHYSICAL_BATCH = 64
# One hospital's smallest cohort here; a real policy.yaml asks for more (its default says how many).
MIN_PATIENTS = 2


@dataclass(frozen=True, slots=True)
class LocalFederation:
    """What was started here; `home` is of Flower's programs."""

    superlink: Superlink
    daemons: Mapping[str, Managed]
    processes: ProcessGroup
    home: Path

    @property
    def control(self) -> str:
        """Where runs are submitted."""
        return self.superlink.control

    def revive(self) -> None:
        """Starts the SuperLink again when it is gone. Its sites' connectors find it, and register anew.

        Raises:
            FederationError: it does not start.
        """
        if not self.processes.runs(SUPERLINK):
            start_superlink(self.processes, self.home, at=self.superlink)

    def wait_until_ready(self) -> None:
        """Returns when every hospital's daemon has its model loaded.

        Raises:
            FederationError: a process died or did not get ready; its log's last lines are in the message.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = dict(self.daemons)
        while waiting:
            self.processes.check()
            for item in waiting.values():
                item.require_running()
            waiting = {site: item for site, item in waiting.items() if " ready " not in item.output()}
            if waiting and time.monotonic() > deadline:
                raise FederationError(
                    f"the site daemons of {', '.join(waiting)} are not ready after {READY_TIMEOUT_S:.0f} s",
                    f"see {next(iter(waiting.values())).log}",
                )
            time.sleep(0.2)


def start_local_federation(
    experiment: Experiment, folder: Path, sockets: Path, processes: ProcessGroup
) -> LocalFederation:
    """Start daemons, SuperLink and connectors for the sites under `folder/sites`; does not wait for the daemons.

    Args:
        sockets: a short folder for the unix sockets, whose paths are limited to about 100 bytes.

    Raises:
        FederationError: a site cannot be set up, as `fedmed-site init` says, or the SuperLink does not start.
        ModelError: the base model's checkpoint cannot be read.
    """
    names = experiment.partition.sites
    roots = {site: folder / "sites" / site for site in names}
    _init_sites({site: _init_command(experiment, roots[site], site, sockets) for site in names if _is_new(roots[site])})
    daemons = {
        site: processes.start(
            f"site-{site}",
            [*_site_command("start"), str(roots[site])],
            _share_of_cores(experiment),
            essential=False,
        )
        for site in names
    }
    home = folder / "flower"
    superlink = start_superlink(processes, home)
    for site in names:
        command = [*_site_command("connect"), str(roots[site]), "--superlink", superlink.fleet, "--insecure"]
        processes.start(f"connect-{site}", command, flower_env(home / site), essential=False)
    return LocalFederation(superlink, daemons, processes, home)


def _is_new(root: Path) -> bool:
    """Whether the site has to be set up: it was not, or that was cut off before its ledger could hold a line."""
    if (root / "consent.jsonl").exists():  # what `fedmed-site init` makes last
        return False
    ledger = root / "ledger.jsonl"
    if ledger.exists() and ledger.stat().st_size:
        return False  # a ledger with lines is never touched: the daemon says what is wrong
    for path in [*root.glob("*.yaml"), *root.glob("site.key"), *root.glob("*.jsonl")]:
        path.unlink()
    shutil.rmtree(root.with_name(f"{root.name}.witness"), ignore_errors=True)
    return True


def _share_of_cores(experiment: Experiment) -> dict[str, str]:
    """The environment of one daemon: hospitals on one machine must not each spin a thread on every core."""
    threads = max(1, (os.cpu_count() or 1) // len(experiment.partition.sites))
    return {"OMP_NUM_THREADS": str(threads), **without_credentials()}


def _init_sites(commands: Mapping[str, Sequence[str]]) -> None:
    """Run every hospital's `fedmed-site init`, side by side."""
    started = {
        site: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for site, command in commands.items()
    }
    said = {site: process.communicate()[0].strip() for site, process in started.items()}
    for site, process in started.items():
        if process.returncode:
            raise FederationError(f"site {site} cannot be set up: {said[site]}")


def _init_command(experiment: Experiment, folder: Path, site: str, sockets: Path) -> Sequence[str]:
    """`fedmed-site init` with a policy that allows this experiment and no more privacy loss than it plans."""
    base = experiment.base_model.name
    checkpoint = checkpoint_path(base)
    budget = _budget(experiment)
    settings = [
        f"site.device={experiment.device}",
        f"site.physical_batch={PHYSICAL_BATCH if base == EMBEDDED else 32}",
        f"policy.methods=[{experiment.federation.method}]",
        f"policy.max_rank={experiment.lora.rank}",
        f"policy.epsilon_budget={budget}",
        f"policy.delta={experiment.privacy.delta}",
        f"policy.max_sample_rate={experiment.privacy.sample_rate}",
        f"policy.max_local_steps={experiment.most_local_steps}",
        f"policy.max_rounds={experiment.rounds}",
        f"policy.min_patients={MIN_PATIENTS}",
        f"policy.allow_no_privacy={str(experiment.privacy.mode == 'none').lower()}",
        f"policy.allow_insecure_noise={str(experiment.privacy.insecure_noise_seed >= 0).lower()}",
        *_metrics_settings(experiment),
        *([f"site.held_out={folder / HELD_OUT}"] if (folder / HELD_OUT).is_dir() else []),
        # Who shares the patients out knows how many each site got: there is nothing to hide from oneself.
        "policy.patient_count=rounded",
    ]
    if checkpoint is not None:
        settings += [
            f"site.base_models={{'{base}': '{base if base == EMBEDDED else checkpoint.resolve()}'}}",
            f"policy.base_models=[{checkpoint_sha256(checkpoint)}]",
        ]
    command = [*_site_command("init"), str(folder), "--name", site]
    command += ["--data", str(folder / "data"), "--socket", str(_socket(sockets, site))]
    for item in settings:
        command += ["--set", item]
    return command


def _budget(experiment: Experiment) -> float:
    """What the run costs whoever of a site's patients loses most: those who are trained on, or the held-out ones."""
    if experiment.privacy.mode != "dp":
        return 1e9
    asked = plan_evaluation(experiment) if experiment.evaluation.federated else None
    return max(experiment.privacy.epsilon, (release_cost(asked) if asked else None) or 0.0)


def _metrics_settings(experiment: Experiment) -> list[str]:
    """Allows the evaluation counts and the held-out scores that the experiment asks for, and no less noisy ones."""
    noises = [experiment.privacy.metrics_noise_multiplier]
    if experiment.evaluation.federated:
        noises.append(plan_evaluation(experiment).noise_multiplier)
    allowed = ["policy.allow_metrics=true"] if experiment.evaluation.federated or any(noises) else []
    return allowed + ([f"policy.min_metrics_noise_multiplier={min(filter(None, noises))}"] if any(noises) else [])


def _site_command(command: str) -> Sequence[str]:
    return [sys.executable, "-m", "hospital_client.cli", command]


def _socket(sockets: Path, site: str) -> Path:
    return sockets / f"{site}.sock"
