"""A pretend accelerator: tensors that say they are on cuda:0, cuda:1 or mps, computed on a CPU.

Torch's own kernels do the arithmetic, so that numbers are a CPU's to the bit; what a device refuses
is refused, in torch's words: operands of two devices, float64 on mps, numpy without a copy to the
CPU, memory that is not there. Libraries go their way for accelerators, accelerate's hooks included.

Where a tensor pretends to be is written on its storage, so that views, `.data` and parameters that
share it are there, too. A function mode answers what Python asks of tensors and devices; a dispatch
mode sees every operation, also those that torch's own code calls. What it cannot tell: kernels that
a device lacks, other rounding, and what runs in other threads, where modes do not reach.
"""

import os
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
GIB = 2**30

# Operations that may take tensors of several devices: copies.
_COPIES = {"aten::copy_", "aten::_copy_from"}
# Operations whose second argument are indices, which may be on the CPU.
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}

# What gives the CPU a number, or a shape, that hangs on what a device has computed.
_WAITED_FOR = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"),
    "aten::repeat_interleave",
}

_OF = torch.Tensor
Answer = Callable[..., Any]


def out_of_memory() -> Exception:
    """What torch raises when its allocator finds nothing."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def mps_out_of_memory() -> Exception:
    """The same on a Mac, where it is no exception of its own."""
    return RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)")


@dataclass
class Accelerator:
    """Pretended devices, and what happens on them.

    Attributes:
        kind: `cuda` or `mps`.
        count: how many devices there are.
        free: bytes that each says are free.
        fails_at: numbers of the operations that find no memory, counted from 0.
        largest: elements of the largest tensor that a device has room for.
        error: what an operation that finds no memory raises.
        n_operations: how many were run on the devices.
        emptied: how often the allocator's cache was emptied.
        waits: what the CPU waited for the devices for: copies to it, numbers that it asked for,
            shapes that hang on them.
        sent: how many tensors were copied to the devices, indices given as lists among them.
    """

    kind: str = "cuda"
    count: int = 1
    free: dict[int, int] = field(default_factory=dict)
    fails_at: Container[int] = ()
    largest: int | None = None
    error: Callable[[], Exception] = out_of_memory
    n_operations: int = 0
    emptied: int = 0
    waits: list[str] = field(default_factory=list)
    sent: int = 0

    @contextmanager
    def here(self) -> Iterator["Accelerator"]:
        """Let it be there, for this thread."""
        with ExitStack() as stack:
            for target, answers in self._library().items():
                for name, answer in answers.items():
                    stack.enter_context(mock.patch(f"{target}.{name}", answer, create=True))
            # transformers reads weights in threads of its own, unless told otherwise.
            stack.enter_context(mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
            operations = _Operations(self)
            stack.enter_context(operations)
            stack.enter_context(_Questions(self, operations))
            yield self

    def device(self, named: Any) -> torch.device | None:
        """The device that is meant, with its number; None where it is none of these."""
        if isinstance(named, int):
            named = f"{self.kind}:{named}"
        found = torch.device(named)
        if found.type != self.kind:
            return None
        if (found.index or 0) >= self.count:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return torch.device(found.type, found.index or 0)

    def allocated(self, tensor: torch.Tensor, device: torch.device) -> None:
        """Put a new tensor on a device.

        Raises:
            TypeError: as torch does for what mps has not.
        """
        if device.type == "mps" and tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                "float64. Please use float32 instead."
            )
        if self.largest is not None and tensor.numel() > self.largest:
            raise self.error()
        tensor.untyped_storage().pretended = device

    def ran(self) -> None:
        """Count an operation."""
        number, self.n_operations = self.n_operations, self.n_operations + 1
        if number in self.fails_at:
            raise self.error()

    def _emptied(self) -> None:
        self.emptied += 1

    def _free_of(self, device: Any = None) -> tuple[int, int]:
        number = 0 if device is None else self.device(device).index
        return self.free.get(number, GIB), 2 * GIB

    def _library(self) -> Mapping[str, Mapping[str, Any]]:
        """What torch answers for the whole library, by module."""
        properties = SimpleNamespace(name="Pretended", total_memory=2 * GIB, major=8, minor=0)
        if self.kind == "mps":
            return {
                "torch.backends.mps": {"is_available": lambda: True, "is_built": lambda: True},
                "torch.mps": {"empty_cache": self._emptied},
            }
        return {
            "torch.cuda": {
                "is_available": lambda: True,
                "device_count": lambda: self.count,
                "current_device": lambda: 0,
                "mem_get_info": self._free_of,
                "memory_reserved": lambda device=None: 0,
                "memory_allocated": lambda device=None: 0,
                "max_memory_allocated": lambda device=None: 0,
                "empty_cache": self._emptied,
                "synchronize": lambda device=None: None,
                "get_device_name": lambda device=None: properties.name,
                "get_device_properties": lambda device=None: properties,
                "get_device_capability": lambda device=None: (8, 0),
                "is_bf16_supported": lambda *_: True,
            },
        }


def place_of(tensor: torch.Tensor) -> torch.device:
    """Where a tensor says that it is; for use within the modes."""
    real = tensor.device
    return real if real.type != "cpu" else getattr(tensor.untyped_storage(), "pretended", CPU)


def _tensors(value: Any) -> list[torch.Tensor]:
    """All that an operation takes or gives."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}


