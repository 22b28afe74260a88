"""What a model must give and take: scores that are numbers, and tokens that it knows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ktrace.errors import KtraceError
from ktrace.facts import Fact
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import decoded
from ktrace.tracing.engine import Scores
from ktrace.tracing.mediators import Mediator


def require_numbers(lm: LanguageModel, fact: Fact, run: str, scores: npt.ArrayLike) -> None:
    """Refuse scores that are NaN: they would pass every later stage as if they were results.

    Raises:
        KtraceError: naming the fact, and what to change.
    """
    if np.isnan(scores).any():
        dtype = str(lm.model.dtype).removeprefix("torch.")
        raise KtraceError(
            f"known_id={fact.known_id}: the {run} gives no numbers (NaN) with model.dtype={dtype}: "
            "another model.dtype or, for a corrupted run, a smaller noise keeps it finite"
        )


def require_scores(lm: LanguageModel, fact: Fact, mediator: Mediator, scores: Scores) -> None:
    """Refuse scores of restorations that are NaN, in the layers that have something to restore.

    Raises:
        KtraceError: see `require_numbers`.
    """
    have = lm.paths.layers_with(mediator.site, lm.n_layers)
    for values in scores.values():
        require_numbers(lm, fact, f"restoration of {mediator.key}", values[:, have])


def require_known(lm: LanguageModel, fact: Fact, ids: Sequence[int]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        KtraceError: tokenizer and weights do not belong together.
    """
    beyond = [token for token in ids if token >= lm.n_embeddings]
    if beyond:
        text = decoded(lm.tokenizer, beyond[:1])
        raise KtraceError(
            f"known_id={fact.known_id}: token {beyond[0]} ({text!r}) is beyond the model's "
            f"{lm.n_embeddings} embeddings: tokenizer and weights in model.path do not "
            "belong together"
        )
