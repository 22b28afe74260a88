"""Which figures a run gets, and what stands above them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.look import Look, Prompt, probability_text
from ktrace.analysis.peaks import peak_layers
from ktrace.analysis.per_fact import MediatorEffects, fact_grids
from ktrace.analysis.rows import rows
from ktrace.analysis.tokens import shortened, visible
from ktrace.errors import KtraceError
from ktrace.terms import (
    MEDIATOR_TITLES,
    METRICS,
    SOURCE_GROUPS,
    MediatorKey,
    cuts_edges,
    mediator_title,
    metric_title,
)

_REST = r"(-w\d+)?(-noise)?(-at-[a-z_+]+)?(-from-[a-z_]+)?"  # of a key, behind its name
# The figures' names without their suffix: what is no longer drawn is removed.
RUN_FIGURES = re.compile(
    rf"aie|lines|severed|peaks|relations|windows|(head|knockout){_REST}"
    rf"|(aie|relations|fact--?\d+)-({'|'.join(MEDIATOR_TITLES)}){_REST}"
)
_MOST_RELATIONS = 24  # panels of a page
_KEY_ROLE = "last subject"
_PEAK_ROLES = (_KEY_ROLE, "last")


def draw_figures(
    run: RunAverages,
    into: Drawing,
    *,
    shown: Sequence[str],
    look: Look,
    facts: Sequence[int] = (),
    by_relation: Sequence[str] = (),
) -> Drawing:
    """Begin a run's figures, as PNG, PDF and SVG.

    Args:
        run: the averages.
        into: where they go, and what draws them.
        shown: mediators in the figures that show several.
        look: what they show, and in which colours.
        facts: known_ids that get a heatmap of their own for each mediator shown.
        by_relation: mediators that get a panel for each relation; a page shows the first.

    Raises:
        KtraceError: one of `facts` was not traced.
    """
    chosen = _fact_indices(run, facts)
    for heads in run.heads:
        _heads(run, into, heads, look)
    if run.effects:
        _whole(run, into, shown, look, chosen, by_relation)
    return into


def _whole(
    run: RunAverages,
    into: Drawing,
    shown: Sequence[str],
    look: Look,
    chosen: Sequence[int],
    by_relation: Sequence[str],
) -> None:
    """Of mediators without heads."""
    metric, roles = look.metric, rows(run.averaging.scheme)
    aie = run.aie_in(metric)
    title = f"{_about(run, 'average indirect effect')}\n{_noise(run)}"
    # What takes longest is begun first.
    for number, key in enumerate(by_relation):
        _relations(run, into, key, look, first=number == 0)
    heatmaps = "heatmaps.aie_heatmaps"
    titled: dict[str, Any] = {"roles": roles, "title": title}
    into.add("aie", heatmaps, aie, keys=shown, look=look, **titled)
    into.add("lines", "curves.role_lines", aie, keys=shown, metric=metric, **titled)
    _peaks(run, into, shown, metric)
    for key in run.keys:
        on_page = key not in shown
        into.add(f"aie-{key}", heatmaps, aie, keys=[key], look=look, on_page=on_page, **titled)
    _facts(run, into, shown, look, chosen)
    _severed(run, into, shown, metric, title)
    _windows(run, into, look)
    for key in filter(cuts_edges, run.keys):
        _knockout(run, into, key)


def _heads(run: RunAverages, into: Drawing, one: MediatorEffects, look: Look) -> None:
    """Heads down, layers across, a panel for each role."""
    table = run.of_heads
    table = table[(table["mediator"] == one.key) & (table["metric"] == look.metric)]
    n_layers = one.n_layers // one.n_heads
    grids = {}
    for role, own in table.groupby("role", sort=False):
        grid = own.pivot(index="head", columns="layer", values="aie")
        grid = grid.reindex(index=range(one.n_heads), columns=range(n_layers))
        grids[f"{role}\nn = {own['n_facts'].max()}"] = grid
    title = f"{_about(run, f'AIE of {mediator_title(one.key)}')}\n{_noise(run)}"
    into.add(
        *(one.key, "heatmaps.named_heatmaps", grids),
        key=one.key,
        title=title,
        look=look,
    )


def _windows(run: RunAverages, into: Drawing, look: Look) -> None:
    """Windows down, layers across, for mediators that were traced in several."""
    aie = run.aie_in(look.metric)
    aie = aie[aie["role"] == _KEY_ROLE]
    by_window: dict[str, dict[int, str]] = {}
    for key in run.keys:
        parts = MediatorKey.parse(key)
        if parts.window and key in set(aie["mediator"]):
            by_window.setdefault(str(parts._replace(window=0)), {})[parts.window] = key
    grids = {}
    for name, keys in by_window.items():
        if len(keys) > 1:
            own = [aie[aie["mediator"] == key].set_index("layer")["aie"] for key in keys.values()]
            grid = pd.DataFrame(own, index=pd.Index(list(keys), name="window"))
            grids[mediator_title(name)] = grid
            any_key = next(iter(keys.values()))
    if grids:
        title = f"{_about(run, f'AIE at {_KEY_ROLE} by window')}\n{_noise(run)}"
        into.add(
            *("windows", "heatmaps.named_heatmaps", grids),
            key=any_key,
            title=title,
            look=look,
        )


def _knockout(run: RunAverages, into: Drawing, key: str) -> None:
    """A line for each group of sources: how much of the probability is lost."""
    table = run.knockouts
    table = table[(table["mediator"] == key) & (table["metric"] == METRICS[0])]
    lines = table.assign(
        role=table["sources"],
        aie=table["relative"],
        ci_low=table["relative_low"],
        ci_high=table["relative_high"],
    )
    what = f"{mediator_title(key)}, change of p by sources"
    into.add(
        *(key, "curves.role_lines", lines),
        keys=[key],
        roles=[name for name in SOURCE_GROUPS if name in set(table["sources"])],
        title=f"{_about(run, what)}",
        metric=METRICS[0],
        quantity="relative change of p",
    )


def _about(run: RunAverages, what: str) -> str:
    names = run.names
    sizes = sorted({len(one.indices) for one in (*run.effects, *run.heads)})
    n_facts = "–".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    unfinished = " (unfinished)" if run.missing else ""
    return f"{names.model} on {names.dataset}: {what}, n = {n_facts} facts{unfinished}"


def _noise(run: RunAverages) -> str:
    n_samples = run.total.clean.shape[-1]
    source = run.survey.sigma_measured_on
    measured = f" ({source['facts']} facts, {source['tokens']} tokens)" if source else ""
    sigma = sigma_in_words([run.survey.example.sigma])
    samples = f"{n_samples} sample{'s' if n_samples > 1 else ''}"
    return ", ".join([f"noise {run.names.noise}", *(f"{one}{measured}" for one in sigma), samples])


def sigma_in_words(values: Sequence[float]) -> list[str]:
    """The spread that noises rest on, in words; nothing where none rests on one (`pair`)."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return []
    return ["σ = " + "–".join(dict.fromkeys((f"{min(known):.3g}", f"{max(known):.3g}")))]


