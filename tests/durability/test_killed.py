"""Runs that are killed, terminated, or meet each other: same numbers, and nothing done twice."""

import csv
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.runs import (
    FIVE,
    N_STORED,
    RUN,
    Runs,
    contents,
    facts_in_parts,
    holds_claim,
    is_alive,
    parts,
    state_of,
)

KILLS = 16  # for each of the seeds, whose steps come by every stage


def wait_until(condition: Callable[[], bool], pid: int) -> None:
    """Look often until something has happened, or the run has ended."""
    while is_alive(pid) and not condition():
        time.sleep(0.005)


def stop_with_a_claim(pid: int) -> None:
    """Stop a run at a moment when it holds facts; between two batches it holds none."""
    while True:
        wait_until(lambda: holds_claim(pid), pid)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T", pid)
        assert is_alive(pid), "it ended too soon to tell anything"
        if holds_claim(pid):
            return
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("seed", [13, 71])
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    runs: Runs, whole: Path, tmp_path: Path, seed: int
) -> None:
    """Each run is killed when so many parts or temporary files have come; the next one goes on.

    When everything is there, the store is emptied and the kills go on.
    """
    draw = random.Random(seed)
    output = tmp_path / "out"
    kills, stages_hit, expected = 0, set(), contents(whole / RUN)
    while kills < KILLS:
        before = parts(output)
        grow = draw.randint(0, 3)
        pause = draw.random() * 0.02

        def has_grown(grow: int = grow, n_before: int = len(before)) -> bool:
            return len(parts(output)) >= n_before + grow and (
                grow > 0 or any(output.rglob(".*.tmp"))
            )

        pid = runs.start(f"output_dir={output}")
        wait_until(has_grown, pid)
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        ended = runs.wait(pid)
        after = parts(output)
        assert before.items() <= after.items(), "a complete part was touched"
        if ended.code == -signal.SIGKILL:
            kills += 1
            if after:
                stages_hit.add(max(after, key=after.__getitem__).parent.name)
        else:
            assert ended.code == 0, ended.output
            assert contents(output / RUN) == expected
            shutil.rmtree(output)
    ended = runs.run(f"output_dir={output}")
    assert ended.code == 0, ended.output
    assert contents(output / RUN) == expected
    assert len(stages_hit) > 1, "every kill came in the same stage"


