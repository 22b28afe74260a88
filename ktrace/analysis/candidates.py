"""`candidates.csv`: every fact, what the model predicts in its place, and why it was left out."""

from pathlib import Path

import pandas as pd

from ktrace.analysis.csv_files import write_tables
from ktrace.store import CleanRecord, CorruptedRecord, RunFolders

_COLUMNS = (
    *("known_id", "relation_id", "prompt", "subject", "attribute", "is_candidate", "traced"),
    *("p_answer", "predicted", "p_predicted", "left_out"),
)


def candidate_table(folders: RunFolders, limit: int | None = None) -> pd.DataFrame:
    """The content of `candidates.csv`, from the stores as far as they are filled.

    Args:
        folders: of the run.
        limit: only the first `limit` facts of the dataset.

    Returns:
        Columns `known_id, relation_id, prompt, subject, attribute, is_candidate, traced, p_answer,
        predicted, p_predicted, left_out`, a row for each fact in the order of the dataset.
        Probabilities are of the clean run, in [0, 1], missing for a prompt that was not run;
        `predicted` is text; `traced` says whether the noise corrupted the fact; `left_out` why it
        is no candidate, or cannot be corrupted, and is empty otherwise.

    Raises:
        KtraceError: a damaged part.
    """
    clean = sorted(
        (r for r in CleanRecord.read(folders.clean) if limit is None or r.index < limit),
        key=lambda record: record.index,
    )
    corrupted = {
        record.index: record.left_out for record in CorruptedRecord.read(folders.corrupted)
    }
    records = [
        (
            *(fact.known_id, fact.relation_id, fact.prompt, fact.subject, fact.attribute),
            *(fact.is_candidate, corrupted.get(fact.index) == ""),
            *(fact.probability, fact.predicted, fact.predicted_probability),
            fact.left_out or corrupted.get(fact.index, ""),
        )
        for fact in clean
    ]
    table: pd.DataFrame = pd.DataFrame(records, columns=list(_COLUMNS))
    return table


def write_candidates(folders: RunFolders, limit: int | None = None) -> Path:
    """Write `analysis/candidates.csv`; see `candidate_table`.

    Raises:
        KtraceError: a damaged part, or the folder cannot be written.
    """
    [path] = write_tables(folders.analysis, {"candidates": candidate_table(folders, limit)})
    return path
