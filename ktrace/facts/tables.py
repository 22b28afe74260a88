"""Tables of text, such as CSV: which sign stands between cells, a header, and a record a row."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ktrace.config import Delimiter
from ktrace.errors import KtraceError
from ktrace.facts.reading import Form, Records, is_blank_row, skipped
from ktrace.facts.text import trimmed

_SIGNS = {
    Delimiter.comma: ",",
    Delimiter.semicolon: ";",
    Delimiter.tab: "\t",
    Delimiter.pipe: "|",
}
_WORDS = {sign: kind.value for kind, sign in _SIGNS.items()}
_CHOICES = ", ".join(_WORDS.values())
# Excel's own first line, for Excel: it is no part of the table.
_EXCEL = re.compile(r"\"?sep=(?P<sign>.)\"?(\r\n|\r|\n)", re.IGNORECASE)
_SHOWN = 100  # characters of a header in a message
_Row = tuple[int, list[str]]  # its first line, and its cells


class Table(NamedTuple):
    """A table that was read.

    Attributes:
        records: one for each row that holds anything.
        delimiter: what stands between cells, as the config calls it.
        assumed: see `ReadAs`.
    """

    records: Records
    delimiter: str
    assumed: list[str]


def parse_table(source: str, text: str, form: Form) -> Table:
    """Read a table with a header.

    Cells are divided by the one sign of `dataset.delimiter` by which the header has columns of
    facts, or by which all rows are of one length. What is only left of a spreadsheet is left out:
    blank rows, and columns without a name.

    Args:
        source: where the text comes from, for messages.
        text: with its line ends.
        form: with the delimiter, if that is known.

    Raises:
        KtraceError: no sign, or several, may divide the header; two columns have one name; a row is
            too short, or has more in it than the header names.
    """
    excel, assumed = _EXCEL.match(text), []
    if excel:
        text, assumed = text[excel.end() :], [f"its first line, sep={excel['sign']}, is Excel's"]
    sign = _chosen(source, text, form, excel["sign"] if excel else None)
    rows = _rows(source, text, sign, 1 + bool(excel))
    filled = ((line, cells) for line, cells in rows if not is_blank_row(cells))
    line, cells = next(filled, (1, []))
    header, said = _header(f"{source}, line {line}", cells)
    assumed += said
    _require_names(f"{source}, line {line}", header, form)
    records: Records = []
    blank: list[int] = []
    for line, cells in rows:
        if not is_blank_row(cells):
            records.append((f"{source}, line {line}", _record(source, line, header, cells)))
        elif cells:  # an empty line is no row
            blank.append(line)
    if blank:
        assumed.append(skipped(len(blank), f"line {blank[0]}"))
    return Table(records, _WORDS.get(sign, repr(sign)), assumed)


def _rows(source: str, text: str, sign: str, line: int) -> Iterator[_Row]:
    reader, before = csv.reader(_lines(text), delimiter=sign, strict=True), line - 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + before + 1
    except csv.Error as error:
        at = reader.line_num + before
        raise KtraceError(f"{source}, line {at}: malformed CSV: {error}") from error


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")  # line ends within cells stay as they are


def _chosen(source: str, text: str, form: Form, excel: str | None) -> str:
    """The sign between cells: as the config or the file says, else as the header shows."""
    asked = None if form.delimiter is Delimiter.auto else _SIGNS[form.delimiter]
    if asked and excel and asked != excel:
        raise KtraceError(
            f"{source}, line 1: the file says sep={excel}, and dataset.delimiter="
            f"{form.delimiter.value}"
        )
    return asked or excel or _sniffed(source, text, form)


def _sniffed(source: str, text: str, form: Form) -> str:
    known = {name.casefold() for name in form.names}
    found = {sign: _first_cells(text, sign) for sign in _WORDS}
    likely = {sign: cells for sign, cells in found.items() if len(cells) > 1}
    at, line = _first_line(text)
    if not likely and line:
        raise KtraceError(
            f"{source}, line {at}: nothing divides the header {line!r:.{_SHOWN}}: one of "
            f"{_CHOICES} is needed between its columns"
        )
    telling = [sign for sign, cells in likely.items() if known & {c.casefold() for c in cells}]
    signs = telling or [*likely]
    if len(signs) > 1:
        signs = [sign for sign in signs if _is_even(text, sign)] or signs
    if len(signs) > 1:
        several = " or ".join(f"dataset.delimiter={_WORDS[sign]}" for sign in signs)
        raise KtraceError(
            f"{source}, line {at}: more than one sign may divide the header {line!r:.{_SHOWN}}: "
            f"{several} says which one does"
        )
    return signs[0] if signs else ","


def _first_line(text: str) -> tuple[int, str]:
    """The number of the header's first line, and what stands in it; nothing in an empty text."""
    lines = enumerate(_lines(text), start=1)
    filled = ((n, line.rstrip("\r\n")) for n, line in lines if trimmed(line) != (0, 0))
    return next(filled, (1, ""))


def _first_cells(text: str, sign: str) -> list[str]:
    """Cells of the header; none where the sign cannot divide it."""
    try:
        rows = csv.reader(_lines(text), delimiter=sign, strict=True)
        return next(([_stripped(c) for c in cells] for cells in rows if any(cells)), [])
    except csv.Error:
        return []


def _is_even(text: str, sign: str) -> bool:
    """Whether every row has as many cells as the header."""
    try:
        rows = csv.reader(_lines(text), delimiter=sign, strict=True)
        return len({len(cells) for cells in rows if not is_blank_row(cells)}) == 1
    except csv.Error:
        return False


def _header(where: str, cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of columns, empty for those without one, and what was made of them."""
    names, assumed = [_stripped(cell) for cell in cells], []
    if any(name != cell for name, cell in zip(names, cells, strict=True)):
        assumed.append("blank ends of column names are stripped")
    if "" in names:
        assumed.append(f"columns without a name are ignored ({names.count('')})")
    require_own_names(where, [name for name in names if name])
    return names, assumed


def _require_names(where: str, header: Sequence[str], form: Form) -> None:
    """Refuse a first row of which no cell names a field and one is a number, as an id is."""
    known = {name.casefold() for name in form.names}
    if not known & {name.casefold() for name in header} and any(map(str.isdecimal, header)):
        raise KtraceError(
            f"{where} looks like a record: a header is needed above it, with the names of columns"
        )


def require_own_names(where: str, names: Sequence[str]) -> None:
    """Refuse a table of which two columns have one name.

    Raises:
        KtraceError: naming it.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise KtraceError(f"{where}: two columns are called {twice!r}: rename one of them")


def _record(source: str, line: int, header: Collection[str], cells: list[str]) -> dict[str, object]:
    extra = cells[len(header) :]
    # Excel has left out delimiters at the end of rows where no column has a name.
    least = max((n for n, name in enumerate(header, start=1) if name), default=0)
    if len(cells) < least or not is_blank_row(extra):
        hint, which = "", "more" if extra else "fewer"
        if len(extra) == 1:
            hint = "; R's write.table begins rows with their names unless row.names=FALSE"
        raise KtraceError(
            f"{source}, line {line}: the row has {which} cells than the header "
            f"({len(cells)}, not {len(header)}{hint})"
        )
    return {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _stripped(text: str) -> str:
    first, last = trimmed(text)
    return text[first:last]
