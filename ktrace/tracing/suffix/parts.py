"""Parts of a block that treat each token alone, on some tokens of a call.

Shapes: n_base rows of the base, each with n_tokens in a call. The block may have them as n_base
rows, or as one row for each suffix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ktrace.lm.hooks import Args, Kwargs, LeadingAxes, called_with, removing, states_of, with_states
from ktrace.tracing.suffix.layout import Index

# Writes what some tokens have into an output, `(n_base, n_tokens, features)`.
Complete = Callable[[torch.Tensor], None]


@contextmanager
def computed_at(
    block: nn.Module,
    part: Sequence[nn.Module],
    tokens: Index,
    n_base: int,
    complete: Complete | None = None,
) -> Iterator[None]:
    """Let a part of a block see some tokens of its calls alone.

    Args:
        block: around it.
        part: the module that its work begins with, and the one that gives its output.
        tokens: of each base row.
        n_base: rows of the base.
        complete: of others, whose output is zero before: right where something is put later, or
            nobody looks.
    """
    first, last = part
    some = _OnTokens(tokens, n_base, complete)
    with (
        some.leading.watched(block),
        # Behind edits of what goes in, before edits of what comes out.
        removing(first.register_forward_pre_hook(some.narrow, with_kwargs=True)),
        removing(last.register_forward_hook(some.widen, prepend=True)),
    ):
        yield


class _OnTokens:
    def __init__(
        self,
        tokens: Index,
        n_base: int,
        complete: Complete | None,
    ) -> None:
        self.leading = LeadingAxes()
        self._tokens = tokens
        self._n_base = n_base
        self._complete = complete

    def narrow(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Leave out other tokens of what the first module is called with."""
        return called_with(args, kwargs, self.leading, self._some)

    def _some(self, states: torch.Tensor) -> torch.Tensor:
        by_token = states.reshape(-1, states.shape[-1])
        return by_token.index_select(0, self._of_all(len(by_token), states.device))[None]

    def widen(self, module: nn.Module, args: Args, output: object) -> object:
        """Put what the last module gives where it belongs."""
        states = states_of(output)
        assert isinstance(states, torch.Tensor)
        assert self.leading.sizes is not None
        n_all = self.leading.sizes.numel()
        by_token = states.reshape(-1, states.shape[-1])
        wide = states.new_zeros(n_all, states.shape[-1])
        wide.index_copy_(0, self._of_all(n_all, states.device), by_token)
        if self._complete is not None:
            self._complete(wide.view(self._n_base, -1, states.shape[-1]))
        whole = wide if states.ndim == 2 else wide.view(*self.leading.sizes, -1)
        return with_states(output, whole)

    def _of_all(self, n_all: int, device: torch.device) -> torch.Tensor:
        """The tokens of every base row, among all."""
        firsts = torch.arange(0, n_all, n_all // self._n_base, device=device)
        return (firsts[:, None] + self._tokens.on(device)).flatten()