class _Operations(TorchDispatchMode):
    """Every operation: its operands agree on a device, and what it makes is there.

    Attributes:
        asked: device that the Python call under way names; its operations make what is there.
        around: device of that call's operands, where operations without any operand work.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.accelerator = accelerator
        self.asked: torch.device | None = None
        self.around = CPU

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # else the other mode would be asked of the CPU
            given = _tensors([args, kwargs])
            device = self.asked or self._common(func._schema.name, args, given)
            if device.type != self.accelerator.kind:
                return func(*args, **kwargs)
            self.accelerator.ran()
            if func._schema.name in _WAITED_FOR:
                self.accelerator.waits.append(func._schema.name)
            if func._schema.name in _INDEXED:
                self.accelerator.sent += sum(place_of(i) == CPU for i in _tensors(args[1]))
            made = func(*args, **kwargs)
            known = _storages(given)
            for tensor in _tensors(made):
                if tensor.device.type == "cpu" and not _storages([tensor]) <= known:
                    self.accelerator.allocated(tensor, device)
            return made

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and to say so takes time

    def _common(self, name: str, args: Any, given: list[torch.Tensor]) -> torch.device:
        """The device of all operands.

        Raises:
            RuntimeError: there are two.
        """
        if not given:
            return CPU if name == "aten::scalar_tensor" else self.around
        first = place_of(given[0])
        if name in _COPIES:
            return first
        if name in _INDEXED:
            indices = _tensors(args[1])
            if first == CPU and any(place_of(index) != CPU for index in indices):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor "
                    "(cpu)"
                )
            given = [t for t in given if place_of(t) != CPU or all(t is not i for i in indices)]
        # A number on the CPU goes with every device.
        places = {place_of(t): None for t in given if t.ndim or place_of(t) != CPU}
        if len(places) > 1:
            one, other = list(places)[:2]
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{one} and {other}! (in {name})"
            )
        return next(iter(places), CPU)


class _Questions(TorchFunctionMode):
    """What Python asks: where a tensor is, to move it, to make one somewhere."""

    def __init__(self, accelerator: Accelerator, operations: _Operations) -> None:
        super().__init__()
        self.accelerator = accelerator
        self.operations = operations
        self._answers: dict[Any, Answer] = {
            torch.device: self._device,
            _OF.device.__get__: place_of,
            _OF.is_cuda.__get__: lambda tensor: place_of(tensor).type == "cuda",
            _OF.is_mps.__get__: lambda tensor: place_of(tensor).type == "mps",
            _OF.is_cpu.__get__: lambda tensor: place_of(tensor).type == "cpu",
            _OF.get_device: lambda tensor: place_of(tensor).index,
            _OF.to: self._to,
            _OF.cpu: lambda tensor, **_: self._to(tensor, "cpu"),
            _OF.cuda: lambda tensor, device="cuda", **_: self._to(tensor, device),
            _OF.numpy: self._numpy,
            _OF.__array__: lambda tensor, dtype=None: self._numpy(tensor, dtype),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = dict(kwargs or {})
        answer = self._answers.get(func)
        if answer is not None:
            return answer(*args, **kwargs)
        given = _tensors([args, kwargs])
        places = (place_of(tensor) for tensor in given)
        around = next((place for place in places if place.type == self.accelerator.kind), CPU)
        asked = None
        if kwargs.get("device") is not None:
            asked = self.accelerator.device(kwargs["device"])
            if asked is None:
                asked = torch.device(kwargs["device"])
            else:
                kwargs["device"] = CPU
        with self._within(asked, around):
            made = func(*args, **kwargs)
            if func in (torch.tensor, torch.as_tensor) and asked not in (None, CPU):
                self.accelerator.sent += 1
            return self._moved(made, given, asked or around)

    def _moved(self, made: Any, given: list[torch.Tensor], device: torch.device) -> Any:
        """What torch made without an operation (of numbers, of a pickle) goes where it belongs."""
        if device.type != self.accelerator.kind:
            return made
        if isinstance(made, torch.Tensor) and made.device.type == "cpu":
            if place_of(made) == device:
                return made
            if _storages([made]) <= _storages(given):
                if place_of(made) != CPU or self.operations.asked is None:
                    return made
                made = made.clone()
            self.accelerator.allocated(made, device)
        return made

    @contextmanager
    def _within(self, asked: torch.device | None, around: torch.device) -> Iterator[None]:
        operations = self.operations
        before = operations.asked, operations.around
        operations.asked, operations.around = asked, around
        try:
            yield
        finally:
            operations.asked, operations.around = before

    def _device(self, *named: Any, **parts: Any) -> torch.device:
        if len(named) == 1 and isinstance(named[0], int):  # of the accelerator that is here
            return torch.device(self.accelerator.kind, named[0])
        return torch.device(*named, **parts)

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        named, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        other = kwargs.pop("other", None)
        for value in args:
            if isinstance(value, torch.Tensor):
                other = value
            elif isinstance(value, torch.dtype):
                dtype = value
            elif named is None and not isinstance(value, bool):
                named = value
        if other is not None:
            named, dtype = place_of(other), other.dtype
        here = place_of(tensor)
        there = here if named is None else self.accelerator.device(named) or torch.device(named)
        if there == here:
            with self._within(None, here):
                return tensor.to(dtype=dtype or tensor.dtype, copy=kwargs.get("copy", False))
        if self.accelerator.kind not in (here.type, there.type):
            return tensor.to(there, dtype or tensor.dtype)
        if there.type == self.accelerator.kind:
            self.accelerator.sent += here == CPU
        else:
            self.accelerator.waits.append("copy")
        real = CPU if there.type == self.accelerator.kind else there
        with self._within(there, here):
            return tensor.to(device=real, dtype=dtype or tensor.dtype, copy=True)

    def _numpy(self, tensor: torch.Tensor, dtype: Any = None, **options: Any) -> Any:
        place = place_of(tensor)
        if place.type != "cpu":
            raise TypeError(
                f"can't convert {place} device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        made = tensor.numpy(**options)
        return made if dtype is None else made.astype(dtype, copy=False)
