"""Facts of a dataset repository: on the Hugging Face hub, or a folder of the same layout."""

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ktrace.config import DatasetConfig
from ktrace.errors import KtraceError
from ktrace.facts.fact import FactSet, fact_set
from ktrace.facts.load import checked_facts
from ktrace.facts.reading import ReadAs, columns_of, without_blank_rows

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

_SHOWN = 400  # characters of what `datasets` says
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_hub_facts(dataset: DatasetConfig) -> FactSet:
    """Read and check every fact of one split, whatever format the repository keeps it in.

    Args:
        dataset: `hub` is a repository's id or a folder; `split`, `subset`, `path`, `revision`,
            `sha256` (of the rows as `datasets` reads them) and `columns` are read.

    Raises:
        KtraceError: `datasets` is not installed, the split cannot be had, or as `load_facts`.
    """
    named = {key: getattr(dataset, key) for key in ("hub", "subset", "split", "path")}
    origin = " ".join(f"dataset.{key}={value}" for key, value in named.items() if value is not None)
    asked = origin + (f" dataset.revision={dataset.revision}" if dataset.revision else "")
    rows = _rows(dataset, asked)
    records, assumed = without_blank_rows(
        [(f"{asked}, row {number}", row) for number, row in enumerate(rows, start=1)]
    )
    for what in assumed:
        log.warning("%s: %s", asked, what)
    if not records:
        raise KtraceError(f"{asked} holds no facts")
    facts = checked_facts(records, asked, dataset.sha256, dataset.columns.given)
    read_as = ReadAs("rows of datasets", columns_of(records))
    return replace(fact_set(facts, origin), read_as=read_as)


def _source(dataset: DatasetConfig, asked: str) -> str:
    """A folder by its whole path, or a hub id: `datasets` takes the names of formats, too."""
    repository = str(dataset.hub)
    folder = Path(repository).expanduser()
    if folder.is_dir():
        if dataset.revision is not None:
            raise KtraceError(f"{asked}: a folder has no revisions")
        return str(folder.resolve())
    if not _HUB_ID.fullmatch(repository):
        raise KtraceError(f"{asked} is neither a folder here nor a hub id (owner/name)")
    return repository


def _rows(dataset: DatasetConfig, asked: str) -> list[dict[str, object]]:
    source = _source(dataset, asked)
    try:
        import datasets
    except ImportError as error:
        raise KtraceError(f"{asked} needs the extra hub: pip install 'ktrace[hub]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    options = {
        "name": dataset.subset,
        "data_files": dataset.path,
        "revision": dataset.revision,
    }
    try:
        builder = datasets.load_dataset_builder(source, **options)
        if hasattr(builder.config, "keep_default_na"):
            # A CSV file's cell NA, None or null is the text that it is, as in a file of one's own.
            builder = datasets.load_dataset_builder(source, **options, keep_default_na=False)
        _require_inside(builder, source, asked)
        builder.download_and_prepare()
        rows: list[dict[str, object]] = builder.as_dataset(split=dataset.split).to_list()
    except KtraceError:
        raise
    except Exception as error:  # a repository may hold anything, and each format fails its own way
        raise KtraceError(f"{asked}: {_said(error)}") from error
    return rows


def _require_inside(builder: "datasets.DatasetBuilder", source: str, asked: str) -> None:
    """Refuse files that a repository names and that lie elsewhere: here, or with somebody else.

    Raises:
        KtraceError: there is one.
    """
    inside = Path(source).resolve() if Path(source).is_dir() else None
    for files in (builder.config.data_files or {}).values():
        for file in map(str, files):
            if inside is None:
                is_own = file.startswith(f"hf://datasets/{source}@") and "/../" not in file
            else:
                is_own = "://" not in file and Path(file).resolve().is_relative_to(inside)
            if not is_own:
                raise KtraceError(f"{asked}: its data_files name {file}, which is not within it")


def _said(error: BaseException) -> str:
    """What `datasets` says and why, in one line; its own words name splits and subsets."""
    told = " ".join(f"{error}".split()) or type(error).__name__
    cause = " ".join(str(error.__cause__ or "").split())
    line = f"{told}: {cause}" if cause else told
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
