"""What causal tracing takes for granted of a model, proven on the loaded one.

Positions see what is before them and nothing after; rows of a batch do not see each other; what is
named attention mixes positions, what is named MLP does not, and both are added to what a block was
given.

Shapes: n_rows of a pass; N_POSITIONS of the made-up prompts.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.hooks import (
    Args,
    Kwargs,
    LeadingAxes,
    hooked,
    keep,
    module_at,
    removing,
)
from ktrace.lm.paths import ModulePaths
from ktrace.lm.placement import input_device

N_POSITIONS = 4
# Small ids only: they exist in every vocabulary. The second differs from the first in its last.
_PROMPT, _OTHER_END, _OTHER = (1, 2, 3, 4), (1, 2, 3, 5), (5, 4, 2, 3)

# Of a block's output: what is left of it by a sum of scaled parts that is no coincidence.
_FITS = 0.02
# Of the stream, in such a sum: less is rounding.
_LEAST_SHARE = 0.05

Changed = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def require_premises(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
    """Check all of the above in four forward passes.

    Raises:
        KtraceError: one does not hold, naming the model or the module path.
    """
    _require_rows_apart(model, paths, n_layers)
    _require_parts_of_a_sum(model, paths, n_layers)
    _require_kinds(model, paths, n_layers)


def _require_rows_apart(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
    """A row says the same whatever else is in its batch; and two that differ late, the same before.

    Else restoring a row's state would change others, and positions before the subject would have
    effects.
    """
    name = type(model).__name__
    last_block = paths.sites(n_layers - 1)["hidden"]
    states = []
    for prompts in ((_PROMPT, _OTHER_END), (_OTHER, _PROMPT)):
        kept: dict[str, torch.Tensor] = {}
        with hooked(model, {last_block: keep(kept, last_block)}):
            model(input_ids=_ids(model, paths, *prompts), use_cache=False)
        states.append(kept[last_block].float())
    rounding = _rounding(model, states[0])
    if not _size(states[0][0] - states[1][1]) <= rounding:
        raise KtraceError(
            f"{name}: what it makes of a prompt hangs on what else is in the batch, and runs that "
            "are compared share batches"
        )
    earlier = states[0][:, :-1]
    if not _size(earlier[0] - earlier[1]) <= rounding:
        raise KtraceError(
            f"{name} reads later tokens, too: ktrace traces models that read a "
            "prompt from left to right (an encoder does so with is_decoder=true in its config.json)"
        )


def _require_parts_of_a_sum(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
    """Attention and MLP are added to a block's input, and do not hold it.

    BLOOM's modules, for one, return the sum. Where a block's output is no sum of scaled parts (it
    is normalised after the sum, or a part of it has no module), nothing can be said.
    """
    kept: dict[str, torch.Tensor] = {}
    layers = range(n_layers)
    with _watched_inputs(model, paths, n_layers, kept):
        every = [path for layer in layers for path in paths.sites(layer).values()]
        with hooked(model, {path: keep(kept, path) for path in every}):
            model(input_ids=_ids(model, paths, _PROMPT, _OTHER), use_cache=False)
    for layer in layers:
        sites = paths.sites(layer)
        block = sites.pop("hidden")
        parts = [kept[_input_of(block)], *(kept[path] for path in sites.values())]
        columns = torch.stack([part.cpu().double().flatten() for part in parts], dim=1)
        whole = kept[block].cpu().double().flatten()
        shares = torch.linalg.lstsq(columns, whole[:, None], driver="gelsd").solution
        left = (columns @ shares).squeeze(1) - whole
        if sites and left.norm() <= _FITS * whole.norm() and abs(shares[0]) < _LEAST_SHARE:
            raise KtraceError(
                f"module path {block!r}: its output is what {' and '.join(sites.values())} give, "
                "without its input: so they hold the residual stream, and are not what is added "
                "to it"
            )


def _input_of(block: str) -> str:
    return f"{block} (input)"


@contextmanager
def _watched_inputs(
    model: nn.Module, paths: ModulePaths, n_layers: int, kept: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Keep what each block is called with."""
    with ExitStack() as stack:
        for layer in range(n_layers):
            block = paths.sites(layer)["hidden"]

            def watch(states: torch.Tensor, key: str = _input_of(block)) -> torch.Tensor:
                kept[key] = states.detach().clone()
                return states

            stack.enter_context(_changed_input(module_at(model, block), watch))
        yield


