"""An open part: what it says is believed only where it fits the file and its checksums."""

import math
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ktrace.errors import DamagedPartError, GonePartError, KtraceError
from ktrace.store.bounds import bounded_attribute, bounded_dataset, bounded_group
from ktrace.store.content import (
    Axes,
    Columns,
    parsed_object,
    require_fingerprint,
    require_fitting,
    require_provenance,
    require_range,
    require_whole_units,
)
from ktrace.store.schema import (
    ACTIVATION,
    TEXT,
    VERSION,
    Array,
    Field,
    JsonObject,
    LayerRow,
    Schema,
)


def checksum(array: Array) -> int:
    """Of values, whatever their shape."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data) if array.size else 0


@contextmanager
def opened(path: Path) -> Iterator["Part"]:
    """A part, open for reading.

    Raises:
        DamagedPartError: the file is not a complete part, or what is read of it does not fit.
        GonePartError: it is no longer there.
        KtraceError: it is of another schema version, or may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ValueError("it is no regular file")
        # Without HDF5's own lock: a part never changes, and not every file system keeps locks.
        with h5py.File(path, "r", locking=False) as file:
            yield Part(path, file)
    except FileNotFoundError as error:  # another process has set it aside, or merged it
        raise GonePartError(f"{path}: it is gone") from error
    except OSError as error:
        if error.errno:  # the system's word: nothing is said about the file's content
            raise KtraceError(f"{path} cannot be read: {os.strerror(error.errno)}") from error
        raise DamagedPartError(f"{path}: {error}") from error
    except (KeyError, MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedPartError(f"{path}: {error}") from error


class Part:
    """What an open part says.

    Attributes:
        file: the part.
        n_facts: how many it holds.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.file = file
        self._size = path.stat().st_size
        if "schema_version" not in file.attrs:
            raise ValueError("it is no part")
        version = self._number("schema_version")
        if version != VERSION:
            raise KtraceError(
                f"{path}: schema version {version}, this ktrace reads version {VERSION}: choose "
                "another output_dir, or remove the store"
            )
        if "complete" not in file.attrs or not self.attribute(file, "complete"):
            raise ValueError("it has no end marker")
        self.n_facts = self._number("n_facts")
        self._axes = Axes()
        self._optional: list[tuple[str, Field, list[list[int]]]] = []

    def _number(self, name: str) -> int:
        found = np.asarray(self.attribute(self.file, name))
        if found.shape or found.dtype.kind not in "iu" or not 0 <= found < _MOST_FACTS:
            raise ValueError(f"attribute {name} is no number of it")
        return int(found)

    def attribute(self, owner: h5py.HLObject, name: str) -> Any:
        """Of the file, or of something in it."""
        return bounded_attribute(owner, name, self._size)

    def fingerprint(self) -> JsonObject:
        """What its numbers were determined by."""
        found = parsed_object(self.attribute(self.file, "fingerprint"), "fingerprint")
        require_fingerprint(found)
        return found

    def provenance(self) -> JsonObject:
        """Who computed it, where and when; empty where it does not say."""
        if "provenance" not in self.file.attrs:
            return {}
        about = parsed_object(self.attribute(self.file, "provenance"), "provenance")
        require_provenance(about)
        return about

    def columns(self, schema: Schema, names: Iterable[str]) -> dict[str, Sequence[object]]:
        """Some fields of every fact, which fit each other."""
        columns = {name: self.column(name, schema[name]) for name in names}
        self.require_fitting(columns)
        return columns

    def require_fitting(self, columns: Columns) -> None:
        """Refuse what was read, where it contradicts itself."""
        require_fitting(columns)
        for optional in self._optional:
            self._axes.fit(*optional)

    def column(self, name: str, field: Field) -> Sequence[object]:
        """One field of every fact."""
        column: Array | Sequence[object]
        if not field.axes:
            values = self._read(self.file, name, field)
            require_range(name, field, values)
            column = _decode(field, values)
        else:
            column = self._cells(name, field)
        if len(column) != self.n_facts:
            raise ValueError(f"{name} is of {len(column)} facts, the part of {self.n_facts}")
        return column if isinstance(column, list) else column.tolist()

    def _cells(self, name: str, field: Field) -> list[object]:
        group = bounded_group(self.file, name)
        stored = self._read(group, "values", field)
        require_range(name, field, stored)
        values = _decode(field, stored)
        offsets, shapes = self._places(group, field, len(values))
        if field.dtype == ACTIVATION and "layer_crc32" in group:
            self._require_sums(group, stored, shapes)
        cells: list[object] = []
        for row, shape in enumerate(shapes):
            value = values[offsets[row] : offsets[row + 1]]
            cells.append(value if isinstance(value, list) else value.reshape(shape))
        if field.may_lack:
            require_whole_units(name, field, cells)
        return cells

    def _require_sums(self, group: h5py.Group, stored: Array, shapes: list[list[int]]) -> None:
        """That a layer read alone would fit its checksum, too."""
        sums, end = self._read(group, "layer_crc32", _SUMS).tolist(), 0
        found = []
        for shape in shapes:
            size = math.prod(shape[-2:])
            for _ in range(math.prod(shape[:-2])):
                found.append(checksum(stored[end : end + size]))
                end += size
        if found != sums:
            raise ValueError(f"{group.name}/layer_crc32 does not fit the layers")

    def layer(self, name: str, field: Field, rows: Sequence[LayerRow | None]) -> list[Array | None]:
        """One layer of a field of states; see `ktrace.store.part.read_layer`."""
        group = bounded_group(self.file, name)
        if "layer_crc32" not in group:  # as older versions wrote it: checked as a whole alone
            whole = self._cells(name, field)
            pairs = zip(whole, rows, strict=True)
            return [None if row is None else _one_layer(name, cell, row) for cell, row in pairs]
        dataset = self._dataset(group, "values", field)
        offsets, shapes = self._places(group, field, math.prod(dataset.shape))
        sums = self._read(group, "layer_crc32", _SUMS).tolist()
        firsts = [0, *accumulate(math.prod(shape[:-2]) for shape in shapes)]
        if firsts.pop() != len(sums):
            raise ValueError(f"{name} has other checksums than layers")
        found: list[Array | None] = []
        for wanted, offset, shape, first in zip(rows, offsets, shapes, firsts, strict=False):
            if wanted is None:
                found.append(None)
                continue
            *samples, n_layers, n_positions, width = shape
            _require_layers(name, n_layers, wanted)
            # Without layers it is empty, and has no sample either.
            layers = range(wanted.row, math.prod(shape[:-2]), n_layers or 1)
            size = n_positions * width
            states = np.empty((len(layers), size), dataset.dtype)
            for number, layer in enumerate(layers):
                start = offset + layer * size
                states[number] = dataset[start : start + size]
                if checksum(states[number]) != sums[first + layer]:
                    raise ValueError(f"{dataset.name} does not fit its checksum")
            found.append(states.reshape(*samples, n_positions, width))
        return found

    def _places(
        self, group: h5py.Group, field: Field, n_values: int
    ) -> tuple[list[int], list[list[int]]]:
        """Where each fact's values start, with where the last ones end; and their shapes."""
        axes = np.atleast_1d(np.asarray(self.attribute(group, "axes"))).tolist()
        if [axis.decode() if isinstance(axis, bytes) else axis for axis in axes] != [*field.axes]:
            raise ValueError(f"{group.name} has the axes {axes}, not {field.axes}")
        offsets = self._read(group, "offsets", _WHOLE).tolist()
        shapes = self._read(group, "shapes", _WHOLE)
        if shapes.shape != (len(offsets) - 1, len(field.axes)) or (shapes < 0).any():
            raise ValueError(f"{group.name} has no shapes for its axes")
        of_facts: list[list[int]] = shapes.tolist()
        ends = [0, *accumulate(math.prod(shape) for shape in of_facts)]
        if offsets != ends or ends[-1] != n_values:
            raise ValueError(f"{group.name} has other shapes than values")
        if len(of_facts) != self.n_facts:
            raise ValueError(f"{group.name} is of {len(of_facts)} facts, not {self.n_facts}")
        self._axes.agree(group.name, field, of_facts)
        if field.is_optional:
            self._optional.append((group.name, field, of_facts))
        return offsets, of_facts

    def _dataset(self, group: h5py.Group, name: str, field: Field) -> h5py.Dataset:
        dataset = bounded_dataset(group, name, self._size)
        kind = dataset.dtype
        if field.dtype == TEXT:
            fits = kind.kind == "S"
        elif field.dtype == ACTIVATION:
            fits = kind.name in _ACTIVATION_DTYPES
        else:
            fits = kind == np.dtype(field.dtype)
        if not fits:
            raise ValueError(f"{dataset.name} is of type {kind}, not {field.dtype}")
        return dataset

    def _read(self, group: h5py.Group, name: str, field: Field) -> Array:
        dataset = self._dataset(group, name, field)
        array: Array = dataset[()]
        if checksum(array) != int(self.attribute(dataset, "crc32")):
            raise ValueError(f"{dataset.name} does not fit its checksum")
        return array


_MOST_FACTS = 2**40
_WHOLE = Field("int64")
_SUMS = Field("uint32")
_ACTIVATION_DTYPES = ("float16", "float32", "float64", "uint16")


def _one_layer(name: str, states: Any, wanted: LayerRow) -> Array:
    if not states.size:
        return np.empty(0)
    _require_layers(name, states.shape[-3], wanted)
    layer: Array = states[..., wanted.row, :, :].copy()  # so that the rest's memory is let go
    return layer


def _require_layers(name: str, n_layers: int, wanted: LayerRow) -> None:
    if n_layers not in (0, wanted.n_rows):
        raise ValueError(f"{name} has other axes than its layers: {n_layers}, not {wanted.n_rows}")


def _decode(field: Field, array: Array) -> Array | list[str]:
    if field.dtype == TEXT:
        return [text.decode() for text in array.tolist()]
    return array
