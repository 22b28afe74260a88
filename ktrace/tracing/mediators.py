"""Mediators: which states are put where, and which are severed. Pure: no model, no tensors.

A mediator changes one run, the base, at each (layer, position) in turn: there it puts states of the
other run, the source. Restoring puts clean states into the corrupted run; noising, corrupted ones
into the clean run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ktrace.config import MediatorConfig
from ktrace.errors import KtraceError
from ktrace.terms import Direction, mediator_key


@dataclass(frozen=True)
class Mediator:
    """What one cell (layer, position) of a heatmap restores, or noises.

    Attributes:
        name: as in the config.
        site: whose output is taken from the source: `hidden` (the block), `attn` or `mlp`.
        severs: site that is held at its value in the base in later layers, or None.
        window: layers that are restored together around `layer`; 0 for the layer alone.
        direction: `denoise`, the corrupted run is the base and the clean one the source; or
            `noise`, the other way round.
    """

    name: str
    site: str
    severs: str | None = None
    window: int = 0
    direction: Direction = Direction.denoise

    @property
    def key(self) -> str:
        """Name of its store and figure: what determines its numbers, e.g. `mlp-w10`."""
        return mediator_key(self.name, self.window, self.direction)

    @property
    def noises(self) -> bool:
        """Whether the clean run is the base."""
        return self.direction is Direction.noise

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that it reads or edits."""
        return (self.site, self.severs) if self.severs else (self.site,)

    def restored_layers(self, layer: int, n_layers: int) -> range:
        """Layers whose output at the position is that of the source.

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
    )
}


def make_mediator(name: str, window: int, direction: Direction = Direction.denoise) -> Mediator:
    """A mediator by name; the window counts for `mlp` and `attn` alone.

    Raises:
        KtraceError: unknown name, a window below one layer, or a severed one that is to noise.
    """
    mediator = _MEDIATORS.get(name)
    if mediator is None:
        raise KtraceError(
            f"mediator.names: {name!r} is unknown: choose from {', '.join(_MEDIATORS)}"
        )
    if window < 1:
        raise KtraceError(f"mediator.window={window} is out of range: at least 1 layer")
    if mediator.severs and direction is not Direction.denoise:
        whole = ", ".join(one.name for one in _MEDIATORS.values() if not one.severs)
        raise KtraceError(
            f"mediator.direction={direction.value} has no meaning for {name}, which holds outputs "
            f"of the corrupted run while a state is restored: choose from {whole}"
        )
    window = window if mediator.window else 0
    return replace(mediator, window=window, direction=direction)


def make_mediators(config: MediatorConfig) -> list[Mediator]:
    """The mediators that a config asks for, each once.

    Raises:
        KtraceError: see `make_mediator`.
    """
    made = [make_mediator(name, config.window, config.direction) for name in config.names]
    return list({mediator.key: mediator for mediator in made}.values())
