"""`candidates.csv`: every fact, what the model predicts in its place, and why it was left out."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ktrace.analysis.csv_files import write_tables
from ktrace.store import CleanRecord, CorruptedRecord, RunFolders

_COLUMNS = (
    *("known_id", "relation_id", "prompt", "subject", "attribute", "is_candidate", "traced"),
    *("p_answer", "predicted", "p_predicted", "left_out"),
)


def candidate_table(
    clean: Iterable[CleanRecord], corrupted: Iterable[CorruptedRecord]
) -> pd.DataFrame:
    """The content of `candidates.csv`.

    Args:
        clean: clean runs of the facts, in any order.
        corrupted: corrupted runs of those that have one; others are passed over.

    Returns:
        Columns `known_id, relation_id, prompt, subject, attribute, is_candidate, traced, p_answer,
        predicted, p_predicted, left_out`, a row for each fact in the order of the dataset.
        Probabilities are of the clean run, in [0, 1], missing for a prompt that was not run;
        `predicted` is text; `traced` says whether the noise corrupted the fact; `left_out` why it
        is no candidate, or cannot be corrupted, and is empty otherwise.
    """
    reasons = {record.index: record.left_out for record in corrupted}
    records = [
        (
            *(fact.known_id, fact.relation_id, fact.prompt, fact.subject, fact.attribute),
            *(fact.is_candidate, reasons.get(fact.index) == ""),
            *(fact.probability, fact.predicted, fact.predicted_probability),
            fact.left_out or reasons.get(fact.index, ""),
        )
        for fact in sorted(clean, key=lambda record: record.index)
    ]
    table: pd.DataFrame = pd.DataFrame(records, columns=list(_COLUMNS))
    return table


def write_candidates(folders: RunFolders, limit: int | None = None) -> Path:
    """Write `analysis/candidates.csv`, from the stores as far as they are filled.

    Args:
        folders: of the run.
        limit: only the first `limit` facts of the dataset.

    Raises:
        KtraceError: a damaged part, or the folder cannot be written.
    """
    clean = (r for r in CleanRecord.read(folders.clean) if limit is None or r.index < limit)
    table = candidate_table(clean, CorruptedRecord.read(folders.corrupted))
    [path] = write_tables(folders.analysis, {"candidates": table})
    return path
