"""How much the suffix engine puts into one call. No number hangs on it, but for rounding."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ktrace.lm.linear import LEAST_WEIGHTS


class EnoughForACall(NamedTuple):
    """What fills a block call on a kind of device: larger ones gain little, and take memory.

    Attributes:
        tokens: products of small matrices are slow.
        multiplications: of each weight with each token.
        head_rows: rows that logits are taken of together: they are as wide as the vocabulary.
    """

    tokens: int
    multiplications: float
    head_rows: int


_CPU = EnoughForACall(1024, 6e8, 256)
_ACCELERATOR = EnoughForACall(4096, 2e12, 8192)


@dataclass(frozen=True)
class Limits:
    """Sizes from which on work is shared, cut or done otherwise, as measured.

    Attributes:
        cpu: what fills a block call there.
        accelerator: what fills one anywhere else.
        shared_calls: facts share a batch until it fills so many block calls.
        walk_tokens: a walk keeps the states of all its suffixes, a block call some twenty numbers
            for each of theirs: so many times a call's tokens fit beside it.
        pack_width: narrower models gain less from larger products than the masks of packs cost.
        onednn_weights: see `onednn_products`.
    """

    cpu: EnoughForACall = _CPU
    accelerator: EnoughForACall = _ACCELERATOR
    shared_calls: int = 3
    walk_tokens: int = 4
    pack_width: int = 512
    onednn_weights: int = LEAST_WEIGHTS

    def enough(self, device: torch.device) -> EnoughForACall:
        """What fills a block call on a device."""
        return self.cpu if device.type == "cpu" else self.accelerator


MEASURED = Limits()
