"""How far an analysis is: told as it goes, shown by whoever wants to."""

from collections.abc import Callable, Mapping
from typing import TypeVar

_From = TypeVar("_From")
_Made = TypeVar("_Made")

# Takes what is done, how much of it, and of how much.
Tell = Callable[[str, int, int], None]


def untold(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""


def made(
    what: str, of: Mapping[str, _From], make: Callable[[_From], _Made], tell: Tell
) -> dict[str, _Made]:
    """Make something of each thing, one after the other, by their names."""
    found: dict[str, _Made] = {}
    for name, one in of.items():
        tell(what, len(found), len(of))
        found[name] = make(one)
    tell(what, len(found), len(of))
    return found
