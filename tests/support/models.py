"""Small random models whose effects are large enough to tell right from wrong."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ktrace.config import ModelConfig
from ktrace.facts import Span
from ktrace.lm.load import load_language_model
from ktrace.lm.model import LanguageModel
from ktrace.lm.source import find_model
from ktrace.terms import SITES
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.states import Kept
from tests.support.configs import configured

VOCABULARY = 96


def sharpened(model: Any, seed: int = 0, scale: float = 2.0) -> Any:
    """Draw larger weights, so that effects are large enough to tell a right cell from a wrong one.

    Freshly initialised models predict every token alike: any bug would pass on them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            fan_in = weight.shape[-1]
            drawn = torch.randn(weight.shape, generator=generator)
            # Embeddings often serve as the head too: not so large that rounding of logits shows.
            gain = scale if "embed" not in name and "wte" not in name else 0.5 * fan_in**0.5
            weight.copy_(drawn * gain / fan_in**0.5)
    return model


def micro_llama(
    n_layers: int = 4, seed: int = 0, vocabulary: int = VOCABULARY, n_heads: int = 4
) -> Any:
    """A sharpened random Llama."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=max(1, n_heads // 2),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(seed)
    return sharpened(AutoModelForCausalLM.from_config(config), seed)


def loaded(folder: Path, **keys: Any) -> LanguageModel:
    """A model from a folder, with some keys `model.*`."""
    config = configured(ModelConfig, name="loaded", path=str(folder), modules=None, **keys)
    return load_language_model(find_model(str(folder)), config)


def as_moved(lm: LanguageModel) -> LanguageModel:
    """A model whose weights lie as they do after a move to a device.

    In a file they lie as the file has them, where vectors of them may begin elsewhere; then a CPU
    adds in another order.
    """
    for weight in lm.model.parameters():
        if weight.device.type != "meta":
            weight.data = weight.data.clone()
    return lm


def known_case(
    lm: LanguageModel, seed: int, n_positions: int = 7, start: int = 1, stop: int = 4
) -> Case:
    """A prompt of random token ids, with the model's own prediction as the answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (n_positions,), generator=generator).tolist()
    answer = clean_run(lm, tuple(ids)).predicted_ids
    return Case(seed, tuple(ids), Span(start, stop), answer)


def all_states(lm: LanguageModel, n_positions: int) -> Kept:
    """Every state of a prompt of so many tokens."""
    return Kept(SITES, range(lm.n_layers), range(n_positions))
