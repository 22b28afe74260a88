"""Worker processes of a run on a CPU: one thread each, weights shared, groups dealt by claims.

Threads of one process wait for each other at every product, and those of two processes on the same
cores wait for each other's turns; processes wait for nothing. So where there are facts for all of
them, a run forks: its workers read the parent's weights (the system copies what one of them
changes, and nobody changes weights), take groups of facts by the claims of `ktrace.store`, as runs
on one folder do, and tell the parent which ones are done.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ktrace.errors import KtraceError
from ktrace.lm.model import LanguageModel
from ktrace.pipeline.machine import free_cores, free_memory
from ktrace.tracing.suffix.limits import MEASURED
from ktrace.tracing.suffix.memory import rows_that_fit

AUTO = "auto"

# Of a wide model, so many facts for each worker: in the last round some have nothing left to do,
# which must not cost more than threads do.
_ROUNDS = 3
# Beside the states of runs: what an interpreter touches of its own, and blocks that are kept.
_OWN_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Workers:
    """Who computes the runs of facts.

    Attributes:
        count: processes; 1 is this process.
        threads: of each; None leaves it to torch. One wherever several processes could do it, so
            that numbers do not hang on how many there are.
    """

    count: int = 1
    threads: int | None = None

    @property
    def about(self) -> dict[str, int]:
        """For the run's record."""
        return {"threads": self.threads or torch.get_num_threads(), "workers": self.count}

    @contextmanager
    def as_threaded(self) -> Iterator[None]:
        """Compute in this process as a worker does."""
        before = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            yield
        finally:
            torch.set_num_threads(before)


def workers_for(asked: object, lm: LanguageModel, n_facts: int, n_tokens: int) -> Workers:
    """How many workers a run has, before any stage begins.

    It hangs on the run as a whole, not on what is left of it or on a shard's part: a fact is
    computed with as many threads when the run goes on.

    Args:
        asked: `engine.workers`, a number or `AUTO`.
        lm: the loaded model.
        n_facts: of the run, over all shards.
        n_tokens: of all recorded runs of its longest fact.

    """
    if lm.accelerators:
        return Workers()
    if isinstance(asked, int):
        return Workers(asked, 1)
    cores = free_cores()
    if lm.d_embedding >= MEASURED.pack_width and n_facts < _ROUNDS * cores:
        return Workers()  # wide models gain from threads, too
    free = free_memory()
    fitting = cores if free is None else int(free // _bytes_of_a_worker(lm, n_tokens))
    count = 1 if _why_only_one(lm) else max(1, min(cores, fitting, n_facts))
    return Workers(count, 1)


def require_workers(asked: object, lm: LanguageModel) -> None:
    """Refuse several workers where only one can be.

    Raises:
        KtraceError: it names the number and the reason.
    """
    why = _why_only_one(lm)
    if isinstance(asked, int) and asked > 1 and why:
        raise KtraceError(f"engine.workers={asked}: {why}; give engine.workers=auto, or 1")


def _bytes_of_a_worker(lm: LanguageModel, n_tokens: int) -> int:
    """What a worker takes beside the weights, at the most: a rough count."""
    size = torch.finfo(lm.model.dtype).bits // 8
    call = rows_that_fit(lm, 1, MEASURED)
    # Facts share batches until they fill some calls, of which a walk has half as many as layers.
    together = max(n_tokens, 2 * MEASURED.shared_calls * MEASURED.cpu.tokens // lm.n_layers)
    # Inputs, keys, values and outputs of attention and MLP of every layer, of recorded runs; the
    # states of a walk; what a block call allocates; logits and what scores are taken from.
    numbers = (
        5 * lm.n_layers * lm.d_embedding * together
        + MEASURED.walk_tokens * call * lm.d_embedding
        + call * (10 * lm.d_embedding + 4 * lm.d_inner)
        + 4 * MEASURED.cpu.head_rows * lm.n_embeddings
    )
    return _OWN_BYTES + size * numbers


def _why_only_one(lm: LanguageModel) -> str:
    """Why a run has no other process beside it, if so."""
    if lm.accelerators:
        devices = ", ".join(sorted(map(str, lm.accelerators)))
        return f"several are for a CPU, and this model is on {devices}"
    if sys.platform != "linux":  # elsewhere a process that has run torch cannot be forked
        return f"several need Linux, and this is {sys.platform}"
    if multiprocessing.current_process().daemon:
        return "this process is itself a worker that may start no others"
    return ""
