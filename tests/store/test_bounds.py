"""Parts from strangers: what declares more than its bytes, or reaches elsewhere, is not read."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ktrace.errors import DamagedPartError
from ktrace.store import Field
from ktrace.store.part import read_fingerprint, read_part, write_part

SCHEMA = {
    "index": Field("int64"),
    "prompt": Field("text"),
    "probability": Field("float32", ("sample", "layer")),
}
HUGE = 10**12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good part."""
    records = [
        {"index": row, "prompt": "a", "probability": np.ones((2, 3), np.float32)}
        for row in range(2)
    ]
    return write_part(tmp_path / "store", SCHEMA, {"a": 1}, records)


def replaced(file: h5py.File, name: str, crc32: int = 0, **options: object) -> None:
    """Put another dataset in place of one."""
    del file[name]
    file.create_dataset(name, **options).attrs["crc32"] = crc32


def never_written(file: h5py.File) -> None:
    replaced(file, "index", shape=(HUGE,), dtype="int64")


def compressed(file: h5py.File) -> None:
    replaced(file, "index", shape=(HUGE,), dtype="int64", chunks=(10**6,), compression="gzip")


def external(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(bytes(16))
    replaced(file, "index", shape=(2,), dtype="int64", external=[(str(secret), 0, 16)])


def virtual(file: h5py.File) -> None:
    del file["index"]
    layout = h5py.VirtualLayout(shape=(2,), dtype="int64")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "index", shape=(2,))
    file.create_virtual_dataset("index", layout).attrs["crc32"] = 0


def linked(file: h5py.File) -> None:
    del file["index"]
    file["index"] = h5py.ExternalLink("elsewhere.h5", "/index")


def linked_inside(file: h5py.File) -> None:
    del file["index"]
    file["index"] = h5py.SoftLink("/prompt")


def variable_text(file: h5py.File) -> None:
    del file["prompt"]
    dataset = file.create_dataset("prompt", data=["a", "b"], dtype=h5py.string_dtype())
    dataset.attrs["crc32"] = 0


def other_type(file: h5py.File) -> None:
    replaced(file, "index", data=np.zeros(2, np.float64))


def negative_shape(file: h5py.File) -> None:
    file["probability"]["shapes"][0] = [-1, 3]


def other_facts(file: h5py.File) -> None:
    file.attrs["n_facts"] = HUGE


def variable_attribute(file: h5py.File) -> None:
    file.attrs["fingerprint"] = "{}"


def no_object(file: h5py.File) -> None:
    file.attrs["fingerprint"] = np.bytes_(b"[1]")


def deep(file: h5py.File) -> None:
    file.attrs["fingerprint"] = np.bytes_(b"[" * 50_000)


def one_dataset(file: h5py.File) -> None:
    del file["probability"]
    file["probability"] = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (never_written, "declares 8000000000000 bytes; 0 are stored"),
        (compressed, "index is not stored plainly"),
        (external, "index is not stored plainly"),
        (virtual, "index is not stored plainly"),
        (linked, "index leads out of the file"),
        (linked_inside, "index leads out of the file"),
        (variable_text, "prompt is of variable length"),
        (other_type, "index is of type float64, not int64"),
        (negative_shape, "does not fit its checksum"),
        (other_facts, "index is of 2 facts, the part of 1000000000000"),
        (variable_attribute, "attribute fingerprint is of variable length"),
        (no_object, "fingerprint is no JSON object"),
        (deep, "recursion"),
        (one_dataset, "probability is no group"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_part_that_claims_too_much_is_refused(
    path: Path, change: Callable[[h5py.File], None], why: str
) -> None:
    assert len(read_part(path, SCHEMA, SCHEMA)) == 2
    with h5py.File(path, "r+") as file:
        change(file)

    def read() -> None:
        read_fingerprint(path)
        read_part(path, SCHEMA, SCHEMA)

    with pytest.raises(DamagedPartError, match=why):
        read()


@pytest.mark.parametrize("shapes", [[[-2, -3], [2, 3]], [[2**62, 4], [2, 3]], [[3, 2], [3, 3]]])
def test_shapes_that_do_not_fit_the_values_are_refused(path: Path, shapes: list[list[int]]) -> None:
    import zlib

    with h5py.File(path, "r+") as file:
        dataset = file["probability"]["shapes"]
        dataset[...] = shapes
        dataset.attrs["crc32"] = zlib.crc32(np.array(shapes, np.int64))  # as a stranger can
    with pytest.raises(DamagedPartError, match="probability has"):
        read_part(path, SCHEMA, ["probability"])
