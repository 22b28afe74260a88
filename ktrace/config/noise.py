"""How the subject is corrupted: the keys `noise.*`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktrace.terms import Choice


class NoiseKind(Choice):
    """How the subject's embeddings are corrupted; or, in a pair, which prompt is read instead."""

    gaussian = "gaussian"
    uniform = "uniform"
    student_t = "student_t"
    multivariate = "multivariate"
    zero = "zero"
    mean = "mean"
    token_replacement = "token_replacement"
    pair = "pair"


class Foil(Choice):
    """What `logit_difference` compares the answer with.

    `corrupted` is the token that the corrupted run finds most probable, `replacement` the answer of
    the subject that stands in (`token_replacement`), `given` the fact's own `foil`, where it has
    one (`pair`).
    """

    corrupted = "corrupted"
    replacement = "replacement"
    given = "given"


_DRAWN = frozenset({"samples", "seed"})
_LEVELLED = frozenset({"replace", "multiple", "std"}) | _DRAWN
# Which of the keys `noise.*` each kind reads: what determines its draws and its foils.
NOISE_KEYS: Mapping[NoiseKind, frozenset[str]] = {
    NoiseKind.gaussian: _LEVELLED,
    NoiseKind.uniform: _LEVELLED,
    NoiseKind.student_t: _LEVELLED | {"degrees"},
    NoiseKind.multivariate: _LEVELLED,
    NoiseKind.zero: frozenset(),
    NoiseKind.mean: frozenset(),
    NoiseKind.token_replacement: _DRAWN | {"foil"},
    NoiseKind.pair: frozenset({"foil"}),
}
# Beside what the corrupted run finds most probable, which is there for every kind.
FOILS: Mapping[NoiseKind, Foil] = {
    NoiseKind.token_replacement: Foil.replacement,
    NoiseKind.pair: Foil.given,
}


_PUBLISHED_MULTIPLE = 3.0


@dataclass
class NoiseConfig:
    """How the subject's embeddings are corrupted."""

    kind: NoiseKind = NoiseKind.gaussian
    # Of sigma, the spread of the dataset's subject embeddings; 3, as published, where std is not
    # given either.
    multiple: float | None = field(default=None, metadata={"least": 0})
    # Or an absolute level: gaussian's standard deviation, uniform's half-width, student_t's scale.
    std: float | None = field(default=None, metadata={"least": 0})
    # Draws for each fact; 1 for zero, mean and pair, which are not random. Tables number them in 16
    # bits.
    samples: int = field(default=10, metadata={"least": 1, "most": 2**15 - 1})
    seed: int = field(default=1, metadata={"least": 0, "most": 2**32 - 1})
    replace: bool = False  # the draw stands in place of the embedding instead of being added
    degrees: float = field(default=5.0, metadata={"above": 0})  # of freedom, for student_t
    foil: Foil = Foil.corrupted  # replacement: for token_replacement; given: for pair

    @property
    def level_multiple(self) -> float:
        """The level relative to sigma; it has no meaning where `std` is given."""
        return _PUBLISHED_MULTIPLE if self.multiple is None else self.multiple
