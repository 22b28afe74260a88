"""One part: an HDF5 file with some facts, written once and never changed.

A field with one value a fact is a dataset of `(n_facts,)`. A field with axes is a group: `values`,
all facts' values one after another, each raveled in the order of its axes; `offsets`, where each
fact's values start, `(n_facts + 1,)`; and `shapes`, `(n_facts, n_axes)`. Nothing is padded.
Every dataset carries a checksum, and the file an end marker that is written last.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ktrace.errors import KtraceError
from ktrace.store.files import new_file
from ktrace.store.schema import ACTIVATION, TEXT, VERSION, Field, Record, Schema

Array = npt.NDArray[Any]

# From this version on HDF5 keeps checksums of its own structures as well.
_FORMAT = ("v110", "v110")


class DamagedPartError(Exception):
    """A part is truncated, altered, or not a part at all."""


def part_name(indices: Sequence[int]) -> str:
    """File name of the part with these facts; the same facts give the same name."""
    listed = hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()
    return f"part-{min(indices):06d}-{listed[:8]}.h5"


def write_part(
    folder: Path,
    schema: Schema,
    fingerprint: Mapping[str, Any],
    records: Sequence[Record],
    provenance: Mapping[str, Any] | None = None,
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


def _write_field(file: h5py.File, name: str, field: Field, values: Sequence[Any]) -> None:
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


def _encode(field: Field, values: Sequence[Any] | Array) -> Array:
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


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What the part's numbers were determined by.

    Raises:
        DamagedPartError: the file is not a complete part of this schema version.
    """
    with _opened(path) as file:
        fingerprint: dict[str, Any] = json.loads(file.attrs["fingerprint"])
        return fingerprint


def read_provenance(path: Path) -> tuple[dict[str, Any], int]:
    """Who computed a part, where and when (empty where it does not say); and its number of facts.

    Raises:
        DamagedPartError: the file is not a complete part of this schema version.
    """
    with _opened(path) as file:
        provenance: dict[str, Any] = json.loads(file.attrs.get("provenance", "{}"))
        return provenance, int(file.attrs["n_facts"])


def read_part(path: Path, schema: Schema, names: Iterable[str]) -> list[dict[str, Any]]:
    """Read some fields of every fact in a part, each checked against its checksum.

    Raises:
        DamagedPartError: the part is incomplete, or a checksum does not fit.
    """
    with _opened(path) as file:
        n_facts = int(file.attrs["n_facts"])
        columns = {name: _read_field(file, name, schema[name]) for name in names}
    if any(len(column) != n_facts for column in columns.values()):
        raise DamagedPartError(f"{path}: fields of unequal length")
    return [{name: column[row] for name, column in columns.items()} for row in range(n_facts)]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("schema_version")
            if version != VERSION or not file.attrs.get("complete", False):
                why = "it has no end marker" if version == VERSION else f"schema version {version}"
                raise DamagedPartError(f"{path}: {why} (this ktrace reads version {VERSION})")
            yield file
    except PermissionError as error:  # nothing is wrong with the file
        raise KtraceError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedPartError(f"{path}: {error}") from error


def _read_field(file: h5py.File, name: str, field: Field) -> Sequence[Any]:
    if not field.axes:
        column = _decode(field, _read_dataset(file[name]))
        return column if isinstance(column, list) else column.tolist()
    values = _decode(field, _read_dataset(file[name]["values"]))
    offsets = _read_dataset(file[name]["offsets"])
    shapes = _read_dataset(file[name]["shapes"])
    cells = []
    for row, shape in enumerate(shapes):
        value = values[offsets[row] : offsets[row + 1]]
        cells.append(value if isinstance(value, list) else value.reshape(tuple(shape)))
    return cells


def _read_dataset(dataset: h5py.Dataset) -> Array:
    array: Array = dataset[()]
    if _checksum(array) != int(dataset.attrs["crc32"]):
        raise ValueError(f"{dataset.name} does not fit its checksum")
    return array


def _decode(field: Field, array: Array) -> Array | list[str]:
    if field.dtype == TEXT:
        return [text.decode() for text in array.tolist()]
    return array