def _require_kinds(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
    """What attention gives at the last position hangs on others; what an MLP gives does not."""
    hidden = [paths.sites(layer)["hidden"] for layer in range(n_layers)]
    streams = dict(enumerate([paths.embedding, *hidden]))

    def stream_changed(layer: int, row: int) -> AbstractContextManager[None]:
        return hooked(model, {streams[layer]: _otherwise_before_the_last(row)})

    def mlp_changed(layer: int, row: int) -> AbstractContextManager[None]:
        path = paths.at(paths.mlp_input, layer) if paths.mlp_input else paths.sites(layer)["mlp"]
        block = module_at(model, path.rpartition(".")[0])
        return _changed_input(module_at(model, path), _otherwise_before_the_last(row), block)

    changes = _changes_at_the_last(model, paths, n_layers, "attn", stream_changed)
    # In some layer: a head may look at its own position alone.
    if changes and not any(difference > 0 for difference, _ in changes.values()):
        raise KtraceError(
            f"module path {next(iter(changes))!r}: what it gives at a position hangs on that "
            "position alone, so it is no attention"
        )
    changes = _changes_at_the_last(model, paths, n_layers, "mlp", mlp_changed)
    for path, (difference, rounding) in changes.items():
        if not difference <= rounding:
            raise KtraceError(
                f"module path {path!r}: what it gives at a position hangs on others, so it is no "
                "MLP"
            )


def _changes_at_the_last(
    model: PreTrainedModel,
    paths: ModulePaths,
    n_layers: int,
    site: str,
    changed: Callable[[int, int], AbstractContextManager[None]],
) -> dict[str, tuple[float, float]]:
    """How much a site's output moves at the last position when something before it differs.

    Args:
        model: the model.
        paths: where its sites are.
        n_layers: number of blocks.
        site: whose output is looked at.
        changed: takes a layer and a row, in which what the layer's site begins with is to differ
            before the last position.

    Returns:
        For each path of the site, how much its output moved, and how much may be rounding.
    """
    layers = paths.layers_with(site, n_layers)
    outputs = [paths.sites(layer)[site] for layer in layers]
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for row, layer in enumerate(layers, start=1):  # row 0 is the plain run
            stack.enter_context(changed(layer, row))
        last = {path: keep(found, path, lambda output: output[:, -1]) for path in outputs}
        stack.enter_context(hooked(model, last))
        rows = _ids(model, paths, _PROMPT).expand(1 + len(layers), -1)
        model(input_ids=rows, use_cache=False)
    changes = {}
    for row, path in enumerate(outputs, start=1):
        states = found[path].float()
        changes[path] = _size(states[row] - states[0]), _rounding(model, states[0])
    return changes


def _ids(model: PreTrainedModel, paths: ModulePaths, *prompts: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(prompts, device=input_device(model, paths.embedding))


def _size(states: torch.Tensor) -> float:
    return float(states.square().mean().sqrt())


def _rounding(model: PreTrainedModel, states: torch.Tensor) -> float:
    """How much of states may be rounding. Some models compute a part in float32 in any dtype."""
    epsilon = max(torch.finfo(dtype).eps for dtype in (model.dtype, torch.float32))
    return (64 if epsilon < 1e-4 else 8) * epsilon * _size(states)


def _otherwise_before_the_last(row: int) -> Changed:
    def change(states: torch.Tensor) -> torch.Tensor:
        changed = states.clone()
        changed[row, :-1] = states[row, :-1].flip(-1)
        return changed

    return change


@contextmanager
def _changed_input(
    module: nn.Module, change: Changed, within: nn.Module | None = None
) -> Iterator[None]:
    """Change the states that a module is called with, `(n_rows, positions, d)`.

    Args:
        module: the module.
        change: of the states.
        within: the block around it, which may flatten rows and positions.
    """
    leading = LeadingAxes()

    def enter(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        name = "" if args else next(iter(kwargs))
        states = args[0] if args else kwargs[name]
        assert isinstance(states, torch.Tensor)
        changed = change(leading.unflattened(states)).reshape(states.shape)
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {name: changed})

    with ExitStack() as stack:
        if within is not None:
            stack.enter_context(leading.watched(within))
        stack.enter_context(removing(module.register_forward_pre_hook(enter, with_kwargs=True)))
        yield
