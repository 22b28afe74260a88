"""Facts of a dataset repository: on the Hugging Face hub, or a folder of the same layout."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ktrace.errors import KtraceError
from ktrace.facts.fact import FactSet, fact_set
from ktrace.facts.load import checked_facts

_SHOWN = 400  # characters of what `datasets` says
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
        revision: branch, tag or commit; None for the main branch, or for a folder.
        sha256: see `load_facts`; of the rows as `datasets` reads them.
        columns: see `load_facts`.

    Raises:
        KtraceError: `datasets` is not installed, the split cannot be had, or as `load_facts`.
    """
    origin = _asked(hub=repository, subset=subset, split=split, path=path)
    asked = origin + (f" dataset.revision={revision}" if revision else "")
    source = _source(repository, revision, asked)
    rows = _rows(asked, source, name=subset, data_files=path, revision=revision, split=split)
    if not rows:
        raise KtraceError(f"{asked} holds no facts")
    records = [(f"{asked}, row {number}", row) for number, row in enumerate(rows, start=1)]
    return fact_set(checked_facts(records, asked, sha256, columns), origin)


def _asked(**keys: str | None) -> str:
    return " ".join(f"dataset.{key}={value}" for key, value in keys.items() if value is not None)


def _source(repository: str, revision: str | None, asked: str) -> str:
    """A folder by its whole path, or a hub id: `datasets` takes the names of formats, too."""
    folder = Path(repository).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise KtraceError(f"{asked}: a folder has no revisions")
        return str(folder.resolve())
    if not _HUB_ID.fullmatch(repository):
        raise KtraceError(f"{asked} is neither a folder here nor a hub id (owner/name)")
    return repository


def _rows(asked: str, source: str, *, split: str, **keys: Any) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise KtraceError(f"{asked} needs the extra hub: pip install 'ktrace[hub]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(source, **keys)
        if hasattr(builder.config, "keep_default_na"):
            # A CSV file's cell NA, None or null is the text that it is, as in a file of one's own.
            builder = datasets.load_dataset_builder(source, **keys, keep_default_na=False)
        builder.download_and_prepare()
        rows: list[dict[str, Any]] = builder.as_dataset(split=split).to_list()
    except Exception as error:  # a repository may hold anything, and each format fails its own way
        raise KtraceError(f"{asked}: {_said(error)}") from error
    return rows


def _said(error: BaseException) -> str:
    """What `datasets` says and why, in one line; its own words name splits and subsets."""
    told = " ".join(f"{error}".split()) or type(error).__name__
    cause = " ".join(str(error.__cause__ or "").split())
    line = f"{told}: {cause}" if cause else told
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
