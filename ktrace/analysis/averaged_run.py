"""A run, reduced: which mediators count, their effects per fact, and the averages over facts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from ktrace.analysis.effects import effect_tables, effects_file
from ktrace.analysis.estimate import average_indirect_effects, spread_over_samples
from ktrace.analysis.per_fact import MediatorEffects, reduce_mediator
from ktrace.analysis.rows import Averaging
from ktrace.analysis.stored import Record, Survey, survey
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from ktrace.terms import METRICS

_FINISH = "finish the run (the same command without stage=analyze)"
_PARTIAL = "analysis.partial=true for what is there"


@dataclass(frozen=True)
class RunAverages:
    """One run.

    Attributes:
        survey: what its stores hold.
        averaging: how positions were averaged.
        effects: each mediator reduced to its facts, in the order of panels.
        aie: AIE of every mediator and metric (`average_indirect_effects`).
        samples: its spread over noise samples (`spread_over_samples`).
        missing: what an unfinished run lacks.
        notes: mediators left out, and why.
    """

    survey: Survey
    averaging: Averaging
    effects: Sequence[MediatorEffects]
    aie: pd.DataFrame
    samples: pd.DataFrame
    missing: Sequence[str]
    notes: Sequence[str]

    @property
    def names(self) -> dict[str, str]:
        """Model, dataset and noise, as the folders are called."""
        run = self.survey.folders.run
        return {"model": run.parent.parent.name, "dataset": run.parent.name, "noise": run.name}

    @property
    def keys(self) -> list[str]:
        """Mediators, in the order of panels."""
        return [one.key for one in self.effects]


def average_run(
    run_folder: Path,
    averaging: Averaging,
    *,
    asked: Sequence[str] = (),
    limit: int | None = None,
    partial: bool = False,
    parquet: Path | None = None,
) -> RunAverages:
    """Stream a run's stores and average them.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        averaging: rows and pooling.
        asked: mediators that must be complete; others that are not are left out with a note.
        limit: only the first `limit` facts of the dataset.
        partial: take what is there of an unfinished run.
        parquet: where every score goes on its way through.

    Raises:
        KtraceError: nothing to analyse, an unfinished run, or parts of different settings.
    """
    folders = RunFolders(run_folder)
    if folders.clean.fingerprint() is None:
        raise KtraceError(f"{folders.clean.folder} holds no clean runs: run stage=all first")
    found = survey(folders, limit, whole_dataset=True)
    missing = found.lacking
    if missing and not partial:
        raise KtraceError(f"{missing[0]}: {_FINISH}, or set dataset.limit or {_PARTIAL}")
    if not found.candidates:
        raise KtraceError(
            f"{run_folder}: none of the {len(found.clean)} facts is a candidate; nothing was traced"
        )
    keys, lacking, notes = _mediators(found, asked, partial)
    effects, averages, samples = [], [], []
    with _sink(found, parquet) as seen:
        for key in keys:
            one = reduce_mediator(found, key, averaging, seen(key))
            effects.append(one)
            averages.append(average_indirect_effects(one, averaging))
            samples.append(spread_over_samples(one, averaging.scheme))
    return RunAverages(
        found,
        averaging,
        effects,
        pd.concat(averages, ignore_index=True),
        pd.concat(samples, ignore_index=True),
        [*missing, *lacking],
        notes,
    )


def _mediators(
    found: Survey, asked: Sequence[str], partial: bool
) -> tuple[list[str], list[str], list[str]]:
    """Keys to average, what they lack, and notes on those left out."""
    keys, missing, notes = [], [], []
    # Others may be stored that another command asked for.
    for key in (key for key in dict.fromkeys(asked) if key not in found.restored):
        lacks = found.lacks(key)
        if lacks and not partial:
            stored = ", ".join(found.restored)
            raise KtraceError(
                f"{found.folders.run} is not complete: {key}: {lacks}: {_FINISH}"
                + (
                    f", name what is stored ({stored}) with mediator and mediator.window"
                    * bool(stored)
                )
                + f", or set {_PARTIAL}"
            )
        missing += [f"{key}: {lacks}"] if lacks else []
    for key, have in found.restored.items():
        lacks = found.lacks(key)
        if have and (partial or not lacks):
            keys.append(key)
            missing += [f"{key}: {lacks}"] if lacks else []
        elif key in asked and lacks:
            raise KtraceError(
                f"{found.folders.run} is not complete: {key}: {lacks}: {_FINISH}, or set {_PARTIAL}"
            )
        else:
            notes.append(f"{key} is left out: {lacks or 'no candidate is traced'}")
    if not keys:
        raise KtraceError(
            f"{found.folders.run} holds no complete mediator"
            + (f" ({'; '.join(notes)})" if notes else "")
            + f": {_FINISH}"
        )
    return keys, missing, notes


@contextmanager
def _sink(
    found: Survey, parquet: Path | None
) -> Iterator[Callable[[str], Callable[[list[Record]], None]]]:
    """What is done with each batch of a mediator's records, beside reducing them."""
    if parquet is None:
        yield lambda key: lambda batch: None
        return
    with effects_file(parquet) as add:

        def write(key: str, batch: list[Record]) -> None:
            table: pa.Table
            for table in effect_tables(found, key, batch, METRICS):
                add(table)

        yield lambda key: lambda batch: write(key, batch)
