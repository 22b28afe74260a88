"""The clean run: prediction, score, and the states of every site."""

from dataclasses import dataclass

import torch

from ktrace.lm.hooks import Edit, hooked
from ktrace.lm.load import LanguageModel

SITES = ("hidden", "attn", "mlp")


@dataclass(frozen=True)
class CleanRun:
    """One prompt without intervention.

    Attributes:
        predicted_id: the most probable next token (argmax).
        predicted_probability: its probability.
        probability: of the answer.
        activations: by site, `(n_layers, n_positions, d_model)`, in the model's dtype, on the CPU.
    """

    predicted_id: int
    predicted_probability: float
    probability: float
    activations: dict[str, torch.Tensor]


@torch.inference_mode()
def clean_run(lm: LanguageModel, input_ids: tuple[int, ...], answer_id: int) -> CleanRun:
    """Run one prompt. One at a time, so that its bits do not depend on its company."""
    kept: dict[tuple[str, int], torch.Tensor] = {}

    def keep(site: str, layer: int) -> Edit:
        def watch(output: torch.Tensor) -> None:
            kept[site, layer] = output[0].clone().cpu()  # a block may add to it in place

        return watch

    edits = {
        path: keep(site, layer)
        for layer in range(lm.n_layers)
        for site, path in lm.paths.sites(layer).items()
    }
    with hooked(lm.model, edits):
        output = lm.model(input_ids=torch.tensor([input_ids], device=lm.device), use_cache=False)
    logits = output.logits[0, -1]
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    predicted = int(logits.argmax())
    return CleanRun(
        predicted_id=predicted,
        predicted_probability=float(probabilities[predicted]),
        probability=float(probabilities[answer_id]),
        activations={
            site: torch.stack([kept[site, layer] for layer in range(lm.n_layers)])
            for site in lm.paths.sites(0)
        },
    )
