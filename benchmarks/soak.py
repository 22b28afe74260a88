"""Writers that are killed, stopped and starved of disk, on parts that are damaged: no bit differs.

    python -m benchmarks.soak                                  # 5 minutes, 4 writers
    python -m benchmarks.soak --minutes 60 --writers 8

Each round starts writers on one output folder, does something bad to them or a part every moment,
then lets one run finish and compares every record with those of a run that nobody disturbed. It
ends with 1 at the first difference, and keeps that folder. A full disk is a limit on the size of
files (`RLIMIT_FSIZE`), which a write meets in the same way. Linux and macOS.
"""

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ktrace.store import Store, stores_below

_SETTINGS = ("stage=restore", "mediator=hidden", "noise.samples=2", "engine.workers=1")
_CLAIMS = ("auto", "auto", "files", "none")
_EVENTS = ("kill", "kill", "stop", "damage", "damage", "damage", "full disk")
_MOST_EVENTS = 40  # of a round
_FULL_BYTES = 4096
# Parts of two facts, so that there is something to damage and to kill between.
_RUN = (
    "from ktrace.store import writer; writer._PART_FACTS = 2; "
    "from ktrace.__main__ import main; main()"
)


Writer = subprocess.Popen[bytes]


def _start(output: Path, facts: int, claims: str = "auto", *, full: bool = False) -> Writer:
    command = [sys.executable, "-c", _RUN, *_SETTINGS, f"dataset.limit={facts}"]
    limit = None if not full else _fill
    log = output.with_name(f"{output.name}.log").open("ab")
    with log:
        return subprocess.Popen(
            [*command, f"output_dir={output}", f"claims={claims}"],
            stdout=log,
            stderr=log,
            preexec_fn=limit,  # noqa: PLW1509: this process has no threads
        )


def _fill() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL_BYTES, _FULL_BYTES))


def _stores(output: Path) -> dict[str, Store]:
    return {str(store.folder.relative_to(output)): store for store in stores_below(output)}


def _records(output: Path) -> dict[tuple[str, int], list[object]]:
    """Every value of every fact, comparable to the bit."""
    return {
        (name, row["index"]): [_plain(row[field]) for field in store.schema]
        for name, store in _stores(output).items()
        for row in store.read(*store.schema)
    }


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return repr(value)


def _damage(output: Path, draw: random.Random) -> bool:
    parts = [path for store in _stores(output).values() for path in store.parts()]
    if not parts:
        return False
    path = draw.choice(parts)
    try:
        content = bytearray(path.read_bytes())
        for _ in range(draw.choice((1, 1, 8))):
            content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        path.write_bytes(content[: draw.choice((len(content), len(content) // 2))])
    except FileNotFoundError:  # it has just been set aside
        return False
    return True


def _disturb(output: Path, writers: list[Writer], facts: int, draw: random.Random) -> Counter[str]:
    """One bad thing, and a new writer for each that is gone."""
    done: Counter[str] = Counter()
    event, number = draw.choice(_EVENTS), draw.randrange(len(writers))
    writer = writers[number]
    if event == "damage":
        done[event] += _damage(output, draw)
    elif event == "stop":
        writer.send_signal(signal.SIGSTOP)
        time.sleep(draw.random())
        writer.send_signal(signal.SIGCONT)
        done[event] += 1
    else:
        writer.kill()
        writer.wait()
        done["kill"] += 1
        full = event == "full disk"
        done[event] += full
        writers[number] = _start(output, facts, draw.choice(_CLAIMS), full=full)
    for number, other in enumerate(writers):
        if other.poll() is not None:
            writers[number] = _start(output, facts, draw.choice(_CLAIMS))
    return done


def _round(
    output: Path, until: float, n_writers: int, facts: int, pause: float, draw: random.Random
) -> Counter[str]:
    writers = [_start(output, facts, draw.choice(_CLAIMS)) for _ in range(n_writers)]
    done: Counter[str] = Counter()
    try:
        for _ in range(_MOST_EVENTS):
            time.sleep(draw.uniform(0.1, 2 * pause))
            done += _disturb(output, writers, facts, draw)
            if time.monotonic() > until:
                break
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    return done


def _ended(output: Path, facts: int) -> int:
    return _start(output, facts).wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak for some minutes; 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    draw = random.Random(given.seed)
    root = Path(tempfile.mkdtemp(prefix="ktrace-soak-"))
    began = time.monotonic()
    if _ended(root / "whole", given.facts):
        print((root / "whole.log").read_text())
        return 1
    expected, done, rounds = _records(root / "whole"), Counter[str](), 0
    # So that a writer lives about as long as a run takes.
    pause = (time.monotonic() - began) / given.writers
    until = time.monotonic() + 60 * given.minutes
    while time.monotonic() < until:
        rounds += 1
        output = root / f"round-{rounds}"
        done += _round(output, until, given.writers, given.facts, pause, draw)
        code = _ended(output, given.facts)
        if code or _records(output) != expected:
            print(f"round {rounds}: exit code {code}, or records differ: {output}, {output}.log")
            return 1
        shutil.rmtree(output)
    told = ", ".join(f"{count} × {event}" for event, count in sorted(done.items()))
    print(f"{rounds} rounds of {given.writers} writers, {told}: every record as undisturbed")
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
