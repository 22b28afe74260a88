"""Which interventions run together, layer by layer. Pure: no model, no tensors.

Restoring at layer l changes nothing before l, so a restoration joins the walk over the layers where
it first differs from the base (the corrupted run; the clean one, where it noises or cuts).
Restorations that have been alike so far share a row: windows that begin at the same layer, because
they are clipped there or are of several widths, part only where the first of them ends.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ktrace.tracing.mediators import Mediator

_PLANS_KEPT = 64  # groups of facts have few


@dataclass(frozen=True)
class Cell:
    """One row of a walk: a mediator at a layer, for whatever position is at hand.

    Attributes:
        mediator: what it restores or cuts.
        layer: where.
        head: which of the layer's, where the mediator has heads.
        sources: what the query no longer sees, where the mediator cuts.
    """

    mediator: Mediator
    layer: int
    head: int = 0
    sources: tuple[int, ...] = ()

    def joins(self, n_layers: int) -> int:
        """First layer whose input or inner outputs differ from the base."""
        if self.mediator.site == "hidden":
            return self.layer + 1
        return self.mediator.restored_layers(self.layer, n_layers)[0]

    @property
    def joins_by_output(self) -> bool:
        """Whether where it joins, its output at the position differs, and nothing else does."""
        return self.mediator.site != "hidden" and not self.mediator.cuts

    def path_until(self, layer: int, n_layers: int) -> Hashable:
        """Equal for cells whose runs have been the same up to and including `layer`."""
        mediator = self.mediator
        what = (mediator.site, mediator.severs, mediator.cuts, self.head, self.sources)
        if mediator.site == "hidden":
            return (*what, self.layer)
        restored = mediator.restored_layers(self.layer, n_layers)
        # Windows that are clipped alike may still sever from different layers on.
        severed = mediator.severed_layers(self.layer, n_layers)
        return (*what, restored[0], min(restored[-1], layer), min(severed.start, layer + 1))


@dataclass
class Step:
    """What happens at one layer. Rows are numbered from 0 among those that run at this layer.

    First those that continue, then those that join and whose later positions may differ from the
    base, then those that join and differ at position t alone.

    Attributes:
        sources: for each row that ran at the layer before, which one it continues; a row that
            splits is named twice.
        joining_restored: of each row that joins, whether position t of its input is the source's
            state; else only what it sees may differ.
        n_by_output: rows that join with the input of the base, and part from it in what a
            site gives at position t.
        restored: by site, rows whose output at position t is that of the source.
        severed: by site, rows whose output at position t is held at its value in the base.
        heads: by head, rows where that head's output at position t is that of the source.
        cut: by row, sources that position t does not see.
    """

    sources: list[int] = field(default_factory=list)
    joining_restored: list[bool] = field(default_factory=list)
    n_by_output: int = 0
    restored: dict[str, list[int]] = field(default_factory=dict)
    severed: dict[str, list[int]] = field(default_factory=dict)
    heads: dict[int, list[int]] = field(default_factory=dict)
    cut: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def n_suffixes(self) -> int:
        """Rows whose later positions may differ from the base, too."""
        return len(self.sources) + len(self.joining_restored)

    @property
    def n_rows(self) -> int:
        """Rows that run at this layer."""
        return self.n_suffixes + self.n_by_output


@dataclass(frozen=True, eq=False)  # compared by identity: what is laid out for it is kept
class Plan:
    """A walk over all layers.

    Attributes:
        steps: one for each layer.
        row_of: for each cell that ran, its row at the end of the walk. Cells that restore the
            output of the last block are missing: they need no layer.
    """

    steps: tuple[Step, ...]
    row_of: dict[Cell, int]

    @property
    def most_rows(self) -> int:
        """Rows that run at the fullest layer."""
        return max(step.n_rows for step in self.steps)


def make_plan(cells: Sequence[Cell], n_layers: int) -> Plan:
    """Schedule cells so that each layer runs once, with every row that needs it."""
    return _planned(tuple(cells), n_layers)


@lru_cache(maxsize=_PLANS_KEPT)
def _planned(cells: tuple[Cell, ...], n_layers: int) -> Plan:
    steps = []
    before: dict[Hashable, int] = {}
    for layer in range(n_layers):
        step, rows = Step(), dict[Hashable, int]()
        running = [cell for cell in cells if cell.joins(n_layers) <= layer]
        # Those that continue stand before those that join: the former are already in one tensor.
        running.sort(key=lambda cell: (1 + cell.joins_by_output) * (cell.joins(n_layers) == layer))
        for cell in running:
            path = cell.path_until(layer, n_layers)
            if path in rows:
                continue
            rows[path] = len(rows)
            if cell.joins(n_layers) < layer:
                step.sources.append(before[cell.path_until(layer - 1, n_layers)])
            elif cell.joins_by_output:
                step.n_by_output += 1
            else:
                step.joining_restored.append(cell.mediator.site == "hidden")
            _schedule(step, cell, rows[path], layer, n_layers)
        steps.append(step)
        before = rows
    row_of = {
        cell: before[cell.path_until(n_layers - 1, n_layers)]
        for cell in cells
        if cell.joins(n_layers) < n_layers
    }
    return Plan(tuple(steps), row_of)


def _schedule(step: Step, cell: Cell, row: int, layer: int, n_layers: int) -> None:
    """What a cell does to its row at a layer."""
    mediator = cell.mediator
    if mediator.severs and layer in mediator.severed_layers(cell.layer, n_layers):
        step.severed.setdefault(mediator.severs, []).append(row)
    if mediator.site == "hidden" or layer not in mediator.restored_layers(cell.layer, n_layers):
        return
    if mediator.cuts:
        step.cut[row] = cell.sources
    elif mediator.has_heads:
        step.heads.setdefault(cell.head, []).append(row)
    else:
        step.restored.setdefault(mediator.site, []).append(row)


def stretches(positions: Sequence[int], n_positions: int, n_tokens: int) -> list[list[int]]:
    """Cut positions so that the suffixes from each on have at most `n_tokens` tokens together.

    Args:
        positions: where suffixes begin; a stretch holds one at the least.
        n_positions: where they end.
        n_tokens: most tokens of a stretch.
    """
    found: list[list[int]] = []
    room = 0
    for position in positions:
        length = n_positions - position
        if length > room:
            found.append([])
            room = n_tokens
        found[-1].append(position)
        room -= length
    return found


def split(cells: Sequence[Cell], n_rows: int) -> list[list[Cell]]:
    """Cut cells into walks of at most `n_rows` rows; neighbours stay together, they share most."""
    return [list(cells[first : first + n_rows]) for first in range(0, len(cells), n_rows)]
