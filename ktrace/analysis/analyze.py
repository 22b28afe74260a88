"""The analysis stage: stores in; tables, summary and figures out."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.estimate import average_peaks, fact_table, total_effect
from ktrace.analysis.figures.draw import NAMES, draw_figures
from ktrace.analysis.per_fact import total_effects
from ktrace.analysis.report import write_report
from ktrace.analysis.rows import Averaging
from ktrace.files import write_text
from ktrace.store.layout import provenance_of
from ktrace.terms import METRICS

AIE_COLUMNS = (
    "model",
    "dataset",
    "noise",
    "mediator",
    "metric",
    "role",
    "layer",
    "aie",
    "ci_low",
    "ci_high",
    "n_facts",
)


@dataclass(frozen=True)
class Analysis:
    """What the stage found.

    Attributes:
        run: effects of every fact and mediator, without the axis of noise samples.
        aie: the content of `aie.csv`.
        facts: the content of `facts.csv`: one row for each traced fact.
        summary: the content of `summary.json`.
        files: what was written.
        figures: those of `files` that are figures.
        notes: what was left out or is missing, and why.
    """

    run: RunAverages
    aie: pd.DataFrame
    facts: pd.DataFrame
    summary: dict[str, Any]
    files: list[Path]
    figures: list[Path]
    notes: list[str]


def analyze(
    run_folder: Path,
    *,
    averaging: Averaging = Averaging(),  # noqa: B008  # frozen
    asked: Sequence[str] = (),
    limit: int | None = None,
    metric: str = METRICS[0],
    partial: bool = False,
    facts: Sequence[int] = (),
) -> Analysis:
    """Analyse every mediator of a run that is complete for the chosen facts.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        averaging: rows of the figures, and how positions are pooled.
        asked: mediators that must be complete, and that figures with several mediators show; those
            show all, where none is named or, with `partial`, none of them is stored. The tables
            hold every mediator that is complete.
        limit: only the first `limit` facts of the dataset.
        metric: what the figures and the peaks show; the tables hold all metrics.
        partial: take what is there of an unfinished run, and note what is missing.
        facts: known_ids that get heatmaps of their own.

    Raises:
        KtraceError: nothing to analyse, an unfinished run, or parts of different settings.
    """
    folder = run_folder / "analysis"
    run = average_run(
        run_folder,
        averaging,
        asked=asked,
        limit=limit,
        partial=partial,
        parquet=folder / "effects.parquet",
    )
    shown = [key for key in run.keys if key in asked] or run.keys
    aie = run.aie.assign(**run.names)[list(AIE_COLUMNS)]
    table = fact_table(run.survey, run.effects, metric)
    summary = _summary(run, metric, limit)
    files = _write_tables(folder, aie, run.samples.assign(**run.names), table, summary)
    figures = draw_figures(run, folder, shown=shown, metric=metric, facts=facts)
    _remove_stale(folder, figures)
    files.append(
        write_report(
            run.survey.folders, keys=run.keys, limit=limit, summary=summary, figures=figures
        )
    )
    notes = [*(f"missing: {words}" for words in run.missing), *run.notes]
    return Analysis(run, aie, table, summary, [*files, *figures], figures, notes)


def _remove_stale(folder: Path, figures: Sequence[Path]) -> None:
    """Remove figures of what is no longer drawn: they would contradict the tables.

    Other files in the folder are the user's.
    """
    for kind in ("png", "pdf"):
        for path in folder.glob(f"*.{kind}"):
            if path not in figures and NAMES.fullmatch(path.stem):
                path.unlink(missing_ok=True)  # another analysis may do the same


def _summary(run: RunAverages, metric: str, limit: int | None) -> dict[str, Any]:
    found, averaging = run.survey, run.averaging
    left_out = Counter(r["left_out"] for r in found.clean.values() if not r["is_candidate"])
    left_out.update(r["left_out"] for r in found.corrupted.values() if r["left_out"])
    clean, corrupted = total_effects(found)
    metrics = {
        name: {
            "clean": float(clean[:, number].mean()),
            "corrupted": float(corrupted[:, number].mean()),
            **total_effect(clean[:, number], corrupted[:, number]),
        }
        for number, name in enumerate(METRICS)
    }
    first, noise = metrics[METRICS[0]], found.corrupted[found.traced[0]]
    chosen = run.aie[run.aie["metric"] == metric]
    return {
        "n_facts": len(found.clean),
        "n_candidates": len(found.candidates),
        "n_traced": len(found.traced),
        "left_out": dict(left_out),
        "missing": list(run.missing),
        "p_clean": first["clean"],
        "p_corrupted": first["corrupted"],
        "ate": first["ate"],
        "ate_ci": first["ate_ci"],
        "metrics": metrics,
        "sigma": noise["sigma"],
        "sigma_measured_on": found.sigma_measured_on,
        # JSON has no NaN.
        "noise_level": None if np.isnan(noise["noise_level"]) else noise["noise_level"],
        "n_samples": corrupted.shape[-1],
        "limit": limit,
        "metric": metric,
        "roles": {"scheme": averaging.scheme, "single_token": averaging.single_token},
        "pool": averaging.pool,
        "settings": {key: found.folders.restored(key).fingerprint() for key in run.keys},
        "provenance": provenance_of(found.folders, run.keys),
        "peaks": {
            key: average_peaks(chosen[chosen["mediator"] == key], metric) for key in run.keys
        },
        **run.names,
    }


def _write_tables(
    folder: Path,
    aie: pd.DataFrame,
    samples: pd.DataFrame,
    facts: pd.DataFrame,
    summary: dict[str, Any],
) -> list[Path]:
    names = ["model", "dataset", "noise"]
    samples = samples[[*names, *(name for name in samples.columns if name not in names)]]
    for stem, table in (("aie", aie), ("samples", samples), ("facts", facts)):
        buffer = io.StringIO()
        table.to_csv(buffer, index=False)
        write_text(folder / f"{stem}.csv", buffer.getvalue())
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    written = ("aie.csv", "samples.csv", "facts.csv", "summary.json", "effects.parquet")
    return [folder / name for name in written]
