"""Averages of effects by whatever columns tell them apart, from a frame as of `load_effects`.

The estimator is that of the analysis stage: both are `cell_table` of `averages`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.clusters import (
    Clusters,
)
from ktrace.analysis.effects import stored_tables
from ktrace.analysis.estimate import cell_table, effect_range
from ktrace.analysis.intervals import (
    averages,
)
from ktrace.analysis.per_fact import pooling
from ktrace.analysis.run_folder import FolderPath, run_folders
from ktrace.errors import KtraceError
from ktrace.terms import CLUSTERS, METRICS, changes_clean_run, has_heads, panel_order

POOLS = ("facts", "positions")
# What tells the effects of one fact apart, beside the noise samples, which are averaged first.
_WHERE = ("mediator", "layer", "head", "position")
_MISSING = "\0"  # in place of a text, for a key that groups
_COLUMNS = ["aie", "ci_low", "ci_high", "n_facts", "n_clusters"]
_DETAIL = ["ci_over", "ci_note"]


def average(
    frame_or_folder: pd.DataFrame | FolderPath,
    by: str | Sequence[str] = ("mediator", "role", "layer"),
    metric: str = METRICS[0],
    cluster: str | None = CLUSTERS[0],
    pool: str = POOLS[0],
    *,
    detail: bool = False,
) -> pd.DataFrame:
    """Average indirect effects with their 95 % intervals.

    Noise samples are averaged first, then what a fact has in one group of `by`, then facts.

    >>> run = "outputs/tiny/facts/gaussian-x3-n10-seed1"
    >>> averages = ktrace.average(run, by=["mediator", "role"])
    >>> sorted(averages["mediator"].unique())
    ['hidden', 'mlp-w3']

    Args:
        frame_or_folder: in the columns of `load_effects`, of which `known_id, corrupted, restored`
            and those that the arguments name are needed (and `clean`, where a `mediator` noises);
            or a run's folder, whose stores are read in pieces. Facts are told apart by `known_id`
            and `prompt`.
        by: a column or several; a row of the result for each combination of their values. Rows
            where one of them is missing do not count: positions before the subject have no role.
        metric: of the scores.
        cluster: the column whose values facts share; None, and `relation_id` where there is no such
            column, for facts that are independent.
        pool: `facts` makes facts weigh the same; `positions` makes each of their positions (and
            layers, where they are not in `by`) weigh the same.
        detail: whether `ci_over` and `ci_note` are wanted, too: what the interval is over, and why
            there is none.

    Returns:
        Columns `*by, aie, ci_low, ci_high, n_facts, n_clusters`, in the metric's unit. With the
        default `by`, these are the numbers of `aie.csv`.

    Raises:
        KtraceError: an unknown metric, pool or column, or no effects; a frame of several models, or
            of several runs of one, or of several mediators, that `by` does not tell apart; what
            `load_effects` raises.
    """
    by = [by] if isinstance(by, str) else by
    for name, value, known in (("metric", metric, METRICS), ("pool", pool, POOLS)):
        if value not in known:
            raise KtraceError(f"{name}={value!r} is unknown: choose from {', '.join(known)}")
    if isinstance(frame_or_folder, pd.DataFrame):
        _require(frame_or_folder, by, cluster)
        _require_once(frame_or_folder, by, metric)
        _require_one_mediator(_together(frame_or_folder, by))
        pieces: Iterator[pd.DataFrame] = iter([frame_or_folder])
    else:
        keys = run_folders(frame_or_folder).mediator_keys()
        # A row without a head is in no group by heads.
        keys = [key for key in keys if "head" not in by or has_heads(key)]
        _require_one_mediator([] if "mediator" in by else keys)
        pieces = (table.to_pandas() for table in stored_tables(frame_or_folder, metrics=[metric]))
    sums = pd.concat([_by_fact(piece, by, metric, cluster) for piece in pieces], ignore_index=True)
    if sums.empty:
        raise KtraceError(f"there are no effects by {', '.join(by)} in metric={metric!r}")
    shown = [*by, *_COLUMNS, *(_DETAIL if detail else [])]
    found: pd.DataFrame = _averaged(sums, by, metric, cluster, pool)[shown]
    return found


def _require(frame: pd.DataFrame, by: Sequence[str], cluster: str | None) -> None:
    wanted = ["known_id", "corrupted", "restored", *by]
    wanted += ["clean"] if _is_noised(frame).any() else []
    wanted += [cluster] if cluster not in (None, CLUSTERS[0]) else []
    lacking = [name for name in wanted if name not in frame.columns]
    if lacking:
        raise KtraceError(f"the frame has no column {lacking[0]!r}: {', '.join(frame.columns)}")


def _together(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """Mediators whose rows `by` would put into one group."""
    if "mediator" in by or "mediator" not in frame.columns or frame["mediator"].nunique() < 2:
        return []
    found = frame[[*dict.fromkeys(by), "mediator"]].dropna().drop_duplicates()
    shared = found[found.duplicated(list(by), keep=False)]
    return [str(key) for key in shared["mediator"].unique()]


def _require_one_mediator(keys: Sequence[str]) -> None:
    if len(keys) > 1:
        named = ", ".join(sorted(keys, key=panel_order))
        raise KtraceError(
            f"the effects are of the mediators {named}: add 'mediator' to by, or take one of them, "
            f"as frame[frame['mediator'] == {keys[0]!r}]"
        )


def _require_once(frame: pd.DataFrame, by: Sequence[str], metric: str) -> None:
    """Refuse what would be averaged without a word: several models, and rows that come twice."""
    if "model" in frame.columns and "model" not in by:
        models = frame["model"].dropna().unique().tolist()
        if len(models) > 1:
            raise KtraceError(
                f"the frame holds the models {', '.join(map(str, models))}: add 'model' to by, or "
                "average one of them"
            )
    told = ["known_id", "prompt", "mediator", "sample", "layer", "head", "position"]
    if not set(told) - {"prompt", "head"} <= set(frame.columns):
        return
    if "metric" in frame.columns:
        frame = frame[frame["metric"] == metric]
    cell = [name for name in dict.fromkeys((*told, *by)) if name in frame.columns]
    again = frame.duplicated(cell)
    # Without the column `head`, those of a layer look alike.
    if "head" not in frame.columns:
        again &= ~frame["mediator"].map(lambda key: has_heads(str(key))).astype(bool)
    if again.any():
        first = frame.iloc[int(np.argmax(again.to_numpy()))]
        raise KtraceError(
            f"the frame has known_id={first['known_id']} twice at layer {first['layer']}, position "
            f"{first['position']}, sample {first['sample']} of {first['mediator']}: give every "
            "fact a known_id of its own, or add to by what tells the runs apart"
        )


def _is_noised(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Of each row, whether its mediator noises: of none where the frame has no mediators."""
    if "mediator" not in frame.columns:
        return np.zeros(len(frame), dtype=bool)
    keys = frame["mediator"].astype("category").cat
    # A missing mediator has the code -1.
    of_code = np.array([*(changes_clean_run(str(key)) for key in keys.categories), False])
    found: npt.NDArray[np.bool_] = of_code[keys.codes.to_numpy()]
    return found


