"""Which device a config means, and whether it is here."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ktrace.config import Dtype, ModelConfig
from ktrace.errors import KtraceError
from ktrace.lm.memory import within_memory


@contextmanager
def dtype_there(device: str, dtype: str) -> Iterator[None]:
    """Say in a line that a device has no numbers of a dtype, which torch says in an exception.

    Raises:
        KtraceError: it has none.
    """
    try:
        yield
    except TypeError as error:
        raise KtraceError(
            f"model.dtype={dtype} cannot be on model.device={device} ({first_line(error)}): "
            "take model.dtype=float32 or model.device=cpu"
        ) from error


def chosen_device(config: ModelConfig) -> torch.device:
    """Where a model goes as a whole.

    Raises:
        KtraceError: there is no such device, or none that has numbers of the dtype.
    """
    device = _best_device() if config.device == "auto" else _named_device(config.device)
    if config.dtype is not Dtype.auto:
        with dtype_there(str(device), config.dtype.value):
            torch.empty(0, dtype=getattr(torch, config.dtype.value), device=device)
    return device


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(name: str) -> torch.device:
    choices = "auto, cpu, cuda, cuda:1, mps are what torch takes"
    try:
        device = torch.device(name)
    except RuntimeError as error:  # whose text lists some thirty backends
        raise KtraceError(f"model.device={name!r} is no device; {choices}") from error
    if device.type == "meta":
        raise KtraceError(f"model.device={name!r} holds no numbers; {choices}")
    try:
        with within_memory(f"on model.device={name}"):  # others may have taken all of it
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        why = first_line(error)
        if isinstance(error, NotImplementedError | ImportError):  # a paragraph about dispatch
            why = "this torch was built without it"
        raise KtraceError(f"model.device={name!r} is not here ({why}); {choices}") from error
    return device


def first_line(error: BaseException) -> str:
    """Of what an exception says; its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
