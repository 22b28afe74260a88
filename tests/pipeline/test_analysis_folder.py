"""`analysis.folder`: stores that cannot be written are analysed, compared, and stay as they are."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.command import Ended, Ktrace, refused

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")

NOISES = [f"gaussian-x3-n1-seed{seed}" for seed in (1, 2)]


@pytest.fixture
def stored(ktrace: Ktrace, own: tuple[str, ...]) -> Callable[..., Ended]:
    """Two runs below `stores`; runs the command on them."""

    def run(*arguments: str) -> Ended:
        return ktrace(*own, "noise.samples=1", "output_dir=stores", *arguments)

    for seed in (1, 2):
        assert run("stage=restore", f"noise.seed={seed}").code == 0
    return run


@pytest.fixture
def read_only(stored: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a file system mounted so; permissions would not hold root back.

    Whatever writes is told so: to open for writing, to make, to rename, to remove.
    """
    root = Path("stores").absolute()
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def is_inside(path: Any) -> bool:
        return not isinstance(path, int) and Path(path).absolute().is_relative_to(root)

    def refuse(path: Any) -> None:
        if is_inside(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def guarded(original: Any, needs: Callable[..., bool] = lambda *_, **__: True) -> Any:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if needs(*args, **options):
                refuse(path)
            return original(path, *args, **options)

        return call

    def opens(mode: str = "r", *_: Any, **__: Any) -> bool:
        return not set(mode).isdisjoint("wax+")

    access = os.access
    for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    monkeypatch.setattr(os, "open", guarded(os.open, lambda flags, *_, **__: bool(flags & writes)))
    monkeypatch.setattr(io, "open", guarded(io.open, opens))
    monkeypatch.setattr("builtins.open", io.open)
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode, **options: (
            not (mode & os.W_OK and is_inside(path)) and access(path, mode, **options)
        ),
    )
    before = contents(root)
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").write_text("")
    yield
    assert contents(root) == before


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.usefixtures("read_only")
def test_a_run_is_analysed_elsewhere(stored: Callable[..., Ended]) -> None:
    ended = stored("stage=analyze", "analysis.folder=there/mine")
    assert ended.code == 0, ended.stderr
    names = {path.name for path in Path("there/mine").iterdir()}
    assert {"aie.csv", "summary.json", "report.html", "effects.parquet", "runs"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert len(list(Path("there/mine/runs").glob("*.yaml"))) == 1
    assert "more to there/mine\n" in ended.stdout


@pytest.mark.usefixtures("read_only")
def test_without_it_one_line_names_it(stored: Callable[..., Ended]) -> None:
    refused(stored("stage=analyze"), "stores/random", "read-only", "analysis.folder=...")


@pytest.mark.usefixtures("read_only")
def test_so_it_does_where_only_writing_tells(
    stored: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktrace.files.os.access", lambda *_: True)
    refused(stored("stage=analyze"), "Read-only file system", "analysis.folder=...")


@pytest.mark.usefixtures("read_only")
def test_runs_are_compared_elsewhere(stored: Callable[..., Ended]) -> None:
    ended = stored("stage=compare", "runs=stores/*/*/*")
    assert ended.code == 1
    *unread, line = ended.stderr.splitlines()
    assert all("has no effect" in told for told in unread)  # what other stages read
    assert line.startswith("ktrace: ")
    assert "read-only; analysis.folder=..." in line
    ended = stored("stage=compare", "runs=stores/*/*/*", "analysis.folder=there")
    assert ended.code == 0, ended.stderr
    assert pd.read_csv("there/runs.csv")["run"].tolist() == NOISES


def test_candidates_go_there(stored: Callable[..., Ended]) -> None:
    ended = stored("stage=filter", "analysis.folder=there")
    assert "there/candidates.csv" in ended.stdout
    assert len(pd.read_csv("there/candidates.csv")) == 7


@pytest.mark.usefixtures("read_only")
def test_runs_without_candidates_say_what_was_predicted_elsewhere(
    stored: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktrace.analysis.stored.Survey.candidates", {})
    refused(stored("stage=analyze", "analysis.folder=there"), "there/candidates.csv says")


@pytest.mark.parametrize(
    ("folder", "part"), [("", "analysis.folder is empty"), ('"~/x"', "as $HOME"), ("file", "file")]
)
def test_what_is_no_folder_is_refused(
    ktrace: Ktrace, own: tuple[str, ...], folder: str, part: str
) -> None:
    Path("file").write_text("kept")
    refused(ktrace(*own, f"analysis.folder={folder}"), "analysis.folder", part)
    assert not Path("outputs").exists()
