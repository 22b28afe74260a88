"""A run, reduced: which mediators count, their effects per fact, and the averages over facts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ktrace.analysis.candidates import write_candidates
from ktrace.analysis.clusters import (
    Clusters,
)
from ktrace.analysis.contrasts import MEDIATORS, Contrasts, contrasts_of
from ktrace.analysis.estimate import (
    AverageTotalEffect,
    average_indirect_effects,
    average_total_effect,
    averages_by_relation,
    head_averages,
    no_averages,
    spread_over_samples,
)
from ktrace.analysis.knockout import knockout_averages
from ktrace.analysis.peaks import peak_table
from ktrace.analysis.per_fact import (
    MediatorEffects,
    TotalEffects,
    clusters_of,
    reduce_mediator,
)
from ktrace.analysis.rows import Averaging
from ktrace.analysis.steps import Tell, made, untold
from ktrace.analysis.stored import Survey, Watch, batches, survey
from ktrace.errors import KtraceError
from ktrace.store import RestoredRecord, RunFolders
from ktrace.terms import has_heads, panel_order

_FINISH = "finish the run (the same command without stage=analyze)"
_PARTIAL = "analysis.partial=true for what is there"


class RunNames(NamedTuple):
    """As the folders are called."""

    model: str
    dataset: str
    noise: str


@dataclass(frozen=True)
class RunAverages:
    """One run.

    Attributes:
        survey: what its stores hold.
        averaging: how positions were averaged.
        effects: each mediator reduced to its facts, in the order of panels; none with heads.
        heads: the same of mediators with heads.
        total: total effects of its traced facts.
        clusters: of the same facts.
        aie: AIE of every mediator and metric (`average_indirect_effects`).
        samples: its spread over noise samples (`spread_over_samples`).
        missing: what an unfinished run lacks.
        notes: mediators left out, and why.
    """

    survey: Survey
    averaging: Averaging
    effects: Sequence[MediatorEffects]
    heads: Sequence[MediatorEffects]
    total: TotalEffects
    clusters: Clusters
    aie: pd.DataFrame
    samples: pd.DataFrame
    missing: Sequence[str]
    notes: Sequence[str]

    @property
    def names(self) -> RunNames:
        """Of model, dataset and noise."""
        run = self.survey.folders.run
        return RunNames(run.parent.parent.name, run.parent.name, run.name)

    @property
    def keys(self) -> list[str]:
        """Mediators without heads, in the order of panels."""
        return [one.key for one in self.effects]

    @property
    def every_key(self) -> list[str]:
        """Mediators, in the order of panels."""
        return sorted([*self.keys, *(one.key for one in self.heads)], key=panel_order)

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return next(one.n_layers // one.n_heads for one in (*self.effects, *self.heads))

    def of(self, key: str) -> MediatorEffects:
        """The effects of one mediator."""
        return self.effects[self.keys.index(key)]

    @cached_property
    def contrasts(self) -> Contrasts:
        """Paired differences within the run."""
        return contrasts_of(self.effects, self.averaging)

    @cached_property
    def mediators_apart(self) -> pd.DataFrame:
        """Those of mediators, which a figure shows whether or not they are asked for."""
        asked = MEDIATORS in self.averaging.contrasts
        only = replace(self.averaging, contrasts=(MEDIATORS,))
        table = (self.contrasts if asked else contrasts_of(self.effects, only)).table
        found: pd.DataFrame = table[table["contrast"] == MEDIATORS]
        return found

    def peaks(self, metric: str) -> pd.DataFrame:
        """Where the AIE of each mediator and role is strongest, and how sure that is."""
        if metric not in self._peaks:
            aie = self.aie_in(metric)
            tables = [
                peak_table(one, self.averaging, aie[aie["mediator"] == one.key])
                for one in self.effects
            ]
            self._peaks[metric] = stacked(tables)
        return self._peaks[metric]

    @cached_property
    def _peaks(self) -> dict[str, pd.DataFrame]:
        return {}

    def by_relation(self, metric: str) -> pd.DataFrame:
        """AIE of the facts of each relation alone (`averages_by_relation`)."""
        if metric not in self._by_relation:
            tables = [averages_by_relation(one, self.averaging, metric) for one in self.effects]
            self._by_relation[metric] = stacked(tables)
        return self._by_relation[metric]

    @cached_property
    def _by_relation(self) -> dict[str, pd.DataFrame]:
        return {}

    @cached_property
    def of_heads(self) -> pd.DataFrame:
        """AIE of every head (`head_averages`)."""
        return stacked([head_averages(one, self.averaging) for one in self.heads])

    @cached_property
    def knockouts(self) -> pd.DataFrame:
        """Effects of sources that are cut together (`knockout_averages`)."""
        return knockout_averages(self.effects, self.survey)

    def total_effect(self, metric: str) -> AverageTotalEffect:
        """The average total effect in one metric."""
        return average_total_effect(self.total, metric, self.clusters, self.averaging.interval)

    def aie_in(self, metric: str) -> pd.DataFrame:
        """The rows of `aie` in one metric."""
        chosen: pd.DataFrame = self.aie[self.aie["metric"] == metric]
        return chosen


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; where there is none, one that has no row."""
    found: pd.DataFrame = pd.concat(tables, ignore_index=True) if tables else no_averages()
    return found


