"""One part: an HDF5 file with some facts, written once and never changed.

A field with one value a fact is a dataset of `(n_facts,)`. A field with axes is a group: `values`,
all facts' values one after another, each raveled in the order of its axes; `offsets`, where each
fact's values start, `(n_facts + 1,)`; and `shapes`, `(n_facts, n_axes)`. Nothing is padded.
Every dataset carries a checksum, and the file an end marker that is written last.

Axes: n_facts, those of the part; n_axes, those of a field (schema.py).
"""

import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ktrace.errors import DamagedPartError, KtraceError
from ktrace.files import new_file
from ktrace.store.binding import Binding, names_told, require_same
from ktrace.store.bounds import bounded_attribute, bounded_dataset, bounded_group
from ktrace.store.schema import (
    ACTIVATION,
    TEXT,
    VERSION,
    Array,
    Field,
    JsonObject,
    Row,
    Schema,
)

# From this version on HDF5 keeps checksums of its own structures as well.
_FORMAT = ("v110", "v110")


def part_name(indices: Sequence[int]) -> str:
    """File name of the part with these facts; the same facts give the same name."""
    listed = hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()
    return f"part-{min(indices):06d}-{listed[:8]}.h5"


def write_part(
    folder: Path,
    schema: Schema,
    fingerprint: Mapping[str, object],
    records: Sequence[Row],
    provenance: Mapping[str, object] | None = None,
) -> Path:
    """Write records as one part.

    Args:
        folder: the store's.
        schema: the fields of each record.
        fingerprint: what determines the numbers; parts of different ones are never mixed.
        records: one for each fact.
        provenance: who computed them, where and when; nothing is compared with it.

    Raises:
        KtraceError: the folder cannot be written.
    """
    path = folder / part_name([record["index"] for record in records])
    # In memory first: HDF5 does not survive a disk that is full in the middle of a file.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_FORMAT) as file:
        file.attrs["schema_version"] = VERSION
        _set_text(file, "fingerprint", json.dumps(fingerprint, sort_keys=True))
        _set_text(file, "provenance", json.dumps(dict(provenance or {})))
        file.attrs["n_facts"] = len(records)
        for name, field in schema.items():
            _write_field(file, name, field, [record[name] for record in records])
        file.flush()
        file.attrs["complete"] = True
    with new_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path


def _write_field(file: h5py.File, name: str, field: Field, values: Sequence[object]) -> None:
    if not field.axes:
        _write_dataset(file, name, _encode(field, values))
        return
    arrays = [np.asarray(value, dtype=object if field.dtype == TEXT else None) for value in values]
    for array in arrays:
        if array.ndim != len(field.axes):
            raise ValueError(f"{name} has shape {array.shape}, its axes are {field.axes}")
    group = file.create_group(name)
    _set_text(group, "axes", field.axes)
    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int64)
    flat = [array.ravel() for array in arrays]
    joined = (
        [text for array in flat for text in array] if field.dtype == TEXT else np.concatenate(flat)
    )
    dataset = _write_dataset(group, "values", _encode(field, joined))
    if field.dtype == ACTIVATION and dataset.dtype == np.uint16:
        _set_text(dataset, "encoding", "bfloat16")
    _write_dataset(group, "offsets", offsets)
    _write_dataset(group, "shapes", np.array([a.shape for a in arrays], dtype=np.int64))


def _encode(field: Field, values: Sequence[object] | Array) -> Array:
    if field.dtype == TEXT:
        encoded = [str(text).encode() for text in values]
        if any(b"\0" in text for text in encoded):
            raise ValueError("text with a NUL character cannot be stored")
        width = max((len(text) for text in encoded), default=0)
        return np.array(encoded, dtype=f"S{max(width, 1)}")
    return np.asarray(values, dtype=None if field.dtype == ACTIVATION else field.dtype)


def _write_dataset(group: h5py.Group, name: str, array: Array) -> h5py.Dataset:
    if array.dtype.kind == "S":
        array = array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
    dataset = group.create_dataset(name, data=array)
    dataset.attrs["crc32"] = _checksum(array)
    return dataset


def _set_text(owner: h5py.HLObject, name: str, text: str | Sequence[str]) -> None:
    # Of fixed length: HDF5 keeps no checksum where strings of variable length lie.
    array = np.char.encode(np.asarray(text), "utf-8")
    owner.attrs.create(name, array, dtype=h5py.string_dtype("utf-8", array.dtype.itemsize))


def _checksum(array: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data) if array.size else 0


def read_fingerprint(path: Path) -> JsonObject:
    """What the part's numbers were determined by.

    Raises:
        DamagedPartError: the file is not a complete part.
        KtraceError: it is of another schema version, or may not be read.
    """
    with _opened(path) as part:
        return part.fingerprint()


def binding_of(path: Path) -> Binding:
    """What a part says of the folder that it was written to.

    Raises:
        DamagedPartError: the file is not a complete part.
        KtraceError: it is of another schema version, or may not be read.
    """
    about, _ = read_provenance(path)
    fingerprint = read_fingerprint(path)
    return Binding(fingerprint, names_told(about, fingerprint))


