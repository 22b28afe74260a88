"""What a store holds of one fact, typed: the only way that facts travel between rooms.

`row` gives the columns of `ktrace.store.schema`, which a part is written from; `read` gives the
facts of a store back, one part in memory at a time. Single values come back as Python's own, lists
of text as tuples, lists of numbers as arrays.

Axes: n_positions, tokens of the prompt; n_samples, draws of the noise; n_layers, blocks of the
model; d_model, features of a state; n_answer, tokens of the answer that are scored; n_kept_samples,
n_kept_layers, n_kept_positions, those of them whose states are stored.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ktrace.store.schema import CLEAN, CLEAN_SCORES, CORRUPTED, RESTORED, Array, Row
from ktrace.store.store import Store
from ktrace.terms import METRICS, changes_clean_run

Integers = npt.NDArray[np.int64]
# One array for each metric: float32 where it was read.
Scores = Mapping[str, npt.NDArray[np.floating]]

_SCORE_COLUMNS = {*METRICS, *CLEAN_SCORES.values()}
_CORRUPTED_COLUMNS = tuple(name for name in CORRUPTED if name not in _SCORE_COLUMNS)
_RESTORED_COLUMNS = tuple(name for name in RESTORED if name not in METRICS)
_STATES_COLUMNS = ("index", "known_id", "layers", "positions", "roles")


def _none() -> Integers:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class CleanRecord:
    """The clean run of a fact.

    Attributes:
        index: the fact's row in its dataset.
        known_id: the fact's own number.
        prompt: its text.
        subject: the part of it that is corrupted.
        attribute: the answer; several right ones with ` | ` between them.
        relation_id: what it is a fact about; may be empty.
        left_out: why it is no candidate; empty for candidates.
        is_candidate: whether the model predicts the answer.
        input_ids: token ids of the prompt, `(n_positions,)`.
        tokens: the same as text.
        offsets: first character of each token and one past its last, `(n_positions, 2)`.
        roles: of each position, in the scheme `rome`; empty before the subject.
        span: first position of the subject, and one past its last.
        answer_ids: what is scored, `(n_answer,)`; none where the answer has no token. Of several
            right answers the predicted one, else the first.
        predicted_ids: what the model predicts in its place, likewise.
        predicted: the same as text.
        predicted_probability: of that; NaN for a prompt that was not run.
        probability: of the answer; NaN where there is none.
        also_ids: tokens of the other right answers, one answer after another.
        also_lengths: how many each of them has, `(n_answers - 1,)`.
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
    also_ids: Integers = field(default_factory=_none)
    also_lengths: Integers = field(default_factory=_none)

    def row(self) -> Row:
        """By column."""
        return {name: getattr(self, name) for name in CLEAN}

    @classmethod
    def read(cls, store: Store) -> Iterator["CleanRecord"]:
        """Every fact of a store.

        Raises:
            KtraceError: a part is damaged.
        """
        for row in store.read(*CLEAN):
            start, stop = row["span"].tolist()
            texts = {name: tuple(row[name]) for name in ("tokens", "roles")}
            yield cls(**{**row, **texts, "span": (start, stop)})


@dataclass(frozen=True)
class CorruptedRecord:
    """The corrupted run of a candidate.

    Attributes:
        index: the fact's row in its dataset.
        known_id: the fact's own number.
        left_out: why the noise cannot corrupt it; empty where it can.
        sigma: standard deviation of the subjects' embeddings.
        noise_level: what draws were multiplied with; NaN for a noise without a level.
        foil_ids: what `logit_difference` compares with, `(n_samples, n_answer)`.
        foil: the same as text, `(n_samples,)`.
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

    def base(self, mediator_key: str) -> Scores:
        """Of the run that a mediator changes: its effects are what it adds to that."""
        return self.clean if changes_clean_run(mediator_key) else self.corrupted

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
            corrupted = {metric: row[metric] for metric in METRICS}
            yield cls(**{**own, "foil": tuple(row["foil"])}, clean=clean, corrupted=corrupted)


@dataclass(frozen=True)
class RestoredRecord:
    """The restorations of a fact by one mediator, or what it noised or cut.

    Attributes:
        index: the fact's row in its dataset.
        known_id: the fact's own number.
        together: keys of the mediators that shared its batches: what decides the last bits.
        places: where it acted, `(n_places,)`: positions; of cut edges their sources, and -1 - n for
            the n-th of `ktrace.terms.SOURCE_GROUPS`.
        scores: `(n_samples, n_layers, n_heads, n_places)` for each metric; one head where the
            mediator has none.
    """

    index: int
    known_id: int
    together: str
    places: Integers
    scores: Scores

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(n_samples, n_layers, n_heads, n_places)`."""
        n_samples, n_layers, n_heads, n_places = self.scores[METRICS[0]].shape
        return n_samples, n_layers, n_heads, n_places

    @property
    def n_units(self) -> int:
        """Layers times heads: what has a score at every place."""
        return self.shape[1] * self.shape[2]

    def by_unit(self, metric: str) -> npt.NDArray[np.floating]:
        """Scores with the heads of a layer as neighbours, `(n_samples, n_units, n_places)`."""
        scores = self.scores[metric]
        return scores.reshape(len(scores), self.n_units, -1)

    def at_positions(self) -> "RestoredRecord":
        """Without groups of sources, which are at no position."""
        kept = self.places >= 0
        scores = {metric: values[..., kept] for metric, values in self.scores.items()}
        return replace(self, places=self.places[kept], scores=scores)

    def row(self) -> Row:
        """By column."""
        return {**{name: getattr(self, name) for name in _RESTORED_COLUMNS}, **self.scores}

    @classmethod
    def read(cls, store: Store, only: Collection[int] | None = None) -> Iterator["RestoredRecord"]:
        """Facts of a store, with all their scores, which are large.

        Args:
            store: the mediator's.
            only: indices of the facts that are wanted, see `Store.read`; None for every fact.

        Raises:
            KtraceError: a part is damaged.
        """
        for row in store.read(*RESTORED, only=only):
            own = {name: row[name] for name in _RESTORED_COLUMNS}
            yield cls(**own, scores={metric: row[metric] for metric in METRICS})


@dataclass(frozen=True)
class StatesRecord:
    """States of the clean run of a fact, or of its corrupted run.

    Attributes:
        index: the fact's row in its dataset.
        known_id: the fact's own number.
        layers: which are kept, `(n_kept_layers,)`; none where the fact is no candidate.
        positions: likewise, `(n_kept_positions,)`.
        roles: of these positions, in the scheme `rome`; empty before the subject.
        states: by site, bfloat16 as the bits in uint16, `(n_kept_layers, n_kept_positions,
            d_model)`, and with a first axis `n_kept_samples` of the corrupted run. Empty where the
            site is not kept, or the model lacks it; NaN in layers that lack it.
    """

    index: int
    known_id: int
    layers: Integers
    positions: Integers
    roles: Sequence[str]
    states: Mapping[str, Array]

    def row(self) -> Row:
        """By column."""
        own = {name: getattr(self, name) for name in _STATES_COLUMNS}
        return {**own, **self.states}

    @classmethod
    def read(cls, store: Store, *sites: str) -> Iterator["StatesRecord"]:
        """Every fact of a store, with the states of some sites, or of none.

        Raises:
            KtraceError: a part is damaged.
        """
        for row in store.read(*_STATES_COLUMNS, *sites):
            own = {name: row[name] for name in _STATES_COLUMNS}
            states = {site: row[site] for site in sites}
            yield cls(**{**own, "roles": tuple(row["roles"])}, states=states)
