"""What grows with the facts of a run, and how fast: claims, resuming, reading, averaging, reports.

    python -m benchmarks.growth                                # 1,000 and 4,000 facts, 2 minutes
    python -m benchmarks.growth --sizes 1000 22000 --write docs/benchmarks-growth.md

Stores are made up, through the same writers that a run uses but without waiting for the disk, and
removed afterwards. Each measurement is a process of its own, so that its peak memory is its own.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.analysis_scale import KEYS, Measured, measured, write_store
from ktrace.store import CORRUPTED, RunFolders, StatesRecord, Store
from ktrace.store.part import write_part
from ktrace.terms import SITES

_SIZES = (1_000, 4_000)
_LAYERS, _SAMPLES, _WIDTH = 4, 2, 64
_STATES = {"sites": [*SITES], "layers": None, "positions": "all"}
_FIELDS = {name: CORRUPTED[name] for name in ("index", "known_id")}
# More than another measurement of the same would give.
_NOISE = 1.25


def _make(root: Path, n_facts: int) -> Path:
    """A run, the states of its clean runs, and a store with a part for every fact."""
    run = root / "made-up" / "facts" / "gaussian-x3-n10-seed1"
    with mock.patch("os.fsync"):
        write_store(run, facts=n_facts, layers=_LAYERS, samples=_SAMPLES)
        states = np.ones((_LAYERS, 5, _WIDTH), np.float32)
        settings = {"model": {"identity": "made up"}, "dataset": {"n_facts": n_facts}}
        store = RunFolders(run).activations("clean")
        with store.writer(settings | {"activations": _STATES}) as writer:
            for index in range(n_facts):
                roles = ("", "first subject", "last subject", "further", "last")
                layers, positions = np.arange(_LAYERS), np.arange(len(roles))
                sites = dict.fromkeys(SITES, states)
                record = StatesRecord(index, index, layers, positions, roles, sites)
                writer.add(record.row())
        claimed = _many_parts(run)
        claimed.folder.mkdir()
        for index in range(n_facts):
            record_of = {"index": index, "known_id": index}
            write_part(claimed.folder, claimed.schema, {}, [record_of])
    return run


def _many_parts(run: Path) -> Store:
    return Store(run.parent.parent / "claimed", _FIELDS)


def _look(run: Path) -> None:
    """What a writer learns once: which facts all parts hold."""
    store = _many_parts(run)
    with store.writer({}) as writer:
        writer.claim([len(store.parts())])


def _claim(run: Path) -> None:
    """As many claims as facts, beside as many parts, without the look at the beginning."""
    store = _many_parts(run)
    n_facts = len(store.parts())
    unread = mock.patch("ktrace.store.writer.read_part", return_value=[])
    with unread, mock.patch.object(Store, "bind"), store.writer({}) as writer:
        for _ in range(2):
            writer.claim([n_facts])
            time.sleep(0.3)  # longer than a file system's clock stands still
        for index in range(n_facts + 1, 2 * n_facts + 1):
            writer.claim([index])


def _find(run: Path) -> None:
    """What a run does before it goes on: which facts of each store are there, and whole."""
    folders = RunFolders(run)
    for store in (folders.clean, folders.corrupted, *map(folders.restored, KEYS)):
        store.done(store.fingerprint() or {})


def _load(run: Path) -> None:
    from ktrace.analysis.activations import load_activations

    load_activations(run, "mlp", 1, "last subject")


def _average(run: Path) -> None:
    from ktrace.analysis.averaged_run import average_run
    from ktrace.analysis.rows import Averaging

    average_run(run, Averaging())


def _report(run: Path) -> None:
    from ktrace.analysis.averaged_run import average_run
    from ktrace.analysis.report import CellCollector, write_report
    from ktrace.analysis.rows import Averaging
    from ktrace.analysis.summary import summarize
    from ktrace.terms import METRICS

    cells = CellCollector()
    averaged = average_run(run, Averaging(), watch=nullcontext(cells.add))
    summary = summarize(averaged, METRICS[0], None)
    keys = averaged.every_key
    write_report(averaged.survey, keys, cells.of(keys), summary=summary, figures=list)


def _status(run: Path) -> None:
    from ktrace.config import RunConfig
    from ktrace.pipeline.upkeep import status_of

    status_of(RunConfig(), RunFolders(run), KEYS)


# By what stands in the table.
_WORK: Mapping[str, Callable[[Path], None]] = {
    "look at a part for every fact, once": _look,
    "claim every fact": _claim,
    "find what is stored": _find,
    "load one layer's states": _load,
    "average": _average,
    "average and report": _report,
    "status": _status,
}


def main(arguments: Sequence[str] | None = None) -> str:
    """Make the stores, measure, print and optionally write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, help="facts")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    options = parser.parse_args(arguments)
    found: dict[str, list[Measured]] = {name: [] for name in _WORK}
    for n_facts in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = _make(Path(folder), n_facts)
            for name, work in _WORK.items():
                found[name].append(measured(work, run))
    report = _table(options.sizes, found)
    print(report)
    if options.write:
        options.write.write_text(report, encoding="utf-8")
    return report


def _table(sizes: Sequence[int], found: Mapping[str, Sequence[Measured]]) -> str:
    heads = [f"{size:,} facts" for size in sizes]
    lines = [
        "# Growth with the facts",
        "",
        "[ktrace](../README.md). Written by `python -m benchmarks.growth`, not by hand. Made-up "
        f"stores of {', '.join(f'{size:,}' for size in sizes)} facts: {len(KEYS)} mediators, "
        f"{_LAYERS} layers, {_SAMPLES} samples, parts of 32 facts; for claims a part for every "
        "fact. Processor seconds and peak memory of a process of its own. Growth is that of the "
        "seconds over that of the facts, from the first size to the last: 1 is linear.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores; {datetime.now(timezone.utc):%Y-%m-%d}.",
        "",
        f"| | {' | '.join(heads)} | growth |",
        f"| --- | {'--- | ' * len(heads)}--- |",
    ]
    for name, values in found.items():
        growth = (
            values[-1]["processor_seconds"]
            / values[0]["processor_seconds"]
            / (sizes[-1] / sizes[0])
        )
        said = f"{growth:.2f}" + (", more than linear" if growth > _NOISE else "")
        lines.append(f"| {name} | {' | '.join(map(_shown, values))} | {said} |")
    return "\n".join(lines) + "\n"


def _shown(one: Measured) -> str:
    return f"{one['processor_seconds']:.2f} s, {one['peak_gib'] * 1024:,.0f} MiB"


if __name__ == "__main__":
    main()
