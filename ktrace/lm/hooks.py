"""What a model is changed by, and only for a while: forward hooks, and forwards replaced."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ktrace.errors import KtraceError

# Takes a module's output, returns what replaces it; None leaves it as it is.
Edit = Callable[[torch.Tensor], torch.Tensor | None]


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path.

    Raises:
        KtraceError: there is none; the message names the first part that is missing.
    """
    module = model
    walked = ""
    for name in path.split("."):
        children = dict(module.named_children())
        if name not in children:
            have = ", ".join(children) or "nothing"
            place = f"{type(model).__name__}.{walked}".rstrip(".")
            raise KtraceError(f"module path {path!r}: {place} has no {name!r}, it has {have}")
        module = children[name]
        walked += f"{name}."
    return module


@contextmanager
def hooked(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Call `edits[path]` on the output of the module at `path` in every forward pass.

    A module that returns a tuple is represented by its first element (the states; the rest are
    caches and weights). A module inside a block that flattens `(batch, position)` into one axis is
    shown to its edit with both axes. An edit gets the very tensor, not a copy: it must not change
    it in place, and one that keeps it must copy it, since the model itself may change it later.
    Every path is resolved before the first hook is registered, and all hooks are removed on the way
    out, also after an exception.

    Raises:
        KtraceError: a path leads nowhere.
    """
    modules = {path: module_at(model, path) for path in edits}
    with ExitStack() as stack:
        for path, module in modules.items():
            shape = _Shape()
            parent, _, name = path.rpartition(".")
            if parent and name:
                stack.enter_context(shape.watched(module_at(model, parent)))
            hook = _as_hook(edits[path], shape)
            stack.enter_context(_removing(module.register_forward_hook(hook)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else; its hooks still run."""
    previous = module.__dict__.get("forward")  # an instance has its own when accelerate placed it
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if previous is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = previous


class _Shape:
    """Batch and positions of what a module was called with last."""

    def __init__(self) -> None:
        self.leading: torch.Size | None = None

    @contextmanager
    def watched(self, module: nn.Module) -> Iterator[None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, torch.Tensor) and value.ndim == 3:
                    self.leading = value.shape[:2]
                    return

        with _removing(module.register_forward_pre_hook(note, with_kwargs=True)):
            yield

    def unflattened(self, states: torch.Tensor) -> torch.Tensor:
        """States that the module gave as `(batch x position, d)`, with both axes."""
        if states.ndim != 2 or self.leading is None or self.leading.numel() != len(states):
            return states
        return states.view(*self.leading, -1)


@contextmanager
def _removing(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _as_hook(edit: Edit, shape: _Shape) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        is_tensor = isinstance(states, torch.Tensor)
        edited = edit(shape.unflattened(states) if is_tensor else states)
        if edited is None:
            return None
        if is_tensor and edited.ndim != states.ndim:
            edited = edited.reshape(states.shape)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return hook