def _severed(
    run: RunAverages, into: Drawing, shown: Sequence[str], metric: str, title: str
) -> None:
    keys = [key for key in shown if key.startswith("hidden")]
    aie = run.aie_in(metric)
    aie = aie[aie["role"] == _KEY_ROLE]
    if len(set(keys) & set(aie["mediator"])) < 2:
        return
    apart = run.mediators_apart
    apart = apart[apart["metric"] == metric]
    into.add(
        "severed",
        "curves.severed_lines",
        *(aie, apart[apart["left"] == "hidden"]),
        keys=keys,
        role=_KEY_ROLE,
        title=title,
        metric=metric,
    )


def _peaks(run: RunAverages, into: Drawing, shown: Sequence[str], metric: str) -> None:
    chosen = [one for one in run.effects if one.key in shown]
    peaks = {
        one.key: {
            role: peak_layers(one, role, run.averaging.scheme, metric) for role in _PEAK_ROLES
        }
        for one in chosen
    }
    what = f"layer of each fact's strongest effect ({metric_title(metric)})"
    title = f"{_about(run, what)}\n{_noise(run)}"
    n_layers = chosen[0].n_layers
    into.add("peaks", "curves.peak_histogram", peaks, n_layers=n_layers, title=title)


def _relations(run: RunAverages, into: Drawing, key: str, look: Look, *, first: bool) -> None:
    """A panel for each relation, those of most facts first, of one mediator."""
    table = run.by_relation(look.metric)
    if table.empty:  # facts without relations
        return
    table = table[table["mediator"] == key]
    sizes = table.groupby("relation_id")["n_facts"].max()
    if len(sizes) < 2:
        return
    largest = sorted(sizes.index, key=lambda name: (-sizes[name], name))[:_MOST_RELATIONS]
    roles = list(rows(run.averaging.scheme))
    grids = {}
    for name in largest:
        own = table[table["relation_id"] == name]
        grid = own.pivot(index="role", columns="layer", values="aie").reindex(roles)
        grids[f"{shortened(visible(name))}\nn = {sizes[name]}"] = grid
    few = "" if len(largest) == len(sizes) else f", the largest {len(largest)} of {len(sizes)}"
    what = f"AIE of {mediator_title(key)} by relation{few}"
    title = f"{_about(run, what)}\n{_noise(run)}"
    into.add(
        *("relations" if first else f"relations-{key}", "heatmaps.named_heatmaps", grids),
        on_page=first,
        key=key,
        title=title,
        look=look,
        abreast=4,
    )


def _fact_indices(run: RunAverages, facts: Sequence[int]) -> list[int]:
    by_id = {run.survey.clean[index].known_id: index for index in run.survey.traced}
    unknown = [known_id for known_id in facts if known_id not in by_id]
    if unknown:
        raise KtraceError(
            f"analysis.facts: known_id={unknown[0]} is not among the {len(by_id)} traced facts of "
            f"{run.survey.folders.run}"
        )
    return [by_id[known_id] for known_id in facts]


def _facts(
    run: RunAverages, into: Drawing, shown: Sequence[str], look: Look, indices: Sequence[int]
) -> None:
    """A heatmap of each fact and mediator."""
    if not indices:
        return
    keys = [key for key in run.keys if key in shown]
    grids = {key: fact_grids(run.survey, key, indices) for key in keys}
    for index in indices:
        fact, scores = run.survey.clean[index], run.survey.corrupted[index]
        clean, corrupted = (
            probability_text(float(of_run["probability"].mean()))
            for of_run in (scores.clean, scores.corrupted)
        )
        for key in keys:
            if index not in grids[key]:
                continue
            title = (
                f"{run.names.model}: {mediator_title(key)}, fact {fact.known_id} "
                f"({fact.attribute.strip()})\np clean {clean}, "
                f"corrupted {corrupted}\n{_noise(run)}"
            )
            into.add(
                f"fact-{fact.known_id}-{key}",
                "heatmaps.fact_heatmap",
                grids[key][index][METRICS.index(look.metric)],
                Prompt(fact.tokens, fact.span),
                key=key,
                title=title,
                look=look,
                on_page=False,
            )
