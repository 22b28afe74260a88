"""Which states of a run are stored: the keys `activations.*`, and what they come to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ktrace.errors import KtraceError
from ktrace.terms import ROLE_KEYS, SITES, role_named

ALL_POSITIONS = "all"


@dataclass
class ActivationsConfig:
    """Which states are stored, of candidates alone."""

    clean: list[str] = field(default_factory=lambda: list(SITES))  # sites; none: nothing is stored
    corrupted: list[str] = field(default_factory=list)  # likewise
    layers: list[int] | None = None  # null: all
    positions: Any = ALL_POSITIONS  # or a list of roles, such as [last_subject, last]
    # Of the corrupted run the first n samples; null: all.
    samples: int | None = field(default=None, metadata={"least": 1})


@dataclass(frozen=True)
class KeptStates:
    """Which states of the clean or of the corrupted runs are stored: part of a fingerprint.

    Attributes:
        sites: in the order of `SITES`.
        layers: in their order; None for all.
        positions: keys of roles in the order of `ROLES`; None for all positions.
        samples: the first so many of the corrupted run; None for clean runs, which have none.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    positions: tuple[str, ...] | None = None
    samples: int | None = None

    @property
    def fingerprint(self) -> dict[str, object]:
        """As parts carry it: names and values as JSON has them."""
        return {
            "sites": list(self.sites),
            "layers": None if self.layers is None else list(self.layers),
            "positions": ALL_POSITIONS if self.positions is None else list(self.positions),
            **({} if self.samples is None else {"samples": self.samples}),
        }

    @classmethod
    def of(cls, fingerprint: Mapping[str, Any]) -> "KeptStates":
        """From a store's fingerprint.

        Raises:
            KeyError, TypeError: it is none.
        """
        layers, positions = fingerprint["layers"], fingerprint["positions"]
        return cls(
            tuple(fingerprint["sites"]),
            None if layers is None else tuple(layers),
            None if positions == ALL_POSITIONS else tuple(positions),
            fingerprint.get("samples"),
        )

    def covers(self, other: "KeptStates") -> bool:
        """Whether nothing of the other is lacking here."""
        return (
            set(other.sites) <= set(self.sites)
            and _holds(self.layers, other.layers)
            and _holds(self.positions, other.positions)
            and (self.samples or 0) >= (other.samples or 0)
        )


def _holds(all_of: Collection[object] | None, some: Collection[object] | None) -> bool:
    """Whether a choice holds another one; None is everything."""
    return all_of is None or (some is not None and set(some) <= set(all_of))


def kept_states(config: ActivationsConfig, n_samples: int) -> dict[str, KeptStates]:
    """What is stored of the `clean` and of the `corrupted` runs, as far as anything is.

    Args:
        config: the keys `activations.*`, checked.
        n_samples: of the noise.
    """
    layers = None if config.layers is None else tuple(sorted(set(config.layers)))
    whole = config.positions == ALL_POSITIONS
    positions = None if whole else tuple(key for key in ROLE_KEYS if key in config.positions)
    clean = KeptStates(_in_order(config.clean), layers, positions)
    samples = min(config.samples or n_samples, n_samples)
    corrupted = replace(clean, sites=_in_order(config.corrupted), samples=samples)
    both = {"clean": clean, "corrupted": corrupted}
    return {kind: kept for kind, kept in both.items() if kept.sites}


def _in_order(sites: Collection[str]) -> tuple[str, ...]:
    return tuple(site for site in SITES if site in sites)


def check_activations(config: ActivationsConfig) -> None:
    """Refuse sites, layers and positions that there are not.

    Raises:
        KtraceError: naming the key, the value and what is allowed.
    """
    for key, sites in (("clean", config.clean), ("corrupted", config.corrupted)):
        for site in sites:
            if site not in SITES:
                raise KtraceError(
                    f"activations.{key}: {site!r} is no site: choose from {', '.join(SITES)}, or "
                    "[] to store none"
                )
    if config.layers is not None:
        if not config.layers:
            raise KtraceError("activations.layers is empty: name layers, or null for all")
        if min(config.layers) < 0:
            raise KtraceError(
                f"activations.layers: {min(config.layers)} is out of range: layers count from 0"
            )
    _check_positions(config)


def _check_positions(config: ActivationsConfig) -> None:
    positions = config.positions
    if positions == ALL_POSITIONS:
        return
    roles = f"{ALL_POSITIONS}, or a list of roles: {', '.join(ROLE_KEYS)}"
    if not isinstance(positions, list) or not positions:
        raise KtraceError(f"activations.positions={positions!r} names no positions: give {roles}")
    for role in positions:
        if role not in ROLE_KEYS:
            close = role_named(role) if isinstance(role, str) else None
            hint = "" if close is None else f" (did you mean {close.replace(' ', '_')}?)"
            raise KtraceError(f"activations.positions: {role!r} is unknown{hint}: give {roles}")


def require_layers(layers: Sequence[int] | None, n_layers: int) -> None:
    """Refuse layers to be stored that a model has not.

    Raises:
        KtraceError: it has fewer.
    """
    beyond = [layer for layer in layers or () if layer >= n_layers]
    if beyond:
        raise KtraceError(
            f"activations.layers: {beyond[0]} is out of range: the model's layers are 0 to "
            f"{n_layers - 1}"
        )
