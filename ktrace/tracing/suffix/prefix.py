"""Keys and values before the suffixes, where a block expects its cache.

Shapes: n_base rows of the base, n_before positions before the suffix, n_new tokens.
"""

import torch
from transformers import Cache

from ktrace.errors import NotCachedError

_SERVED = frozenset({"update", "get_seq_length"})


class Prefix(Cache):
    """Gives prefix ‖ new, and keeps nothing.

    It is a cache of one layer in one call, so that it has less than other caches: whatever else a
    block asks it for is refused by name, also what it would inherit.

    Args:
        keys: `(n_base, heads, n_before, d_head)`.
        values: likewise.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        # Not the base class's: there are no layers.
        self._keys = keys
        self._values = values

    def __getattribute__(self, name: str) -> object:
        if name in _SERVED or name.startswith("_"):
            return super().__getattribute__(name)
        raise NotCachedError(f"its blocks ask their cache for {name!r}, which a replay has not")

    def __bool__(self) -> bool:
        """A cache that is there, as blocks ask; else Python would ask for its length."""
        return True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prefix and of the call.

        Args:
            key_states: `(n_base x n_suffixes, heads, n_new, d_head)`.
            value_states: likewise.
            args: which layer is meant, and what other caches take.
            kwargs: likewise.

        Returns:
            `(n_base x n_suffixes, heads, n_before + n_new, d_head)`, twice.
        """
        if not self._keys.shape[-2]:
            return key_states, value_states
        return _joined(self._keys, key_states), _joined(self._values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the suffix."""
        return int(self._keys.shape[-2])


def _joined(prefix: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    # The prefix of each base row serves every restoration of that row; writing both into place
    # copies each once.
    length = prefix.shape[-2]
    joined = new.new_empty(*new.shape[:-2], length + new.shape[-2], new.shape[-1])
    joined[..., length:, :] = new
    by_base = joined.view(len(prefix), -1, *joined.shape[1:])
    by_base[..., :length, :] = prefix[:, None]
    return joined
