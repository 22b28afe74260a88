"""From a dataset's config to its facts."""

from collections.abc import Mapping
from pathlib import Path

from ktrace.config import ColumnsConfig, DatasetConfig
from ktrace.errors import KtraceError
from ktrace.facts import FactSet, load_facts, load_hub_facts, prompt_facts


def facts_of(dataset: DatasetConfig) -> FactSet:
    """The facts that a config asks for.

    Raises:
        KtraceError: they cannot be had, or are no facts.
    """
    if dataset.prompt is not None:
        return prompt_facts(
            dataset.prompt,
            dataset.subject or "",
            dataset.attribute,
            subject_start=dataset.subject_start,
        )
    columns = _given(dataset.columns)
    if dataset.hub is not None:
        assert dataset.split is not None
        return load_hub_facts(
            dataset.hub,
            split=dataset.split,
            subset=dataset.subset,
            path=dataset.path,
            revision=dataset.revision,
            sha256=dataset.sha256,
            columns=columns,
        )
    assert dataset.path is not None
    return load_facts(dataset.path, url=dataset.url, sha256=dataset.sha256, columns=columns)


def noise_facts_of(dataset: DatasetConfig) -> FactSet | None:
    """The facts whose subjects the noise is measured on, where they are not the dataset's own.

    Raises:
        KtraceError: as `facts_of`.
    """
    if dataset.noise_facts is None:
        return None
    if not Path(dataset.noise_facts).expanduser().is_file():
        raise KtraceError(f"dataset.noise_facts={dataset.noise_facts} is not a file")
    return load_facts(dataset.noise_facts)


def _given(columns: ColumnsConfig) -> Mapping[str, str]:
    return {name: column for name, column in vars(columns).items() if column is not None}
