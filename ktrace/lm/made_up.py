"""Made-up prompts of few tokens, and how much of what a model makes of them may be rounding."""

import torch
from transformers import PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.paths import ModulePaths
from ktrace.lm.placement import input_device

LEAST_TOKENS = 6  # that a model must know, and read: proofs take so many
# The second differs from the first in its last token.
PROMPT, OTHER_END, OTHER = (1, 2, 3, 4), (1, 2, 3, 5), (5, 4, 2, 3)


def ids_of(model: PreTrainedModel, paths: ModulePaths, *prompts: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(prompts, device=input_device(model, paths.embedding))


def size_of(states: torch.Tensor) -> float:
    return float(states.square().mean().sqrt())


def rounding_in(model: PreTrainedModel, states: torch.Tensor) -> float:
    """How much of states may be rounding, where products have other shapes or partners."""
    return share_of_rounding(model) * size_of(states)


def share_of_rounding(model: PreTrainedModel) -> float:
    epsilon = epsilon_of(model)
    return (64 if epsilon < 1e-4 else 8) * epsilon


def epsilon_of(model: PreTrainedModel) -> float:
    """Of the dtype. Some models compute a part in float32 in any."""
    return max(torch.finfo(dtype).eps for dtype in (model.dtype, torch.float32))


def require_finite(model: PreTrainedModel, states: torch.Tensor) -> None:
    """Refuse states that are no numbers: nothing can be said of them.

    Raises:
        KtraceError: naming the dtype.
    """
    if not states.isfinite().all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise KtraceError(
            f"{type(model).__name__} gives no numbers (NaN or infinity) for a made-up prompt with "
            f"model.dtype={dtype}: take another"
        )
