"""The files of figures: their kinds, and which are removed."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

# A figure is written as each of them; pages show the first.
KINDS = ("png", "pdf", "svg")


class Saved(NamedTuple):
    """Files of a figure, and letters in it that no installed font has."""

    paths: list[Path]
    lacking: frozenset[str]


def remove_older(folder: Path, names: re.Pattern[str], drawn: Collection[Path]) -> None:
    """Remove figures of what is no longer drawn: they would contradict the tables.

    Args:
        folder: where the figures lie. Other files in it are the user's.
        names: of figures, without their suffix.
        drawn: figures that stay.
    """
    for kind in KINDS:
        for path in folder.glob(f"*.{kind}"):
            if path not in drawn and names.fullmatch(path.stem):
                path.unlink(missing_ok=True)  # another process may do the same
