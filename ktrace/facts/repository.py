"""Facts of a dataset repository: on the Hugging Face hub, or a folder of the same layout."""

import sys
from collections.abc import Mapping
from typing import Any

from ktrace.errors import KtraceError
from ktrace.facts.fact import FactSet, fact_set
from ktrace.facts.load import checked_facts

_SHOWN = 400  # characters of what `datasets` says


def load_hub_facts(
    repository: str,
    *,
    split: str,
    subset: str | None = None,
    path: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> FactSet:
    """Read and check every fact of one split, whatever format the repository keeps it in.

    Args:
        repository: `owner/name`, or a folder.
        split: such as `train`, or `train[:100]`.
        subset: which of the repository's configurations, where it has several.
        path: data files within it, where it does not say itself which belong to the split.
        revision: branch, tag or commit; None for the main branch.
        sha256: see `load_facts`.
        columns: see `load_facts`.

    Raises:
        KtraceError: `datasets` is not installed, the split cannot be had, or as `load_facts`.
    """
    origin = _asked(hub=repository, subset=subset, split=split, path=path)
    asked = origin + (f" dataset.revision={revision}" if revision else "")
    rows = _rows(asked, repository, subset, path, split, revision)
    records = [(f"{asked}, row {number}", row) for number, row in enumerate(rows, start=1)]
    return fact_set(checked_facts(records, asked, sha256, columns), origin)


def _asked(**keys: str | None) -> str:
    return " ".join(f"dataset.{key}={value}" for key, value in keys.items() if value is not None)


def _rows(
    asked: str,
    repository: str,
    subset: str | None,
    path: str | None,
    split: str,
    revision: str | None,
) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise KtraceError(f"{asked} needs the extra hub: pip install 'ktrace[hub]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            repository, subset, data_files=path, split=split, revision=revision
        )
        rows: list[dict[str, Any]] = table.to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise KtraceError(f"{asked}: {_said(error)}") from error
    return rows


def _said(error: BaseException) -> str:
    """What `datasets` says and why, in one line; its own words name splits and subsets."""
    told = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
    line = " ".join(told.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
