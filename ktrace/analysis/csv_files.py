"""How tables become CSV files."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ktrace.files import write_text

_RUNS = re.compile(r"[=+\-@\t\r\x1b]")  # what a formula begins with


def _escaped(table: pd.DataFrame) -> pd.DataFrame:
    """Text that a spreadsheet would run as a formula stands behind an apostrophe."""
    shown = {}
    for name, column in table.select_dtypes(["object", "string"]).items():
        values = column.tolist()
        runs = [isinstance(value, str) and _RUNS.match(value) is not None for value in values]
        if any(runs):
            shown[str(name)] = [f"'{v}" if run else v for v, run in zip(values, runs, strict=True)]
    escaped: pd.DataFrame = table.assign(**shown)
    return escaped


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write CSV files; text in them is what it is, not what a spreadsheet would run.

    Args:
        folder: where they go.
        tables: by the file's name without `.csv`.

    Returns:
        The files written.

    Raises:
        KtraceError: the folder cannot be written.
    """
    paths = []
    for stem, table in tables.items():
        buffer = io.StringIO()
        _escaped(table).to_csv(buffer, index=False)
        paths.append(folder / f"{stem}.csv")
        write_text(paths[-1], buffer.getvalue())
    return paths
