"""Parts: what goes in comes out, damage is seen, and nothing half-written stays behind."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.errors import DamagedPartError, KtraceError
from ktrace.files import new_file, write_text
from ktrace.store import ACTIVATIONS, CLEAN, Row
from ktrace.store import RESTORED as ALL_RESTORED
from ktrace.store import opened as opened_module
from ktrace.store.part import part_name, read_fingerprint, read_part, write_part
from ktrace.store.schema import VERSION
from ktrace.terms import SITES

# One metric is enough here: all have the same field.
RESTORED = {name: ALL_RESTORED[name] for name in ("index", "known_id", "probability")}

# Every kind of field in one part.
ALL_KINDS = CLEAN | {name: ACTIVATIONS["clean"][name] for name in SITES}

FINGERPRINT = {"model": {"identity": "tiny", "dtype": "float32"}, "noise": {"seed": 1}}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PROBABILITIES = st.one_of(st.floats(0, 1, width=32), st.just(float("nan")))
N_LAYERS, WIDTH = 2, 3


def float_bits(values: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Type, shape and bytes: two arrays are the same only if every bit is."""
    return values.dtype, values.shape, np.ascontiguousarray(values).tobytes()


def assert_same(found: Row, expected: Row) -> None:
    """Compare every field, arrays bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        field = ALL_KINDS.get(name) or RESTORED[name]
        if field.dtype == "text":
            assert found[name] == value, name
        elif field.axes and field.dtype == "activation":
            assert float_bits(found[name]) == float_bits(value), name
        elif field.axes:
            assert float_bits(found[name]) == float_bits(np.asarray(value, field.dtype)), name
        else:
            np.testing.assert_array_equal(found[name], np.asarray(value, field.dtype), name)


@st.composite
def clean_records(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Ragged facts of one model: one activation type, candidates with states, others without."""
    dtype = draw(st.sampled_from(["float32", "float16", "uint16"]))
    records = []
    for index in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 5))
        candidate = draw(st.booleans())
        shape = (N_LAYERS, length, WIDTH) if candidate else (0, 0, 0)
        also = draw(st.lists(st.integers(0, 100), max_size=3))
        bits = draw(st.integers(0, 2**32 - 1))
        states = np.random.RandomState(bits).bytes(np.dtype(dtype).itemsize * int(np.prod(shape)))
        activations = np.frombuffer(states, dtype=dtype).reshape(shape)
        records.append(
            {
                "index": index,
                "known_id": draw(st.integers(-(2**63), 2**63 - 1)),
                **{n: draw(TEXTS) for n in ("prompt", "subject", "attribute", "relation_id")},
                "left_out": "" if candidate else "another answer is predicted",
                "is_candidate": candidate,
                "input_ids": draw(
                    st.lists(st.integers(0, 10**6), min_size=length, max_size=length)
                ),
                "tokens": draw(st.lists(TEXTS, min_size=length, max_size=length)),
                "offsets": [(i, i + 1) for i in range(length)],
                "roles": [""] * length,
                "span": (0, 1),
                "answer_ids": draw(st.lists(st.integers(0, 100), max_size=3)),
                "also_ids": also,
                "also_lengths": [1] * len(also),
                "predicted_ids": [3],
                "predicted": draw(TEXTS),
                "predicted_probability": draw(PROBABILITIES),
                "probability": draw(PROBABILITIES),
                **dict.fromkeys(SITES, activations),
            }
        )
    return records