def _base_scores(frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Of each row, the score of the run that its mediator changes."""
    found = frame["corrupted"].to_numpy(np.float64)
    noised = _is_noised(frame)
    return np.where(noised, frame["clean"].to_numpy(np.float64), found) if noised.any() else found


def _by_fact(
    frame: pd.DataFrame, by: Sequence[str], metric: str, cluster: str | None
) -> pd.DataFrame:
    """What each fact has in each group.

    Returns:
        Columns `*by, known_id, _prompt, _cluster, _total, _count`: the sum of its effects there,
        averaged over noise samples, and of how many positions (and layers, ...).
    """
    if "metric" in frame.columns:
        frame = frame[frame["metric"] == metric]
    keys = pd.DataFrame({name: frame[name] for name in dict.fromkeys((*by, "known_id"))})
    # Numbers and categories are grouped faster than text, and a missing text is no group.
    for name, column in (("_prompt", "prompt"), ("_cluster", cluster)):
        found = (
            frame[column] if column in frame.columns else pd.Series(None, frame.index, dtype=object)
        )
        keys[name] = found.astype("category").cat.add_categories([_MISSING]).fillna(_MISSING)
    where = [name for name in _WHERE if name in frame.columns and name not in by]
    there = frame[where]
    if "head" in where:  # missing where the mediator has none, which is a place all the same
        there = there.assign(head=there["head"].fillna(-1))
    effect = frame["restored"].astype(np.float64) - _base_scores(frame)
    rows = pd.concat([keys, there], axis=1).assign(_effect=effect).dropna()
    names = list(keys.columns)
    cells = rows.groupby([*names, *where], observed=True, sort=False)["_effect"].mean()
    grouped = cells.groupby(names, observed=True, sort=False).agg(["sum", "count"])
    grouped.columns = ["_total", "_count"]
    # Categories of one piece are not those of the next.
    sums: pd.DataFrame = grouped.reset_index().astype({"_prompt": object, "_cluster": object})
    return sums


def _averaged(
    sums: pd.DataFrame, by: Sequence[str], metric: str, cluster: str | None, pool: str
) -> pd.DataFrame:
    """Facts averaged, a row for each group."""
    groups = sums.groupby(list(by), observed=True, sort=True)
    facts = sums.groupby(["known_id", "_prompt"], sort=True)
    row, column = facts.ngroup().to_numpy(), groups.ngroup().to_numpy()
    totals, counts = np.zeros((2, facts.ngroups, groups.ngroups))
    np.add.at(totals, (row, column), sums["_total"].to_numpy())
    np.add.at(counts, (row, column), sums["_count"].to_numpy())
    divisor, weights = pooling(counts, pool)
    clusters = Clusters.none(len(totals))
    if cluster is not None:
        labels = facts["_cluster"].first()
        clusters = Clusters.of(cluster, labels.where(labels != _MISSING, None).tolist())
    table = cell_table(averages(totals / divisor, weights, clusters), effect_range(metric))
    names = groups.size().index.to_frame(index=False)
    found: pd.DataFrame = pd.concat([names, table], axis=1)
    return found
