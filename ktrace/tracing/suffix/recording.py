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
from ktrace.lm.hooks import Args, Edit, Kwargs, hooked, removing
from ktrace.lm.model import LanguageModel, Untyped
from ktrace.tracing.suffix.calls import Call, Shapes, axes_of, named, shapes_of

_KEEPS_OTHERS = "its layers do not all keep keys and values of each position, and those alone"


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        calls: one for each layer.
        keys: for each layer, `(n_rows, heads, n_positions, d_head)`.
        values: likewise.
        logits: at the last positions, `(n_rows, n_logits, vocabulary)`.
        in_tuples: how the last block returns its states, see `logits_from`.
    """

    calls: Sequence[Call]
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
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
        with (
            _watched_calls(lm.blocks, keep_call),
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