@settings(max_examples=40, deadline=None, derandomize=True)
@given(clean_records())
def test_clean_records_come_back_bit_for_bit(records: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_part(Path(folder), ALL_KINDS, FINGERPRINT, records)
        found = read_part(path, ALL_KINDS, ALL_KINDS)
        assert read_fingerprint(path) == FINGERPRINT
        with h5py.File(path) as file:
            encoding = file["hidden"]["values"].attrs.get("encoding")
        assert (encoding == b"bfloat16") == (records[0]["hidden"].dtype == np.uint16)
    assert len(found) == len(records)
    for one, other in zip(found, records, strict=True):
        assert_same(one, other)


shapes = st.tuples(*(st.integers(0, most) for most in (3, 3, 2, 4)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(shapes, min_size=1, max_size=4))
def test_ragged_scores_come_back_with_their_shapes(wanted: list[tuple[int, ...]]) -> None:
    records = [
        {
            "index": row,
            "known_id": row,
            "probability": np.random.RandomState(row).rand(*shape).astype(np.float32),
        }
        for row, shape in enumerate(wanted)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write_part(Path(folder), RESTORED, FINGERPRINT, records)
        found = read_part(path, RESTORED, RESTORED)
    for one, other in zip(found, records, strict=True):
        assert_same(one, other)


def two_records() -> list[dict[str, Any]]:
    """Two facts of unequal length."""
    return [
        {
            "index": row,
            "known_id": 10 + row,
            "probability": np.random.RandomState(row).rand(2, 2, 1, 3 + row).astype(np.float32),
        }
        for row in range(2)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good part."""
    return write_part(tmp_path / "store", RESTORED, FINGERPRINT, two_records())


def test_nothing_is_padded_and_no_text_is_of_variable_length(path: Path) -> None:
    with h5py.File(path) as file:
        assert file["probability"]["values"].shape == (2 * 2 * (3 + 4),)
        assert file["probability"]["offsets"][:].tolist() == [0, 12, 28]
        assert file["probability"]["values"].dtype == np.float32
        kinds = [file.attrs.get_id("fingerprint").get_type()]
        kinds.append(file["probability"].attrs.get_id("axes").get_type())
    assert [kind.is_variable_str() for kind in kinds] == [False, False]
    assert [kind.get_cset() for kind in kinds] == [h5py.h5t.CSET_UTF8] * 2


def test_text_fields_are_fixed_utf8(tmp_path: Path) -> None:
    schema = {name: CLEAN[name] for name in ("index", "prompt", "tokens")}
    record = {"index": 0, "prompt": "Zürich", "tokens": ["Zü", "", "rich 東京"]}
    path = write_part(tmp_path, schema, {}, [record])
    with h5py.File(path) as file:
        for dataset in (file["prompt"], file["tokens"]["values"]):
            kind = h5py.check_string_dtype(dataset.dtype)
            assert kind is not None
            assert kind.encoding == "utf-8"
            assert kind.length is not None
    assert read_part(path, schema, schema) == [record]


def test_text_with_nul_is_refused_instead_of_cut(tmp_path: Path) -> None:
    schema = {name: CLEAN[name] for name in ("index", "prompt")}
    with pytest.raises(ValueError, match="NUL"):
        write_part(tmp_path, schema, {}, [{"index": 0, "prompt": "ends in\0"}])
    assert list(tmp_path.iterdir()) == []


def test_a_value_with_the_wrong_axes_is_refused(tmp_path: Path) -> None:
    record = {"index": 0, "known_id": 0, "probability": np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match="axes"):
        write_part(tmp_path, RESTORED, FINGERPRINT, [record])
    assert list(tmp_path.iterdir()) == []


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_in_the_values_is_seen(path: Path) -> None:
    with h5py.File(path) as file:
        start = file["probability"]["values"].id.get_offset()
    flip(path, start + 5)
    with pytest.raises(DamagedPartError, match=r"probability/values does not fit its checksum"):
        read_part(path, RESTORED, ["probability"])
    assert [r["index"] for r in read_part(path, RESTORED, ["index"])] == [0, 1]


def test_no_flipped_byte_gives_other_numbers(path: Path) -> None:
    """Wherever it lies, also in HDF5's own structures: the same numbers, or `DamagedPartError`."""
    good = read_part(path, RESTORED, RESTORED)
    size = path.stat().st_size
    content = path.read_bytes()
    damaged = 0
    for at in range(0, size, 11):
        flip(path, at)
        try:
            assert read_fingerprint(path) == FINGERPRINT, at
            for one, other in zip(read_part(path, RESTORED, RESTORED), good, strict=True):
                assert_same(one, other)
        except DamagedPartError:
            damaged += 1
        path.write_bytes(content)
    assert damaged > 50


@pytest.mark.parametrize("kept", [0, 1, 100, -1000, -1])
def test_a_truncated_part_is_seen(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    for read in (lambda: read_part(path, RESTORED, ["index"]), lambda: read_fingerprint(path)):
        with pytest.raises(DamagedPartError, match=path.name):
            read()


def test_a_part_without_end_marker_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(DamagedPartError, match="no end marker"):
        read_part(path, RESTORED, ["index"])


def test_another_schema_version_is_refused_with_both_values(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_module, "VERSION", VERSION + 1)
    # Not as damage, which would be set aside: another ktrace can read it.
    said = rf"schema version {VERSION}, this ktrace reads version {VERSION + 1}"
    with pytest.raises(KtraceError, match=said):
        read_part(path, RESTORED, ["index"])


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["index"] = [0]
    with pytest.raises(DamagedPartError, match="it is no part"):
        read_fingerprint(path)


def test_a_part_that_cannot_be_reached_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> h5py.File:
        raise OSError(5, "a disk that fails for now, or a network that is gone")

    monkeypatch.setattr(opened_module.h5py, "File", refuse)
    with pytest.raises(KtraceError, match="cannot be read: Input/output error"):
        read_part(path, RESTORED, ["index"])


def test_the_same_facts_give_the_same_name() -> None:
    assert part_name([3, 1, 2]) == part_name([3, 1, 2])
    assert part_name([3, 1, 2]).startswith("part-000001-")
    assert part_name([1, 2]) != part_name([1, 3])
    assert part_name([1, 2]) != part_name([12])


def test_new_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with new_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename across file systems is no one step"
        temporary.write_text("whole")
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    assert target.read_text() == "whole"


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(28, "full")])
def test_new_file_leaves_the_old_one_on_an_exception(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def interrupted() -> None:
        with new_file(target) as temporary:
            temporary.write_text("half of the n")
            raise error

    expected = KtraceError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


def test_new_file_does_not_meet_what_a_killed_run_left(tmp_path: Path) -> None:
    """Process ids come again in containers, so the temporary name must not be made of them."""
    names = set()
    for _ in range(2):
        with new_file(tmp_path / "file.txt") as temporary:
            names.add(temporary.name)
            temporary.write_text("")
    assert len(names) == 2


def test_an_unwritable_folder_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(KtraceError, match=r"output_dir: .* cannot be written"):
            write_text(folder / "x.txt", "")
        with pytest.raises(KtraceError, match=r"output_dir: .* cannot be written"):
            write_part(folder, RESTORED, FINGERPRINT, two_records())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(KtraceError, match=r"x\.txt cannot be written: Permission denied"):
        write_text(tmp_path / "new" / "x.txt", "")


def test_a_full_disk_is_the_users_to_mend_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; HDF5 notices at different moments."""
    pytest.importorskip("resource")
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from ktrace.errors import KtraceError
from ktrace.store import RESTORED
from ktrace.store.part import write_part
record = {"index": 0, "known_id": 0, "probability": np.zeros((10, 16, 1, 100), np.float32)}
for limit in (3000, 20000, 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        fields = {name: RESTORED[name] for name in record}
        write_part(Path(sys.argv[1]), fields, {}, [record])
    except KtraceError as error:
        assert "cannot be written" in str(error), error
    else:
        raise AssertionError(f"{limit} bytes were enough")
"""
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "store").iterdir()) == []