def test_a_kill_between_two_mediators_changes_no_bit(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    """Mediators share batches, and are written one after another."""
    output = tmp_path / "out"
    for lacking in (FIVE[0], FIVE[-1]):
        shutil.copytree(whole, output)
        for path in (output / RUN / "restored" / lacking).iterdir():
            path.unlink()
        assert runs.run(f"output_dir={output}").code == 0
        assert contents(output / RUN) == contents(whole / RUN)
        shutil.rmtree(output)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_with_a_message_and_keeps_what_is_finished(
    runs: Runs, whole: Path, tmp_path: Path, number: int, code: int, word: str
) -> None:
    output = tmp_path / "out"
    pid = runs.start(f"output_dir={output}")
    wait_until(lambda: any(parts(output)), pid)
    os.kill(pid, number)
    ended = runs.wait(pid)
    assert ended.code == code
    line = f"ktrace: {word}; the same command goes on where this run stopped\n"
    assert ended.output.endswith(line)
    # Python tells of an exception that it drops: a signal may come in a weak reference's callback.
    before_it = ended.said.removesuffix(line)
    assert not before_it or before_it.startswith("Exception ignored in")
    assert not [path for path in output.rglob(".*") if path.is_file()]
    before = parts(output)
    assert runs.run(f"output_dir={output}").code == 0
    assert before.items() < parts(output).items()
    assert contents(output / RUN) == contents(whole / RUN)


def test_identical_commands_at_once_share_the_work(runs: Runs, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    pids = [runs.start(f"output_dir={output}") for _ in range(3)]
    for pid in pids:
        ended = runs.wait(pid)
        assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)
    assert facts_in_parts(output) == N_STORED, "a fact was computed twice"
    assert not [path for path in output.rglob(".*") if path.is_file()]


def test_three_go_on_beside_one_that_is_paused_and_wait_for_its_facts_alone(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    paused = runs.start(f"output_dir={output}")
    wait_until(lambda: (output / RUN / "restored").exists(), paused)
    stop_with_a_claim(paused)
    others = [runs.start(f"output_dir={output}") for _ in range(3)]
    for pid in others:
        wait_until(lambda pid=pid: "waiting for another process" in runs.output(pid), pid)  # type: ignore[misc]
        assert is_alive(pid), "it did not wait"
    assert state_of(paused) == "T"
    os.kill(paused, signal.SIGCONT)
    for pid in (paused, *others):
        ended = runs.wait(pid)
        assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)
    assert facts_in_parts(output) == N_STORED, "a fact was computed twice"


def test_a_run_waits_for_another_and_takes_over_when_it_is_killed(
    runs: Runs, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = runs.start(f"output_dir={output}")
    wait_until(lambda: (output / RUN / "restored").exists(), first)
    stop_with_a_claim(first)
    second = runs.start(f"output_dir={output}")
    wait_until(lambda: "waiting for another process" in runs.output(second), second)
    assert is_alive(second), "it did not wait"
    os.kill(first, signal.SIGKILL)
    runs.wait(first)
    ended = runs.wait(second)
    assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)


def test_eight_shards_give_the_bits_of_one_run(runs: Runs, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    order = [3, 8, 1, 2, 7, 5, 6, 4]
    written: list[set[Path]] = []
    for number in order:
        before = parts(output)
        ended = runs.run(f"output_dir={output}", f"shard={number}/8")
        assert ended.code == 0, ended.output
        assert before.items() <= parts(output).items()
        written.append(parts(output).keys() - before.keys())
    assert sum(map(bool, written)) >= 5
    assert contents(output / RUN) == contents(whole / RUN)
    assert facts_in_parts(output) == N_STORED
    before = parts(output)
    assert runs.run(f"output_dir={output}").code == 0
    assert parts(output) == before, "the shards left something to do"


def test_the_last_shard_to_end_analyses(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "out"
    common = (f"output_dir={output}", "stage=all", "mediator.names=[hidden]")
    first = runs.run(*common, "shard=2/2")
    assert first.code == 0
    assert "shard=2/2 is done; the last shard to end draws the figures" in first.output
    assert not list(output.rglob("aie.csv"))
    second = runs.run(*common, "shard=1/2")
    assert second.code == 0, second.output
    assert "Peak AIE" in second.output
    assert (output / RUN / "analysis" / "aie.csv").is_file()


def test_who_looked_at_the_stores_first_is_not_the_last_to_write(
    runs: Runs, tmp_path: Path
) -> None:
    """As jobs of a sweep over mediators, which share one analysis."""
    output = tmp_path / "out"
    analysis = output / RUN / "analysis"
    common = (f"output_dir={output}", "stage=all")
    first = runs.start(*common, "mediator.names=[hidden]")
    wait_until(lambda: any(analysis.glob(".*.tmp")), first)
    os.kill(first, signal.SIGSTOP)
    assert is_alive(first), "it ended too soon to tell anything"
    second = runs.start(*common, "mediator.names=[mlp]")
    told = "waiting for another process, which analyses the same run"
    wait_until(lambda: told in runs.output(second), second)
    os.kill(first, signal.SIGCONT)
    for pid in (first, second):
        ended = runs.wait(pid)
        assert ended.code == 0, ended.output
    with (analysis / "aie.csv").open() as stream:
        assert {row["mediator"] for row in csv.DictReader(stream)} == {"hidden", "mlp-w10"}
    assert runs.output(second).count(told) == 1
    assert not [path for path in output.rglob(".*") if path.is_file()]


def results(folder: Path) -> dict[str, bytes]:
    """What lies in a folder of results; tables by what they hold."""
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def seconds_of(runs: Runs, *arguments: str) -> float:
    """How long a run takes that nobody disturbs."""
    began = time.monotonic()
    ended = runs.run(*arguments)
    assert ended.code == 0, ended.output
    return time.monotonic() - began


def killed_at(runs: Runs, seconds: float, *arguments: str) -> int:
    """Kill a run after each sixth of the time that it takes; how many kills came in time."""
    kills = 0
    for step in range(6):
        pid = runs.start(*arguments)
        time.sleep(step * seconds / 6)
        os.kill(pid, signal.SIGKILL)
        kills += runs.wait(pid).code == -signal.SIGKILL
    return kills


@pytest.mark.parametrize("stage", ["filter", "clean"])
def test_kills_while_a_model_is_loaded_and_facts_are_filtered(
    runs: Runs, whole: Path, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "out"
    takes = seconds_of(runs, f"stage={stage}", f"output_dir={tmp_path / 'undisturbed'}")
    assert killed_at(runs, takes, f"stage={stage}", f"output_dir={output}") >= 3
    ended = runs.run(f"output_dir={output}")
    assert ended.code == 0, ended.output
    assert contents(output / RUN) == contents(whole / RUN)


@pytest.mark.parametrize(
    ("stage", "folder"), [("analyze", f"{RUN}/analysis"), ("compare", "comparison")]
)
def test_kills_while_results_are_written(
    runs: Runs, whole: Path, tmp_path: Path, stage: str, folder: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    asked = (f"output_dir={output}", f"stage={stage}")
    if stage == "compare":
        assert runs.run(asked[0], "noise.seed=2", "mediator.names=[hidden]").code == 0
        asked += (f"runs={(output / RUN).parent}/*",)
    takes = seconds_of(runs, *asked)
    expected, stores = tables(output / folder), contents(output / RUN)
    assert expected
    shutil.rmtree(output / folder)
    assert killed_at(runs, takes, *asked) >= 3
    assert tables(output / folder).items() <= expected.items(), "a table is not whole"
    assert runs.run(*asked).code == 0
    assert tables(output / folder) == expected
    assert contents(output / RUN) == stores


def tables(folder: Path) -> dict[str, bytes]:
    """What a folder's tables hold."""
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}
