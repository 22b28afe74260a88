"""What is taken for granted of an attention's heads and edges, proven on the loaded model.

Asked only of a model whose heads are to be restored, or whose edges are to be cut: it takes some
forward passes for every few layers.

Shapes: n_rows of a pass; a made-up prompt's last position is the query.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch

from ktrace.errors import KtraceError
from ktrace.lm.edges import Cut, cutting
from ktrace.lm.hooks import Edit, hooked, keep
from ktrace.lm.made_up import OTHER, PROMPT, ids_of, rounding_in, share_of_rounding, size_of
from ktrace.lm.model import LanguageModel
from ktrace.terms import HEAD

_TOGETHER = 8  # layers that share a pass: of a large vocabulary, rows' logits are large
_QUERY = len(PROMPT) - 1
_SOURCE = 1


@torch.inference_mode()
def require_heads(lm: LanguageModel) -> None:
    """Heads lie side by side in what the output projection is called with.

    Put all of them, and attention gives what it gives there: nothing else comes in. And each mixes
    what it sees by weights of its own: with two sources in sight its output is a sum of what it is
    with either alone, by two numbers. A slice over parts of two heads is no such sum.

    Raises:
        KtraceError: the model has no such path, or the path or the number of heads is refuted.
    """
    lm.paths.require(HEAD)
    for layers in _batches(lm.paths.layers_with(HEAD, lm.n_layers)):
        _require_projection(lm, layers)
        if lm.model.dtype in (torch.float32, torch.float64) and _takes_masks(lm, layers):
            _require_slices(lm, layers)


def _batches(layers: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(layers)
    while some := list(islice(rest, _TOGETHER)):
        yield some


def _require_projection(lm: LanguageModel, layers: Sequence[int]) -> None:
    """A row for each layer is put what another prompt's row has at the query."""
    points = {layer: str(lm.paths.point(HEAD, layer)) for layer in layers}
    kept: dict[str, torch.Tensor] = {}

    def put(row: int) -> Edit:
        def edit(states: torch.Tensor) -> torch.Tensor:
            changed = states.clone()
            changed[row, _QUERY] = states[1, _QUERY]
            return changed

        return edit

    edits = {point: put(2 + number) for number, point in enumerate(points.values())}
    edits |= {path: keep(kept, path) for path in _attention_paths(lm, layers).values()}
    _run(lm, [PROMPT, OTHER, *[PROMPT] * len(layers)], edits)
    for number, (layer, path) in enumerate(_attention_paths(lm, layers).items()):
        found, expected, without = kept[path][[2 + number, 1, 0], _QUERY].double()
        left = size_of(found - expected)
        if not left <= rounding_in(lm.model, expected) or not size_of(expected - without) > left:
            raise KtraceError(
                f"module path {points[layer]!r}: what it is called with is not all that "
                f"{path!r} gives: it is not the output projection of that attention"
            )
    _require_count(lm, points)


def _require_count(lm: LanguageModel, points: Mapping[int, str]) -> None:
    kept: dict[str, torch.Tensor] = {}
    _run(lm, [PROMPT], {point: keep(kept, point) for point in points.values()})
    for layer, point in points.items():
        width, n_heads = kept[point].shape[-1], lm.n_heads(layer)
        if width % n_heads:
            raise KtraceError(
                f"module path {point!r}: it is called with {width} numbers, which are no "
                f"{n_heads} heads (num_attention_heads of the config)"
            )


