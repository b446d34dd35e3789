"""The site's trainer: a typed task becomes a round of `fedmed.training.LocalTrainer`. Imports torch, so the daemon
makes it in the background.

    TrainTask + payload -> base model (kept loaded) -> checks without data -> LocalTrainer -> payload of the result
    EvaluateTask + payload -> the same, on held-out patients -> noisy sums of scores

| the task's                   | is compared with                                    | else                  |
| ---------------------------- | --------------------------------------------------- | --------------------- |
| base_model                   | the names in site.yaml, or the loaded model's hash  | TaskMismatch          |
| base_sha256                  | the hash of the site's own copy                     | TaskMismatch          |
| payload's keys, shapes       | the adapter that task.lora makes of that model      | TaskMismatch          |
| frozen_sha256                | the tensors that the site draws from init_seed      | TaskMismatch          |
| payload that lacks tensors   | only allowed with a frozen_sha256; personal tensors | TaskMismatch          |
|                              | are the site's own and never come in; what is asked |                       |
|                              | back as a change must come in                       |                       |
| payload's encoding           | dtype                                               | WireError             |

Patients who withdrew consent are left out of every draw; consent.jsonl that cannot be trusted is a LedgerError.
"""

from __future__ import annotations

from collections.abc import Callable

from fedmed.data.manifest import Manifest
from fedmed.errors import ModelError, PrivacyError
from fedmed.messages import EvaluateTask, TrainTask, sha256_hex
from fedmed.models.base import load_base
from fedmed.models.encoding import State, decode_state, encode_change, encode_parts, feeds_back, sends_changes
from fedmed.models.kinds import kind_of
from fedmed.privacy.patient_scores import NoisyScores, noisy_scores
from fedmed.privacy.random import InsecureSeededRandom, RandomSource, SecureRandom
from fedmed.training.adapted import AdaptedBase
from fedmed.training.local_round import LocalTrainer
from fedmed.training.steps import RoundPlan
from hospital_client.consent import Withdrawals
from hospital_client.held_out import Score
from hospital_client.kept import KeptStore
from hospital_client.personal import ASIDE, pack, read_tensors
from hospital_client.release import TaskMismatch, Trained
from hospital_client.settings import SiteFolder
from hospital_client.site import ShouldStop, TrainRound

LoadBase = Callable[[str, str, str], AdaptedBase]


def load_own(place: str, device: str, dtype: str) -> AdaptedBase:
    """A base model for this site alone. Raises ModelError when it cannot be loaded."""
    return AdaptedBase(load_base(place, device=device, dtype=dtype))


