"""Damage, full disks and read-only folders: noticed, and mended by the same command."""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest

from ktrace.store import Store
from ktrace.store.part import read_fingerprint
from tests.support.runs import RUN, Runs, contents, facts_in_parts, parts, stores_of

ROUNDS = 240


def damage(content: bytes, draw: random.Random) -> bytes:
    """Cut a file, or change some of its bytes."""
    if draw.random() < 0.35:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= draw.randrange(1, 256)
    return bytes(changed)


def test_no_damage_changes_a_number_silently(whole: Path, tmp_path: Path) -> None:
    """Each is either set aside, with its facts lacking, or every field reads as before."""
    draw = random.Random(6)
    choices = [(store.schema, path) for store in stores_of(whole / RUN) for path in store.parts()]
    harmless = 0
    for number in range(ROUNDS):
        schema, original = draw.choice(choices)
        good = original.read_bytes()
        bad = damage(good, draw)
        store = Store(tmp_path / str(number), schema)
        store.folder.mkdir()
        path = store.folder / original.name
        path.write_bytes(bad)
        if store.done(read_fingerprint(original)):
            harmless += 1
            assert path.read_bytes() == bad
            found = [repr(list(record.items())) for record in store.read(*schema)]
            path.write_bytes(good)
            assert found == [repr(list(record.items())) for record in store.read(*schema)]
        else:
            aside = [file.name for file in store.folder.iterdir()]
            assert aside == [f"damaged-{original.name}"]
            assert (store.folder / aside[0]).read_bytes() == bad
        shutil.rmtree(store.folder)
    # A changed number that nobody notices would count as harmless too, if it were not compared.
    assert ROUNDS - harmless >= 200


def test_damaged_parts_are_computed_again_by_the_same_command(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    draw = random.Random(7)
    output = tmp_path / "out"
    for _ in range(2):
        shutil.copytree(whole, output)
        bad = draw.sample(sorted(parts(output)), 10)
        for path in bad:
            path.write_bytes(damage(path.read_bytes(), draw)[:-1])
        untouched = {path: state for path, state in parts(output).items() if path not in bad}
        ended = runs.run(f"output_dir={output}")
        assert ended.code == 0, ended.output
        for path in bad:
            assert f"damaged: {path}: " in ended.output
            assert path.with_name(f"damaged-{path.name}").is_file()
        assert untouched.items() < parts(output).items()
        assert contents(output / RUN) == contents(whole / RUN)
        shutil.rmtree(output)


def cut_short(content: bytes, values: int) -> bytes:
    return content[:-1]


def one_bit(content: bytes, values: int) -> bytes:
    return content[:values] + bytes([content[values] ^ 1]) + content[values + 1 :]


@pytest.mark.parametrize("damaged", [cut_short, one_bit])
@pytest.mark.parametrize(
    ("store", "field"),
    [("../clean", "tokens"), ("corrupted", "logit"), ("restored/hidden", "logit")],
)
def test_the_analysis_refuses_damage_and_touches_nothing(
    runs: Runs,
    whole: Path,
    tmp_path: Path,
    store: str,
    field: str,
    damaged: Callable[[bytes, int], bytes],
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    path = min((output / RUN / store).resolve().glob("part-*.h5"))
    with h5py.File(path) as file:
        values = file[field]["values"].id.get_offset()
    path.write_bytes(damaged(path.read_bytes(), values))
    before = parts(output)
    ended = runs.run(f"output_dir={output}", "stage=analyze")
    assert ended.code == 1
    # What keeps states has no effect there, which is said before.
    assert ended.output.splitlines()[-1].startswith(f"ktrace: damaged: {path}: ")
    assert "without stage=analyze, sets it aside" in ended.output
    assert ended.output.count("\n") == 1 + ended.output.count(" has no effect: ")
    assert parts(output) == before


Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A small file system in memory, and what mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")

    if shutil.which("mount") is None:
        pytest.skip("no file system can be mounted here: there is no mount command")
    mount("size=1m")
    yield folder, mount
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(
    runs: Runs, whole: Path, disk: tuple[Path, Mount]
) -> None:
    folder, mount = disk
    needed = sum(path.stat().st_size for path in whole.rglob("*.h5")) // 1024
    for share in (0.1, 0.5, 0.8):
        mount(f"remount,size={int(needed * share)}k")
        before = parts(folder)
        ended = runs.run(f"output_dir={folder}")
        assert ended.code == 1
        # Clean runs may have been written, and their states not.
        again = "they run again for their states"
        [line] = [told for told in ended.said.splitlines() if again not in told]
        assert line.startswith(f"ktrace: output_dir: {folder}")
        assert line.endswith("cannot be written: No space left on device")
        assert before.items() <= parts(folder).items()
        assert not [path for path in folder.rglob(".*") if path.is_file()]
    mount(f"remount,size={needed * 3}k")
    ended = runs.run(f"output_dir={folder}")
    assert ended.code == 0, ended.output
    assert contents(folder / RUN) == contents(whole / RUN)
    assert facts_in_parts(folder) == facts_in_parts(whole)


def test_a_read_only_folder_is_refused_in_one_line(
    runs: Runs, whole: Path, disk: tuple[Path, Mount]
) -> None:
    """Also for root, whom permissions do not stop."""
    folder, mount = disk
    shutil.copytree(whole, folder / "out")
    mount("remount,ro")
    for output in (folder / "out", folder / "new"):
        ended = runs.run(f"output_dir={output}")
        assert ended.code == 1
        assert ended.output.startswith(f"ktrace: output_dir: {output}")
        assert ended.output.endswith("it is read-only\n")
        assert ended.output.count("\n") == 1
    sweep = runs.run("hydra.mode=MULTIRUN", f"output_dir={folder / 'out'}", "noise.seed=1,2")
    assert sweep.code == 1
    assert sweep.output.endswith("it is read-only\n")
    assert "Traceback" not in sweep.output
    mount("remount,rw")
    assert runs.run(f"output_dir={folder / 'out'}").code == 0
