"""Where the rows of a plan lie in block calls: what is put, known or left out there. Pure.

A row at position t is a suffix, its tokens those from t on. Suffixes of one call lie side by side,
by position, then by row. All of this hangs on shapes alone: groups of facts of one shape share it,
and an accelerator is told its indices once.

Shapes: n_base rows of the base, each of which has all of a call's tokens; n_positions of the whole
sequence, whose last n_answer tokens predict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ktrace.terms import HEAD
from ktrace.tracing.suffix.plan import Plan, Step

# What a block gives each token alone, beside the sites: the queries, keys and values.
PROJECTIONS = "projections"
# To leave out fewer tokens costs more in copies than it saves.
_LEAST_LEFT_OUT = 1 / 8
_LAYOUTS_KEPT = 32  # those of a group of facts, which the next one of its shape needs again


class Index:
    """Numbers of tokens or positions, and the tensor of them on each device."""

    def __init__(self, numbers: Iterable[int] | npt.NDArray[np.int64]) -> None:
        given = numbers if isinstance(numbers, np.ndarray) else list(numbers)
        self.numbers = np.asarray(given, dtype=np.int64)
        self._on: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """As a tensor, `(n,)`; it is copied there once."""
        if device not in self._on:
            self._on[device] = torch.from_numpy(self.numbers).to(device)
        return self._on[device]


@dataclass(frozen=True)
class Pack:
    """Suffixes that go through a block together.

    Attributes:
        positions: where they begin.
        n_positions: of the whole sequence.
        n_rows: suffixes at each position.
    """

    positions: tuple[int, ...]
    n_positions: int
    n_rows: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of one suffix, by position."""
        return [self.n_positions - position for position in self.positions]

    @property
    def sizes(self) -> list[int]:
        """Tokens of all suffixes, by position."""
        return [self.n_rows * length for length in self.lengths]

    @cached_property
    def suffixes(self) -> Index:
        """Of each token, the number of its suffix."""
        lengths = np.repeat(self.lengths, self.n_rows)
        return Index(np.repeat(np.arange(len(lengths)), lengths))

    @cached_property
    def begins(self) -> Index:
        """Of each token, where its suffix begins in the whole sequence."""
        return Index(np.repeat(self.positions, self.sizes))

    @cached_property
    def places(self) -> Index:
        """Of each token, its place in the whole sequence."""
        return Index(
            np.concatenate(
                [np.tile(np.arange(p, self.n_positions), self.n_rows) for p in self.positions]
            )
        )

    def tokens(self, rows: Sequence[int], within: slice) -> npt.NDArray[np.int64]:
        """Some tokens of the suffixes of some rows, at every position.

        Args:
            rows: by number.
            within: which tokens of a suffix.
        """
        found, offset = [], 0
        for length, size in zip(self.lengths, self.sizes, strict=True):
            firsts = offset + np.asarray(rows, dtype=np.int64) * length
            found.append((firsts[:, None] + np.arange(length)[within]).ravel())
            offset += size
        return np.concatenate(found)


@dataclass(frozen=True)
class Put:
    """Tokens of a call that have what a recorded run has at some positions.

    Attributes:
        tokens: of each base row.
        positions: of each of them, where in the recorded run.
        from_source: whether that is the source; else the base.
        head: which of the heads alone is put; None for all features.
    """

    tokens: Index
    positions: Index
    from_source: bool
    head: int | None = None


@dataclass(frozen=True)
class BlockCall:
    """One call of a block.

    Attributes:
        pack: what its tokens are.
        puts: by site, what its output is at some tokens; by `HEAD`, what heads give there.
        known: tokens that come in as in a recorded run.
        computed: by site, or `HEAD` for the output projection of the attention, or `PROJECTIONS`:
            tokens that it is computed for, where leaving out the others is worth while.
        cut: by row, sources that its first token does not see.
    """

    pack: Pack
    puts: Mapping[str, Sequence[Put]]
    known: Sequence[Put]
    computed: Mapping[str, Index]
    cut: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class LaidStep:
    """What happens at one layer: `Step`, at some positions.

    Attributes:
        sources: see `Step`; None where every row continues itself.
        joining_restored: see `Step`.
        calls: of the rows whose later positions may differ from the base; positions that lie in
            one call, then those of the next.
        by_output: of the rows that differ from the base at position t alone. What they have there
            hangs on no later position, and before it they are the base: one suffix, from the first
            position on, has every t at once.
        n_by_output: how many of those there are.
    """

    sources: Index | None
    joining_restored: Sequence[bool]
    calls: Sequence[BlockCall]
    by_output: BlockCall | None
    n_by_output: int