class SiteTrainer:
    """Keeps one base model loaded: the first of site.yaml, until a task asks for another.

    Args:
        folder: the site's settings.
        manifest: its data; held_out: other patients, who are not trained on.
        load: a base model's place, device and dtype -> the model; benchmarks let many sites share one.

    Raises:
        ModelError: the first base model cannot be loaded.
    """

    def __init__(
        self, folder: SiteFolder, manifest: Manifest, load: LoadBase = load_own, held_out: Manifest | None = None
    ) -> None:
        self._folder = folder
        self._load_base = load
        self._manifest = manifest
        self._random = SecureRandom()
        self._kept = KeptStore(folder.root / "kept")
        self._withdrawn = Withdrawals(folder.consent, manifest.pseudonyms(folder.key))
        self._held_out = held_out
        self._held_out_gone = Withdrawals(folder.consent, held_out.pseudonyms(folder.key) if held_out else ())
        self._load(next(iter(folder.settings.base_models)))

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        """Checks the task against model and adapter; the returned call trains. See hospital_client.site.Trainer."""
        self._withdrawn()  # consent that cannot be trusted refuses the task before it costs anything
        self._choose_base(task)
        plan = RoundPlan(
            lora=task.lora,
            privacy=task.privacy,
            optimizer=task.optimizer,
            trainable=task.trainable,
            precision=task.precision,
            physical_batch=self._folder.settings.physical_batch,
            gradient_checkpointing=self._folder.settings.gradient_checkpointing,
            lot_size=lot_size,
            run=task.run,
            frozen_sha256=task.frozen_sha256,
            personal=tuple(kind for kind in task.trainable if kind not in task.returned),
            parts=task.parts,
            selection=task.selection,
        )
        own = self._own_tensors(task.run, task.round, plan.personal)
        incoming = self._check_adapter(plan, task, payload, own)
        state, lost = incoming | own, self._lost(task)
        local, random = self._local, self._random_of(task.privacy.insecure_noise_seed, str(task.round))

        def train_round(should_stop: ShouldStop) -> Trained:
            counts = local.count(plan, state, task.init_seed, should_stop, random)
            trained = local.train(plan, state, task.init_seed, should_stop, random)
            returned = {key: value for key, value in trained.items() if kind_of(key) in task.returned}
            encoded: bytes | list[bytes | memoryview]
            if sends_changes(task.dtype):
                encoded, loses = encode_change(incoming, returned, lost, task.dtype)
            else:
                encoded, loses = encode_parts(returned, task.dtype), {}
            own_model = state | trained if plan.personal else {}
            left = own_model | {ASIDE + key: value for key, value in (lost | loses).items()}
            return Trained(encoded, counts, pack(task, self.base_name, left) if left else b"")

        return train_round

    def prepare_evaluation(self, task: EvaluateTask, payload: memoryview) -> Score:
        """Checks the task against model and adapter; the returned call scores. See hospital_client.held_out.Evaluator."""
        self._held_out_gone()  # as in `prepare`
        self._choose_base(task)
        own = self._own_tensors(task.run, task.round + 1, task.personal)
        try:
            incoming = decode_state(payload, task.dtype)
            lacking = self._local.lacking(task, incoming | own, task.init_seed, task.max_new_tokens)
        except ModelError as error:  # names tensors, layers and hashes: nothing of the site
            raise TaskMismatch(error.message, error.hint) from error
        _require_whole(incoming, lacking, task.personal, task.frozen_sha256)
        local, held_out, privacy = self._local, self._held_out, task.privacy
        random = self._random_of(privacy.insecure_noise_seed, f"evaluation {task.round}")

        def score(should_stop: ShouldStop) -> NoisyScores:
            assert held_out is not None  # noqa: S101  the site asks for nothing where there is none
            patients = local.score(
                task,
                incoming | own,
                task.init_seed,
                held_out,
                physical_batch=self._folder.settings.physical_batch,
                max_new_tokens=task.max_new_tokens,
                should_stop=should_stop,
                withdrawn=self._held_out_gone,
            )
            return noisy_scores(task.scores, patients, privacy.noise_multiplier, random)

        return score

    def _random_of(self, seed: int, what: str) -> RandomSource:
        """The secure source; only a task that the policy let through with a test seed gets a repeatable one."""
        if seed < 0:
            return self._random
        mixed = f"{seed} {what} {self._folder.settings.name}"
        return InsecureSeededRandom(int(sha256_hex(mixed.encode()), 16))

    def _choose_base(self, task: TrainTask | EvaluateTask) -> None:
        """Has the task's base model loaded, and its hash compared."""
        names = self._folder.settings.base_models
        if task.base_model in names and task.base_model != self.base_name:
            self._load(task.base_model)
        if self.base_sha256 != task.base_sha256:
            raise TaskMismatch(
                f"base model {task.base_model[:80]!r} with sha256 {task.base_sha256[:12]!r} is not here; the site has "
                f"{self.base_name!r} with {self.base_sha256[:12]} loaded and knows the names {', '.join(names)}",
                "give site and consortium the same checkpoint, and site.yaml its name",
            )

    def _own_tensors(self, run: str, before: int, personal: tuple[str, ...]) -> State:
        """The site's personal tensors as its last round of the run before that one left them; none before the first."""
        path = self._kept.before(run, before) if personal else None
        state = {} if path is None else read_tensors(path)
        return {key: value for key, value in state.items() if kind_of(key) in personal and not key.startswith(ASIDE)}

    def _lost(self, task: TrainTask) -> State:
        """What rounding lost of the site's changes in earlier rounds of the run."""
        path = self._kept.before(task.run, task.round) if feeds_back(task.dtype) else None
        kept = {} if path is None else read_tensors(path)
        return {key.removeprefix(ASIDE): value for key, value in kept.items() if key.startswith(ASIDE)}

    def _check_adapter(self, plan: RoundPlan, task: TrainTask, payload: memoryview, own: State) -> State:
        """The task's tensors, when they and the site's own make the adapter."""
        try:
            incoming = decode_state(payload, task.dtype)
            lacking = self._local.check(plan, incoming | own, task.init_seed)
        except (ModelError, PrivacyError) as error:  # names tensors, layers and hashes: nothing of the site
            raise TaskMismatch(error.message, error.hint) from error
        _require_whole(incoming, lacking, plan.personal, plan.frozen_sha256)
        if sends_changes(task.dtype) and (asked := [key for key in lacking if kind_of(key) in task.returned]):
            raise TaskMismatch(
                f"the task asks for the change of {asked[0]} ({len(asked)} such), which it does not send"
            )
        return incoming

    def _load(self, name: str) -> None:
        settings = self._folder.settings
        base = self._load_base(self._folder.base_place(name), settings.device, settings.base_dtype)
        self._local = LocalTrainer(base, self._manifest, self._random, withdrawn=self._withdrawn)
        self.base_name, self.base_sha256 = name, base.base.sha256


def _require_whole(incoming: State, lacking: list[str], personal: tuple[str, ...], frozen_sha256: str) -> None:
    """Raises TaskMismatch when what comes in, what the site has and what follows from the seed do not make one adapter."""
    if stray := [key for key in incoming if kind_of(key) in personal]:
        raise TaskMismatch(f"the task's adapter holds {stray[0]} ({len(stray)} such), which it leaves to the site")
    if lacking and not frozen_sha256:
        raise TaskMismatch(f"the task's adapter lacks {len(lacking)} tensors and has no frozen_sha256 for them")
