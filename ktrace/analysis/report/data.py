"""What the report says about each fact: its row in the table, and how its cells are labelled.

`reported_run` puts together what was read, `page_data` turns it into JSON. How many digits and
facts of a metric the page has room for is decided between the two (cells.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from ktrace.analysis.palettes import ramp_of
from ktrace.analysis.report.cells import (
    CHUNK_FACTS,
    MISSING,
    Cells,
    Means,
    ShownMetric,
    units,
)
from ktrace.analysis.report.collected import CellsInOrder, CollectedCells
from ktrace.analysis.stored import Survey
from ktrace.analysis.strongest import SubjectPeak
from ktrace.analysis.tokens import visible
from ktrace.store import CleanRecord, CorruptedRecord
from ktrace.terms import (
    METRICS,
    changes_clean_run,
    has_heads,
    lower_helps,
    mediator_title,
    metric_label,
)


@dataclass(frozen=True)
class ReportedFact:
    """A traced fact.

    Attributes:
        record: its clean run.
        clean: means of its clean scores.
        corrupted: likewise.
        peaks: of every mediator, the strongest effect inside the subject in each metric.
    """

    record: CleanRecord
    clean: Means
    corrupted: Means
    peaks: Sequence[Sequence[SubjectPeak]]


@dataclass(frozen=True)
class ReportedRun:
    """A run, reduced to what a page can hold.

    Attributes:
        keys: mediators, in the order in which they are offered.
        n_samples: of the noise.
        facts: what was traced, in the order of the dataset.
        left_out: the other facts, with the reason.
        cells: of each traced fact, of every mediator.
        source: what holds every sample in full.
    """

    keys: Sequence[str]
    n_samples: int
    facts: Sequence[ReportedFact]
    left_out: Sequence[tuple[CleanRecord, str]]
    cells: Sequence[Cells]
    source: str = "effects.parquet"

    @property
    def corrupted(self) -> list[Means]:
        """Means of the corrupted scores of each traced fact."""
        return [fact.corrupted for fact in self.facts]


class Colours(TypedDict):
    """As in `ktrace.analysis.palettes.Ramp`."""

    helps: Sequence[str]
    hurts: Sequence[str]


class MediatorChoice(TypedDict):
    """A mediator that is offered; `base` is the run that it changes, a column of scores."""

    key: str
    title: str
    colours: Colours
    base: str


class MetricChoice(ShownMetric):
    """A metric that is offered: what it is called with its unit, and which sign helps."""

    label: str
    lower_helps: bool


class FactRow(TypedDict):
    """What is known of any fact; `marked` are the subject's first character and one past it."""

    id: int
    prompt: str
    subject: str
    attribute: str
    predicted: str
    relation: str
    marked: list[int]


class TracedRow(FactRow):
    """Of a fact with cells; `tokens` as labels, `roles` are numbers in the page's list."""

    tokens: list[str]
    roles: list[int]
    span: tuple[int, int]


class LeftOutRow(FactRow):
    """Of a fact without."""

    left_out: str


class ScoreColumns(TypedDict):
    """Columns of the table of facts, in whole numbers of the metric's decimal unit.

    `peaks` has three numbers for each fact and mediator, as `facts.csv` has: the strongest mean
    effect at a position of the subject, its layer and its position.
    """

    clean: list[int]
    corrupted: list[int]
    total: list[int]
    peaks: list[list[int]]


class PageData(TypedDict):
    """What the page's scripts read beside the cells (`main.js`); `source` holds them in full."""

    source: str
    metrics: list[MetricChoice]
    left_off: list[str]
    metric: str
    mediators: list[MediatorChoice]
    roles: list[str]
    n_layers: int
    n_samples: int
    n_traced: int
    chunk_facts: int
    missing: int
    facts: list[TracedRow | LeftOutRow]
    scores: Mapping[str, ScoreColumns]


def reported_run(found: Survey, keys: Sequence[str], cells: CollectedCells) -> ReportedRun:
    """Put together what a page can hold.

    Args:
        found: the run.
        keys: mediators, in the order in which they are offered.
        cells: of these, by the fact's index; at least one.
    """
    facts, left_out = [], []
    for index, record in sorted(found.clean.items()):
        scores = found.corrupted.get(index)
        if scores is not None and index in cells:
            means = means_of(scores.clean), means_of(scores.corrupted)
            facts.append(ReportedFact(record, *means, cells.peaks(index, record.span)))
        else:
            left_out.append((record, _why_left_out(record, scores)))
    n_samples = len(found.example.corrupted[METRICS[0]])
    in_order = CellsInOrder(cells, [fact.record.index for fact in facts])
    return ReportedRun(keys, n_samples, facts, left_out, in_order)


