"""`effects.parquet`: every score, written beside what reads and averages the stores."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ktrace.analysis.effects import COLUMNS, OF_FACT, SCHEMA, effect_tables
from ktrace.analysis.stored import Survey, Watch
from ktrace.files import new_file
from ktrace.store import RestoredRecord

_CATEGORIES = ("model", "mediator", "metric", "token", "role", *OF_FACT)
_MOST_WAITING = 5  # tables that wait for the disk


@contextmanager
def effects_written(path: Path) -> Iterator[Watch]:
    """Write `effects.parquet`; gives what takes some restorations of one mediator.

    Raises:
        KtraceError: the file cannot be written.
    """
    with effects_file(path) as write:

        def add(found: Survey, key: str, batch: Sequence[RestoredRecord]) -> None:
            for table in effect_tables(found, key, batch):
                write(table)

        yield add


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
        pq.ParquetWriter(temporary, SCHEMA, **options) as writer,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):

        def add(table: pa.Table) -> None:
            while len(waiting) >= _MOST_WAITING:
                waiting.popleft().result()
            waiting.append(thread.submit(writer.write_table, table))

        yield add
        while waiting:
            waiting.popleft().result()
