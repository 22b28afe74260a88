"""Mediators: which states are put where, which are severed, which edges are cut.

Pure: no model, no tensors. A mediator is a family of interventions on one run, the base: one for
each cell, that is a layer, a place, and with heads a head. There it puts states of the other run,
the source: restoring puts clean states into the corrupted run; noising, corrupted ones into the
clean run. Or it cuts edges of the attention in the clean run, and needs no source.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from ktrace.config import MediatorConfig
from ktrace.errors import KtraceError
from ktrace.facts import Span, role_of_positions
from ktrace.terms import (
    EVERYWHERE,
    HEAD,
    ROLE_KEYS,
    SOURCE_GROUPS,
    Direction,
    MediatorKey,
    own_positions,
    role_named,
)

# Where a mediator acts in a prompt: a position; of one that cuts edges their source, or -1 - n for
# the n-th of `SOURCE_GROUPS`.
Place = int

# Roles that one position of a prompt has, at the most: the others say nothing of which.
_SINGLE_ROLES = tuple(role for role in ROLE_KEYS if role not in ("middle_subject", "further"))


@dataclass(frozen=True)
class Mediator:
    """What one cell of a heatmap restores, noises or cuts.

    Attributes:
        name: as in the config.
        site: whose output is taken from the source: `hidden` (the block), `attn`, `mlp`, or `head`
            (one head of the attention); of one that cuts edges, `attn`, where they are.
        severs: site that is held at its value in the base in later layers, or None.
        window: layers that are restored, or cut, together around `layer`; 0 for the layer alone.
        direction: `denoise`, the corrupted run is the base and the clean one the source; or
            `noise`, the other way round.
        positions: roles of the positions that it acts at, or `EVERYWHERE`.
        query: role of the position whose edges are cut; empty for a mediator that puts states.
    """

    name: str
    site: str
    severs: str | None = None
    window: int = 0
    direction: Direction = Direction.denoise
    positions: tuple[str, ...] = EVERYWHERE
    query: str = ""

    @property
    def key(self) -> str:
        """Name of its store and figure: what determines its numbers, e.g. `mlp-w10`."""
        positions = () if self.query else self.positions
        return str(MediatorKey(self.name, self.window, self.direction, positions, self.query))

    @property
    def noises(self) -> bool:
        """Whether it puts corrupted states into the clean run."""
        return self.direction is Direction.noise

    @property
    def cuts(self) -> bool:
        """Whether it cuts edges of the attention, in place of putting states."""
        return bool(self.query)

    @property
    def changes_clean_run(self) -> bool:
        """Whether the clean run is the base."""
        return self.noises or self.cuts

    @property
    def has_heads(self) -> bool:
        """Whether each head of a layer has cells of its own."""
        return self.site == HEAD

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that it reads or edits."""
        return (self.site, self.severs) if self.severs else (self.site,)

    def restored_layers(self, layer: int, n_layers: int) -> range:
        """Layers whose output at the position is that of the source, or whose edges are cut.

        The window is that of the published code: `[l - w // 2, l + ceil(w / 2))`, clipped to the
        model.
        """
        if not self.window:
            return range(layer, layer + 1)
        first = max(0, layer - self.window // 2)
        return range(first, min(n_layers, layer + (self.window + 1) // 2))

    def severed_layers(self, layer: int, n_layers: int) -> range:
        """Layers whose severed output at the position is held at its value in the base."""
        return range(layer + 1, n_layers) if self.severs else range(0)

    def places(self, span: Span, n_positions: int) -> list[Place]:
        """Where it acts in a prompt, in ascending order; groups of sources behind positions.

        Args:
            span: of the subject.
            n_positions: of the prompt.

        Returns:
            Positions that have one of the roles asked for: none, where the prompt has none. Of
            edges, every source before the query, and the groups that are not empty.
        """
        if self.cuts:
            query = self.query_position(span, n_positions)
            if not query:  # there is none, or it sees itself alone
                return []
            codes = (-1 - number for number in range(len(SOURCE_GROUPS)))
            return [*range(query), *(c for c in codes if self.sources(c, span, n_positions))]
        if self.positions == EVERYWHERE:
            return list(range(n_positions))
        roles = role_of_positions(span, n_positions)
        asked = {role_named(role) for role in self.positions}
        return [position for position, role in enumerate(roles) if role in asked]

    def query_position(self, span: Span, n_positions: int) -> int | None:
        """The position whose edges are cut; None where the prompt has none of that role."""
        roles, role = role_of_positions(span, n_positions), role_named(self.query)
        return roles.index(role) if role in roles else None

    def sources(self, place: Place, span: Span, n_positions: int) -> tuple[int, ...]:
        """Positions that the query no longer sees; itself is in no group but its own."""
        query = self.query_position(span, n_positions)
        if place >= 0 or query is None:
            return (place,)
        start, stop = (min(bound, query) for bound in span)
        groups = (range(start), range(start, stop), range(stop, query), range(query, query + 1))
        return tuple(groups[-1 - place])


class Cell(NamedTuple):
    """One intervention: what a mediator does to its base at one layer and place.

    Attributes:
        mediator: of which it is one.
        layer: around which it acts.
        place: where in the prompt.
        head: of the layer; 0 where a mediator has none.
    """

    mediator: Mediator
    layer: int
    place: Place
    head: int = 0


def sites_of(mediators: Iterable[Mediator]) -> list[str]:
    """Every site that any of them reads or edits, each once."""
    return list(dict.fromkeys(site for mediator in mediators for site in mediator.sites))


# Named and ordered as in `MEDIATOR_TITLES`.
_MEDIATORS = {
    mediator.name: mediator
    for mediator in (
        Mediator("hidden", "hidden"),
        Mediator("hidden_attn_severed", "hidden", severs="attn"),
        Mediator("hidden_mlp_severed", "hidden", severs="mlp"),
        Mediator("mlp", "mlp", window=1),
        Mediator("attn", "attn", window=1),
        Mediator(HEAD, HEAD, positions=own_positions(HEAD)),
        Mediator("knockout", "attn", window=1, query="last"),
    )
}


_UNDIRECTED = {name for name, mediator in _MEDIATORS.items() if mediator.severs or mediator.cuts}


def make_mediator(
    name: str,
    window: int,
    direction: Direction = Direction.denoise,
    positions: Sequence[str] | None = None,
    query: str = "last",
) -> Mediator:
    """A mediator by name.

    Args:
        name: one of `ktrace.terms.MEDIATOR_NAMES`.
        window: counts for `mlp`, `attn` and `knockout` alone.
        direction: of those that put the output of a site.
        positions: roles, with `_` for blanks, or `EVERYWHERE`; None for the mediator's own.
        query: of `knockout`, likewise.

    Raises:
        KtraceError: an unknown name or role, a window below one layer, or a direction or positions
            that have no meaning for the mediator.
    """
    mediator = _MEDIATORS.get(name)
    if mediator is None:
        raise KtraceError(
            f"mediator.names: {name!r} is unknown: choose from {', '.join(_MEDIATORS)}"
        )
    if window < 1:
        raise KtraceError(f"mediator.window={window} is out of range: at least 1 layer")
    if direction is not Direction.denoise and name in _UNDIRECTED:
        why = (
            "which changes the clean run by itself"
            if mediator.cuts
            else "which holds outputs of the corrupted run while a state is restored"
        )
        raise KtraceError(
            f"mediator.direction={direction.value} has no meaning for {name}, {why}: choose from "
            f"{', '.join(other for other in _MEDIATORS if other not in _UNDIRECTED)}"
        )
    window = window if mediator.window else 0
    if mediator.cuts:
        _require_roles("mediator.query", [query], _SINGLE_ROLES)
        return replace(mediator, window=window, query=query)
    where = mediator.positions if positions is None else tuple(dict.fromkeys(positions))
    if where != EVERYWHERE:
        _require_roles("mediator.positions", where, ROLE_KEYS)
        where = tuple(role for role in ROLE_KEYS if role in where)  # however they were ordered
    return replace(mediator, window=window, direction=direction, positions=where)


def _require_roles(key: str, given: Sequence[str], roles: Sequence[str]) -> None:
    for role in given:
        if role not in roles:
            raise KtraceError(f"{key}: {role!r} is no role: choose from {', '.join(roles)}")


def make_mediators(config: MediatorConfig) -> list[Mediator]:
    """The mediators that a config asks for, each once, in every window.

    Raises:
        KtraceError: see `make_mediator`; or `mediator.positions` is given, and all that is asked
            for is cut.
    """
    made = [
        make_mediator(name, window, direction, config.roles, config.query)
        for name, window, direction in product(config.names, config.windows, config.directions)
        # With both asked for, those without a direction are taken once.
        if direction is Direction.denoise or name not in _UNDIRECTED or len(config.directions) == 1
    ]
    if config.roles is not None and all(mediator.cuts for mediator in made):
        raise KtraceError(
            f"mediator.positions={config.positions} has no meaning for "
            f"{', '.join(config.names)}: edges have a query (mediator.query), and every source"
        )
    return list({mediator.key: mediator for mediator in made}.values())
