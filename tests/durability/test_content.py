"""Parts from strangers whose checksums fit: what no run writes is damage, however it is put."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import pytest

from ktrace.analysis.stored import survey
from ktrace.errors import DamagedPartError, KtraceError
from ktrace.store import CLEAN, RunFolders, Store
from ktrace.store.binding import read_binding
from ktrace.store.layout import provenance_of
from ktrace.store.opened import checksum
from ktrace.store.part import read_part, verify_part
from tests.support.stores import write_run

ROUNDS = 520
KEYS = ("hidden",)
STRANGE: tuple[Any, ...] = (
    *({}, [], 3, "x", None, True, {"model": 3}, {"model": None}, {"noise": {"kind": 3}}),
    *({"noise": 3}, {"config": {"dataset": [1]}}, {"config": {"dataset": {"limit": "x"}}}),
    *({"wall_seconds": "long"}, {"wall_seconds": float("nan")}, {"written": 5}, {"run": {}}),
    *({"noise": {"measured_on": 3}}, {"dataset": {"n_facts": -1}}, {"model": "\ud800"}),
    *({"noise": {"measured_on": {}}}, {"config": 3}, {"versions": [1]}, {"mediator": 3}),
)


def put(file: h5py.File, name: str, array: Any) -> None:
    """A dataset in place of another, with a checksum that fits."""
    del file[name]
    dataset = file.create_dataset(name, data=array)
    dataset.attrs["crc32"] = checksum(np.asarray(array))


def text(file: h5py.File, name: str, value: str) -> None:
    array = np.char.encode(np.asarray(value), "utf-8", "surrogatepass")
    file.attrs.create(name, array, dtype=h5py.string_dtype("utf-8", max(array.dtype.itemsize, 1)))


def datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
    return found


def other_number(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice(datasets(file))
    values = file[name][()]
    if not values.size or values.dtype.kind == "S":
        other_rank(file, draw)
        return
    strange = (
        [-1, 0, 2**31, 2**62, -(2**63)]
        if values.dtype.kind in "iu"
        else [*(float("nan"), float("inf"), -float("inf"), -0.5, 1.5, 1e30)]
    )
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        flat[draw.randrange(len(flat))] = np.array(draw.choice(strange)).astype(values.dtype)
    put(file, name, values)


def other_rank(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice(datasets(file))
    values = file[name][()]
    put(
        file,
        name,
        draw.choice(
            [
                values[None],
                values[..., None],
                values.reshape(-1)[:1].sum() if values.dtype.kind != "S" else values[None],
                np.concatenate([values, values]),
            ]
        ),
    )


def other_type(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice(datasets(file))
    kind = draw.choice(["float16", "float64", "int8", "uint64", "bool", "complex64"])
    values = file[name][()]
    put(file, name, np.zeros(values.shape, kind))


def other_axes(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice([name for name, item in file.items() if isinstance(item, h5py.Group)])
    axes = list(file[name].attrs["axes"])
    draw.choice([axes.reverse, lambda: axes.append(b"extra"), axes.clear])()
    if draw.random() < 0.5:
        shapes = file[f"{name}/shapes"][()]
        put(file, f"{name}/shapes", shapes[:, ::-1].copy())
    else:
        file[name].attrs["axes"] = np.array(axes or [b"none"])


def other_text(file: h5py.File, draw: random.Random) -> None:
    names = [name for name in datasets(file) if file[name].dtype.kind == "S"]
    if not names:
        other_type(file, draw)
        return
    name = draw.choice(names)
    values = file[name][()]
    values.reshape(-1)[:1] = b"\xff\xfe"[: max(1, values.dtype.itemsize)]
    put(file, name, values)


def other_name(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice([*file])
    file.move(name, f"{name}2")


def other_attribute(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice(["n_facts", "schema_version", "complete"])
    file.attrs[name] = draw.choice([-1, 0, 7, 2**40, "x", [1, 2], 1.5, float("nan")])


def other_print(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice(["fingerprint", "provenance"])
    value = draw.choice(STRANGE)
    if name == "fingerprint" and draw.random() < 0.5 and isinstance(value, dict):
        value = json.loads(file.attrs[name]) | value
    text(file, name, draw.choice([json.dumps(value), "[" * 500, "{", "1e999", ""]))


def twice(file: h5py.File, draw: random.Random) -> None:
    indices = file["index"][()]
    put(file, "index", np.full(max(len(indices), 2), indices[0]))


MUTATIONS: tuple[Callable[[h5py.File, random.Random], None], ...] = (
    *(other_number, other_number, other_number, other_rank, other_type, other_axes),
    *(other_text, other_name, other_attribute, other_print, other_print, twice),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolders:
    return write_run(tmp_path_factory.mktemp("content"), KEYS)


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Nothing takes longer than 5 s: a pipe that is waited for would."""

    def late(_: int, __: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 5, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def told(store: Store, path: Path) -> list[str]:
    verify_part(path, store.schema)
    return [repr(sorted(row.items())) for row in read_part(path, store.schema, store.schema)]


def refusal(store: Store, path: Path) -> str | list[str]:
    """Why a part is not taken; or what it tells."""
    try:
        found = told(store, path)
        store.fingerprint()
        store.provenance()
    except (KtraceError, DamagedPartError) as error:
        return str(error)
    return found


@pytest.mark.usefixtures("no_hang")
def test_no_content_is_taken_that_no_run_writes(made: RunFolders, tmp_path: Path) -> None:
    """Each part is damaged, or refused in a line, or its numbers are such as runs give."""
    draw = random.Random(16)
    stores = [made.clean, made.corrupted, made.restored("hidden"), made.activations("clean")]
    choices = [(store, path) for store in stores for path in store.parts()]
    genuine = {path: told(store, path) for store, path in choices}
    refused = 0
    for number in range(ROUNDS):
        store, original = draw.choice(choices)
        folder = tmp_path / original.parent.name
        folder.mkdir(exist_ok=True)
        path = folder / original.name
        shutil.copyfile(original, path)
        mutate = draw.choice(MUTATIONS)
        with h5py.File(path, "r+") as file:
            mutate(file, draw)
        signal.setitimer(signal.ITIMER_REAL, 5, 5)
        found = refusal(Store(folder, store.schema), path)
        if isinstance(found, str):
            assert "\n" not in found, (number, mutate.__name__, found)
            refused += 1
        else:
            same = found == genuine[original]
            # What a run may give as well is no damage to see: a score, an id, a type of states.
            legal = (*LEGAL, other_type) if store.folder.parent.name == "activations" else LEGAL
            assert same or mutate in legal, (number, mutate.__name__, store.folder)
        path.unlink()
    assert refused >= ROUNDS * 0.7


LEGAL = (other_number, other_text, other_rank)
SEVERAL = pytest.mark.usefixtures("no_hang")


@SEVERAL
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("span/values", [5, 2]),
        ("span/values", [0, 10**6]),
        ("input_ids/values", [-1]),
        ("offsets/values", [-3, 2]),
        ("offsets/values", [2**40, 2**41]),
        ("predicted_probability", [1.5]),
        ("probability", [-0.25]),
        ("probability", [float("inf")]),
        ("index", [-1]),
    ],
)
def test_a_number_out_of_its_range_is_damage(
    made: RunFolders, tmp_path: Path, name: str, value: list[Any]
) -> None:
    path = tmp_path / "part-000000-00000000.h5"
    shutil.copyfile(made.clean.parts()[0], path)
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        values.reshape(-1)[: len(value)] = value
        put(file, name, values)
    with pytest.raises(DamagedPartError, match=name.split("/")[0]):
        verify_part(path, CLEAN)