@lru_cache(maxsize=_LAYOUTS_KEPT)
def lay_out(
    plan: Plan,
    positions: tuple[int, ...],
    n_positions: int,
    n_answer: int,
    n_base: int,
    pack_tokens: int,
) -> tuple[LaidStep, ...]:
    """Lay a plan out for suffixes from some positions on, layer by layer.

    Args:
        plan: which rows run at which layer; the same at every position.
        positions: where suffixes begin, in ascending order.
        n_positions: of the whole sequence.
        n_answer: its last tokens, which predict.
        n_base: rows of the base.
        pack_tokens: suffixes of several positions share a call until it has so many tokens, base
            rows included; 1 gives each position calls of its own.
    """
    last = len(plan.steps) - 1
    steps = []
    for layer, step in enumerate(plan.steps):
        n_needed = n_answer if layer == last else n_positions
        sizes = [n_base * step.n_suffixes * (n_positions - position) for position in positions]
        packs = _packs(positions, sizes, pack_tokens) if step.n_suffixes else []
        calls = [
            _suffixes(step, Pack(tuple(some), n_positions, step.n_suffixes), n_needed)
            for some in packs
        ]
        # In the last layer what counts is what predicts: others join in vain.
        begins = [p for p in positions if n_positions - p <= n_needed]
        by_output = None
        if step.n_by_output and begins:
            by_output = _all_at_once(step, Pack((begins[0],), n_positions, step.n_by_output))
        unchanged = step.sources == list(range(plan.steps[layer - 1].n_rows)) if layer else True
        sources = None if unchanged else Index(step.sources)
        steps.append(LaidStep(sources, step.joining_restored, calls, by_output, step.n_by_output))
    return tuple(steps)


def _packs(positions: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """Cut the positions into calls; later ones have shorter suffixes, and are joined first."""
    packs: list[list[int]] = []
    room = 0
    for position, size in zip(reversed(positions), reversed(sizes), strict=True):
        if size > room:
            packs.append([])
            room = most
        packs[-1].append(position)
        room -= size
    return [pack[::-1] for pack in reversed(packs)]


def _suffixes(step: Step, pack: Pack, n_needed: int) -> BlockCall:
    """Of rows that act at the first token of their suffixes."""
    n_before = len(step.sources)
    restored = [n_before + n for n, is_so in enumerate(step.joining_restored) if is_so]
    others = [n_before + n for n, is_so in enumerate(step.joining_restored) if not is_so]
    known = [
        _put(pack, restored, slice(0, 1), from_source=True),
        _put(pack, restored, slice(1, None), from_source=False),
        _put(pack, others, slice(None), from_source=False),
    ]
    puts = _puts(step, pack, range(pack.n_rows), slice(0, 1))
    needed = pack.tokens(range(pack.n_rows), slice(-n_needed, None))
    known = [put for put in known if len(put.tokens.numbers)]
    return BlockCall(pack, puts, known, _computed(pack, puts, known, needed), step.cut)


def _all_at_once(step: Step, pack: Pack) -> BlockCall:
    """Of rows that act at one position, whichever it is: at every token."""
    rows = range(step.n_suffixes, step.n_rows)
    known = [_put(pack, range(pack.n_rows), slice(None), from_source=False)]
    puts = _puts(step, pack, rows, slice(None))
    needed = pack.tokens(range(pack.n_rows), slice(None))
    return BlockCall(pack, puts, known, _computed(pack, puts, known, needed), {})


def _puts(step: Step, pack: Pack, rows: range, within: slice) -> dict[str, list[Put]]:
    """What a step puts into a call that has some of its rows."""

    def put(some: Sequence[int], *, from_source: bool, head: int | None = None) -> list[Put]:
        own = [row - rows.start for row in some if row in rows]
        return [_put(pack, own, within, from_source=from_source, head=head)] if own else []

    found: dict[str, list[Put]] = {}
    for site, some in step.restored.items():
        found.setdefault(site, []).extend(put(some, from_source=True))
    for site, some in step.severed.items():
        found.setdefault(site, []).extend(put(some, from_source=False))
    for head, some in step.heads.items():
        found.setdefault(HEAD, []).extend(put(some, from_source=True, head=head))
    return {site: puts for site, puts in found.items() if puts}


def _put(
    pack: Pack,
    rows: Sequence[int],
    within: slice,
    *,
    from_source: bool,
    head: int | None = None,
) -> Put:
    tokens = pack.tokens(rows, within)
    return Put(Index(tokens), Index(pack.places.numbers[tokens]), from_source, head)


def _computed(
    pack: Pack,
    puts: Mapping[str, Sequence[Put]],
    known: Sequence[Put],
    needed: npt.NDArray[np.int64],
) -> dict[str, Index]:
    n_tokens = sum(pack.sizes)
    everything = np.arange(n_tokens)
    parts = {
        PROJECTIONS: (everything, known),
        HEAD: (needed, puts.get("attn", ())),
        "mlp": (needed, puts.get("mlp", ())),
    }
    found = {}
    for part, (wanted, given) in parts.items():
        left = np.setdiff1d(wanted, np.concatenate([[], *(put.tokens.numbers for put in given)]))
        if len(left) <= (1 - _LEAST_LEFT_OUT) * n_tokens:
            # Not every module takes no token at all.
            found[part] = Index(left if len(left) else everything[:1])
    return found
