"""Attention and MLP are what they are named, and what is added to the residual stream."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.hooks import (
    Args,
    Edit,
    Kwargs,
    LeadingAxes,
    called_with,
    hooked,
    keep,
    module_at,
    removing,
)
from ktrace.lm.made_up import OTHER, PROMPT, ids_of, rounding_in, size_of
from ktrace.lm.paths import ModulePaths

# Of a block's output: what is left of it by a sum of scaled parts that is no coincidence.
_FITS = 0.02
# Of the stream, in such a sum: less is rounding.
_LEAST_SHARE = 0.05

Changed = Callable[[torch.Tensor], torch.Tensor]


class Moved(NamedTuple):
    """What comes of a change of a site's output.

    Attributes:
        layer: of the site.
        path: likewise.
        moved: by how much the block's output differs, `(n_positions, d_model)`.
        by: the change, likewise.
    """

    layer: int
    path: str
    moved: torch.Tensor
    by: torch.Tensor


def require_parts_of_a_sum(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
    """Attention and MLP are added to a block's input, and do not hold it.

    BLOOM's modules, for one, return the sum. Where a block's output is no sum of scaled parts (it
    is normalised after the sum, or a part of it has no module), nothing can be said.
    """
    kept: dict[str, torch.Tensor] = {}
    layers = range(n_layers)
    with _watched_inputs(model, paths, n_layers, kept):
        every = [path for layer in layers for path in paths.sites(layer).values()]
        with hooked(model, {path: keep(kept, path) for path in every}):
            model(input_ids=ids_of(model, paths, PROMPT, OTHER), use_cache=False)
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


def require_added(
    model: PreTrainedModel, paths: ModulePaths, n_layers: int, *, of_family: bool
) -> None:
    """What attention and MLP give, and nothing else of it, comes out of the block, times a number.

    Args:
        model: the model.
        paths: where its sites are.
        n_layers: number of blocks.
        of_family: see `require_premises`.

    Raises:
        KtraceError: nothing of it comes out; or something else does, and a user gave the path.
    """
    for layer, path, moved, by in _moved_outputs(model, paths, n_layers):
        if not size_of(moved) > 0:
            raise KtraceError(
                f"module path {path!r}: what it gives does not come out of its block: it is not "
                "what is added to the residual stream"
            )
        share = (moved * by).sum() / by.square().sum()
        if not of_family and not size_of(moved - share * by) <= _FITS * size_of(moved):
            raise KtraceError(
                f"module path {path!r}: it cannot be shown to be what is added to the residual "
                f"stream: {_why_not(paths, layer)}. With the block alone (model.modules without "
                "attn and mlp), hidden states can be traced"
            )


def _moved_outputs(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> Iterator[Moved]:
    """Change what each site gives, while the layer's other site stays as it was.

    Each site has a row of one pass; row 0 is the plain run.
    """
    layers = range(n_layers)
    sites = [(layer, site) for layer in layers for site in paths.sites(layer) if site != "hidden"]
    rows = {place: row for row, place in enumerate(sites, start=1)}
    changes: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def change(path: str, row: int, other: int | None) -> Edit:
        def edit(output: torch.Tensor) -> torch.Tensor:
            changed = output.clone()
            # Much: a block may multiply it with little. And never nothing: an MLP may give zeros.
            changes[path] = 16 * (output[0].flip(-1) + output[0].abs().mean().clamp(min=1))
            changed[row] = output[0] + changes[path]
            if other is not None:
                changed[other] = output[0]
            return changed

        return edit

    edits: dict[str, Edit] = {}
    for layer, site in sites:
        [other] = {"attn", "mlp"} - {site}
        path = paths.sites(layer)[site]
        edits[path] = change(path, rows[layer, site], rows.get((layer, other)))
        block = paths.sites(layer)["hidden"]
        edits[block] = keep(outputs, block)
    with hooked(model, edits):
        ids = ids_of(model, paths, PROMPT).expand(1 + len(sites), -1)
        model(input_ids=ids, use_cache=False)
    for layer, site in sites:
        path, output = paths.sites(layer)[site], outputs[paths.sites(layer)["hidden"]].float()
        by = changes[path].float().to(output.device)
        yield Moved(layer, path, output[rows[layer, site]] - output[0], by)


def _why_not(paths: ModulePaths, layer: int) -> str:
    missing = {"attn", "mlp"} - paths.sites(layer).keys()
    if missing:
        return f"give model.modules.{missing.pop()}, too"
    return "the block's output is no sum of its input and what attention and MLP give"


def require_kinds(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> None:
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
    if changes and not any(change > rounding for change, rounding in changes.values()):
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
        rows = ids_of(model, paths, PROMPT).expand(1 + len(layers), -1)
        model(input_ids=rows, use_cache=False)
    changes = {}
    for row, path in enumerate(outputs, start=1):
        states = found[path].float()
        changes[path] = size_of(states[row] - states[0]), rounding_in(model, states[0])
    return changes


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
        return called_with(args, kwargs, leading, change)

    with ExitStack() as stack:
        if within is not None:
            stack.enter_context(leading.watched(within))
        stack.enter_context(removing(module.register_forward_pre_hook(enter, with_kwargs=True)))
        yield
