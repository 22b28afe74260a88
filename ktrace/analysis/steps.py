"""How far an analysis is: told as it goes, shown by whoever wants to."""

from collections.abc import Callable, Mapping
from typing import TypeVar

_Made = TypeVar("_Made")

# Takes what is done, how much of it, and of how much.
Tell = Callable[[str, int, int], None]


def untold(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""


def made(what: str, makers: Mapping[str, Callable[[], _Made]], tell: Tell) -> dict[str, _Made]:
    """Make some things one after the other, by their names."""
    found: dict[str, _Made] = {}
    for name, make in makers.items():
        tell(what, len(found), len(makers))
        found[name] = make()
    tell(what, len(found), len(makers))
    return found
