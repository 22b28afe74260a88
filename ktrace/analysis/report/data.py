"""What the report says about each fact: its row in the table, and how its cells are labelled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace.analysis.estimate import subject_peak
from ktrace.analysis.report.cells import (
    CHUNK_FACTS,
    DECIMALS,
    MISSING,
    PackedCells,
    pack_cells,
    read_cells,
    units,
)
from ktrace.errors import KtraceError
from ktrace.store import BASELINE_SCORES, CLEAN_SCORES, RunFolders
from ktrace.terms import METRICS, mediator_title

_CLEAN_FIELDS = (
    "known_id",
    "prompt",
    "subject",
    "attribute",
    "predicted",
    "left_out",
    "is_candidate",
    "tokens",
    "offsets",
    "roles",
    "span",
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ReportData:
    """What the page's scripts show.

    Attributes:
        page: labels, precision, and the facts; plain lists and numbers, ready for JSON.
        cells: the chunks of cells.
    """

    page: dict[str, Any]
    cells: PackedCells


def report_data(
    folders: RunFolders,
    keys: Sequence[str],
    limit: int | None,
    metric: str,
    budget: Callable[[dict[str, Any]], int],
) -> ReportData:
    """Read the stores of a run, reduced to what the page holds.

    Args:
        folders: of the run.
        keys: mediators, in the order in which they are offered.
        limit: only facts among the first `limit` of the dataset.
        metric: the one that is shown first.
        budget: characters that the cells may take beside a page.

    Raises:
        KtraceError: the stores hold no traced fact, or a damaged part.
    """
    examined = sorted(
        (
            record
            for record in folders.clean.read(*_CLEAN_FIELDS)
            if limit is None or record["index"] < limit
        ),
        key=lambda record: record["index"],
    )
    corrupted = {
        record["index"]: record for record in folders.corrupted.read("left_out", *BASELINE_SCORES)
    }
    cells = read_cells(
        folders,
        keys,
        {
            record["index"]: corrupted[record["index"]]
            for record in examined
            if _traced(record, corrupted)
        },
    )
    traced = [record for record in examined if record["index"] in cells]
    if not traced:
        raise KtraceError(f"{folders.run} holds no restorations of these facts")
    others = [record for record in examined if record["index"] not in cells]
    scores = [corrupted[record["index"]] for record in traced]
    means = [
        {name: float(score[name].mean(dtype=np.float64)) for name in BASELINE_SCORES}
        for score in scores
    ]
    by_fact = [cells[record["index"]] for record in traced]
    roles = sorted({role for record in traced for role in record["roles"]})
    facts = [_fact(record, roles) for record in traced]
    facts += [_left_out(record, corrupted.get(record["index"], {})) for record in others]

    def page(decimals: Mapping[str, int], n_facts: Callable[[str], int]) -> dict[str, Any]:
        return {
            "metrics": [
                {"name": name, "decimals": digits, "n_facts": min(n_facts(name), len(traced))}
                for name, digits in decimals.items()
            ],
            "left_off": [name for name in METRICS if name not in decimals],
            "metric": metric,
            "mediators": [{"key": key, "title": mediator_title(key)} for key in keys],
            "roles": roles,
            "n_layers": by_fact[0].shape[-2],
            "n_samples": len(scores[0][METRICS[0]]),
            "n_traced": len(traced),
            "chunk_facts": CHUNK_FACTS,
            "missing": MISSING,
            "facts": facts,
            "scores": {
                name: _scores(name, digits, traced, means, by_fact)
                for name, digits in decimals.items()
            },
        }

    # With every metric and every digit: the page that is written is no longer than this one.
    longest = page({name: DECIMALS[name][0] for name in METRICS}, lambda name: len(traced))
    packed = pack_cells(by_fact, means, metric, budget(longest))
    chosen = {name: packed.decimals[name] for name in METRICS if name in packed.decimals}
    return ReportData(page(chosen, packed.n_facts), packed)


def _traced(record: Mapping[str, Any], corrupted: Mapping[int, Mapping[str, Any]]) -> bool:
    score = corrupted.get(record["index"])
    return record["is_candidate"] and score is not None and not score["left_out"]


def _fact(record: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
    return _row(record) | {
        "tokens": record["tokens"],
        "roles": [roles.index(role) for role in record["roles"]],
        "span": [int(bound) for bound in record["span"]],
    }


def _left_out(record: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    reason = record["left_out"] or score.get("left_out") or "it has not been restored yet"
    return _row(record) | {"left_out": reason}


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": record["known_id"],
        **{name: record[name] for name in ("prompt", "subject", "attribute", "predicted")},
        "marked": _marked(record),
    }


def _marked(record: Mapping[str, Any]) -> list[int]:
    """First character of the subject in the prompt, and one past its last.

    The subject's tokens say which occurrence is meant; they may hold letters around it, too.
    """
    start, stop = (int(bound) for bound in record["span"])
    first, last = int(record["offsets"][start][0]), int(record["offsets"][stop - 1][1])
    exact = record["prompt"].find(record["subject"], first, last)
    return [first, last] if exact < 0 else [exact, exact + len(record["subject"])]


def _scores(
    metric: str,
    decimals: int,
    traced: Sequence[Mapping[str, Any]],
    means: Sequence[Mapping[str, float]],
    cells: Sequence[Array],
) -> dict[str, Any]:
    """Columns of the table of facts, in whole numbers of the metric's decimal unit.

    `peaks` has three numbers for each fact and mediator, as `facts.csv` has: the strongest mean
    effect at a position of the subject, its layer and its position.
    """
    clean = np.array([mean[CLEAN_SCORES[metric]] for mean in means])
    corrupted = np.array([mean[metric] for mean in means])
    row = METRICS.index(metric)
    peaks: list[list[int]] = []
    for record, fact in zip(traced, cells, strict=True):
        of_fact: list[int] = []
        for effects in fact[row, :, 0]:  # of each mediator, (layer, position)
            layer, position = subject_peak(effects, record["span"], metric)
            of_fact += [int(units([effects[layer, position]], decimals)[0]), layer, position]
        peaks.append(of_fact)
    return {
        "clean": units(clean, decimals).tolist(),
        "corrupted": units(corrupted, decimals).tolist(),
        "total": units(clean - corrupted, decimals).tolist(),
        "peaks": peaks,
    }
