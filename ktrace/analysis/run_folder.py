"""The one door to a run's folder: whoever reads a run is told in a line what is none."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ktrace.errors import KtraceError
from ktrace.store import RunFolders

FolderPath = str | os.PathLike[str]
_FORM = "<output_dir>/<model>/<dataset>/<noise>"
_OF_DATASET = ("clean", "activations")  # what lies beside the runs of a dataset
_BELOW = ("*", "*/*", "*/*/*")  # from a dataset's folder, a model's, the root
_MOST_NAMED = 5


def run_folders(folder: FolderPath) -> RunFolders:
    """The stores of a run.

    Args:
        folder: `outputs/<model>/<dataset>/<noise>`.

    Raises:
        KtraceError: it does not exist, or is none of a run; with the runs that are near.
    """
    path = Path(folder)
    whole = path.resolve()
    if is_run(whole):
        return RunFolders(whole)
    if not whole.exists():
        raise KtraceError(f"{path} does not exist: a run is {_FORM}{_near(whole)}")
    if not whole.is_dir():
        raise KtraceError(f"{path} is a file: a run is the folder {_FORM}{_near(whole)}")
    raise KtraceError(f"{path} is not the folder of a run, {_FORM}{_near(whole)}")


def is_run(folder: Path) -> bool:
    """Whether a folder has the stores of a noise, or lies where they will be."""
    if folder.name in _OF_DATASET or folder.parent.name in _OF_DATASET or not folder.is_dir():
        return False
    own = (folder / "corrupted", folder / "restored")
    return any(path.is_dir() for path in (*own, *(folder.parent / name for name in _OF_DATASET)))


def _near(folder: Path) -> str:
    """The run that a folder lies in, or those below it or below what there is of its path."""
    while not folder.is_dir():
        folder = folder.parent
    inside = next((parent for parent in folder.parents if is_run(parent)), None)
    if inside is not None:
        return f"; that of this one is {inside}"
    found = [str(run.relative_to(folder)) for run in islice(_below(folder), _MOST_NAMED + 1)]
    if not found:
        return f"; there is none below {folder}"
    more = ", ..." if len(found) > _MOST_NAMED else ""
    return f"; below {folder} there are {', '.join(found[:_MOST_NAMED])}{more}"


def _below(folder: Path) -> Iterator[Path]:
    for pattern in _BELOW:
        yield from sorted(path for path in folder.glob(pattern) if is_run(path))
