"""The analysis stage: stores in; tables, summary and figures out."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ktrace.analysis.effects import effects_frame, require_same_settings
from ktrace.analysis.estimate import average_indirect_effects, total_effect
from ktrace.analysis.figures import draw_heatmaps
from ktrace.analysis.roles import rows
from ktrace.errors import KtraceError
from ktrace.store import METRICS, RunFolders
from ktrace.store.files import new_file, write_text
from ktrace.store.provenance import provenance_of

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
# Panels go from what is restored as a whole to its parts.
_ORDER = ("hidden", "hidden_attn_severed", "hidden_mlp_severed", "mlp", "attn")


@dataclass(frozen=True)
class Analysis:
    """What the stage found.

    Attributes:
        aie: the content of `aie.csv`.
        summary: the content of `summary.json`.
        files: what was written.
        notes: what was left out, and why.
    """

    aie: pd.DataFrame
    summary: dict[str, Any]
    files: list[Path]
    notes: list[str]


def analyze(
    run_folder: Path, *, scheme: str = "rome", limit: int | None = None, metric: str = METRICS[0]
) -> Analysis:
    """Analyse every mediator of a run that is complete for the chosen facts.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        scheme: rows of the heatmaps, `rome` or `seed`.
        limit: only the first `limit` facts of the dataset.
        metric: what the figures and the peaks show; the tables hold all metrics.

    Raises:
        KtraceError: nothing to analyse, or parts of different settings.
    """
    folders = RunFolders(run_folder)
    fingerprint = folders.clean.fingerprint()
    if fingerprint is None:
        raise KtraceError(f"{folders.clean.folder} holds no clean runs: run stage=all first")
    facts = _examined_facts(folders, fingerprint["dataset"]["n_facts"], limit)
    candidates = {record["index"] for record in facts if record["is_candidate"]}
    if not candidates:
        raise KtraceError(
            f"{run_folder}: none of the {len(facts)} facts is a candidate; nothing was traced"
        )
    scores = _corrupted_scores(folders, candidates)
    traced = {index for index, record in scores.items() if not record["left_out"]}
    keys, notes = _complete_mediators(folders, traced)
    names = {
        "model": run_folder.parent.parent.name,
        "dataset": run_folder.parent.name,
        "noise": run_folder.name,
    }
    aie = _write_effects(folders, keys, limit, scheme)
    for column, name in names.items():
        aie[column] = name
    aie = aie[list(AIE_COLUMNS)]
    summary = _summary(facts, scores, aie, folders, keys, metric) | names
    files = _write_tables(folders.analysis, aie, summary)
    effect = summary["metrics"][metric]["ate"]
    title = "\n".join(
        (
            f"{names['model']} on {names['dataset']}: average indirect effect, "
            f"n = {len(traced)} facts",
            f"noise {names['noise']}, sigma {summary['sigma']:.3g}; "
            f"average total effect {effect:.3f}",
        )
    )
    shown = aie[aie["metric"] == metric]
    draw = partial(draw_heatmaps, shown, roles=rows(scheme), title=title, metric=metric)
    for key in keys:
        files += draw(keys=[key], stem=folders.analysis / f"aie-{key}")
    files += draw(keys=keys, stem=folders.analysis / "aie")
    # What a mediator left that is no longer complete would contradict aie.csv.
    for stale in {path for path in folders.analysis.glob("aie-*.*") if path not in files}:
        stale.unlink()
    return Analysis(aie, summary, files, notes)


def _examined_facts(folders: RunFolders, n_facts: int, limit: int | None) -> list[dict[str, Any]]:
    expected = n_facts if limit is None else min(limit, n_facts)
    facts = [
        record
        for record in folders.clean.read("is_candidate", "left_out")
        if record["index"] < expected
    ]
    if len(facts) < expected:
        raise KtraceError(
            f"{folders.clean.folder} holds {len(facts)} of {expected} facts: finish the run "
            "(the same command without stage=analyze), or set dataset.limit"
        )
    return facts


def _corrupted_scores(folders: RunFolders, candidates: set[int]) -> dict[int, dict[str, Any]]:
    names = [*METRICS, *(f"clean_{metric}" for metric in METRICS)]
    scores = {
        record["index"]: record
        for record in folders.corrupted.read("left_out", "sigma", "noise_level", *names)
        if record["index"] in candidates
    }
    if len(scores) < len(candidates):
        raise KtraceError(
            f"{folders.corrupted.folder} holds {len(scores)} of {len(candidates)} candidates: "
            "finish the run (the same command without stage=analyze)"
        )
    return scores


def _complete_mediators(folders: RunFolders, traced: set[int]) -> tuple[list[str], list[str]]:
    require_same_settings(folders, folders.mediator_keys())
    keys, notes = [], []
    for key in sorted(folders.mediator_keys(), key=_panel):
        have = len(traced & {record["index"] for record in folders.restored(key).read()})
        if have == len(traced):
            keys.append(key)
        else:
            notes.append(f"{key} is left out: {have} of {len(traced)} candidates are restored")
    if not keys:
        raise KtraceError(
            f"{folders.run} holds no complete mediator"
            + (f" ({'; '.join(notes)})" if notes else "")
            + ": finish the run (the same command without stage=analyze)"
        )
    return keys, notes


def _panel(key: str) -> tuple[int, str]:
    name = key.partition("-w")[0]
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), key)


def _summary(
    facts: Sequence[dict[str, Any]],
    scores: dict[int, dict[str, Any]],
    aie: pd.DataFrame,
    folders: RunFolders,
    keys: Sequence[str],
    metric: str,
) -> dict[str, Any]:
    traced = [record for _, record in sorted(scores.items()) if not record["left_out"]]
    left_out = Counter(record["left_out"] for record in facts if not record["is_candidate"])
    left_out.update(record["left_out"] for record in scores.values() if record["left_out"])
    metrics = {}
    for name in METRICS:
        clean = np.array([record[f"clean_{name}"] for record in traced], dtype=np.float64)
        corrupted = np.array([record[name].mean(dtype=np.float64) for record in traced])
        metrics[name] = {
            "clean": float(clean.mean()),
            "corrupted": float(corrupted.mean()),
            **total_effect(clean, corrupted),
        }
    first = metrics[METRICS[0]]
    return {
        "n_facts": len(facts),
        "n_candidates": len(scores),
        "n_traced": len(traced),
        "left_out": dict(left_out),
        "p_clean": first["clean"],
        "p_corrupted": first["corrupted"],
        "ate": first["ate"],
        "ate_ci": first["ate_ci"],
        "metrics": metrics,
        "sigma": traced[0]["sigma"],
        "noise_level": _finite(traced[0]["noise_level"]),
        "settings": {key: folders.restored(key).fingerprint() for key in keys},
        "provenance": provenance_of(folders, keys),
        "metric": metric,
        "peaks": {
            key: _peaks(aie[(aie["mediator"] == key) & (aie["metric"] == metric)], metric)
            for key in keys
        },
    }


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value  # JSON has no NaN


def _peaks(aie: pd.DataFrame, metric: str) -> dict[str, Any]:
    by_role = aie.groupby("role", observed=True)["aie"]
    # Restoring brings the run back to the clean one: a divergence from it falls.
    best = aie.loc[by_role.idxmin() if metric == "kl" else by_role.idxmax()]
    return {
        str(row.role): {"layer": int(row.layer), "aie": float(row.aie)} for row in best.itertuples()
    }


def _write_effects(
    folders: RunFolders, keys: Sequence[str], limit: int | None, scheme: str
) -> pd.DataFrame:
    """Write `effects.parquet` and average it, one metric in memory at a time."""
    averages = []
    with ExitStack() as stack:
        temporary = stack.enter_context(new_file(folders.analysis / "effects.parquet"))
        writer: pq.ParquetWriter | None = None
        for metric in METRICS:
            effects = effects_frame(folders, keys, limit, [metric])
            averages.append(average_indirect_effects(effects, scheme))
            table = pa.Table.from_pandas(effects, preserve_index=False)
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(temporary, table.schema, compression="zstd")
                )
            writer.write_table(table)
    aie: pd.DataFrame = pd.concat(averages, ignore_index=True).sort_values(
        ["mediator", "metric"], kind="stable", ignore_index=True
    )
    return aie


def _write_tables(folder: Path, aie: pd.DataFrame, summary: dict[str, Any]) -> list[Path]:
    buffer = io.StringIO()
    aie.to_csv(buffer, index=False)
    write_text(folder / "aie.csv", buffer.getvalue())
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return [folder / name for name in ("aie.csv", "summary.json", "effects.parquet")]