def _why_left_out(record: CleanRecord, scores: CorruptedRecord | None) -> str:
    reason = record.left_out or (scores.left_out if scores else "")
    return reason or "it has not been restored yet"


def means_of(scores: Mapping[str, npt.NDArray[np.floating]]) -> Means:
    return {metric: float(scores[metric].mean(dtype=np.float64)) for metric in METRICS}


def page_data(
    run: ReportedRun, metric: str, palette: str, metrics: Sequence[ShownMetric]
) -> PageData:
    """What the page's scripts read, ready for JSON.

    Args:
        run: what was read.
        metric: the one that is shown first.
        palette: of the heatmaps.
        metrics: those on the page, and how finely.
    """
    roles = sorted({role for fact in run.facts for role in fact.record.roles})
    shown = [one["name"] for one in metrics]
    return {
        "source": run.source,
        "metrics": [_metric_choice(one) for one in metrics],
        "left_off": [name for name in METRICS if name not in shown],
        "metric": metric,
        "mediators": [_mediator_choice(key, palette) for key in run.keys],
        "roles": roles,
        "n_layers": run.cells[0].shape[-2],
        "n_samples": run.n_samples,
        "n_traced": len(run.facts),
        "chunk_facts": CHUNK_FACTS,
        "missing": MISSING,
        "facts": [
            *(_traced_row(fact.record, roles) for fact in run.facts),
            *(_left_out_row(record, reason) for record, reason in run.left_out),
        ],
        "scores": {one["name"]: _scores(run, one["name"], one["decimals"]) for one in metrics},
    }


def _metric_choice(one: ShownMetric) -> MetricChoice:
    name = one["name"]
    return {**one, "label": metric_label(name), "lower_helps": lower_helps(name)}


def _mediator_choice(key: str, palette: str) -> MediatorChoice:
    ramp = ramp_of(palette, key)
    colours: Colours = {"helps": ramp.helps, "hurts": ramp.hurts}
    base = "clean" if changes_clean_run(key) else "corrupted"
    title = mediator_title(key) + (", the strongest of each layer" if has_heads(key) else "")
    return {"key": key, "title": title, "colours": colours, "base": base}


def _traced_row(record: CleanRecord, roles: Sequence[str]) -> TracedRow:
    return {
        **_row(record),
        "tokens": [visible(token) for token in record.tokens],
        "roles": [roles.index(role) for role in record.roles],
        "span": record.span,
    }


def _left_out_row(record: CleanRecord, reason: str) -> LeftOutRow:
    return {**_row(record), "left_out": reason}


def _row(record: CleanRecord) -> FactRow:
    return {
        "id": record.known_id,
        "prompt": record.prompt,
        "subject": record.subject,
        "attribute": record.attribute,
        "predicted": record.predicted,
        "relation": record.relation_id,
        "marked": _marked(record),
    }


def _marked(record: CleanRecord) -> list[int]:
    """First character of the subject in the prompt, and one past its last.

    The subject's tokens say which occurrence is meant; they may hold letters around it, too.
    """
    start, stop = record.span
    first, last = int(record.offsets[start][0]), int(record.offsets[stop - 1][1])
    exact = record.prompt.find(record.subject, first, last) if record.subject else -1
    return [first, last] if exact < 0 else [exact, exact + len(record.subject)]


def _scores(run: ReportedRun, metric: str, decimals: int) -> ScoreColumns:
    facts = run.facts
    clean = np.array([fact.clean[metric] for fact in facts])
    corrupted = np.array([fact.corrupted[metric] for fact in facts])
    row = METRICS.index(metric)
    peaks: list[list[int]] = []
    for fact in facts:
        of_fact: list[int] = []
        for peak in (of_mediator[row] for of_mediator in fact.peaks):
            of_fact += [int(units([peak.effect], decimals)[0]), peak.layer, peak.position]
        peaks.append(of_fact)
    return {
        "clean": units(clean, decimals).tolist(),
        "corrupted": units(corrupted, decimals).tolist(),
        "total": units(clean - corrupted, decimals).tolist(),
        "peaks": peaks,
    }
