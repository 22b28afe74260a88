"""A recorded forward pass: what each block was called with, and its keys and values.

With it a block can be called again (replay.py). Nothing here knows an architecture.

Shapes: n_rows of a batch, n_positions of the tokens that the model reads.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ktrace.errors import NotReplayedError
from ktrace.lm.head import contiguous_to_head, noting_tuples
from ktrace.lm.hooks import Args, Edit, Kwargs, hooked, keep, module_at, removing
from ktrace.lm.model import LanguageModel, Untyped
from ktrace.lm.paths import INPUT
from ktrace.terms import HEAD
from ktrace.tracing.suffix.calls import Call, Shapes, axes_of, named, shapes_of

_KEEPS_OTHERS = "its layers do not all keep keys and values of each position, and those alone"


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        calls: one for each layer.
        keys: for each layer, `(n_rows, heads, n_positions, d_head)`.
        values: likewise.
        projections: for each layer, by path, outputs of the attention's projections before it
            looks at other positions (queries, keys, values, or what they are made of),
            `(n_rows, n_positions, features)`.
        final: of the last block at the last positions, `(n_rows, n_logits, d_model)`.
        logits: at the last positions, `(n_rows, n_logits, vocabulary)`.
        in_tuples: how the last block returns its states, see `logits_from`.
    """

    calls: Sequence[Call]
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    projections: Sequence[Mapping[str, torch.Tensor]]
    final: torch.Tensor
    logits: torch.Tensor
    in_tuples: int


class Recorder:
    """Records forward passes of a model.

    What it finds out about the axes of the blocks' arguments serves all passes of one length.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        # By number of positions, for each layer by name.
        self._shapes: dict[int, list[dict[str, Shapes]]] = {}

    def record(
        self, input_ids: torch.Tensor, edits: Mapping[str, Edit], n_logits: int = 1
    ) -> Recording:
        """Run the model under edits, and keep what a replay needs.

        Args:
            input_ids: `(n_rows, n_positions)`, of two rows at least.
            edits: as for `hooked`.
            n_logits: so many last positions' logits are kept.

        Raises:
            NotReplayedError: the model has no keys and values to keep.
        """
        lm = self.lm
        n_rows, n_positions = input_ids.shape
        assert n_rows > 1  # else an axis of one entry could be the rows'
        self._require_keys_and_values()
        shapes = self._shapes_of_another_pass(n_positions)
        calls: list[Call] = []

        def keep_call(block: nn.Module, args: Args, kwargs: Kwargs) -> None:
            states, arguments = named(block, args, kwargs)
            others = shapes[len(calls)]
            axes = {
                name: axes_of(value, others.get(name), n_rows, n_positions)
                for name, value in arguments.items()
            }
            calls.append(Call(block, states, arguments, axes))

        cache: Untyped = DynamicCache()
        final: dict[str, torch.Tensor] = {}
        watched = {lm.paths.at(lm.paths.block, lm.n_layers - 1): keep(final, "", _last(n_logits))}
        with (
            _watched_calls(lm.blocks, keep_call),
            _kept_projections(lm, cache, (n_rows, n_positions)) as projections,
            hooked(lm.model, watched),
            noting_tuples(lm.blocks[-1]) as in_tuples,
            contiguous_to_head(lm.model),
            hooked(lm.model, edits),
        ):
            logits = self._run(input_ids, cache, n_logits)
        kept = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        if len(kept) != lm.n_layers:
            raise NotReplayedError(_KEEPS_OTHERS)
        return Recording(
            calls=calls,
            keys=[layer.keys for layer in cache.layers],
            values=[layer.values for layer in cache.layers],
            projections=projections,
            final=final[""],
            logits=logits[:, -n_logits:],
            in_tuples=in_tuples[0],
        )

    def _require_keys_and_values(self) -> None:
        """Some layers carry a state on, or an index beside; transformers says so by their class."""
        model: Untyped = self.lm.model
        takes = inspect.signature(type(model).forward).parameters
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        if "past_key_values" not in takes or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
            raise NotReplayedError(_KEEPS_OTHERS)

    def _shapes_of_another_pass(self, n_positions: int) -> list[dict[str, Shapes]]:
        """Each block's arguments in a pass over one row that is one position longer, by shape.

        The longer one has at least the masks of the shorter; only where a model takes no longer one
        is it one position shorter.
        """
        known = self._shapes.get(n_positions)
        if known is None:
            known = []
            change = -1 if n_positions == self.lm.max_positions else 1

            def keep_shapes(block: nn.Module, args: Args, kwargs: Kwargs) -> None:
                _, arguments = named(block, args, kwargs)
                known.append({name: shapes_of(value) for name, value in arguments.items()})

            ids = torch.zeros(1, n_positions + change, dtype=torch.long, device=self.lm.device)
            with _watched_calls(self.lm.blocks, keep_shapes):
                self._run(ids, DynamicCache(), 1)
            self._shapes[n_positions] = known
        return known

    def _run(self, input_ids: torch.Tensor, cache: Untyped, n_logits: int) -> torch.Tensor:
        """Logits; of the last positions alone, where the model can leave out the others."""
        model = self.lm.model
        accepted = inspect.signature(type(model).forward).parameters
        last = {"logits_to_keep": n_logits} if "logits_to_keep" in accepted else {}
        output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, **last)
        logits: torch.Tensor = output.logits
        return logits


@contextmanager
def _watched_calls(
    blocks: Sequence[nn.Module], watch: Callable[[nn.Module, Args, Kwargs], None]
) -> Iterator[None]:
    with ExitStack() as stack:
        for block in blocks:
            handle = block.register_forward_pre_hook(watch, with_kwargs=True)
            stack.enter_context(removing(handle))
        yield


def _last(n: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: states[:, -n:]


@contextmanager
def _kept_projections(
    lm: LanguageModel, cache: Untyped, sizes: tuple[int, int]
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Keep what linear layers of the attention give before keys and values reach the cache.

    Their inputs hang on no other position, nor do they themselves.
    """
    kept: list[dict[str, torch.Tensor]] = [{} for _ in range(lm.n_layers)]
    with ExitStack() as stack:
        for layer, of_layer in enumerate(kept):
            for path, module in _projections(lm, layer):

                def note(
                    module: nn.Module,
                    args: Args,
                    output: object,
                    of_layer: dict[str, torch.Tensor] = of_layer,
                    layer: int = layer,
                    path: str = path,
                ) -> None:
                    is_before = len(cache.layers) <= layer
                    if isinstance(output, torch.Tensor) and is_before:
                        if output.ndim == 2 and len(output) == sizes[0] * sizes[1]:
                            output = output.view(*sizes, -1)
                        if output.ndim == 3 and output.shape[:2] == sizes:
                            of_layer[path] = output

                stack.enter_context(removing(module.register_forward_hook(note)))
        yield kept


def _projections(lm: LanguageModel, layer: int) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers of a layer's attention but for its output projection, which gathers heads."""
    point = lm.paths.point(HEAD, layer)
    if point is None:
        return
    output = point.removesuffix(INPUT)
    attention = output.rpartition(".")[0]
    for name, module in module_at(lm.model, attention).named_modules():
        weight = getattr(module, "weight", None)
        path = f"{attention}.{name}"
        if path != output and weight is not None and weight.ndim == 2 and not [*module.children()]:
            yield path, module
