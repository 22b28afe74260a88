"""What a model must give and take: scores that are numbers, and tokens that it knows."""

import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from torch import nn

from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span
from ktrace.lm.attention import require_edges, require_heads
from ktrace.lm.model import (
    PUBLISHED_LAYERS,
    PUBLISHED_WINDOW,
    LanguageModel,
    as_narrow_as_published,
)
from ktrace.lm.reader import Reads
from ktrace.lm.tokens import decoded
from ktrace.tracing.engine import Scores
from ktrace.tracing.mediators import Mediator, sites_of

log = logging.getLogger(__name__)

_PROVEN: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def require_mediators(lm: LanguageModel, mediators: Sequence[Mediator]) -> None:
    """Refuse mediators that have no meaning for a model, before anything is run with them.

    Heads and edges are proven once for a loaded model.

    Raises:
        KtraceError: the model lacks a site, heads, or masks that say what a query sees.
    """
    lm.paths.require(*sites_of(mediators))
    proven = _PROVEN.setdefault(lm.model, set())
    for what, asked, require in (
        ("heads", any(m.has_heads for m in mediators), require_heads),
        ("edges", any(m.cuts for m in mediators), require_edges),
    ):
        if asked and what not in proven:
            require(lm)
            proven.add(what)


def say_wide_windows(
    lm: LanguageModel, mediators: Sequence[Mediator], key: str = "mediator.window"
) -> None:
    """Log a line where a window takes half of the layers or more: its map is nearly one colour.

    Args:
        lm: the model.
        mediators: of any kind.
        key: that chooses the window.
    """
    wide = {m.key: m.window for m in mediators if m.window and 2 * m.window >= lm.n_layers}
    if wide:
        log.warning(
            "%s: a window of %s of %d layers hardly tells where; %s=%d is as "
            "narrow as the published %d of %d",
            ", ".join(wide),
            " and ".join(map(str, sorted({*wide.values()}))),
            lm.n_layers,
            key,
            as_narrow_as_published(lm.n_layers),
            PUBLISHED_WINDOW,
            PUBLISHED_LAYERS,
        )


def require_places(shapes: Sequence[tuple[Span, int]], mediators: Sequence[Mediator]) -> None:
    """Refuse positions that no fact has.

    Args:
        shapes: span and number of positions of every fact.
        mediators: what acts there.

    Raises:
        KtraceError: naming the key.
    """
    for mediator in mediators:
        if shapes and not any(mediator.places(*shape) for shape in shapes):
            key, roles = "positions", ",".join(mediator.positions)
            if mediator.cuts:
                key, roles = "query", mediator.query
            raise KtraceError(
                f"mediator.{key}={roles}: none of the {len(shapes)} facts has such a position"
            )


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
    what = "knockout" if mediator.cuts else "restoration"
    for layer in lm.paths.layers_with(mediator.site, lm.n_layers):
        heads = slice(lm.n_heads(layer)) if mediator.has_heads else slice(None)
        for values in scores.values():
            require_numbers(lm, fact, f"{what} of {mediator.key}", values[:, layer][:, heads])


def require_known(lm: Reads, fact: Fact, ids: Sequence[int]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        KtraceError: tokenizer and weights do not belong together.
    """
    beyond = [token for token in ids if token >= lm.n_embeddings]
    if beyond:
        text = decoded(lm.tokenizer, beyond[:1])
        raise KtraceError(
            f"known_id={fact.known_id}: token {beyond[0]} ({text!r}) is beyond the model's "
            f"{lm.n_embeddings} embeddings: tokenizer and weights do not belong together"
        )
