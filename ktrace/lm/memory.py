"""When memory runs out: whether it was that, what to say, and what to give back first."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ktrace.errors import NoMemoryLeftError

# What a person can change about it.
MORE_ROOM = (
    "give the model more room or fewer bits "
    "(model.device, model.device_map, model.dtype, model.quantization)"
)


def fewer_samples(n_samples: int) -> str:
    """What a person can change about it where noised rows share a batch."""
    return f"lower noise.samples={n_samples}, or {MORE_ROOM}"


# Devices' allocators have an exception of their own or these words; their libraries, which allocate
# beside them, return a status (CUBLAS_STATUS_ALLOC_FAILED).
_WORDS = re.compile(
    "out of memory|DefaultCPUAllocator|can't allocate memory|_STATUS_ALLOC_FAILED"
    # A Mac's word for more than one buffer may have.
    "|Invalid buffer size"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
    )


@contextmanager
def within_memory(doing: str, remedy: str = MORE_ROOM) -> Iterator[None]:
    """Say in a line that memory ran out where nothing smaller is left to try.

    Args:
        doing: what it ran out with, as in "out of memory with ...".
        remedy: what helps.

    Raises:
        NoMemoryLeftError: it did.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NoMemoryLeftError(f"out of memory {doing}: {remedy}") from error


def release() -> None:
    """Give back what torch holds without using, so that the next allocations find it whole."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
