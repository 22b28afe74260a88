"""Edges of the attention: which query sees which source, by the mask that a block is called with.

Shapes: n_rows of a batch, n_queries that a block is called on, n_keys that they may see.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ktrace.errors import KtraceError
from ktrace.lm.hooks import Args, Kwargs, module_at, removing

_MASK = "attention_mask"


@dataclass(frozen=True)
class Cut:
    """Edges that are cut in some rows.

    Attributes:
        rows: of the batch.
        query: whose edges: its place among the queries.
        sources: positions that it no longer sees.
    """

    rows: slice
    query: int
    sources: tuple[int, ...]


@contextmanager
def cutting(model: nn.Module, cuts: Mapping[str, Sequence[Cut]]) -> Iterator[None]:
    """Cut edges in the blocks at some paths, in forward passes over whole prompts.

    Raises:
        KtraceError: a block takes no mask that says which query sees which source, or a query is
            left without any.
    """
    with ExitStack() as stack:
        for path, of_block in cuts.items():

            def cut(
                block: nn.Module,
                args: Args,
                kwargs: Kwargs,
                path: str = path,
                of_block: Sequence[Cut] = of_block,
            ) -> tuple[Args, Kwargs]:
                return _called_with_cuts(path, block, args, kwargs, of_block)

            block = module_at(model, path)
            stack.enter_context(removing(block.register_forward_pre_hook(cut, with_kwargs=True)))
        yield


def _called_with_cuts(
    path: str, block: nn.Module, args: Args, kwargs: Kwargs, cuts: Sequence[Cut]
) -> tuple[Args, Kwargs]:
    signature = inspect.signature(block.forward)
    call = signature.bind(*args, **kwargs)
    # Some blocks name the mask, others hand it on with everything else.
    rest = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), "")
    named = _MASK in signature.parameters
    given = call.arguments if named else dict(call.arguments.get(rest, {}))
    if not named and _MASK not in given:
        raise KtraceError(f"module path {path!r}: its blocks take no mask, so no edge can be cut")
    states = next(iter(call.arguments.values()))
    assert isinstance(states, torch.Tensor)
    n_rows, n_positions = states.shape[:2]
    mask = given.get(_MASK)
    if mask is None:
        mask = causal_mask(states, 0, n_positions)
    given[_MASK] = cut_mask(path, mask, n_rows, cuts, hidden_value(path, mask))
    if not named:
        call.arguments[rest] = given
    return call.args, call.kwargs


def causal_mask(states: torch.Tensor, first: int, n_keys: int) -> torch.Tensor:
    """What a block that was called without a mask, because it is causal by itself, is called with.

    Added to scores, as every kernel takes it.

    Args:
        states: that the block is called on, for their dtype and device.
        first: position of the first query.
        n_keys: of all positions.

    Returns:
        `(1, 1, n_queries, n_keys)`.
    """
    queries = torch.arange(first, n_keys, device=states.device)[:, None]
    later = torch.arange(n_keys, device=states.device) > queries
    mask = torch.zeros(later.shape, dtype=states.dtype, device=states.device)
    return mask.masked_fill(later, torch.finfo(states.dtype).min)[None, None]


def hidden_value(path: str, mask: object) -> torch.Tensor:
    """What stands in a mask for a source that is not seen: as of the first query for the last key.

    Args:
        path: of the block, for messages.
        mask: `(rows, heads, n_positions, n_positions)` of whole prompts.

    Raises:
        KtraceError: it is no such mask.
    """
    square = isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[2] == mask.shape[3]
    if not square or not isinstance(mask, torch.Tensor):
        raise KtraceError(
            f"module path {path!r}: its block takes no mask of queries by sources, so no edge can "
            "be cut"
        )
    return mask[0, 0, 0, -1]


def cut_mask(
    path: str, mask: torch.Tensor, n_rows: int, cuts: Sequence[Cut], hidden: torch.Tensor
) -> torch.Tensor:
    """A mask without some edges.

    Args:
        path: of the block, for messages.
        mask: `(1 or n_rows, heads, n_queries, n_keys)`.
        n_rows: of the batch.
        cuts: what goes.
        hidden: a number, what stands in the mask for a source that is not seen.

    Returns:
        `(n_rows, heads, n_queries, n_keys)`.

    Raises:
        KtraceError: a query is left without any source.
    """
    cut = mask.expand(n_rows, *mask.shape[1:]).clone()
    for one in cuts:
        of_query = cut[one.rows, :, one.query]
        for source in one.sources:
            of_query[..., source] = hidden
        if bool((of_query == hidden).all(dim=-1).any()):
            raise KtraceError(
                f"module path {path!r}: without sources {', '.join(map(str, one.sources))} its "
                "query sees nothing: there is no run without these edges"
            )
    return cut