def _require_slices(lm: LanguageModel, layers: Sequence[int]) -> None:
    """Three rows a layer: its second position sees both sources, the second alone, the first."""
    kept: dict[str, torch.Tensor] = {}
    points = {layer: str(lm.paths.point(HEAD, layer)) for layer in layers}
    cuts = {
        lm.paths.sites(layer)["hidden"]: [
            Cut(slice(row, row + 1), 1, (source,))
            for source, row in enumerate((1 + 2 * number, 2 + 2 * number))
        ]
        for number, layer in enumerate(layers)
    }
    edits = {point: keep(kept, point) for point in points.values()}
    with cutting(lm.model, cuts):
        _run(lm, [PROMPT] * (1 + 2 * len(layers)), edits)
    for number, (layer, point) in enumerate(points.items()):
        both, second, first = kept[point][[0, 1 + 2 * number, 2 + 2 * number], 1].double().cpu()
        n_heads = lm.n_heads(layer)
        slices = zip(*(states.view(n_heads, -1) for states in (both, first, second)), strict=True)
        for head, (mixed, *alone) in enumerate(slices):
            columns = torch.stack(alone, dim=1)
            weights = torch.linalg.lstsq(columns, mixed[:, None], driver="gelsd").solution
            left = size_of((columns @ weights)[:, 0] - mixed)
            if left > 16 * share_of_rounding(lm.model) * size_of(torch.stack(alone)):
                raise KtraceError(
                    f"module path {point!r}: numbers {head * len(mixed)} to "
                    f"{(head + 1) * len(mixed) - 1} of what it is called with do not belong to "
                    f"one head: it has no {n_heads} heads side by side"
                )


def _takes_masks(lm: LanguageModel, layers: Sequence[int]) -> bool:
    try:
        _require_edges(lm, layers)
    except KtraceError:
        return False
    return True


@torch.inference_mode()
def require_edges(lm: LanguageModel) -> None:
    """What a mask hides is not seen, and nothing else changes.

    Raises:
        KtraceError: the model has no attention, or its blocks take no such mask.
    """
    lm.paths.require("attn")
    layers = lm.paths.layers_with("attn", lm.n_layers)
    seen = [_require_edges(lm, some) for some in _batches(layers)]
    if not any(seen):
        raise KtraceError(
            f"{type(lm.model).__name__}: cutting edges of its attention changes nothing"
        )


def _require_edges(lm: LanguageModel, layers: Sequence[int]) -> bool:
    """Four rows a layer, one of them shared: with the edge and without, with another source or not.

    Returns:
        Whether the query is another without the edge, in any of the layers.
    """
    paths = _attention_paths(lm, layers)
    kept: dict[str, torch.Tensor] = {}
    edits: dict[str, Edit] = {}
    cuts: dict[str, list[Cut]] = {}
    for number, layer in enumerate(layers):
        first = 1 + 2 * number  # without the edge; and the next with another source as well
        cuts[lm.paths.sites(layer)["hidden"]] = [
            Cut(slice(first, first + 2), _QUERY, (_SOURCE,)),
        ]
        before = lm.paths.sites(layer - 1)["hidden"] if layer else lm.paths.embedding
        edits[before] = _other_source(first + 1)
    edits |= {path: keep(kept, path) for path in paths.values()}
    try:
        with cutting(lm.model, cuts):
            _run(lm, [PROMPT] * (1 + 2 * len(layers)), edits)
    except (RuntimeError, TypeError, ValueError) as error:
        raise KtraceError(
            f"{type(lm.model).__name__}: its blocks take no mask of queries by sources, so no edge "
            f"can be cut ({error})"
        ) from error
    changed = False
    for number, (layer, path) in enumerate(paths.items()):
        plain, cut, unseen = kept[path][[0, 1 + 2 * number, 2 + 2 * number]].double()
        rounding = rounding_in(lm.model, plain)
        elsewhere = size_of((cut - plain)[:_QUERY])
        if size_of((cut - unseen)[_QUERY]) > rounding or elsewhere > rounding:
            raise KtraceError(
                f"module path {lm.paths.sites(layer)['hidden']!r}: its attention still sees what a "
                "mask hides, or a mask changes other queries: no edge can be cut"
            )
        changed |= size_of((cut - plain)[_QUERY]) > rounding
    return changed


def _other_source(row: int) -> Edit:
    def edit(states: torch.Tensor) -> torch.Tensor:
        changed = states.clone()
        changed[row, _SOURCE] = states[row, _SOURCE].flip(-1)
        return changed

    return edit


def _attention_paths(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
    return {layer: lm.paths.sites(layer)["attn"] for layer in layers}


def _run(lm: LanguageModel, prompts: Sequence[tuple[int, ...]], edits: Mapping[str, Edit]) -> None:
    with hooked(lm.model, edits):
        lm.model(input_ids=ids_of(lm.model, lm.paths, *prompts), use_cache=False)
