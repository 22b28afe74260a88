"""What a part holds of one fact, typed: the rows of each kind of store.

`row` and `of` are the way to the columns of `ktrace.store.schema` and back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace.store.schema import CLEAN, CLEAN_SCORES, CORRUPTED, RESTORED, Row
from ktrace.store.store import Store
from ktrace.terms import METRICS, SITES

Integers = npt.NDArray[np.int64]
Array = npt.NDArray[np.floating[Any]]
# One array for each metric.
Scores = Mapping[str, Array]


@dataclass(frozen=True)
class CleanRecord:
    """The clean run of a fact.

    Attributes:
        index: the fact's row in its dataset.
        left_out: why it is no candidate; empty for candidates.
        input_ids: token ids of the prompt, `(n_positions,)`.
        tokens: the same as text.
        offsets: first character of each token and one past its last, `(n_positions, 2)`.
        roles: of each position, in the scheme `rome`; empty before the subject.
        span: first position of the subject, and one past its last.
        answer_ids: what is scored; none where the answer has no token.
        probability: of the answer; NaN where there is none.
        states: by site, `(n_layers, n_positions, d_model)`, bfloat16 as the bits in uint16; empty
            for facts that are no candidates, and where they were not read.
    """

    index: int
    known_id: int
    prompt: str
    subject: str
    attribute: str
    relation_id: str
    left_out: str
    is_candidate: bool
    input_ids: Integers
    tokens: Sequence[str]
    offsets: Integers
    roles: Sequence[str]
    span: tuple[int, int]
    answer_ids: Integers
    predicted_ids: Integers
    predicted: str
    predicted_probability: float
    probability: float
    states: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def row(self) -> Row:
        """By column."""
        return {**{name: getattr(self, name) for name in _CLEAN_COLUMNS}, **self.states}

    @classmethod
    def read(cls, store: Store) -> Iterator["CleanRecord"]:
        """Every fact of a store, without its states, which are large.

        Raises:
            KtraceError: a part is damaged.
        """
        for row in store.read(*_CLEAN_COLUMNS):
            start, stop = row.pop("span").tolist()
            yield cls(span=(start, stop), **row)


_CLEAN_COLUMNS = tuple(name for name in CLEAN if name not in SITES)


@dataclass(frozen=True)
class CorruptedRecord:
    """The corrupted run of a candidate.

    Attributes:
        left_out: why the noise cannot corrupt it; empty where it can.
        sigma: standard deviation of the subjects' embeddings.
        noise_level: what draws were multiplied with; NaN for a noise without a level.
        foil_ids: what `logit_difference` compares with, `(n_samples, n_answer)`.
        foil: the same as text, for each sample.
        clean: what each sample is compared with, `(n_samples,)` for each metric.
        corrupted: its score, likewise.
    """

    index: int
    known_id: int
    left_out: str
    sigma: float
    noise_level: float
    foil_ids: Integers
    foil: Sequence[str]
    clean: Scores
    corrupted: Scores

    def row(self) -> Row:
        """By column."""
        own = {name: getattr(self, name) for name in _CORRUPTED_COLUMNS}
        clean = {CLEAN_SCORES[metric]: scores for metric, scores in self.clean.items()}
        return {**own, **clean, **self.corrupted}

    @classmethod
    def read(cls, store: Store) -> Iterator["CorruptedRecord"]:
        """Every candidate of a store.

        Raises:
            KtraceError: a part is damaged.
        """
        for row in store.read(*CORRUPTED):
            own = {name: row[name] for name in _CORRUPTED_COLUMNS}
            clean = {metric: row[name] for metric, name in CLEAN_SCORES.items()}
            yield cls(**own, clean=clean, corrupted={metric: row[metric] for metric in METRICS})


_SCORE_COLUMNS = {*METRICS, *CLEAN_SCORES.values()}
_CORRUPTED_COLUMNS = tuple(name for name in CORRUPTED if name not in _SCORE_COLUMNS)


@dataclass(frozen=True)
class RestoredRecord:
    """The restorations of a fact by one mediator.

    Attributes:
        together: keys of the mediators that shared its batches: what decides the last bits.
        scores: `(n_samples, n_layers, n_positions)` for each metric.
    """

    index: int
    known_id: int
    together: str
    scores: Scores

    def row(self) -> Row:
        """By column."""
        own = {"index": self.index, "known_id": self.known_id, "together": self.together}
        return {**own, **self.scores}

    @classmethod
    def read(cls, store: Store) -> Iterator["RestoredRecord"]:
        """Every fact of a store.

        Raises:
            KtraceError: a part is damaged.
        """
        for row in store.read(*RESTORED):
            yield cls(
                row["index"],
                row["known_id"],
                row["together"],
                {metric: row[metric] for metric in METRICS},
            )
