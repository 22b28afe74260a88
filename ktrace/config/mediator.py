"""What is restored, noised or cut: the keys `mediator.*`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from ktrace.errors import KtraceError
from ktrace.terms import Direction


@dataclass
class MediatorConfig:
    """What is restored, or cut."""

    names: list[str] = MISSING
    # Layers together, for mlp, attn and knockout; a list takes every window of it.
    window: Any = "${model.window}"
    # denoise, noise, or a list of both; mediators without a direction are taken once.
    direction: Any = Direction.denoise.value
    # Where: all, or a list of roles (first_subject, last_subject, last, ...); null: each
    # mediator's own, which is all but for head.
    positions: Any = None
    query: str = "last"  # for knockout: role of the position whose edges are cut

    @property
    def windows(self) -> list[int]:
        """Every window that is asked for."""
        return self.window if isinstance(self.window, list) else [self.window]

    @property
    def directions(self) -> list[Direction]:
        """Every direction that is asked for."""
        given = self.direction if isinstance(self.direction, list) else [self.direction]
        return [Direction(one) for one in given]

    @property
    def roles(self) -> list[str] | None:
        """`positions` as a list; None for each mediator's own."""
        return [self.positions] if isinstance(self.positions, str) else self.positions


def check_mediator(mediator: MediatorConfig) -> None:
    """Refuse names, windows, directions and positions that no mediator could have.

    Which mediator has which is known where they are made (`ktrace.tracing.mediators`).

    Raises:
        KtraceError: naming the key, the value and what is allowed.
    """
    if not mediator.names:
        raise KtraceError("mediator.names is empty: name at least one mediator")
    for name in mediator.names:
        if not isinstance(name, str):  # OmegaConf lets a list within the list through
            raise KtraceError(f"mediator.names: {name!r} is not the name of a mediator")
    given = mediator.direction
    directions = given if isinstance(given, list) else [given]
    known = [direction.value for direction in Direction]
    if not directions or not all(one in known for one in directions):
        raise KtraceError(
            f"mediator.direction={given} is no direction: choose from "
            f"{', '.join(known)}, or give a list of both"
        )
    windows = mediator.windows
    if not windows or not all(type(window) is int and window >= 1 for window in windows):
        raise KtraceError(
            f"mediator.window={mediator.window} is out of range: at least 1 layer, or a list of "
            "such numbers, as [1,3,5,10]"
        )
    roles = mediator.roles
    if roles is not None and not (
        isinstance(roles, list) and roles and all(isinstance(role, str) for role in roles)
    ):
        raise KtraceError(
            f"mediator.positions={mediator.positions} names no positions: give all, or a list of "
            "roles, as [last_subject,last]"
        )
    if roles is not None and "all" in roles and len(roles) > 1:
        raise KtraceError(f"mediator.positions={mediator.positions}: all stands alone")
