"""What a person sees of a run at a terminal, and what is left of it in a file."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

import ktrace.__main__ as command
from ktrace.analysis.figures import processes
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.files import Saved
from ktrace.lm import digests, source
from ktrace.lm.digests import CACHE
from ktrace.pipeline import session
from ktrace.pipeline.bars import BYTES, progress, steps, waiting
from ktrace.terms import ROLES
from tests.support.command import Ktrace
from tests.support.places import ROOT
from tests.support.proof import forget_verdicts
from tests.support.terminal import Terminal, in_terminal

LONG_NAME = "a-model-with-a-rather-long-name"
TRACED = ("mediator=all", "noise.samples=2", "activations.corrupted=[mlp]")
# Titles, as far as every width shows them, and what is counted.
STEPS = {
    "hashing a-model-": r"[\d.]+/[\d.]+ kB",
    "loading a-model-": r"\d+/\d+ weights",
    "clean runs": "7/7 facts",
    "proving engine=suf": r"\d+/\d+ cells",
    "restoring 5 mediat": "6/6 facts",
    "states of corrupte": "6/6 facts",
    "reading restored r": "30/30",
    "averaging mediator": "5/5",
    "figures": r"\d/\d",
    "tables": "8/8",
}
SAID = "mlp-w10, attn-w10: a window of 10 of 3 layers hardly tells where"


def bar(title: str, numbers: str) -> re.Pattern[str]:
    """A line of it, with a count, a rate and a time."""
    rate, time = r"\d\S* ?\w*/(s|min|h)", r"(in \d+:\d\d|\d+:\d\d left)"
    return re.compile(rf"{re.escape(title)}.* +[━╸╺]+ +{numbers} {rate} {time}")


@pytest.fixture
def terminal(
    in_folder: Path, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Terminal]:
    """`python -m ktrace ...` in a terminal and an empty folder, with few facts."""
    import ktrace.analysis.analyze as analysis  # once, not in each process

    def drawn(run: object, into: Drawing, **options: object) -> Drawing:
        into.add("aie", "style.nothing")
        return into

    monkeypatch.setattr(session, "_loaded", session._LastModel())  # so that it is loaded
    monkeypatch.setattr(analysis, "draw_figures", drawn)
    monkeypatch.setattr(processes, "_drawn", lambda *_: Saved([], frozenset()))
    monkeypatch.setenv(CACHE, "")
    for module in (digests, source):
        monkeypatch.setattr(module, "LEAST_BYTES", 1)

    def run(columns: int, *arguments: str, **options: Any) -> Terminal:
        def start() -> None:
            logging.root.handlers = []
            GlobalHydra.instance().clear()
            sys.argv = ["ktrace", *own, *arguments]
            command.main()

        return in_terminal(start, columns, **options)

    return run


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_every_step_has_a_bar_with_numbers_and_nothing_wraps(
    terminal: Callable[..., Terminal], columns: int
) -> None:
    forget_verdicts()
    workers = f"engine.workers={2 if columns == 60 else 1}"
    seen = terminal(columns, *TRACED, f"model.name={LONG_NAME}", workers)
    assert seen.code == 0, seen.lines
    for title, numbers in STEPS.items():
        assert any(bar(title, numbers).fullmatch(line) for line in seen.seen), title
    assert b"starting torch" in seen.written
    assert not any("starting torch" in line for line in seen.lines)
    folder = f"outputs/{LONG_NAME}/known/gaussian-x3-n2-seed1/analysis"
    [said] = [line for line in seen.lines if line.startswith(SAID)]
    # Log lines and paths are left whole, to be copied.
    assert set(seen.too_long()) <= {said, folder}
    assert (seen.sane, seen.screen.cursor.hidden) == (True, False)
    assert any(line.endswith(folder) for line in seen.lines)
    assert "report.html and" in "\n".join(seen.lines)
    assert not any("aie.csv" in line for line in seen.lines)
    whole_headers(seen)


def whole_headers(seen: Terminal) -> None:
    """Columns that do not fit beside the others stand below them."""
    heads = [line for line in seen.lines if line.startswith("┃")]
    words = {word for line in heads for word in line.replace("┃", " ").split()}
    assert words == {"mediator", *" ".join(ROLES).split()}
    rows = [line for line in seen.lines if line.startswith("│ hidden_attn_severed ")]
    cells = [cell.strip() for row in rows for cell in row.split("│")[2:-1]]
    assert len(cells) == len(ROLES)
    assert all(re.fullmatch(r"(-?\d\.\d{3} \(\d\))?", cell) for cell in cells)


@pytest.mark.usefixtures("no_proof")
def test_an_interrupt_leaves_the_terminal_as_it_was(terminal: Callable[..., Terminal]) -> None:
    pressed: list[bytes] = []

    def typed(seen: Terminal) -> bytes:
        if pressed or not any("restoring hidden" in line for line in seen.seen):
            return b""
        pressed.append(b"\x03")
        return pressed[0]

    seen = terminal(80, "noise.samples=300", "engine.workers=1", typed=typed)
    assert pressed
    assert seen.code == 130, seen.lines
    assert b"\x1b[?25l" in seen.written
    assert (seen.sane, seen.screen.cursor.hidden) == (True, False)
    assert "ktrace: interrupted; the same command goes on where this run stopped" in seen.lines


def shown() -> None:
    """Steps, and what is logged and printed meanwhile."""
    logging.root.handlers = [logging.StreamHandler(sys.stderr)]
    logging.root.setLevel(logging.INFO)
    with steps(BYTES) as tell:
        tell("hashing 一个名字很长的语言模型", 0, 3_200_000_000)
        sleep(0.05)
        tell("hashing 一个名字很长的语言模型", 3_200_000_000, 3_200_000_000)
    with waiting("starting torch"):
        logging.warning("a warning " + "x" * 100)
    with progress(f"clean runs of {'x' * 80}", 22_000) as advance:
        advance(11_000)
        sleep(0.3)
        print("printed")
        advance(11_000)


def test_what_is_logged_stands_above_the_bars_on_lines_of_its_own() -> None:
    seen = in_terminal(shown, 60)
    assert seen.too_long() == []
    first, *rest = seen.lines
    assert bar("hashing 一个名", "3.2/3.2 GB").fullmatch(first)
    assert rest[:2] == ["a warning", "x" * 60]
    assert "printed" in rest
    assert bar("clean runs", "22000/22000 facts").fullmatch(rest[-1])


def test_no_colour_is_bars_without_colours() -> None:
    colours = re.compile(rb"\x1b\[[\d;]*(3|4|9)\d[\d;]*m")
    assert colours.search(in_terminal(shown, 80).written)
    seen = in_terminal(shown, 80, {"NO_COLOR": "1"})
    assert not colours.search(seen.written)
    assert any(bar("clean runs", "22000/22000 facts").fullmatch(line) for line in seen.lines)


def test_a_dumb_terminal_gets_lines_alone() -> None:
    seen = in_terminal(shown, 200, {"TERM": "dumb"})
    assert b"\x1b" not in seen.written
    assert seen.lines[-3].endswith("x: 22000 facts")
    assert re.fullmatch(r"clean runs of x+: 22000 facts in \d:\d\d, \d+/s", seen.lines[-1])
    assert not any("starting torch" in line for line in seen.lines)


@pytest.mark.usefixtures("no_figures", "no_proof")
def test_where_nobody_watches_there_is_a_line_for_each_step(
    ktrace: Ktrace, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where colours are forced."""
    monkeypatch.setattr(session, "_loaded", session._LastModel())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv(CACHE, "")
    ended = ktrace(*own, "noise.samples=2")
    assert "\x1b" not in ended.stderr
    told = [re.sub(r"[\d.]+", "0", line) for line in ended.stderr.splitlines()]
    assert told == [
        "loading random: 0 weights in 0:0, 0/s",
        "clean runs: 0 facts",
        "clean runs: 0 facts in 0:0, 0/s",
        "restoring hidden: 0 facts",
        "restoring hidden: 0 facts in 0:0, 0/s",
        "reading restored runs: 0 in 0:0, 0/s",
        "averaging mediators: 0 in 0:0, 0/s",
        "tables: 0 in 0:0, 0/s",
    ]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], list[str]]:
    """The last words that bash prints, where `ktrace` is a command."""
    script = tmp_path / "bin" / "ktrace"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom ktrace.__main__ import main\nmain()\n")
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"

    def run(program: str) -> list[str]:
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(
            ["bash", "-c", program], capture_output=True, text=True, env=environment, timeout=60
        )
        assert found.returncode == 0, found.stderr
        return found.stdout.split()

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes words in bash")
def test_bash_completes_choices_and_keys(shell: Callable[[str], list[str]]) -> None:
    """As docs/configuration.md says to set it up."""

    def completed(word: str) -> str:
        return (
            f'COMP_LINE="ktrace {word}" COMP_POINT={7 + len(word)}; COMP_WORDS=(ktrace "{word}"); '
            'COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[@]}"; '
        )

    [setup] = re.findall(r"^eval .*\)\"", (ROOT / "docs/configuration.md").read_text(), re.M)
    words = shell(f"{setup}; {completed('model=gpt2_')} {completed('noise.see')}")
    assert words == ["model=gpt2_large", "model=gpt2_medium", "model=gpt2_xl", "noise.seed="]


def test_the_flags_of_hydra_that_docs_show_go_through(ktrace: Ktrace) -> None:
    ended = ktrace("--info", "defaults-tree", "mediator=mlp")
    assert (ended.code, ended.stderr) == (0, "")
    assert "mediator: mlp" in ended.stdout
