"""From a dataset's config to its facts."""

from ktrace.config import DatasetConfig, Foil, NoiseConfig, NoiseKind
from ktrace.errors import KtraceError
from ktrace.facts.fact import FactSet
from ktrace.facts.hub import load_hub_facts
from ktrace.facts.load import load_facts, prompt_facts
from ktrace.facts.reading import Form
from ktrace.terms import Metric


def facts_of(dataset: DatasetConfig) -> FactSet:
    """The facts that a config asks for.

    Raises:
        KtraceError: they cannot be had, or are no facts.
    """
    if dataset.prompt is not None:
        return prompt_facts(
            dataset.prompt,
            dataset.subject,
            dataset.attribute,
            subject_start=dataset.subject_start,
            also=dataset.also,
            pair=(dataset.corrupted_prompt, dataset.foil),
        )
    if dataset.hub is not None:
        return load_hub_facts(dataset)
    assert dataset.path is not None
    return load_facts(
        dataset.path,
        url=dataset.url,
        sha256=dataset.sha256,
        columns=dataset.columns.given,
        form=Form(encoding=dataset.encoding, delimiter=dataset.delimiter),
    )


def require_fit(facts: FactSet, noise: NoiseConfig, metric: Metric) -> None:
    """Refuse facts that lack what a noise takes of them.

    Raises:
        KtraceError: no fact is a pair, one has no subject to corrupt, or no foil where one is
            compared with.
    """
    needs_foil = noise.foil is Foil.given and metric is Metric.logit_difference
    if noise.kind is not NoiseKind.pair:
        for fact in facts.facts:
            if not fact.subject:
                raise KtraceError(
                    f"{facts.origin}: known_id={fact.known_id} has no subject, which "
                    f"noise.kind={noise.kind.value} corrupts: noise=pair takes its corrupted_prompt"
                )
        return
    pairs = [fact for fact in facts.facts if fact.corrupted_prompt]
    if not pairs:
        raise KtraceError(
            f"{facts.origin}: no fact has a corrupted_prompt, which noise.kind=pair takes for the "
            "corrupted run"
        )
    for fact in pairs:
        if needs_foil and not fact.foil:
            raise KtraceError(
                f"{facts.origin}: known_id={fact.known_id} has no foil, which "
                f"metric={metric.value} compares the answer with: noise.foil=corrupted takes what "
                "the corrupted run finds most probable"
            )


def noise_facts_of(dataset: DatasetConfig, kind: NoiseKind) -> FactSet | None:
    """The facts whose subjects the noise is measured on, where they are not the dataset's own.

    None where it is measured on nothing, as `pair`.

    Raises:
        KtraceError: as `facts_of`.
    """
    if dataset.noise_facts is None or kind is NoiseKind.pair:
        return None
    return load_facts(dataset.noise_facts, form=Form(key="dataset.noise_facts"))
