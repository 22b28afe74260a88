"""Figures that are being drawn, and what came of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ktrace.analysis.figures.files import Saved
from ktrace.analysis.figures.processes import Artists
from ktrace.analysis.steps import Tell, untold

# Kinds of a run's figures, as a page shows them.
_PAGE = ("aie", "lines", "severed", "peaks", "relations", "fact")
_FIGURES = "figures"  # what is told of
_MOST_LETTERS = 5  # that a note names


class Drawn(NamedTuple):
    """Figures.

    Attributes:
        files: every file.
        page: the PNG files that a page shows, in its order: nothing stands there twice.
        notes: what is to be said about them.
    """

    files: list[Path]
    page: list[Path]
    notes: list[str]


class Drawing:
    """Figures that are being drawn.

    Args:
        folder: where they go.
        artists: what draws them.
        tell: learns how many are drawn.
    """

    def __init__(self, folder: Path, artists: Artists, tell: Tell = untold) -> None:
        self._folder = folder
        self._artists = artists
        self._tell = tell
        self._begun: list[tuple[str, bool, Callable[[], Saved]]] = []

    def add(
        self, name: str, make: str, *args: object, on_page: bool = True, **options: object
    ) -> None:
        """Begin a figure.

        Args:
            name: of its files, without the suffix.
            make: what gives it, with its arguments: see `Artists.begin`.
            args: of that.
            on_page: whether a page shows it.
            options: of that.
        """
        finish = self._artists.begin(self._folder / name, make, *args, **options)
        self._begun.append((name, on_page, finish))
        self._tell(_FIGURES, 0, len(self._begun))

    def finished(self) -> Drawn:
        """Wait for all of them; again, it says the same.

        Raises:
            KtraceError: a file cannot be written.
        """
        files: list[Path] = []
        page: list[Path] = []
        lacking: set[str] = set()
        in_order = sorted(self._begun, key=lambda one: _place(one[0]))
        for number, (_, on_page, finish) in enumerate(in_order, 1):
            saved = finish()
            self._tell(_FIGURES, number, len(in_order))
            files += saved.paths
            page += saved.paths[:1] if on_page else []
            lacking |= saved.lacking
        return Drawn(files, page, _about_letters(sorted(lacking)))


def _place(name: str) -> int:
    """Where a figure stands among a run's; others keep the order in which they were begun."""
    kind = name.partition("-")[0]
    return _PAGE.index(kind) if kind in _PAGE else len(_PAGE)


def _about_letters(lacking: Sequence[str]) -> list[str]:
    if not lacking:
        return []
    named = ", ".join(f"{one!r} (U+{ord(one):04X})" for one in lacking[:_MOST_LETTERS])
    more = ", ..." if len(lacking) > _MOST_LETTERS else ""
    return [
        f"figures show boxes for {len(lacking)} letters that no installed font has: {named}{more}"
    ]
