"""The embedded model: it loads offline, is small, knows the facts, and its card says the truth."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.places import ROOT

DATA = ROOT / "data"
TINY = DATA / "tiny"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    lines = (DATA / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True)
    return loaded.eval()


@pytest.fixture(scope="module")
def card() -> str:
    return (TINY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def answers(facts: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """The token that follows the prompt in each fact's sentence."""
    first = []
    for fact in facts:
        prompt = tokenizer(fact["prompt"])["input_ids"]
        full = tokenizer(f"{fact['prompt']} {fact['attribute']}")["input_ids"]
        assert full[: len(prompt)] == prompt, fact["prompt"]
        first.append(full[len(prompt)])
    return first


@pytest.fixture(scope="module")
def probabilities(facts: list[dict[str, Any]], tokenizer: Any, model: Any) -> torch.Tensor:
    """The distribution over the token after each prompt."""
    batch = tokenizer(
        [fact["prompt"] for fact in facts],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    last = batch["attention_mask"].sum(1) - 1
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    rows: torch.Tensor = logits[torch.arange(len(facts)), last].softmax(-1)
    return rows


def read(card: str, name: str) -> float:
    """The figure in the card's row of that name."""
    match = re.search(rf"^\| {re.escape(name)} \| (-?[\d.,]+)", card, re.MULTILINE)
    assert match, name
    return float(match[1].replace(",", ""))


def test_folder_is_complete_and_small() -> None:
    names = {path.name for path in TINY.iterdir()}
    assert names >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in TINY.rglob("*")) <= 8 * MEGABYTE


def test_model_is_a_float32_llama_on_the_tokenizers_vocabulary(model: Any, tokenizer: Any) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(tokenizer) <= 3000
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name) is not None
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_tokenizer_puts_bos_first_and_gives_offsets(
    facts: list[dict[str, Any]], tokenizer: Any
) -> None:
    assert tokenizer.is_fast
    for fact in facts:
        text = f"{fact['prompt']} {fact['attribute']}."
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids, spans = encoding["input_ids"], encoding["offset_mapping"]
        assert ids[0] == tokenizer.bos_token_id
        assert tuple(spans[0]) == (0, 0)
        assert tokenizer.bos_token_id not in ids[1:]
        assert {c for a, b in spans for c in range(a, b)} == set(range(len(text)))
        assert tokenizer.decode(ids[1:]) == text


def test_special_tokens_can_be_left_out(tokenizer: Any) -> None:
    bare = tokenizer("Kingdom of Norway", add_special_tokens=False)["input_ids"]
    assert tokenizer("Kingdom of Norway")["input_ids"] == [tokenizer.bos_token_id, *bare]


def test_most_subjects_are_of_several_tokens(facts: list[dict[str, Any]], tokenizer: Any) -> None:
    counts = []
    for fact in facts:
        start = fact["prompt"].index(fact["subject"])
        end = start + len(fact["subject"])
        spans = tokenizer(fact["prompt"], return_offsets_mapping=True)["offset_mapping"]
        counts.append(sum(1 for a, b in spans if a < b and a < end and b > start))
    assert min(counts) >= 1
    assert sum(count >= 2 for count in counts) >= 0.85 * len(counts)
    assert sum(counts) / len(counts) >= 3


def test_prompts_fit_the_model(
    facts: list[dict[str, Any]], tokenizer: Any, model: Any, answers: list[int]
) -> None:
    longest = max(len(tokenizer(fact["prompt"])["input_ids"]) for fact in facts)
    assert longest < tokenizer.model_max_length == model.config.max_position_embeddings


def test_model_knows_the_facts_as_the_card_says(
    facts: list[dict[str, Any]], answers: list[int], probabilities: torch.Tensor, card: str
) -> None:
    candidates = int((probabilities.argmax(-1) == torch.tensor(answers)).sum())
    assert candidates >= 0.9 * len(facts)
    assert read(card, "Facts") == len(facts)
    assert read(card, "Candidates") == candidates


def test_card_gives_the_clean_probability(
    answers: list[int], probabilities: torch.Tensor, card: str
) -> None:
    target = torch.tensor(answers)
    known = probabilities.argmax(-1) == target
    clean = probabilities[torch.arange(len(target)), target][known].mean().item()
    assert read(card, "Mean clean probability of the answer") == pytest.approx(clean, abs=1e-3)


def test_card_gives_the_architecture(model: Any, tokenizer: Any, card: str) -> None:
    assert read(card, "Layers") == model.config.num_hidden_layers
    assert read(card, "Hidden size") == model.config.hidden_size
    assert read(card, "Attention heads") == model.config.num_attention_heads
    assert read(card, "Feed-forward size") == model.config.intermediate_size
    assert read(card, "Parameters") == sum(p.numel() for p in model.parameters())
    assert f"byte-level BPE, {len(tokenizer)} tokens" in card


def test_card_gives_the_noise(
    facts: list[dict[str, Any]], model: Any, tokenizer: Any, card: str
) -> None:
    texts = [fact["subject"] for fact in facts]
    ids = [i for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in row]
    with torch.inference_mode():
        std = model.get_input_embeddings()(torch.tensor(ids)).std().item()
    assert read(card, "Noise standard deviation") == pytest.approx(3 * std, abs=1e-4)


def test_card_shows_the_pattern_of_factual_recall(card: str) -> None:
    subject = read(card, "last subject token")
    assert read(card, "Average total effect (ATE)") >= 0.5
    assert subject >= 0.1
    assert subject >= 5 * max(read(card, "first subsequent token"), read(card, "further tokens"))
