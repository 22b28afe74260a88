"""The cells of a mediator on a model."""

from ktrace.lm.model import LanguageModel
from ktrace.tracing.mediators import Mediator


def cells_shape(lm: LanguageModel, mediator: Mediator) -> tuple[int, ...]:
    """Cells of a mediator at one place: `(n_layers,)`, of heads `(n_layers, n_heads)`."""
    return (lm.n_layers, lm.most_heads) if mediator.has_heads else (lm.n_layers,)
