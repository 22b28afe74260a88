"""Mediators: which states are restored, and which are severed. Pure: no model, no tensors."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ktrace.errors import KtraceError
from ktrace.terms import mediator_key


@dataclass(frozen=True)
class Mediator:
    """What one cell (layer, position) of a heatmap restores.

    Attributes:
        name: as in the config.
        site: whose output is restored: `hidden` (the block), `attn` or `mlp`.
        severs: site that is held at its corrupted value in later layers, or None.
        window: layers that are restored together around `layer`; 0 for the layer alone.
    """

    name: str
    site: str
    severs: str | None = None
    window: int = 0

    @property
    def key(self) -> str:
        """Name of its store and figure: what determines its numbers, e.g. `mlp-w10`."""
        return mediator_key(self.name, self.window)

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that it reads or edits."""
        return (self.site, self.severs) if self.severs else (self.site,)

    def restored_layers(self, layer: int, n_layers: int) -> range:
        """Layers whose output at the position is put back to its clean value.

        The window is that of the published code: `[l - w // 2, l + ceil(w / 2))`, clipped to the
        model.
        """
        if not self.window:
            return range(layer, layer + 1)
        first = max(0, layer - self.window // 2)
        return range(first, min(n_layers, layer + (self.window + 1) // 2))

    def severed_layers(self, layer: int, n_layers: int) -> range:
        """Layers whose severed output at the position is held at its corrupted value."""
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


def make_mediator(name: str, window: int) -> Mediator:
    """A mediator by name; the window counts for `mlp` and `attn` alone.

    Raises:
        KtraceError: unknown name, or a window below one layer.
    """
    mediator = _MEDIATORS.get(name)
    if mediator is None:
        raise KtraceError(
            f"mediator.names: {name!r} is unknown: choose from {', '.join(_MEDIATORS)}"
        )
    if window < 1:
        raise KtraceError(f"mediator.window={window} is out of range: at least 1 layer")
    return replace(mediator, window=window) if mediator.window else mediator
