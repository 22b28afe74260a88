"""The clean run: prediction, score, and the states that are kept."""

from dataclasses import dataclass

import torch

from ktrace.lm.hooks import hooked
from ktrace.lm.memory import within_memory
from ktrace.lm.model import LanguageModel
from ktrace.tracing.states import Kept, StateReader, States


@dataclass(frozen=True)
class CleanRun:
    """One prompt without intervention.

    Attributes:
        predicted_ids: the most probable next token (argmax); where an answer of several tokens is
            given, what greedy decoding says up to the first token that differs from it.
        predicted_probability: of those tokens together.
        probability: of the answer, all its tokens together, and of those that differ from it in
            an allowed last token; NaN where none is given.
        states: those that were asked for, on the CPU; see `StateReader.states`.
    """

    predicted_ids: tuple[int, ...]
    predicted_probability: float
    probability: float
    states: States


@within_memory("in the clean run of one prompt")
@torch.inference_mode()
def clean_run(
    lm: LanguageModel,
    input_ids: tuple[int, ...],
    answer_ids: tuple[int, ...] = (),
    last_ids: tuple[int, ...] = (),
    kept: Kept | None = None,
) -> CleanRun:
    """Run one prompt. One at a time, so that its bits do not depend on its company.

    Args:
        lm: the model.
        input_ids: the prompt.
        answer_ids: tokens that are scored after it.
        last_ids: where several are right in the place of the last of these, all of them.
        kept: which states of the prompt, if any.
    """
    reader = StateReader(lm, kept or Kept((), (), ()))
    ids = torch.tensor([input_ids + answer_ids[:-1]], device=lm.device)
    with hooked(lm.model, reader.edits):
        logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(input_ids) - 1 :]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = wide.log_softmax(dim=-1).cpu()
    greedy = logits.argmax(dim=-1).tolist()
    same = [token == expected for token, expected in zip(greedy, answer_ids, strict=False)]
    n_said = 1 + (same.index(False) if False in same else len(greedy) - 1)
    forced = log_probabilities[range(len(answer_ids)), answer_ids] if answer_ids else None
    if forced is not None and len(last_ids) > 1:
        forced[-1] = log_probabilities[len(answer_ids) - 1, list(last_ids)].logsumexp(dim=-1)
    said = log_probabilities[range(n_said), greedy[:n_said]]
    return CleanRun(
        predicted_ids=tuple(greedy[:n_said]),
        predicted_probability=float(said.sum().exp()),
        probability=float("nan") if forced is None else float(forced.sum().exp()),
        states=reader.states(),
    )
