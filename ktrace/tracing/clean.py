"""The clean run: prediction, score, and the states of every site."""

from dataclasses import dataclass

import torch

from ktrace.lm.hooks import hooked, keep
from ktrace.lm.memory import within_memory
from ktrace.lm.model import LanguageModel


@dataclass(frozen=True)
class CleanRun:
    """One prompt without intervention.

    Attributes:
        predicted_ids: the most probable next token (argmax); where an answer of several tokens is
            given, what greedy decoding says up to the first token that differs from it.
        predicted_probability: of those tokens together.
        probability: of the answer, all its tokens together; NaN where none is given.
        activations: by site, `(n_layers, n_positions, d_model)`, in the model's dtype, on the CPU.
    """

    predicted_ids: tuple[int, ...]
    predicted_probability: float
    probability: float
    activations: dict[str, torch.Tensor]


@within_memory("in the clean run of one prompt")
@torch.inference_mode()
def clean_run(
    lm: LanguageModel, input_ids: tuple[int, ...], answer_ids: tuple[int, ...] = ()
) -> CleanRun:
    """Run one prompt. One at a time, so that its bits do not depend on its company.

    Args:
        lm: the model.
        input_ids: the prompt.
        answer_ids: tokens that are scored after it.
    """
    n_prompt = len(input_ids)
    kept: dict[tuple[str, int], torch.Tensor] = {}
    edits = {
        path: keep(kept, (site, layer), lambda output: output[0, :n_prompt].cpu())
        for layer in range(lm.n_layers)
        for site, path in lm.paths.sites(layer).items()
    }
    ids = torch.tensor([input_ids + answer_ids[:-1]], device=lm.device)
    with hooked(lm.model, edits):
        logits = lm.model(input_ids=ids, use_cache=False).logits[0, n_prompt - 1 :]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = wide.log_softmax(dim=-1).cpu()
    greedy = logits.argmax(dim=-1).tolist()
    same = [token == expected for token, expected in zip(greedy, answer_ids, strict=False)]
    n_said = 1 + (same.index(False) if False in same else len(greedy) - 1)
    forced = log_probabilities[range(len(answer_ids)), answer_ids] if answer_ids else None
    said = log_probabilities[range(n_said), greedy[:n_said]]
    return CleanRun(
        predicted_ids=tuple(greedy[:n_said]),
        predicted_probability=float(said.sum().exp()),
        probability=float("nan") if forced is None else float(forced.sum().exp()),
        activations={
            site: torch.stack([kept[site, layer] for layer in range(lm.n_layers)])
            for site in lm.paths.sites(0)
        },
    )
