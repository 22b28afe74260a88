"""Every score in tidy form, a row for each: as a frame, and in pieces.

The tables of a run are built with numpy and arrow, a batch of facts at a time: a run of 1,209 facts
has some 100 million rows.

Axes of a fact's scores: n_samples, draws of the noise; n_layers; n_positions, of its prompt. A cell
is a (sample, layer, position) of a fact.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ktrace.analysis.rows import rows
from ktrace.analysis.run_folder import FolderPath, run_folders
from ktrace.analysis.stored import Survey, batches, survey
from ktrace.errors import KtraceError
from ktrace.store import RestoredRecord
from ktrace.store.records import Scores
from ktrace.terms import METRICS, has_heads

OF_FACT = ("relation_id", "subject", "prompt")
_MAY_BE_MISSING = ("role", "relation_id", "subject", "head")
_TYPES = {
    "model": pa.dictionary(pa.int8(), pa.string()),
    "known_id": pa.int64(),
    "mediator": pa.dictionary(pa.int8(), pa.string()),
    "metric": pa.dictionary(pa.int8(), pa.string()),
    "sample": pa.int16(),
    "layer": pa.int16(),
    "position": pa.int16(),
    "token": pa.dictionary(pa.int32(), pa.string()),
    "role": pa.dictionary(pa.int8(), pa.string()),
    "clean": pa.float32(),
    "corrupted": pa.float32(),
    "restored": pa.float32(),
    "relation_id": pa.dictionary(pa.int32(), pa.string()),
    "subject": pa.dictionary(pa.int32(), pa.string()),
    "prompt": pa.dictionary(pa.int32(), pa.string()),
    "head": pa.int16(),
}
# Measured: parquet files are written twice as fast when it is known that nothing is missing.
SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=name in _MAY_BE_MISSING) for name, kind in _TYPES.items()]
)
COLUMNS = tuple(SCHEMA.names)

_SAMPLE, _LAYER, _HEAD, _PLACE = range(4)  # axes of a fact's scores


class Told(Protocol):
    """What rows say of a fact; see `CleanRecord`."""

    @property
    def known_id(self) -> int: ...
    @property
    def tokens(self) -> Sequence[str]: ...
    @property
    def roles(self) -> Sequence[str]: ...


class Compared(Protocol):
    """What its restorations are compared with; see `CorruptedRecord`."""

    @property
    def clean(self) -> Scores: ...
    @property
    def corrupted(self) -> Scores: ...


class Found(Protocol):
    """A run, stored (`Survey`) or in memory; its facts by their index."""

    @property
    def model(self) -> str: ...
    @property
    def clean(self) -> Mapping[int, Told]: ...
    @property
    def corrupted(self) -> Mapping[int, Compared]: ...
    @property
    def restored(self) -> Mapping[str, Collection[int]]: ...


def load_effects(
    run_folder: FolderPath,
    limit: int | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    partial: bool = False,
) -> pd.DataFrame:
    """Every score of a run.

    The indirect effect of a row is `restored - corrupted`, its total effect `clean - corrupted`.
    `restored` is the score under the intervention: a mediator that noises (`hidden-noise`) puts
    corrupted states into the clean run, and one that cuts edges (`knockout-w9`) changes it as well;
    their effect is `restored - clean`. Of cut edges `position` is the source; groups of sources,
    which have none, are in `knockout.csv`. All rows are in
    memory at once; `effects.parquet` holds the same ones for reading in pieces.

    >>> effects = ktrace.load_effects("outputs/tiny/facts/gaussian-x3-n10-seed1", limit=3)
    >>> effects["ie"] = effects["restored"] - effects["corrupted"]
    >>> sorted(effects["mediator"].unique())
    ['hidden', 'mlp-w3']

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        limit: only facts among the first `limit` of the dataset.
        metrics: some of `probability`, `log_probability`, `logit`, `logit_difference`, `kl`.
        partial: whether to read what is there of a run that is not finished.

    Returns:
        One row for each (fact, mediator, metric, sample, layer, position) with the columns
        `COLUMNS`, without `head` where no mediator has heads; for each head of those that have.
        `mediator` is the store's key (`hidden`, `mlp-w10`); `role` is one of the scheme
        `rome`, missing before the subject; `relation_id` and `subject` are missing where the fact
        has none; scores are float32, probabilities unitless in [0, 1].

    Raises:
        KtraceError: it is not a run's folder, or holds no restorations, or of some facts only;
            parts of different settings, or a damaged part.
    """
    return frame_of(stored_tables(run_folder, limit, metrics, partial=partial))


def frame_of(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Tables of `effect_tables` as one frame; see `load_effects`."""
    table = pa.concat_tables(list(tables)).unify_dictionaries()
    head = table["head"].to_pandas(types_mapper={pa.int16(): pd.Int16Dtype()}.get)
    frame: pd.DataFrame = table.drop_columns("head").to_pandas()
    return frame if head.isna().all() else frame.assign(head=head)


def stored_tables(
    run_folder: FolderPath,
    limit: int | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    partial: bool = False,
) -> Iterator[pa.Table]:
    """The frame of `load_effects` in pieces: some facts, one mediator and one metric at a time."""
    found, keys = complete_mediators(run_folder, limit, metrics, partial=partial)
    for key in keys:
        for batch in batches(found, key):
            yield from effect_tables(found, key, batch, metrics)


