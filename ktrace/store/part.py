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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from ktrace.files import new_file
from ktrace.store.binding import Binding, names_told, require_same
from ktrace.store.content import RELATED
from ktrace.store.opened import checksum, opened
from ktrace.store.schema import (
    ACTIVATION,
    TEXT,
    VERSION,
    Array,
    Field,
    JsonObject,
    LayerRow,
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
    joined = [text for array in flat for text in array] if field.dtype == TEXT else _joined(flat)
    dataset = _write_dataset(group, "values", _encode(field, joined))
    if field.dtype == ACTIVATION and dataset.dtype == np.uint16:
        _set_text(dataset, "encoding", "bfloat16")
    _write_dataset(group, "offsets", offsets)
    _write_dataset(group, "shapes", np.array([a.shape for a in arrays], dtype=np.int64))
    if field.dtype == ACTIVATION:
        sums = [checksum(layer) for array in arrays for layer in _layers(array)]
        _write_dataset(group, "layer_crc32", np.array(sums, dtype=np.uint32))


def _joined(arrays: Sequence[Array]) -> Array:
    """One after another; of one array no copy, which may be of gigabytes."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _layers(states: Array) -> Array:
    """States of one layer, and of one sample where there are such, after each other."""
    return states.reshape(math.prod(states.shape[:-2]), *states.shape[-2:])


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
    dataset.attrs["crc32"] = checksum(array)
    return dataset


def _set_text(owner: h5py.HLObject, name: str, text: str | Sequence[str]) -> None:
    # Of fixed length: HDF5 keeps no checksum where strings of variable length lie.
    array = np.char.encode(np.asarray(text), "utf-8")
    owner.attrs.create(name, array, dtype=h5py.string_dtype("utf-8", array.dtype.itemsize))


def read_fingerprint(path: Path) -> JsonObject:
    """What the part's numbers were determined by.

    Raises:
        DamagedPartError: the file is not a complete part.
        KtraceError: it is of another schema version, or may not be read.
    """
    with opened(path) as part:
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
    with opened(path) as part:
        return part.provenance(), part.n_facts


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
    with opened(path) as part:
        if expected is not None:
            require_same(path, part.fingerprint(), expected)
        columns = part.columns(schema, names)
        return [
            {name: column[row] for name, column in columns.items()} for row in range(part.n_facts)
        ]


def read_layer(
    path: Path,
    schema: Schema,
    name: str,
    rows: Sequence[LayerRow | None],
    expected: Mapping[str, object] | None = None,
) -> list[Array | None]:
    """Read one layer of the states in a part; no other layer's bytes are touched.

    Args:
        path: the part.
        schema: of its store.
        name: of the field.
        rows: of each fact, what is wanted of it; None for nothing.
        expected: the fingerprint of its store; None where nothing is known of it.

    Returns:
        Of each fact, the field without that axis; without any value where the field has none.

    Raises:
        DamagedPartError: the part is incomplete, a checksum does not fit, or layers differ.
        KtraceError: it is of other settings or another schema version, or may not be read.
    """
    with opened(path) as part:
        if expected is not None:
            require_same(path, part.fingerprint(), expected)
        if len(rows) != part.n_facts:
            raise ValueError(f"it is of {part.n_facts} facts, {len(rows)} are known")
        return part.layer(name, schema[name], rows)


def verify_part(path: Path, schema: Schema) -> None:
    """Read a part as a whole, one field in memory at a time.

    Raises:
        DamagedPartError: as `read_part` would of any field.
        KtraceError: it is of another schema version, or may not be read.
    """
    with opened(path) as part:
        related: dict[str, Sequence[object]] = {}
        for name, field in schema.items():
            column = part.column(name, field)
            if name in RELATED:
                related[name] = column
        part.require_fitting(related)
        part.fingerprint()
        part.provenance()
