"""Facts that are to get heatmaps of their own (`analysis.facts`), before they are computed."""

from collections.abc import Collection

from ktrace.config import RunConfig, Stage
from ktrace.errors import KtraceError
from ktrace.store import RunFolders


def require_shown(
    config: RunConfig, folders: RunFolders, known_ids: Collection[int] | None = None
) -> None:
    """Refuse facts that the analysis would not find, as far as the stores tell by now.

    Args:
        config: of the run.
        folders: of the run.
        known_ids: of the whole dataset, where that was read.

    Raises:
        KtraceError: one is not in the dataset, is beyond `dataset.limit`, is no candidate, or
            cannot be corrupted.
    """
    asked = config.analysis.facts
    if not asked or config.stage not in (Stage.all, Stage.analyze):
        return
    clean = {
        row["known_id"]: row
        for row in folders.clean.read("known_id", "is_candidate", "left_out")
        if row["known_id"] in asked
    }
    uncorrupted = {row["index"]: row["left_out"] for row in folders.corrupted.read("left_out")}
    limit = config.dataset.limit
    for known_id in asked:
        row, why = clean.get(known_id), ""
        if known_ids is not None and known_id not in known_ids:
            why = "the dataset has no such fact"
        elif row is not None and limit is not None and row["index"] >= limit:
            why = f"it is not among the first dataset.limit={limit} facts"
        elif row is not None and not row["is_candidate"]:
            why = f"it is no candidate, so it is not traced: {row['left_out']}"
        elif row is not None and uncorrupted.get(row["index"]):
            why = f"it is not traced: {uncorrupted[row['index']]}"
        if why:
            raise KtraceError(f"analysis.facts: known_id={known_id}: {why}")