def read_provenance(path: Path) -> tuple[JsonObject, int]:
    """Who computed a part, where and when (empty where it does not say); and its number of facts.

    Raises:
        DamagedPartError: the file is not a complete part.
        KtraceError: it is of another schema version, or may not be read.
    """
    with _opened(path) as part:
        if "provenance" not in part.file.attrs:
            return {}, part.n_facts
        provenance = json.loads(part.attribute(part.file, "provenance"))
        if not isinstance(provenance, dict):
            raise ValueError("its provenance is no JSON object")
        return provenance, part.n_facts


def read_part(
    path: Path,
    schema: Schema,
    names: Iterable[str],
    expected: Mapping[str, object] | None = None,
) -> list[Row]:
    """Read some fields of every fact in a part, each checked against its checksum.

    Args:
        path: the part.
        schema: of its store.
        names: of the fields.
        expected: the fingerprint of its store; None where nothing is known of it.

    Raises:
        DamagedPartError: the part is incomplete, or a checksum does not fit.
        KtraceError: it is of other settings or another schema version, or may not be read.
    """
    with _opened(path) as part:
        if expected is not None:
            require_same(path, part.fingerprint(), expected)
        columns = {name: part.column(name, schema[name]) for name in names}
        return [
            {name: column[row] for name, column in columns.items()} for row in range(part.n_facts)
        ]


def verify_part(path: Path, schema: Schema) -> None:
    """Read a part as a whole, one field in memory at a time.

    Raises:
        DamagedPartError: as `read_part` would of any field.
        KtraceError: it is of another schema version, or may not be read.
    """
    with _opened(path) as part:
        for name, field in schema.items():
            part.column(name, field)


@contextmanager
def _opened(path: Path) -> Iterator["_Part"]:
    try:
        # Without HDF5's own lock: a part never changes, and not every file system keeps locks.
        with h5py.File(path, "r", locking=False) as file:
            yield _Part(path, file)
    except FileNotFoundError as error:  # another process has set it aside
        raise DamagedPartError(f"{path}: it is gone") from error
    except OSError as error:
        if error.errno:  # the system's word: nothing is said about the file's content
            raise KtraceError(f"{path} cannot be read: {os.strerror(error.errno)}") from error
        raise DamagedPartError(f"{path}: {error}") from error
    except (KeyError, MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedPartError(f"{path}: {error}") from error


class _Part:
    """An open part: what it says is believed only where it fits the file and its checksums."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.file = file
        self._size = path.stat().st_size
        if "schema_version" not in file.attrs:
            raise ValueError("it is no part")
        version = int(self.attribute(file, "schema_version"))
        if version != VERSION:
            raise KtraceError(
                f"{path}: schema version {version}, this ktrace reads version {VERSION}: choose "
                "another output_dir, or remove the store"
            )
        if "complete" not in file.attrs or not self.attribute(file, "complete"):
            raise ValueError("it has no end marker")
        self.n_facts = int(self.attribute(file, "n_facts"))

    def attribute(self, owner: h5py.HLObject, name: str) -> Any:
        return bounded_attribute(owner, name, self._size)

    def fingerprint(self) -> JsonObject:
        """What its numbers were determined by."""
        found = json.loads(self.attribute(self.file, "fingerprint"))
        if not isinstance(found, dict):
            raise ValueError("its fingerprint is no JSON object")
        return found

    def column(self, name: str, field: Field) -> Sequence[object]:
        """One field of every fact."""
        column: Array | Sequence[object]
        if not field.axes:
            column = _decode(field, self._read(self.file, name, field))
        else:
            column = self._cells(name, field)
        if len(column) != self.n_facts:
            raise ValueError(f"{name} is of {len(column)} facts, the part of {self.n_facts}")
        return column if isinstance(column, list) else column.tolist()

    def _cells(self, name: str, field: Field) -> list[object]:
        group = bounded_group(self.file, name)
        values = _decode(field, self._read(group, "values", field))
        offsets = self._read(group, "offsets", _WHOLE).tolist()
        shapes = self._read(group, "shapes", _WHOLE)
        if shapes.shape != (len(offsets) - 1, len(field.axes)) or (shapes < 0).any():
            raise ValueError(f"{name} has no shapes for its axes")
        ends = [0, *accumulate(math.prod(shape) for shape in shapes.tolist())]
        if offsets != ends or ends[-1] != len(values):
            raise ValueError(f"{name} has other shapes than values")
        cells: list[object] = []
        for row, shape in enumerate(shapes.tolist()):
            value = values[offsets[row] : offsets[row + 1]]
            cells.append(value if isinstance(value, list) else value.reshape(shape))
        return cells

    def _read(self, group: h5py.Group, name: str, field: Field) -> Array:
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
        array: Array = dataset[()]
        if _checksum(array) != int(self.attribute(dataset, "crc32")):
            raise ValueError(f"{dataset.name} does not fit its checksum")
        return array


_WHOLE = Field("int64")
_ACTIVATION_DTYPES = ("float16", "float32", "float64", "uint16")


def _decode(field: Field, array: Array) -> Array | list[str]:
    if field.dtype == TEXT:
        return [text.decode() for text in array.tolist()]
    return array
