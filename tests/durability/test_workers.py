"""Runs that share their facts among workers: the bits of one process, whatever ends them."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.runs import (
    N_STORED,
    RUN,
    Runs,
    contents,
    facts_in_parts,
    holds_claim,
    is_alive,
    parts,
)

KILLS = 6


def workers_of(pid: int) -> list[int]:
    """A run's processes beside its first; one that has ended and is not waited for counts not."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [child for child in map(int, text.split()) if is_alive(child)]


def wait_until(condition: Callable[[], bool], pid: int) -> None:
    """Look often until something has happened."""
    while not condition():
        assert is_alive(pid), "it ended too soon to tell anything"
        time.sleep(0.002)


def wait_for_a_claim(pid: int) -> list[int]:
    """Wait until a worker holds facts; returns all that there are, the one that does first."""

    def holder() -> int | None:
        return next((child for child in workers_of(pid) if holds_claim(child)), None)

    wait_until(lambda: len(workers_of(pid)) > 1 and holder() is not None, pid)
    return sorted(workers_of(pid), key=lambda child: not holds_claim(child))


def are_gone(pids: list[int]) -> bool:
    """Whether processes end, soon."""
    for _ in range(500):
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_workers_give_the_bits_of_one_process(
    runs: Runs, whole: Path, tmp_path: Path, count: int
) -> None:
    output = tmp_path / "out"
    pid = runs.start(f"output_dir={output}", f"engine.workers={count}")
    if count > 1:
        wait_until(lambda: len(workers_of(pid)) > 1, pid)
    ended = runs.wait(pid)
    assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)
    assert facts_in_parts(output) == N_STORED, "a fact was computed twice"
    assert not [path for path in output.rglob(".*") if path.is_file()]
    alone = runs.run(f"output_dir={tmp_path / 'alone'}")
    assert ended.said.replace(str(output), "") == alone.said.replace(str(tmp_path / "alone"), "")


def test_runs_with_workers_share_the_work_too(runs: Runs, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    commands = ["engine.workers=2", "engine.workers=3", "engine.workers=1"]
    for pid in [runs.start(f"output_dir={output}", command) for command in commands]:
        ended = runs.wait(pid)
        assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)
    assert facts_in_parts(output) == N_STORED, "a fact was computed twice"


def test_a_run_killed_with_its_workers_at_work_ends_with_the_same_bits(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    """Nobody tells its workers; they end by themselves, and the next run goes on at once."""
    draw, output = random.Random(5), tmp_path / "out"
    for _ in range(KILLS):
        pid = runs.start(f"output_dir={output}", f"engine.workers={draw.randint(2, 4)}")
        n_parts = len(parts(output)) + draw.randint(0, 3)
        seen: list[int] = []
        while is_alive(pid) and not (seen and len(parts(output)) >= n_parts):
            seen = workers_of(pid) or seen
            time.sleep(0.002)
        if not is_alive(pid):  # it was faster
            assert runs.wait(pid).code == 0
            shutil.rmtree(output)
            continue
        seen = workers_of(pid) or seen
        os.kill(pid, signal.SIGKILL)
        runs.wait(pid)
        assert are_gone(seen), "workers outlived their run"
    ended = runs.run(f"output_dir={output}", "engine.workers=2")
    assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)


@pytest.mark.parametrize("to_all", [False, True], ids=["to the run", "to its terminal"])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_all_with_one_message_and_keeps_what_is_finished(
    runs: Runs, whole: Path, tmp_path: Path, number: int, code: int, word: str, to_all: bool
) -> None:
    output = tmp_path / "out"
    pid = runs.start(f"output_dir={output}", "engine.workers=3")
    # A claim that was just taken has nothing finished to keep.
    wait_until(lambda: any(parts(output)), pid)
    children = wait_for_a_claim(pid)
    before = parts(output)
    # A terminal signals a whole group, in any order.
    for each in [*(children if to_all else []), pid]:
        os.kill(each, number)
    ended = runs.wait(pid)
    assert ended.code == code, ended.output
    line = f"ktrace: {word}; the same command goes on where this run stopped\n"
    assert ended.output.endswith(line)
    before_it = ended.said.removesuffix(line)
    assert not before_it or before_it.startswith("Exception ignored in")
    assert not any(map(is_alive, children))
    assert not [path for path in output.rglob(".*") if path.is_file()]
    assert before
    assert before.items() <= parts(output).items()
    assert runs.run(f"output_dir={output}", "engine.workers=2").code == 0
    assert contents(output / RUN) == contents(whole / RUN)


def test_a_worker_that_the_system_kills_ends_the_run_in_a_line(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    pid = runs.start(f"output_dir={output}", "engine.workers=3")
    victim, *others = wait_for_a_claim(pid)
    os.kill(victim, signal.SIGKILL)
    ended = runs.wait(pid)
    assert (ended.code, ended.said) == (
        1,
        "ktrace: engine.workers=3: one of them was ended by SIGKILL, as by the system when memory "
        "runs out: fewer take less; the same command goes on where this run stopped\n",
    )
    assert not any(map(is_alive, others))
    assert runs.run(f"output_dir={output}", "engine.workers=2").code == 0
    assert contents(output / RUN) == contents(whole / RUN)


def test_an_error_of_all_workers_is_told_once(runs: Runs, tmp_path: Path) -> None:
    ended = runs.run(f"output_dir={tmp_path / 'out'}", "engine.workers=3", "noise.std=1e300")
    assert ended.code == 1
    assert ended.said.startswith("ktrace: known_id=10")
    assert ended.output.count("gives no numbers") == ended.said.count("\n") == 1


def test_shards_share_their_own_facts_among_workers(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for number in (2, 1):
        ended = runs.run(f"output_dir={output}", f"shard={number}/2", "engine.workers=2")
        assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)
    assert facts_in_parts(output) == N_STORED
