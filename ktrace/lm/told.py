"""How far something is that takes long: told as it goes, shown by whoever wants to."""

from collections.abc import Callable

# Takes how much is done, and of how much.
Told = Callable[[int, int], None]


def untold(done: int, total: int) -> None:
    """Nobody wants to know."""
