"""What causal tracing takes for granted of a model, proven on the loaded one.

Positions see what is before them and nothing after; rows of a batch do not see each other; what is
named attention mixes positions, what is named MLP does not, and both are added to what a block was
given.

Shapes: n_rows of a pass, of a made-up prompt each.
"""

import torch
from transformers import PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.added import require_added, require_kinds, require_parts_of_a_sum
from ktrace.lm.hooks import hooked, keep
from ktrace.lm.made_up import (
    OTHER,
    OTHER_END,
    PROMPT,
    epsilon_of,
    ids_of,
    require_finite,
    rounding_in,
    share_of_rounding,
    size_of,
)
from ktrace.lm.paths import ModulePaths


@torch.inference_mode()
def require_premises(
    model: PreTrainedModel, paths: ModulePaths, n_layers: int, *, of_family: bool
) -> None:
    """Check all of the above in eight forward passes.

    Args:
        model: the model.
        paths: where its sites are.
        n_layers: number of blocks.
        of_family: whether the paths are those of a known architecture. What cannot be shown of them
            has been looked up in its source; of paths that a user gives it is refused.

    Raises:
        KtraceError: one does not hold, naming the model or the module path.
    """
    _require_rows_apart(model, paths, n_layers)
    require_parts_of_a_sum(model, paths, n_layers)
    require_added(model, paths, n_layers, of_family=of_family)
    require_kinds(model, paths, n_layers)


def _require_rows_apart(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
    """A row says the same whatever else is in its batch; and two that differ late, the same before.

    Else restoring a row's state would change others, and positions before the subject would have
    effects.
    """
    name = type(model).__name__
    last_block = paths.sites(n_layers - 1)["hidden"]

    def said(*prompts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        with hooked(model, {last_block: keep(kept, last_block)}):
            logits = model(input_ids=ids_of(model, paths, *prompts), use_cache=False).logits
        return kept[last_block].float(), logits[:, -1].float()

    company = _company(model)
    # In the same row of the same shape, so that only the company differs.
    ends, first = said(PROMPT, OTHER_END), said(PROMPT, OTHER)
    second, third = said(OTHER, PROMPT), said(OTHER_END, PROMPT)
    require_finite(model, ends[0])
    for row, one, other in ((0, ends, first), (1, second, third)):
        for here, there in zip(one, other, strict=True):
            if not size_of(here[row] - there[row]) <= company * size_of(here[row]):
                raise KtraceError(
                    f"{name}: what it makes of a prompt hangs on what else is in the batch, and "
                    "runs that are compared share batches"
                )
    earlier = ends[0][:, :-1]
    if not size_of(earlier[0] - earlier[1]) <= rounding_in(model, earlier):
        raise KtraceError(
            f"{name} reads later tokens, too: ktrace traces models that read a "
            "prompt from left to right (an encoder does so with is_decoder=true in its config.json)"
        )


def _company(model: PreTrainedModel) -> float:
    """What a row's company may change, relative: experts share products with other rows' tokens."""
    if any("expert" in name for name, _ in model.named_modules()):
        return share_of_rounding(model)
    return epsilon_of(model)