def complete_mediators(
    run_folder: FolderPath, limit: int | None, metrics: Sequence[str], *, partial: bool
) -> tuple[Survey, list[str]]:
    """A run and the mediators whose scores can be read; see `load_effects`."""
    folders = run_folders(run_folder)
    if not folders.mediator_keys():
        raise KtraceError(f"{run_folder} holds no restorations: run stage=restore or stage=all")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise KtraceError(f"metric {unknown[0]!r} is unknown: choose from {', '.join(METRICS)}")
    found = survey(folders, limit, whole_dataset=False)
    keys = [key for key, have in found.restored.items() if have]
    if not keys:
        raise KtraceError(f"{run_folder} holds no restorations of these facts")
    lacking = [*found.lacking, *(f"{key}: {found.lacks(key)}" for key in keys if found.lacks(key))]
    if lacking and not partial:
        raise KtraceError(
            f"{run_folder} is not complete ({'; '.join(lacking)}): finish the run, give limit=, or "
            "partial=True for what is there"
        )
    return found, keys


def effect_tables(
    found: "Found", key: str, batch: Sequence[RestoredRecord], metrics: Sequence[str] = METRICS
) -> Iterator[pa.Table]:
    """The rows of some facts and one mediator, a table for each metric.

    Args:
        found: the run.
        key: the mediator's.
        batch: of its facts.
        metrics: in the order of the tables.
    """
    batch = [record.at_positions() for record in batch]
    cells = _Cells([record.shape for record in batch])
    clean = [found.clean[record.index] for record in batch]
    corrupted = [found.corrupted[record.index] for record in batch]
    shared = {
        "model": cells.constant(found.model, [found.model]),
        "known_id": np.repeat([record.known_id for record in clean], cells.sizes),
        "mediator": cells.constant(key, list(found.restored)),
        "sample": cells.numbers(_SAMPLE),
        "layer": cells.numbers(_LAYER),
        "head": _heads(key, cells),
        "position": cells.along(_PLACE, [record.places for record in batch], np.int16),
        "token": _tokens(clean, batch, cells),
        "role": _roles(clean, batch, cells),
        **{name: _texts([getattr(one, name) for one in clean], cells) for name in OF_FACT},
    }
    for metric in metrics:
        scores = {
            "metric": cells.constant(metric, METRICS),
            "clean": cells.along(_SAMPLE, [c.clean[metric] for c in corrupted], np.float32),
            "corrupted": cells.along(_SAMPLE, [c.corrupted[metric] for c in corrupted], np.float32),
            "restored": np.concatenate([record.scores[metric].ravel() for record in batch]),
        }
        columns = shared | scores
        yield pa.table([columns[name] for name in COLUMNS], schema=SCHEMA)


@dataclass(frozen=True)
class _Cells:
    """All cells of some facts, fact after fact, each raveled.

    Attributes:
        shapes: of the facts, `(n_samples, n_layers, n_heads, n_places)` each.
    """

    shapes: Sequence[tuple[int, int, int, int]]

    @property
    def sizes(self) -> list[int]:
        """Cells of each fact."""
        return [math.prod(shape) for shape in self.shapes]

    def along(
        self, axis: int, values: Sequence[npt.ArrayLike], dtype: npt.DTypeLike
    ) -> npt.NDArray[np.generic]:
        """One value for each index of an axis, for every cell; `values` are by fact."""
        cells = []
        for shape, one in zip(self.shapes, values, strict=True):
            seen = [1, 1, 1, 1]
            seen[axis] = -1
            array = np.asarray(one, dtype=dtype).reshape(seen)
            cells.append(np.broadcast_to(array, shape).ravel())
        return np.concatenate(cells)

    def numbers(self, axis: int) -> npt.NDArray[np.generic]:
        """The cells' indices on an axis."""
        return self.along(axis, [np.arange(shape[axis]) for shape in self.shapes], np.int16)

    def constant(self, value: str, choices: Sequence[str]) -> pa.DictionaryArray:
        """The same text for every cell, one of several."""
        codes = np.full(sum(self.sizes), choices.index(value), dtype=np.int8)
        return pa.DictionaryArray.from_arrays(codes, list(choices))


def _heads(key: str, cells: _Cells) -> pa.Array:
    """Missing where the mediator has none."""
    numbers = cells.numbers(_HEAD)
    return pa.array(numbers, mask=np.full(len(numbers), not has_heads(key)))


def _tokens(
    clean: Sequence[Told], batch: Sequence[RestoredRecord], cells: _Cells
) -> pa.DictionaryArray:
    texts = list(dict.fromkeys(token for record in clean for token in record.tokens))
    number = {token: code for code, token in enumerate(texts)}
    by_fact = [
        [number[one.tokens[place]] for place in record.places]
        for one, record in zip(clean, batch, strict=True)
    ]
    return pa.DictionaryArray.from_arrays(cells.along(_PLACE, by_fact, np.int32), texts)


def _roles(
    clean: Sequence[Told], batch: Sequence[RestoredRecord], cells: _Cells
) -> pa.DictionaryArray:
    """Missing before the subject."""
    number = {role: code for code, role in enumerate(rows("rome"))}
    by_fact = [
        [number.get(one.roles[place], -1) for place in record.places]
        for one, record in zip(clean, batch, strict=True)
    ]
    codes = cells.along(_PLACE, by_fact, np.int8)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes == -1), list(rows("rome")))


def _texts(values: Sequence[str], cells: _Cells) -> pa.DictionaryArray:
    """One text for each fact; an empty one is missing."""
    texts = list(dict.fromkeys(value for value in values if value))
    number = {text: code for code, text in enumerate(texts)}
    codes = np.repeat(np.array([number.get(value, -1) for value in values], np.int32), cells.sizes)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes == -1), texts)
