"""What a run works on, as far as it is known before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ktrace.config import Dtype, RunConfig
from ktrace.config.identity import Fingerprints, fingerprints, resolved_dtype
from ktrace.facts import FactSet
from ktrace.facts.dataset import facts_of, noise_facts_of, require_fit
from ktrace.lm.source import ModelSource, find_model, own_dtype
from ktrace.pipeline.bars import BYTES, steps
from ktrace.tracing.mediators import Mediator


@dataclass(frozen=True)
class Assignment:
    """What a run works on.

    Attributes:
        config: its `model.dtype` is resolved.
        mediators: what is restored.
        facts: the whole dataset.
        noise_facts: what the noise is measured on, where that is another dataset.
        source: the model's files.
        prints: what determines the numbers of each store.
    """

    config: RunConfig
    mediators: Sequence[Mediator]
    facts: FactSet
    noise_facts: FactSet | None
    source: ModelSource
    prints: Fingerprints

    @property
    def limit(self) -> int:
        """Facts from the dataset's first on, over all shards."""
        return min(len(self.facts), self.config.dataset.limit or len(self.facts))


def assign(config: RunConfig, mediators: Sequence[Mediator]) -> Assignment:
    """Read the facts, find the model and say what determines the numbers.

    Raises:
        KtraceError: facts or model cannot be had.
    """
    facts = facts_of(config.dataset)
    noise_facts = noise_facts_of(config.dataset, config.noise.kind)
    for some in (facts, *([] if noise_facts is None else [noise_facts])):
        require_fit(some, config.noise, config.metric)
    model = config.model
    with steps(BYTES) as tell:
        source = find_model(
            model.path,
            model.revision,
            allow_pickle=model.allow_pickle,
            told=partial(tell, f"hashing {model.name}"),
        )
    own = own_dtype(source) if model.dtype is Dtype.auto else None
    resolved = replace(config, model=replace(model, dtype=resolved_dtype(model, own)))
    measured_on = None if noise_facts is None else noise_facts.content
    prints = fingerprints(resolved, source.identity, facts.content, measured_on)
    return Assignment(resolved, mediators, facts, noise_facts, source, prints)
