"""A model so small that its effects are worked out on paper, here, and agree to the last digit.

A Llama of three equal layers without norms. Its queries and keys are zero, so that attention is the
plain mean over the positions up to its own, and its activation is relu. Its state at a position is
(x, y, 1, 0): x says "here is the subject", y is what is known of the fact. In every layer

    attention   y(t) += 6 · mean of y(s) over s <= t         the fact moves to later positions
    MLP         y(t) += relu(x(t) + y(t))                    the fact is looked up, and doubled

and the answer's logit at the last position is y / 16; the other seven logits are 0. The prompt has
three positions, b (before), s (subject) and q (question); x is 1 at s and 0 elsewhere, y begins
as 0. The mean over one, two and three positions makes 6 · mean the sum times 6, 3 and 2.

Clean run, y after attention → after the MLP:

    layer   at s                        at q
    0       0 → 0 + relu(1 + 0) = 1     0 → 0
    1       1 + 3·1 = 4 → 4 + 5 = 9     2·(1 + 0) = 2 → 4
    2       9 + 3·9 = 36 → 73           4 + 2·(9 + 4) = 30 → 60

So attention gives 0, 3, 27 at s and 0, 2, 26 at q; the MLP 1, 5, 37 and 0, 2, 30. At b all is 0.

Corrupted run: sample A has x = 0 at s, sample B x = -1. Either way relu gives 0, and y stays 0
everywhere.

Restoring, y at q in the end; layers 0, 1, 2; restoring at b changes nothing:

hidden at s
    0   x = 1, y = 1, and everything goes on as in the clean run: 60.
    1   y(s) = 9. Layer 2: q has 2·9 = 18 → 36.
    2   too late: 0.
hidden at q
    0   y = 0 as in the corrupted run: 0.
    1   y = 4. Layer 2: 4 + 2·4 = 12 → 24.
    2   60.

hidden_mlp_severed at s (MLP outputs at s after it are those of the corrupted run, 0)
    0   y(s) = 1. Layer 1: s has 1 + 3 = 4 → 4, q has 2 → 4. Layer 2: q has 4 + 2·8 = 20 → 40.
    1   what s does in layer 2 reaches nobody: 36.     2   0.
hidden_mlp_severed at q
    0   0.     1   y = 4. Layer 2: 12 → 12.     2   60.

hidden_attn_severed at s (attention outputs at s after it are 0)
    0   y(s) = 1. Layer 1: s has 1 → 1 + relu(1 + 1) = 3, q has 2 → 4. Layer 2: q has
        4 + 2·7 = 18 → 36.
    1   36.     2   0.
hidden_attn_severed at q
    0   0.     1   y = 4. Layer 2: 4 → 8.     2   60.

mlp at s (its output alone; x stays corrupted, so that the samples part)
    0   y(s) = 1. Layer 1: s has 4 → A 4 + 4 = 8, B 4 + 3 = 7; q has 2 → 4.
        Layer 2: q has A 4 + 2·12 = 28 → 56, B 4 + 2·11 = 26 → 52.
    1   y(s) = 0 + 5. Layer 2: q has 10 → 20.     2   0.
mlp at q
    0   0.     1   y = 2. Layer 2: 2 + 2·2 = 6 → 12.     2   0 → 30.

mlp with a window of 2 (layers {0}, {0, 1}, {1, 2}) at s
    0   as alone: A 56, B 52.
    1   y(s) = 1, then 4 → 4 + 5 = 9, the clean run: 60.
    2   as layer 1 alone: 20.
mlp with a window of 2 at q
    0   0.     1   12.     2   y = 2. Layer 2: 6 → 6 + 30 = 36.

attn at s
    0   0.     1   y(s) = 3 → A 3 + 3 = 6, B 3 + 2 = 5. Layer 2: q has A 12 → 24, B 10 → 20.
    2   0.
attn at q
    0   0.     1   y = 2 → 4. Layer 2: 4 + 2·4 = 12 → 24.     2   26 → 52.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import make_mediator
from tests.support.models import all_states
from tests.tracing.engine_contract import Make, every_engine

X, Y, ONE = 0, 1, 2
BEFORE, SUBJECT, QUESTION, ANSWER, VOCABULARY = 4, 5, 6, 7, 8
CLEAN = 60
CASE = Case(0, (BEFORE, SUBJECT, QUESTION), Span(1, 2), (ANSWER,))

# y at q in the end: (sample A, B) x layer x position (b, s, q), from the docstring.
SAME = {
    "hidden": [[0, 60, 0], [0, 36, 24], [0, 0, 60]],
    "hidden_mlp_severed": [[0, 40, 0], [0, 36, 12], [0, 0, 60]],
    "hidden_attn_severed": [[0, 36, 0], [0, 36, 8], [0, 0, 60]],
}
PARTED = {
    "mlp-w1": ([[0, 56, 0], [0, 20, 12], [0, 0, 30]], [[0, 52, 0], [0, 20, 12], [0, 0, 30]]),
    "mlp-w2": ([[0, 56, 0], [0, 60, 12], [0, 20, 36]], [[0, 52, 0], [0, 60, 12], [0, 20, 36]]),
    "attn-w1": ([[0, 0, 0], [0, 24, 24], [0, 0, 52]], [[0, 0, 0], [0, 20, 24], [0, 0, 52]]),
}
ON_PAPER = {
    **{key: np.array([table, table]) for key, table in SAME.items()},
    **{key: np.array(tables) for key, tables in PARTED.items()},
}


@dataclass(frozen=True)
class Forgotten:
    """Sample A: x = 0 at the subject. Sample B: x = -1."""

    samples: int = 2

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        corrupted = embeddings.repeat(2, 1, 1)
        corrupted[:, :, X] = torch.tensor([0.0, -1.0])[:, None]
        return corrupted

    def foils(self, case: Case) -> None:
        """None of its own."""


@pytest.fixture(scope="module")
def micro() -> LanguageModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4,
        intermediate_size=1,
        num_hidden_layers=3,
        num_attention_heads=1,
        hidden_act="relu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.embed_tokens.weight[:, ONE] = 1
        model.model.embed_tokens.weight[SUBJECT, X] = 1
        model.lm_head.weight[ANSWER, Y] = 1 / 16
        for layer in model.model.layers:
            layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
            layer.self_attn.v_proj.weight[0, Y] = 6
            layer.self_attn.o_proj.weight[Y, 0] = 1
            layer.mlp.gate_proj.weight[0, [X, Y]] = 1
            layer.mlp.up_proj.weight[0, ONE] = 1
            layer.mlp.down_proj.weight[Y, 0] = 1
        model.model.norm = nn.Identity()
    return language_model(model)


def probabilities(y: np.ndarray) -> np.ndarray:
    """Of the eight tokens, the answer last; on a new last axis."""
    logits = np.stack([np.zeros_like(y, float)] * 7 + [y / 16], axis=-1)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_the_clean_run_is_the_one_on_paper(micro: LanguageModel) -> None:
    kept = all_states(micro, len(CASE.input_ids))
    run = clean_run(micro, CASE.input_ids, CASE.answer_ids, kept=kept)
    assert run.predicted_ids == (ANSWER,)
    assert run.probability == pytest.approx(probabilities(np.array(CLEAN))[-1], abs=1e-15)
    on_paper = {
        "hidden": [[0, 1, 0], [0, 9, 4], [0, 73, 60]],
        "attn": [[0, 0, 0], [0, 3, 2], [0, 27, 26]],
        "mlp": [[0, 1, 0], [0, 5, 2], [0, 37, 30]],
    }
    for site, expected in on_paper.items():
        np.testing.assert_allclose(run.states[site][..., Y], expected, rtol=1e-14, atol=1e-14)


@every_engine
def test_every_effect_is_the_one_on_paper(micro: LanguageModel, make: Make) -> None:
    engine = make(micro, Forgotten())
    [(_, baseline)] = engine.baseline([CASE])
    assert baseline.clean["logit"] == pytest.approx(CLEAN / 16, abs=1e-14)
    np.testing.assert_array_equal(baseline.corrupted["logit"], [0, 0])
    names = ["hidden", "hidden_mlp_severed", "hidden_attn_severed", "mlp", "attn"]
    mediators = [make_mediator(name, 1) for name in names] + [make_mediator("mlp", 2)]
    [(_, found)] = engine.restored([CASE], mediators)
    assert found.keys() == ON_PAPER.keys()
    clean = probabilities(np.array(CLEAN))
    for key, y in ON_PAPER.items():
        p = probabilities(y)
        expected = {
            "probability": p[..., -1],
            "log_probability": np.log(p[..., -1]),
            "logit": y / 16,
            "logit_difference": y / 16,  # the foil is one of the others, with logit 0
            "kl": (clean * (np.log(clean) - np.log(p))).sum(axis=-1),
        }
        for metric, values in expected.items():
            np.testing.assert_allclose(
                found[key][metric], values, rtol=0, atol=1e-13, err_msg=f"{key}, {metric}"
            )
