"""Peers, each restoring a state in the way of its own documentation.

Every contestant computes one cell: p(answer) of the noised rows, `(n_samples,)`, with the output
of block `layer` at `position` put back to its clean value. Row 0 of a batch is the clean run, as in
the published code; the noise is the same tensor for all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import Cell, make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine

Probabilities = npt.NDArray[np.float64]
CellRunner = Callable[[Case, int, int], Probabilities]  # case, layer, position


def ktrace_reference(lm: LanguageModel, noise: RandomNoise) -> CellRunner:
    """The reference engine: the cell's own forward pass, without its preparation."""
    engine = ReferenceEngine(lm, noise)
    hidden = make_mediator("hidden", 1)

    def run(case: Case, layer: int, position: int) -> Probabilities:
        edits = engine._edits([Cell(hidden, layer, position)], {}, n_sources=0)
        return _answer(engine._logits(case, edits)[1:, -1], case)

    return run


def published_loop(lm: LanguageModel, noise: RandomNoise) -> CellRunner:
    """The published code: two plain hooks, a whole forward pass, softmax at the last position."""
    model: Any = lm.model

    @torch.no_grad()
    def run(case: Case, layer: int, position: int) -> Probabilities:
        def corrupt(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output[1:, case.span.start : case.span.stop] += _noise(noise, case, lm)
            return output

        def restore(module: Any, args: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            states[1:, position] = states[0, position]
            return output

        handles = [
            model.transformer.wte.register_forward_hook(corrupt),
            model.transformer.h[layer].register_forward_hook(restore),
        ]
        try:
            logits = model(input_ids=_rows(case, noise)).logits
        finally:
            for handle in handles:
                handle.remove()
        return _answer(logits[1:, -1], case)

    return run


def nnsight_peer(lm: LanguageModel, noise: RandomNoise) -> CellRunner:
    """nnsight: edits in a tracing context (its activation-patching tutorial)."""
    import nnsight

    wrapped = nnsight.NNsight(lm.model)

    @torch.no_grad()
    def run(case: Case, layer: int, position: int) -> Probabilities:
        rows, added = _rows(case, noise), _noise(noise, case, lm)
        start, stop = case.span
        with wrapped.trace(rows):
            wrapped.transformer.wte.output[1:, start:stop] += added
            states = wrapped.transformer.h[layer].output
            states[1:, position] = states[0, position]
            logits = wrapped.lm_head.output[1:, -1].save()
        return _answer(logits, case)

    return run


def transformer_lens_peer(lm: LanguageModel, noise: RandomNoise) -> CellRunner:
    """TransformerLens: `run_with_hooks` on its bridge to a transformers model."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=lm.model, tokenizer=lm.tokenizer, device="cpu"
    )

    @torch.no_grad()
    def run(case: Case, layer: int, position: int) -> Probabilities:
        start, stop = case.span

        def corrupt(states: torch.Tensor, hook: Any) -> torch.Tensor:
            states[1:, start:stop] += _noise(noise, case, lm)
            return states

        def restore(states: torch.Tensor, hook: Any) -> torch.Tensor:
            states[1:, position] = states[0, position]
            return states

        logits = bridge.run_with_hooks(
            _rows(case, noise),
            return_type="logits",
            fwd_hooks=[("hook_embed", corrupt), (f"blocks.{layer}.hook_out", restore)],
        )
        return _answer(logits[1:, -1], case)

    return run


def pyvene_peer(lm: LanguageModel, noise: RandomNoise) -> CellRunner:
    """pyvene: a noise intervention and a vanilla one (its causal-tracing tutorial)."""
    import pyvene

    class AddNoise(pyvene.ConstantSourceIntervention, pyvene.LocalistRepresentationIntervention):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.noise: torch.Tensor | None = None

        def forward(
            self, base: torch.Tensor, source: Any = None, subspaces: Any = None, **_: Any
        ) -> torch.Tensor:
            assert self.noise is not None
            base[1:] += self.noise.reshape(len(base) - 1, *base.shape[1:])
            return base

    class Restore(pyvene.ConstantSourceIntervention, pyvene.LocalistRepresentationIntervention):
        def forward(
            self, base: torch.Tensor, source: Any = None, subspaces: Any = None, **_: Any
        ) -> torch.Tensor:
            base[1:] = base[0]
            return base

    made: dict[int, Any] = {}

    def intervenable(layer: int) -> Any:
        if layer not in made:
            made[layer] = pyvene.IntervenableModel(
                pyvene.IntervenableConfig(
                    model_type=type(lm.model),
                    representations=[
                        pyvene.RepresentationConfig(
                            0, "block_input", "pos", intervention_type=AddNoise
                        ),
                        pyvene.RepresentationConfig(
                            layer, "block_output", "pos", intervention_type=Restore
                        ),
                    ],
                    intervention_types=[AddNoise, Restore],
                ),
                lm.model,
            )
        return made[layer]

    @torch.no_grad()
    def run(case: Case, layer: int, position: int) -> Probabilities:
        model, rows = intervenable(layer), _rows(case, noise)
        adding = next(iter(model.interventions.values()))
        adding = adding[0] if isinstance(adding, tuple) else adding
        adding.noise = _noise(noise, case, lm)
        subject = list(range(*case.span))
        n = len(rows)
        places = {"base": ([[subject] * n, [[position]] * n])}
        _, output = model({"input_ids": rows}, unit_locations=places)
        return _answer(output.logits[1:, -1], case)

    return run


PEERS: dict[str, Callable[[LanguageModel, RandomNoise], CellRunner]] = {
    "ktrace reference": ktrace_reference,
    "published loop": published_loop,
    "nnsight": nnsight_peer,
    "TransformerLens": transformer_lens_peer,
    "pyvene": pyvene_peer,
}


def _rows(case: Case, noise: RandomNoise) -> torch.Tensor:
    return torch.tensor([case.input_ids]).expand(1 + noise.samples, -1).contiguous()


def _noise(noise: RandomNoise, case: Case, lm: LanguageModel) -> torch.Tensor:
    draws = noise.draws(case.span.stop - case.span.start, lm.d_embedding)
    return torch.from_numpy(draws).to(torch.float32)


def _answer(logits: torch.Tensor, case: Case) -> Probabilities:
    found: Probabilities = logits.softmax(dim=-1)[:, case.answer_ids[0]].double().cpu().numpy()
    return found
