"""The analysis stage: stores in; tables, summary and figures out."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.candidates import candidate_table
from ktrace.analysis.csv_files import write_tables
from ktrace.analysis.effects_file import effects_written
from ktrace.analysis.figures.draw import RUN_FIGURES, draw_figures
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.files import remove_older
from ktrace.analysis.figures.look import Look
from ktrace.analysis.figures.processes import artists
from ktrace.analysis.report import CellCollector, write_report
from ktrace.analysis.rows import Averaging
from ktrace.analysis.steps import Tell, made, untold
from ktrace.analysis.stored import Survey, Watch
from ktrace.analysis.summary import Summary, summarize
from ktrace.analysis.tables import (
    aie_table,
    fact_table,
    head_table,
    knockout_table,
    relation_table,
    sample_table,
)
from ktrace.files import write_text
from ktrace.store import RestoredRecord, RunFolders
from ktrace.terms import METRICS, cuts_edges

_READING = "reading restored runs"  # what is told of


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
    summary: Summary
    files: list[Path]
    figures: list[Path]
    notes: list[str]


def analyze(
    run_folder: Path | RunFolders,
    *,
    averaging: Averaging = Averaging(),  # noqa: B008  # frozen
    asked: Sequence[str] = (),
    limit: int | None = None,
    metric: str = METRICS[0],
    partial: bool = False,
    facts: Sequence[int] = (),
    relations: str = "first",
    palette: str = "shared",
    tell: Tell = untold,
) -> Analysis:
    """Analyse every mediator of a run that is complete for the chosen facts.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`, or its folders where the analysis goes
            elsewhere.
        averaging: rows of the figures, and how positions are pooled.
        asked: mediators that must be complete, and that figures with several mediators show; those
            show all, where none is named or, with `partial`, none of them is stored. The tables
            hold every mediator that is complete.
        limit: only the first `limit` facts of the dataset.
        metric: what the figures and the peaks show; the tables hold all metrics.
        partial: take what is there of an unfinished run, and note what is missing.
        facts: known_ids that get heatmaps of their own.
        relations: whether the `first` mediator shown has a panel for each relation, or `all` have.
        palette: of heatmaps, in figures and report; one of `ktrace.analysis.palettes.PALETTES`.
        tell: learns how far it is.

    Raises:
        KtraceError: nothing to analyse, an unfinished run, or parts of different settings.
    """
    folders = run_folder if isinstance(run_folder, RunFolders) else RunFolders(run_folder)
    folder = folders.analysis
    parquet, cells = folder / "effects.parquet", CellCollector()
    watch = _kept(parquet, cells, tell)
    with artists() as drawers:
        run = average_run(
            folders, averaging, asked=asked, limit=limit, partial=partial, watch=watch, tell=tell
        )
        shown = [key for key in run.keys if key in asked] or run.keys
        into, look = Drawing(folder, drawers, tell), Look(metric, palette)
        by_relation = shown if relations == "all" else shown[:1]
        drawing = draw_figures(
            run, into, shown=shown, look=look, facts=facts, by_relation=by_relation
        )
        tables = _tables(run, metric, tell)
        summary = summarize(run, metric, limit)
        files = [*write_tables(folder, tables), parquet]
        for name, content in (("summary", summary), ("layers", summary["layers"])):
            files.append(folder / f"{name}.json")
            write_text(files[-1], json.dumps(content, indent=2) + "\n")
        report = write_report(
            run.survey,
            run.every_key,
            cells.of(run.every_key),
            summary=summary,
            figures=lambda: drawing.finished().page,
            palette=palette,
        )
        drawn = drawing.finished()
    figures = drawn.files
    remove_older(folder, RUN_FIGURES, figures)
    files.append(report)
    notes = [*(f"missing: {words}" for words in run.missing), *run.notes]
    notes += [*run.contrasts.notes, *drawn.notes]
    return Analysis(
        run, tables["aie"], tables["facts"], summary, [*files, *figures], figures, notes
    )


def _tables(run: RunAverages, metric: str, tell: Tell) -> dict[str, pd.DataFrame]:
    """By the CSV file's name without its suffix."""
    clean, corrupted = run.survey.clean.values(), run.survey.corrupted.values()
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "candidates": lambda: candidate_table(clean, corrupted),
        "aie": lambda: aie_table(run),
        "intervals": lambda: run.aie,
        "contrasts": lambda: run.contrasts.table,
        "peaks": lambda: run.peaks(metric),
        "aie_by_relation": lambda: relation_table(run, metric),
        "samples": lambda: sample_table(run),
        "facts": lambda: fact_table(run, metric),
    }
    if run.heads:
        makers["heads"] = lambda: head_table(run)
    if any(map(cuts_edges, run.keys)):
        makers["knockout"] = lambda: knockout_table(run)
    return made("tables", makers, lambda make: make(), tell)


@contextmanager
def _kept(parquet: Path, cells: CellCollector, tell: Tell) -> Iterator[Watch]:
    """Every score goes into a file, and every cell to the report, on the way to the averages."""
    n_seen = 0
    with effects_written(parquet) as write:

        def keep(found: Survey, key: str, batch: Sequence[RestoredRecord]) -> None:
            nonlocal n_seen
            total = sum(map(len, found.restored.values()))
            tell(_READING, n_seen, total)
            write(found, key, batch)
            cells.add(found, key, batch)
            n_seen += len(batch)
            tell(_READING, n_seen, total)

        yield keep