@SEVERAL
def test_scores_lack_in_whole_layers_or_not_at_all(made: RunFolders, tmp_path: Path) -> None:
    store = made.restored("hidden")
    path = tmp_path / "part-000000-00000000.h5"
    shutil.copyfile(store.parts()[0], path)
    with h5py.File(path, "r+") as file:
        shape = file["probability/shapes"][0]
        values = file["probability/values"][()]
        first = values[: int(shape.prod())].reshape(shape)
        first[:, 1] = np.nan
        put(file, "probability/values", values)
    verify_part(path, store.schema)
    with h5py.File(path, "r+") as file:
        values[0] = np.nan
        put(file, "probability/values", values)
    with pytest.raises(DamagedPartError, match="lacks scores"):
        verify_part(path, store.schema)


@SEVERAL
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_called_a_part_and_is_no_file_is_damage(
    made: RunFolders, tmp_path: Path, kind: str
) -> None:
    folders = RunFolders(tmp_path / made.run.relative_to(made.run.parents[2]))
    shutil.copytree(made.run.parent, folders.run.parent)
    store, fingerprint = folders.clean, folders.clean.fingerprint()
    path = store.folder / "part-000000-00000000.h5"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(KtraceError, match="no regular file"):
        survey(folders, whole_dataset=True)
    assert len(store.done(fingerprint or {})) == 6
    assert not path.exists()


@SEVERAL
@pytest.mark.parametrize("content", ["pipe", b"{}", b"[" * 10**5, b'{"fingerprint": {}}', b"\xff"])
def test_a_strangers_binding_is_damage(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "store.json"
    if isinstance(content, str):
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(KtraceError, match="damaged: "):
        read_binding(tmp_path)


@SEVERAL
def test_a_fingerprint_that_says_nothing_is_damage(made: RunFolders, tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / made.run.relative_to(made.run.parents[2]))
    shutil.copytree(made.run.parent, folders.run.parent)
    (folders.clean.folder / "store.json").unlink()
    fingerprint = folders.clean.fingerprint() or {}
    first, *_ = folders.clean.parts()
    with h5py.File(first, "r+") as file:
        text(file, "fingerprint", "{}")
    with pytest.raises(KtraceError, match=r"damaged: .* says no model"):
        survey(folders, whole_dataset=True)
    assert len(folders.clean.done(fingerprint)) == 5
    assert provenance_of(folders, KEYS)
