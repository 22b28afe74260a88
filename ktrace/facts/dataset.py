"""From a dataset's config to its facts."""

from pathlib import Path

from ktrace.config import DatasetConfig
from ktrace.errors import KtraceError
from ktrace.facts.fact import FactSet
from ktrace.facts.hub import load_hub_facts
from ktrace.facts.load import load_facts, prompt_facts


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
            also=dataset.also,
        )
    if dataset.hub is not None:
        return load_hub_facts(dataset)
    assert dataset.path is not None
    return load_facts(
        dataset.path, url=dataset.url, sha256=dataset.sha256, columns=dataset.columns.given
    )


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
