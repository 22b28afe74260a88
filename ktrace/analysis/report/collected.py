"""Cells of every fact and mediator, reduced while restorations are read, and kept on the disk.

Of 22,000 facts, five mediators and 80 layers they take 7 GB, and the page has room for few of them.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import numpy as np

from ktrace.analysis.report.cells import Cells, cells_at_tokens, subject_peaks
from ktrace.analysis.stored import Survey
from ktrace.analysis.strongest import SubjectPeak
from ktrace.errors import KtraceError
from ktrace.store import RestoredRecord
from ktrace.terms import METRICS


class _Kept(NamedTuple):
    """Cells of a fact and a mediator: where they begin in the file, and what it gave.

    Attributes:
        start: first byte.
        shape: `(n_metrics, 4, n_layers, n_positions)`.
        peaks: the strongest effect inside the subject, of each metric.
    """

    start: int
    shape: tuple[int, ...]
    peaks: tuple[SubjectPeak, ...]


class CellCollector:
    """Reduces the noise samples of every cell while restorations are read for the averages."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, _Kept]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, found: Survey, key: str, batch: Sequence[RestoredRecord]) -> None:
        """Take in some restorations of one mediator (`ktrace.analysis.averaged_run.Watch`).

        Raises:
            KtraceError: the folder of the analysis cannot be written.
        """
        for record in (one.at_positions() for one in batch):
            clean = found.clean[record.index]
            cells = cells_at_tokens(record, clean, found.corrupted[record.index], key)
            kept = _Kept(self._end, cells.shape, subject_peaks(cells, clean.span, key))
            self._write(found, cells)
            self._kept.setdefault(record.index, {})[key] = kept

    def _write(self, found: Survey, cells: Cells) -> None:
        folder = found.folders.analysis
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                # Nameless from the start: nothing of it is left, however the process ends.
                self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.write(cells.tobytes())
        except OSError as error:
            raise KtraceError(
                f"output_dir: {folder} cannot be written: {error.strerror}"
            ) from error
        self._end += cells.nbytes

    def read(self, index: int, keys: Sequence[str]) -> Cells:
        """Of a fact; NaN for mediators that it lacks."""
        own = self._kept[index]
        n_metrics, *axes = next(iter(own.values())).shape
        cells = np.full((n_metrics, len(keys), *axes), np.nan, dtype=np.float32)
        for column, key in enumerate(keys):
            if key in own and self._file is not None:
                place = own[key]
                self._file.seek(place.start)
                found = self._file.read(int(np.prod(place.shape)) * cells.itemsize)
                cells[:, column] = np.frombuffer(found, np.float32).reshape(place.shape)
                self._file.seek(0, os.SEEK_END)
        return cells

    def of(self, keys: Sequence[str]) -> "CollectedCells":
        """Of some mediators, such as `mlp-w10`."""
        return CollectedCells(self, self._kept, keys)


class CollectedCells(Mapping[int, Cells]):
    """Cells by the fact's index, read when they are asked for; facts without any are not in it.

    Args:
        source: where they are kept.
        kept: by index and mediator.
        keys: the mediators that are wanted.
    """

    def __init__(
        self, source: CellCollector, kept: Mapping[int, Mapping[str, _Kept]], keys: Sequence[str]
    ) -> None:
        self._source, self._kept, self._keys = source, kept, keys

    def __getitem__(self, index: int) -> Cells:
        return self._source.read(index, self._keys)

    def __contains__(self, index: object) -> bool:
        return index in self._kept

    def __iter__(self) -> Iterator[int]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def peaks(self, index: int, span: tuple[int, int]) -> list[Sequence[SubjectPeak]]:
        """Of each mediator, the strongest effect inside a fact's subject in each metric.

        Args:
            index: of the fact.
            span: of its subject; the first cell is the peak of a mediator that it lacks.
        """
        own, missing = self._kept[index], (SubjectPeak(0, span[0], float("nan")),) * len(METRICS)
        return [own[key].peaks if key in own else missing for key in self._keys]


class CellsInOrder(Sequence[Cells]):
    """The same by number.

    Args:
        cells: by index.
        indices: of the facts, in their order.
    """

    def __init__(self, cells: Mapping[int, Cells], indices: Sequence[int]) -> None:
        self._cells, self._indices = cells, indices

    def __getitem__(self, number: int) -> Cells:  # type: ignore[override]  # no slices
        return self._cells[self._indices[number]]

    def __len__(self) -> int:
        return len(self._indices)