def average_run(
    run_folder: Path | RunFolders,
    averaging: Averaging,
    *,
    asked: Sequence[str] = (),
    limit: int | None = None,
    partial: bool = False,
    watch: AbstractContextManager[Watch] | None = None,
    tell: Tell = untold,
) -> RunAverages:
    """Stream a run's stores and average them.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`, or its folders where the analysis goes
            elsewhere.
        averaging: rows and pooling.
        asked: mediators that must be complete; others that are not are left out with a note.
        limit: only the first `limit` facts of the dataset.
        partial: take what is there of an unfinished run.
        watch: gives what sees every restoration on its way through: each is read once.
        tell: learns how many mediators are averaged.

    Raises:
        KtraceError: nothing to analyse, an unfinished run, or parts of different settings.
    """
    folders = run_folder if isinstance(run_folder, RunFolders) else RunFolders(run_folder)
    if folders.clean.fingerprint() is None:
        raise KtraceError(f"{folders.clean.folder} holds no clean runs: run stage=all first")
    found = survey(folders, limit, whole_dataset=True)
    if found.lacking and not partial:
        raise KtraceError(f"{found.lacking[0]}: {_FINISH}, or set dataset.limit or {_PARTIAL}")
    if not found.candidates:
        raise KtraceError(
            f"{folders.run}: none of the {len(found.clean)} facts is a candidate; nothing was "
            f"traced ({write_candidates(folders, limit)} says what was predicted)"
        )
    chosen = _mediators(found, asked, partial)
    with watch or nullcontext(_unseen) as seen:
        effects = [
            reduce_mediator(found, key, averaging, _records(found, key, seen))
            for key in chosen.keys
        ]
    heads = [one for one in effects if has_heads(one.key)]
    effects = [one for one in effects if not has_heads(one.key)]
    averages = made(
        "averaging mediators",
        {one.key: one for one in effects},
        lambda one: average_indirect_effects(one, averaging),
        tell,
    )
    samples = [spread_over_samples(one, averaging.scheme) for one in effects]
    return RunAverages(
        survey=found,
        averaging=averaging,
        effects=effects,
        heads=heads,
        total=TotalEffects.of(found, found.traced),
        clusters=clusters_of(found, found.traced, averaging.cluster),
        aie=stacked([*averages.values()]),
        samples=stacked(samples),
        missing=[*found.lacking, *chosen.missing],
        notes=[*_asked_for_less(found, limit), *chosen.notes],
    )


def asked_limit(found: Survey) -> int | None:
    """How many facts the stores were asked for; None for the whole dataset, or where unknown."""
    expected, n_facts = found.expected, _dataset_size(found)
    return None if expected is None or expected >= n_facts else expected


def _dataset_size(found: Survey) -> int:
    fingerprint = found.folders.clean.fingerprint() or {}
    return int(fingerprint["dataset"]["n_facts"])


def _asked_for_less(found: Survey, limit: int | None) -> list[str]:
    """A note where stores were never asked for the whole dataset, and no limit was named."""
    asked = asked_limit(found)
    if limit is not None or asked is None:
        return []
    return [f"the first {asked} of {_dataset_size(found)} facts, as dataset.limit of the run says"]


def _unseen(found: Survey, key: str, batch: Sequence[RestoredRecord]) -> None:
    """Where nothing is to be seen on the way."""


def _records(found: Survey, key: str, watch: Watch) -> Iterator[RestoredRecord]:
    """A mediator's restorations, watched on the way."""
    for batch in batches(found, key):
        watch(found, key, batch)
        yield from batch


class _Mediators(NamedTuple):
    """Keys to average, what they lack, and notes on those left out."""

    keys: list[str]
    missing: list[str]
    notes: list[str]


def _mediators(found: Survey, asked: Sequence[str], partial: bool) -> _Mediators:
    chosen = _Mediators([], [], [])
    # Others may be stored that another command asked for.
    for key in (key for key in dict.fromkeys(asked) if key not in found.restored):
        lacks = found.lacks(key)
        if lacks and not partial:
            raise KtraceError(_incomplete(found, key))
        chosen.missing.extend([f"{key}: {lacks}"] if lacks else [])
    for key, have in found.restored.items():
        lacks = found.lacks(key)
        if have and (partial or not lacks):
            chosen.keys.append(key)
            chosen.missing.extend([f"{key}: {lacks}"] if lacks else [])
        elif key in asked and lacks:
            raise KtraceError(_incomplete(found, key))
        else:
            chosen.notes.append(f"{key} is left out: {lacks or 'no candidate is traced'}")
    if not chosen.keys:
        left_out = f" ({'; '.join(chosen.notes)})" if chosen.notes else ""
        raise KtraceError(f"{found.folders.run} holds no complete mediator{left_out}: {_FINISH}")
    return chosen


def _incomplete(found: Survey, key: str) -> str:
    """Why a mediator that was asked for cannot be analysed, and what to do."""
    ways = [_FINISH]
    if found.restored and key not in found.restored:
        stored = ", ".join(found.restored)
        ways.append(f"name what is stored ({stored}) with mediator and mediator.window")
    ways.append(f"or set {_PARTIAL}")
    return f"{found.folders.run} is not complete: {key}: {found.lacks(key)}: {', '.join(ways)}"
