"""How a file is to be read, and how it was: what the modules that read formats hand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ktrace.config import Delimiter
from ktrace.facts.text import trimmed

Records = list[tuple[str, dict[str, object]]]  # (where it stands, for messages; its fields)


class Form(NamedTuple):
    """What is known of a file beforehand.

    Attributes:
        key: of the config, which named the file.
        encoding: of its text, as Python calls it; None for what a mark says, else UTF-8.
        delimiter: what stands between the cells of a table.
        names: columns that a fact may be made of, by which a header is known.
    """

    key: str = "dataset.path"
    encoding: str | None = None
    delimiter: Delimiter = Delimiter.auto
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ReadAs:
    """How a file was read.

    Attributes:
        form: format, delimiter and encoding, for people.
        columns: that its records have, in their order.
        assumed: what was taken for granted, as parts of a sentence; nothing, where all is as usual.
    """

    form: str
    columns: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


class Reading(NamedTuple):
    """Records of a file, and how they were read."""

    records: Records
    read_as: ReadAs


def columns_of(records: Records) -> tuple[str, ...]:
    """Every column that a record has, in the order in which they come up."""
    return tuple(dict.fromkeys(column for _, record in records for column in record))


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, or what is no number (NaN), as pandas fills gaps."""
    return value is None or value != value


def is_blank_row(cells: Sequence[object]) -> bool:
    """Whether a row of a table holds nothing that shows."""
    return all(
        trimmed(cell) == (0, 0) if isinstance(cell, str) else is_missing(cell) for cell in cells
    )


def without_blank_rows(records: Records) -> tuple[Records, list[str]]:
    """Records of a table without its blank rows, and what to say of them."""
    kept = [(where, record) for where, record in records if not is_blank_row([*record.values()])]
    blank = [where for where, record in records if is_blank_row([*record.values()])]
    return kept, [skipped(len(blank), blank[0])] if blank else []


def skipped(n_rows: int, first: str) -> str:
    """That rows were blank."""
    return f"blank rows are skipped ({n_rows}; the first is {first})"
