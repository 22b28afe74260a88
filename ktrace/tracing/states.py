"""States of a run, kept as it passes: block by block to the CPU, so that no device holds them all.

Shapes: n_kept_samples, n_kept_layers and n_kept_positions are those that are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ktrace.lm.hooks import Edit, hooked, keep
from ktrace.lm.memory import within_memory
from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Case
from ktrace.tracing.noise import Noise

# By site.
States = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Kept:
    """Which states of a prompt are kept.

    Attributes:
        sites: of those that the model has.
        layers: in their order.
        positions: likewise.
    """

    sites: Sequence[str]
    layers: Sequence[int]
    positions: Sequence[int]


@dataclass
class StateReader:
    """Keeps the states of the first row of each pass that runs with its edits.

    Attributes:
        lm: the model.
        kept: which states.
    """

    lm: LanguageModel
    kept: Kept
    _found: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    @property
    def edits(self) -> dict[str, Edit]:
        """For `hooked`: they change nothing."""
        paths = {
            (site, layer): path
            for layer in self.kept.layers
            for site, path in self.lm.paths.sites(layer).items()
            if site in self.kept.sites
        }
        return {path: keep(self._found, place, self._part) for place, path in paths.items()}

    def _part(self, output: torch.Tensor) -> torch.Tensor:
        return output[0, list(self.kept.positions)].cpu()

    def states(self) -> States:
        """Of the last pass, `(n_kept_layers, n_kept_positions, d_model)` in the model's dtype.

        No site that the model lacks in all of these layers; NaN in those that lack it.
        """
        some = {site: states for (site, _), states in self._found.items()}
        nothing = {site: torch.full_like(states, float("nan")) for site, states in some.items()}
        return {
            site: torch.stack(
                [self._found.get((site, layer), nothing[site]) for layer in self.kept.layers]
            )
            for site in some
        }


@within_memory("in the corrupted run of one sample")
@torch.inference_mode()
def corrupted_states(
    lm: LanguageModel, noise: Noise, case: Case, kept: Kept, n_samples: int
) -> States:
    """States of the corrupted run, `(n_kept_samples, n_kept_layers, n_kept_positions, d_model)`.

    A sample at a time, as clean runs are one prompt at a time: its bits depend neither on how many
    samples are kept nor on an engine, and where nothing is corrupted they are those of the clean
    run.

    Args:
        lm: the model.
        noise: what corrupts.
        case: the fact.
        kept: which states.
        n_samples: the first so many.
    """
    ids = torch.tensor([case.corrupted_forced_ids], device=lm.device)
    start, stop = case.span
    drawn: list[torch.Tensor] = []
    by_sample = []
    for sample in range(n_samples):

        def put(embeddings: torch.Tensor, sample: int = sample) -> torch.Tensor:
            if not drawn:  # once, of all samples together: it is the same at every call
                drawn.append(noise.corrupt(case, embeddings[0, start:stop]))
            changed = embeddings.clone()
            changed[0, start:stop] = drawn[0][sample]
            return changed

        reader = StateReader(lm, kept)
        with hooked(lm.model, {lm.paths.embedding: put, **reader.edits}):
            lm.model(input_ids=ids, use_cache=False)
        by_sample.append(reader.states())
    return {site: torch.stack([states[site] for states in by_sample]) for site in by_sample[0]}
