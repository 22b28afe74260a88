"""Which figures a run and a comparison of runs get, and what stands above them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.figures.curves import peak_histogram, role_lines, severed_bars
from ktrace.analysis.figures.heatmaps import (
    aie_heatmaps,
    depth_panels,
    difference_heatmap,
    fact_heatmap,
)
from ktrace.analysis.figures.style import save
from ktrace.analysis.peaks import peak_layers
from ktrace.analysis.rows import rows
from ktrace.errors import KtraceError
from ktrace.terms import MEDIATOR_TITLES, METRICS, mediator_title, metric_title

_KEY = rf"({'|'.join(MEDIATOR_TITLES)})(-w\d+)?"
# The figures' names without their suffix: what is no longer drawn is removed.
RUN_FIGURES = re.compile(rf"aie|lines|severed|peaks|aie-{_KEY}|fact--?\d+-{_KEY}")
COMPARISON_FIGURES = re.compile(r"(models|difference)-.*")
_PEAK_ROLES = ("last subject", "last")


def draw_figures(
    run: RunAverages, folder: Path, *, shown: Sequence[str], metric: str, facts: Sequence[int] = ()
) -> list[Path]:
    """Draw a run's figures as PNG and PDF.

    Args:
        run: the averages.
        folder: where they go.
        shown: mediators in the figures that show several.
        metric: what they show.
        facts: known_ids that get a heatmap of their own for each mediator shown.

    Returns:
        The files written.

    Raises:
        KtraceError: one of `facts` was not traced.
    """
    chosen = _fact_indices(run, facts)
    aie = run.aie_in(metric)
    roles = rows(run.averaging.scheme)
    title = f"{_about(run, 'average indirect effect')}\n{_noise(run)}"
    files = []
    for key in run.keys:
        one = aie_heatmaps(aie, keys=[key], roles=roles, title=title, metric=metric)
        files += save(one, folder / f"aie-{key}")
    together = aie_heatmaps(aie, keys=shown, roles=roles, title=title, metric=metric)
    files += save(together, folder / "aie")
    lines = role_lines(aie, keys=shown, roles=roles, title=title, metric=metric)
    files += save(lines, folder / "lines")
    files += _severed(run, folder, shown, metric, title)
    files += _peaks(run, folder, shown, metric)
    for index in chosen:
        files += _fact(run, folder, shown, metric, index)
    return files


def _about(run: RunAverages, what: str) -> str:
    names = run.names
    sizes = sorted({len(one.indices) for one in run.effects})
    n_facts = "–".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    unfinished = " (unfinished)" if run.missing else ""
    return f"{names.model} on {names.dataset}: {what}, n = {n_facts} facts{unfinished}"


def _noise(run: RunAverages) -> str:
    n_samples = len(run.effects[0].by_sample)
    source = run.survey.sigma_measured_on
    measured = f" ({source['facts']} facts, {source['tokens']} tokens)" if source else ""
    return (
        f"noise {run.names.noise}, σ = {run.survey.example.sigma:.3g}{measured}, "
        f"{n_samples} sample{'s' if n_samples > 1 else ''}"
    )


def _severed(
    run: RunAverages, folder: Path, shown: Sequence[str], metric: str, title: str
) -> list[Path]:
    keys = [key for key in shown if key.startswith("hidden")]
    aie = run.aie_in(metric)
    aie = aie[aie["role"] == "last subject"]
    if len(set(keys) & set(aie["mediator"])) < 2:
        return []
    figure = severed_bars(aie, keys=keys, role="last subject", title=title, metric=metric)
    return save(figure, folder / "severed")


def _peaks(run: RunAverages, folder: Path, shown: Sequence[str], metric: str) -> list[Path]:
    chosen = [one for one in run.effects if one.key in shown]
    peaks = {
        one.key: {
            role: peak_layers(one, role, run.averaging.scheme, metric) for role in _PEAK_ROLES
        }
        for one in chosen
    }
    what = f"layer of each fact's strongest effect ({metric_title(metric)})"
    title = f"{_about(run, what)}\n{_noise(run)}"
    figure = peak_histogram(peaks, n_layers=chosen[0].n_layers, title=title)
    return save(figure, folder / "peaks")


def _fact_indices(run: RunAverages, facts: Sequence[int]) -> list[int]:
    by_id = {run.survey.clean[index].known_id: index for index in run.survey.traced}
    unknown = [known_id for known_id in facts if known_id not in by_id]
    if unknown:
        raise KtraceError(
            f"analysis.facts: known_id={unknown[0]} is not among the {len(by_id)} traced facts of "
            f"{run.survey.folders.run}"
        )
    return [by_id[known_id] for known_id in facts]


def _fact(
    run: RunAverages, folder: Path, shown: Sequence[str], metric: str, index: int
) -> list[Path]:
    fact, scores = run.survey.clean[index], run.survey.corrupted[index]
    files = []
    for one in run.effects:
        if one.key not in shown or index not in one.grids:
            continue
        title = (
            f"{run.names.model}: {mediator_title(one.key)}, fact {fact.known_id} "
            f"({fact.attribute.strip()})\np clean {scores.clean['probability'].mean():.3f}, "
            f"corrupted {scores.corrupted['probability'].mean():.3f}\n{_noise(run)}"
        )
        figure = fact_heatmap(
            one.grids[index].mean[METRICS.index(metric)],
            tokens=fact.tokens,
            subject=fact.span,
            title=title,
            label=f"IE ({metric_title(metric)})",
        )
        files += save(figure, folder / f"fact-{fact.known_id}-{one.key}")
    return files


def draw_comparison(
    runs: Mapping[str, RunAverages],
    folder: Path,
    aie: pd.DataFrame,
    differences: pd.DataFrame,
    metric: str,
) -> list[Path]:
    """Draw a comparison's figures as PNG and PDF: two for each mediator.

    Args:
        runs: by their labels.
        folder: where they go.
        aie: of all runs, with columns `run, mediator, metric, role, layer, aie, n_facts`.
        differences: to the first run, with columns `run, baseline, mediator, role, depth,
            difference, ci_low, ci_high, n_facts`.
        metric: what they show.

    Returns:
        The files written.
    """
    files = []
    for key in dict.fromkeys(key for run in runs.values() for key in run.keys):
        cells = aie[(aie["mediator"] == key) & (aie["metric"] == metric)]
        figure = _models(runs, key, cells, metric)
        files += save(figure, folder / f"models-{key}")
        of_key = differences[differences["mediator"] == key]
        if len(of_key):
            figure = _difference(runs, key, of_key, metric)
            files += save(figure, folder / f"difference-{key}")
    return files


def _models(runs: Mapping[str, RunAverages], key: str, cells: pd.DataFrame, metric: str) -> Figure:
    grids = {}
    for label, run in runs.items():
        if key in run.keys:
            own = cells[cells["run"] == label]
            grid = own.pivot(index="role", columns="layer", values="aie")
            roles = list(rows(run.averaging.scheme))
            grids[f"{label}\nn = {own['n_facts'].max()}"] = grid.reindex(roles)
    title = f"Average indirect effect: {mediator_title(key)}\n{_in_common(runs)}"
    return depth_panels(grids, title=title, label=f"AIE ({metric_title(metric)})")


def _difference(
    runs: Mapping[str, RunAverages], key: str, differences: pd.DataFrame, metric: str
) -> Figure:
    panels = {
        f"{label}\nn = {one['n_facts'].max()} shared": one
        for label, one in differences.groupby("run", sort=False)
    }
    baseline = differences["baseline"].iloc[0]
    title = f"{mediator_title(key)}: difference to {baseline}\n{_in_common(runs)}"
    title += "\ndots: the 95 % interval excludes 0"
    scheme = next(iter(runs.values())).averaging.scheme
    return difference_heatmap(panels, roles=list(rows(scheme)), title=title, metric=metric)


def _in_common(runs: Mapping[str, RunAverages]) -> str:
    """What the runs share of what a title states."""
    names = [run.names for run in runs.values()]
    same = []
    for what in names[0]._fields:
        values = {getattr(one, what) for one in names}
        same += [f"{what} {values.pop()}"] if len(values) == 1 else []
    sigmas = [run.survey.example.sigma for run in runs.values()]
    sigma = "–".join(dict.fromkeys((f"{min(sigmas):.3g}", f"{max(sigmas):.3g}")))
    return ", ".join([*same, f"σ = {sigma}"])
