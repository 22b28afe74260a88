"""stage=verify: everything that stores hold is read, and what is wrong is said, or mended."""

import glob
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ktrace.config import RunConfig
from ktrace.errors import KtraceError
from ktrace.files import remove_stale
from ktrace.pipeline.bars import progress
from ktrace.pipeline.upkeep import Upkeep
from ktrace.store import (
    Finding,
    RunFolders,
    faults_of,
    leftovers_in,
    mended,
    stores_below,
)

log = logging.getLogger(__name__)


def verify(config: RunConfig, folders: RunFolders) -> Upkeep:
    """Read the stores of a run, or all below the folders that `runs` names.

    Args:
        config: with `runs` and `mend`.
        folders: of the run.

    Raises:
        KtraceError: there is no store, one may not be read, or cannot be mended.
    """
    roots = _roots(config, folders)
    stores = [store for root in roots for store in stores_below(root, config.claims)]
    if not stores:
        told = ", ".join(map(str, roots)) or str(config.runs or folders.run)
        raise KtraceError(f"{told}: no store is there, or the settings name another run")
    found, done = 0, 0
    n_parts = sum(len(store.parts()) for store in stores)
    rows: list[tuple[str, ...]] = []
    with progress("reading every byte", n_parts, "parts") as advance:
        for store in stores:
            findings = list(faults_of(store, partial(advance, 1)))
            ours = mended(store, findings) if config.mend and findings else []
            rows += _rows(findings, ours)
            found, done = found + len(findings), done + len(ours)
    for root in roots:
        left = list(leftovers_in(root))
        removed = remove_stale(root) if config.mend else []
        ours = [finding for finding in left if finding.path in removed]
        rows += _rows(left, ours)
        found, done = found + len(left), done + len(ours)
    title = f"{len(stores)} stores, {n_parts} parts: {found} things wrong, {done} mended"
    problem = "" if found == done else _problem(found - done, config.mend)
    columns = ("file", "wrong", "why", "mended")
    return Upkeep(title, columns, rows, problem, texts=columns)


def _roots(config: RunConfig, folders: RunFolders) -> list[Path]:
    if config.runs is not None:
        patterns = [config.runs] if isinstance(config.runs, str) else config.runs
        # Not Path.glob: a pattern may be absolute.
        matched = [Path(n) for pattern in patterns for n in sorted(glob.glob(pattern))]  # noqa: PTH207
        return [path for path in dict.fromkeys(matched) if path.is_dir()]
    dataset = folders.run.parent
    own = (dataset / "clean", dataset / "activations", folders.run)
    return [path for path in own if path.is_dir()]


def _rows(findings: Sequence[Finding], ours: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    for finding in findings:
        is_done = "yes" if finding in ours else "no"
        yield str(finding.path), finding.fault.value, finding.why, is_done


def _problem(n_left: int, is_mended: bool) -> str:
    if not is_mended:
        return (
            f"{n_left} things are wrong: mend=true sets damaged parts aside and removes what "
            "killed processes left; the run's own command computes again"
        )
    return (
        f"{n_left} things are still wrong: foreign files are yours to judge, and a store that a "
        "process works on is left as it is"
    )
