"""Tables and lines within a terminal's width: whole headers, whole numbers, whole words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ktrace.redaction import redacted

# A pipe or a log file has no width of its own.
PIPE_WIDTH = 110
UNBOUNDED = 10_000

_MOST_FOLDED = 30  # letters of a text that a table gives a line of
_BESIDE_CELL = 3  # a border, and a blank on either side


class Redacting(Console):
    """Lines without secrets; cells of tables are names, or redacted where they are made."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See `Console.print`."""
        told = (redacted(text) if isinstance(text, str) else text for text in objects)
        super().print(*told, **options)

    def say(self, text: str) -> None:
        """Print a line: broken between words at a terminal, and nowhere in a file."""
        self.print(text, soft_wrap=not self.is_terminal)

    def say_path(self, text: str, path: Path) -> None:
        """Print a line that ends in a path, which is never broken: people copy it."""
        shown = _from_here(path)
        fits = cell_len(f"{text} {shown}") <= self.width or not self.is_terminal
        self.print(f"{text} {shown}" if fits else f"{text}\n{shown}", soft_wrap=True)


def stdout(pipe_width: int = PIPE_WIDTH) -> Redacting:
    """Where results go, whose texts are shown letter by letter."""
    width = None if Console().is_terminal else pipe_width
    # Paths, names and overrides are shown as they are: no [tags], no :emoji:.
    return Redacting(width=width, markup=False, emoji=False, highlight=False)


def _from_here(path: Path) -> str:
    """As a person in this folder would write it; whole where a secret stands in its place."""
    here, whole = Path.cwd(), str(path)
    is_below = path.is_relative_to(here) and redacted(whole) == whole
    return str(path.relative_to(here)) if is_below else whole


@dataclass(frozen=True)
class Cells:
    """What a table shows.

    Attributes:
        columns: their names.
        rows: of texts.
        texts: columns of words, which are folded where they are long; others hold numbers.
        keys: columns that tell a row from the others: they stand in each part of a table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: frozenset[str]
    keys: Sequence[str]

    @property
    def widths(self) -> Mapping[str, int]:
        """Letters that each column needs: headers are broken between words, numbers nowhere."""
        found = {}
        for name, wanted in self._longest.items():
            widest = min(wanted, _MOST_FOLDED) if name in self.texts else wanted
            found[name] = max(widest, *(cell_len(word) for word in name.split()))
        return found

    @property
    def _longest(self) -> Mapping[str, int]:
        """Letters of the longest line below each header."""
        return {
            name: max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)
            for name, *cells in zip(self.columns, *self.rows, strict=True)
        }

    def laid(self, part: Sequence[str], width: int) -> Mapping[str, int]:
        """Letters that each column of a part gets: what it needs, and what else there is room for.

        Every width is given: rich would find room by cutting a table's end off.
        """
        widths, longest = self.widths, self._longest
        room = width - 1 - sum(widths[name] + _BESIDE_CELL for name in part)
        found = {}
        for name in part:
            wanted = max(longest[name], cell_len(name)) - widths[name]
            more = max(0, min(room, wanted))
            found[name], room = widths[name] + more, room - more
        return found

    def parts(self, width: int) -> Iterator[list[str]]:
        """Columns that stand side by side, in one table or several below each other."""
        needs = {name: need + _BESIDE_CELL for name, need in self.widths.items()}
        part: list[str] = []
        for name in self.columns:
            is_wide = sum(needs[other] for other in (*part, name)) + 1 > width
            if is_wide and not set(part) <= set(self.keys):
                yield part
                part = list(self.keys)
            if name not in part:
                part.append(name)
        yield part


def print_table(console: Redacting, title: str, cells: Cells) -> None:
    """Print a table: columns that do not fit beside the others stand below them."""
    console.say(title)
    for part in cells.parts(console.width) if cells.rows else ():
        widths = cells.laid(part, console.width)
        table = Table()
        for name in part:
            table.add_column(
                name,
                justify="left" if name in cells.texts else "right",
                overflow="fold",
                width=widths[name],
            )
        at = [cells.columns.index(name) for name in part]
        for row in cells.rows:
            table.add_row(*(row[place] for place in at))
        console.print(table)
