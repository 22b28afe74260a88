"""Every score of a run in tidy form, a row for each: as a frame, and as `effects.parquet`.

The tables are built with numpy and arrow, a batch of facts at a time: a run of 1,209 facts has
some 100 million rows.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ktrace.analysis.rows import rows
from ktrace.analysis.stored import Record, Survey, batches, survey
from ktrace.errors import KtraceError
from ktrace.files import new_file
from ktrace.store import CLEAN_SCORES, RunFolders
from ktrace.terms import METRICS

_CATEGORIES = ("model", "mediator", "metric", "token", "role")
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
}
# Measured: parquet files are written twice as fast when it is known that nothing is missing.
_SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=name == "role") for name, kind in _TYPES.items()]
)
COLUMNS = tuple(_SCHEMA.names)

_MOST_WAITING = 5  # tables that wait for the disk

Array = npt.NDArray[Any]


def load_effects(
    run_folder: str | Path,
    limit: int | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    partial: bool = False,
) -> pd.DataFrame:
    """Every score of a run.

    The indirect effect of a row is `restored - corrupted`, its total effect `clean - corrupted`.
    All rows are in memory at once; `effects.parquet` holds the same ones for reading in pieces.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        limit: only facts among the first `limit` of the dataset.
        metrics: some of `probability`, `log_probability`, `logit`, `logit_difference`, `kl`.
        partial: whether to read what is there of a run that is not finished.

    Returns:
        One row for each (fact, mediator, metric, sample, layer, position) with the columns
        `COLUMNS`. `mediator` is the store's key (`hidden`, `mlp-w10`); `role` is one of the scheme
        `rome`, missing before the subject; scores are float32, probabilities unitless in [0, 1].

    Raises:
        KtraceError: the folder holds no restorations, or of some facts only; parts of different
            settings, or a damaged part.
    """
    folders = RunFolders(Path(run_folder).resolve())
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
    tables = [
        table
        for key in keys
        for batch in batches(found, key)
        for table in effect_tables(found, key, batch, metrics)
    ]
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    return frame


def effect_tables(
    found: Survey, key: str, batch: Sequence[Record], metrics: Sequence[str] = METRICS
) -> Iterator[pa.Table]:
    """The rows of some facts and one mediator, a table for each metric.

    Args:
        found: the run.
        key: the mediator's.
        batch: records of `batches`.
        metrics: in the order of the tables.
    """
    shapes = [record[METRICS[0]].shape for record in batch]
    clean = [found.clean[record["index"]] for record in batch]
    corrupted = [found.corrupted[record["index"]] for record in batch]
    tokens = list(dict.fromkeys(token for record in clean for token in record["tokens"]))
    number = {token: code for code, token in enumerate(tokens)}
    role_number = {role: code for code, role in enumerate(rows("rome"))}
    sizes = [int(np.prod(shape)) for shape in shapes]
    n_rows = sum(sizes)
    keys = list(found.restored)

    def along(axis: int, values: Sequence[Any], dtype: Any) -> Array:
        """One value for each index of an axis, for every cell."""
        cells = []
        for shape, one in zip(shapes, values, strict=True):
            seen = [1, 1, 1]
            seen[axis] = -1
            array = np.asarray(one, dtype=dtype).reshape(seen)
            cells.append(np.broadcast_to(array, shape).ravel())
        return np.concatenate(cells)

    def constant(value: str, choices: Sequence[str]) -> pa.DictionaryArray:
        codes = np.full(n_rows, choices.index(value), dtype=np.int8)
        return pa.DictionaryArray.from_arrays(codes, list(choices))

    model = found.folders.run.parent.parent.name
    codes = along(2, [[role_number.get(r, -1) for r in c["roles"]] for c in clean], np.int8)
    shared = {
        "model": constant(model, [model]),
        "known_id": np.repeat([record["known_id"] for record in clean], sizes),
        "mediator": constant(key, keys),
        **{
            name: along(axis, [np.arange(shape[axis]) for shape in shapes], np.int16)
            for axis, name in enumerate(("sample", "layer", "position"))
        },
        "token": pa.DictionaryArray.from_arrays(
            along(2, [[number[token] for token in c["tokens"]] for c in clean], np.int32), tokens
        ),
        "role": pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), list(rows("rome"))),
    }
    for metric in metrics:
        scores = {
            "metric": constant(metric, METRICS),
            "clean": along(0, [c[CLEAN_SCORES[metric]] for c in corrupted], np.float32),
            "corrupted": along(0, [c[metric] for c in corrupted], np.float32),
            "restored": np.concatenate([record[metric].ravel() for record in batch]),
        }
        columns = shared | scores
        yield pa.table([columns[name] for name in COLUMNS], schema=_SCHEMA)


@contextmanager
def effects_file(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Write `effects.parquet` in a thread of its own; gives what takes a row group.

    Raises:
        KtraceError: the file cannot be written.
    """
    # Measured: plain numbers behind a fast compression take half the time and half the space of
    # dictionaries. Scores are noise to any compression.
    options = {
        "use_dictionary": list(_CATEGORIES),
        "compression": {name: "none" if name == "restored" else "lz4" for name in COLUMNS},
        "write_statistics": ["known_id", "mediator", "metric"],
        "write_batch_size": 2**14,
    }
    waiting: deque[Future[None]] = deque()
    with (
        new_file(path) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA, **options) as writer,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):

        def add(table: pa.Table) -> None:
            while len(waiting) >= _MOST_WAITING:
                waiting.popleft().result()
            waiting.append(thread.submit(writer.write_table, table))

        yield add
        while waiting:
            waiting.popleft().result()
