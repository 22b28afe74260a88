"""The CSV files of an analysis: what stands in them."""

import pandas as pd

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.knockout import KNOCKOUT_COLUMNS
from ktrace.terms import METRICS

_NAMES = ("model", "dataset", "noise")
_AIE = ("mediator", "metric", "role", "layer", "aie", "ci_low", "ci_high", "n_facts", "n_clusters")


def aie_table(run: RunAverages) -> pd.DataFrame:
    """The content of `aie.csv`: AIE with its interval, by mediator, metric, role and layer."""
    table: pd.DataFrame = run.aie.assign(**run.names._asdict())[[*_NAMES, *_AIE]]
    return table


def relation_table(run: RunAverages, metric: str) -> pd.DataFrame:
    """The content of `aie_by_relation.csv`: AIE of the facts of each relation alone.

    Returns:
        Columns `relation_id, mediator, metric, role, layer, aie, ci_low, ci_high, n_facts,
        n_clusters`; no rows where facts have no relation.
    """
    columns = ["relation_id", *_AIE]
    table: pd.DataFrame = run.by_relation(metric).reindex(columns=columns)
    return table


def head_table(run: RunAverages) -> pd.DataFrame:
    """The content of `heads.csv`: AIE of each head with its interval, by role, layer and head."""
    columns = [*_NAMES, *_AIE[:4], "head", *_AIE[4:]]
    table: pd.DataFrame = run.of_heads.assign(**run.names._asdict()).reindex(columns=columns)
    return table


def knockout_table(run: RunAverages) -> pd.DataFrame:
    """The content of `knockout.csv`: what a query loses without each group of sources."""
    table: pd.DataFrame = run.knockouts.assign(**run.names._asdict())[[*_NAMES, *KNOCKOUT_COLUMNS]]
    return table


def sample_table(run: RunAverages) -> pd.DataFrame:
    """The content of `samples.csv`: how much the AIE hangs on the noise that was drawn."""
    named = run.samples.assign(**run.names._asdict())
    table: pd.DataFrame = named[[*_NAMES, *run.samples.columns]]
    return table


def fact_table(run: RunAverages, metric: str) -> pd.DataFrame:
    """The content of `facts.csv`: one row for each traced fact.

    The peak of a fact and mediator is its strongest effect at a position of the subject, averaged
    over noise samples.

    Args:
        run: the averages.
        metric: that of the peaks.

    Returns:
        Columns `known_id, prompt, subject, attribute, p_clean, p_corrupted, te, n_positions`, then
        `<mediator>_peak_layer`, `<mediator>_peak_position`, `<mediator>_peak` for each mediator.
        Probabilities in [0, 1]; `te = p_clean − p_corrupted`. Peaks are missing for facts that the
        mediator lacks.
    """
    records = []
    clean, corrupted = run.total.in_metric("probability")
    for index, of_clean, of_corrupted in zip(run.survey.traced, clean, corrupted, strict=True):
        fact = run.survey.clean[index]
        p_clean, p_corrupted = float(of_clean.mean()), float(of_corrupted.mean())
        row: dict[str, object] = {
            "known_id": fact.known_id,
            "prompt": fact.prompt,
            "subject": fact.subject,
            "attribute": fact.attribute,
            "p_clean": p_clean,
            "p_corrupted": p_corrupted,
            "te": p_clean - p_corrupted,
            "n_positions": len(fact.tokens),
        }
        records.append(row | _peaks(run, index, metric))
    table: pd.DataFrame = pd.DataFrame(records)
    for key in run.keys:
        for name in (f"{key}_peak_layer", f"{key}_peak_position"):
            table[name] = table[name].astype("Int64")
    return table


def _peaks(run: RunAverages, index: int, metric: str) -> dict[str, object]:
    """Columns of one fact, of the mediators that hold it."""
    found: dict[str, object] = {}
    for one in run.effects:
        row = one.row_of.get(index)
        if row is not None:
            layer, position, effect = one.peaks[row, METRICS.index(metric)].tolist()
            found[f"{one.key}_peak_layer"] = int(layer)
            found[f"{one.key}_peak_position"] = int(position)
            found[f"{one.key}_peak"] = effect
    return found
