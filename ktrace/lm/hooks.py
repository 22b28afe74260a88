"""What a model is changed by, and only for a while: forward hooks, and forwards replaced."""

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import nn

from ktrace.errors import KtraceError
from ktrace.lm.paths import INPUT

# Takes a module's output, returns what replaces it; None leaves it as it is.
Edit = Callable[[torch.Tensor], torch.Tensor | None]
# What a module is called with.
Args = tuple[object, ...]
Kwargs = dict[str, object]

Key = TypeVar("Key", bound=Hashable)


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

    A path that ends with `INPUT` (ktrace/lm/paths.py) stands for what the module is called with.
    A module that returns a tuple is represented by its first element (the states; the rest are
    caches and weights). A module inside a block that flattens `(batch, position)` into one axis is
    shown to its edit with both axes. An edit gets the very tensor, not a copy: it must not change
    it in place, and one that keeps it must copy it, since the model itself may change it later.
    Every path is resolved before the first hook is registered, and all hooks are removed on the way
    out, also after an exception.

    Raises:
        KtraceError: a path leads nowhere, or a module's output is no tensor.
    """
    modules = {path: module_at(model, path.removesuffix(INPUT)) for path in edits}
    with ExitStack() as stack:
        for path, module in modules.items():
            leading = LeadingAxes()
            parent, _, name = path.rpartition(".")
            if parent and name:
                stack.enter_context(leading.watched(module_at(model, parent)))
            if path.endswith(INPUT):
                before = _as_pre_hook(edits[path], leading)
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(_as_hook(path, edits[path], leading))
            stack.enter_context(removing(handle))
        yield


def keep(
    kept: MutableMapping[Key, torch.Tensor],
    key: Key,
    part: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Edit:
    """An edit that changes nothing: it keeps a module's output, or a part of it, as `kept[key]`.

    What is kept is detached, so that no graph is held, and a clone, so that it stays what it was:
    a model may add to its outputs in place later (Falcon), and of a large output only the part that
    is kept takes memory. It stays on its device, unless `part` moves it.
    """

    def watch(output: torch.Tensor) -> None:
        kept[key] = (output if part is None else part(output)).detach().clone()

    return watch


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
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


@contextmanager
def removing(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove a hook on the way out, also after an exception."""
    try:
        yield
    finally:
        handle.remove()


class LeadingAxes:
    """Batch and positions of what a module was called with last."""

    def __init__(self) -> None:
        self.sizes: torch.Size | None = None

    @contextmanager
    def watched(self, module: nn.Module) -> Iterator[None]:
        """Note them whenever the module is called."""

        def note(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, torch.Tensor) and value.ndim == 3:
                    self.sizes = value.shape[:2]
                    return

        with removing(module.register_forward_pre_hook(note, with_kwargs=True)):
            yield

    def unflattened(self, states: torch.Tensor) -> torch.Tensor:
        """States within the module, `(batch x position, d)`, with both axes."""
        if states.ndim != 2 or self.sizes is None or self.sizes.numel() != len(states):
            return states
        return states.view(*self.sizes, -1)


def called_with(
    args: Args, kwargs: Kwargs, leading: LeadingAxes, change: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[Args, Kwargs]:
    """What a module is called with, with other states: its first argument.

    Args:
        args: as a forward pre-hook gets them.
        kwargs: likewise.
        leading: of the block around it, which may flatten rows and positions before the module.
        change: of the states, with both axes.
    """
    name = "" if args else next(iter(kwargs))
    states = args[0] if args else kwargs[name]
    assert isinstance(states, torch.Tensor)
    changed = change(leading.unflattened(states))
    if changed.ndim > states.ndim:
        changed = changed.flatten(0, 1)
    return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {name: changed})


def states_of(output: object) -> object:
    """What a module's output says of states: all of it, or a tuple's first element."""
    return output[0] if isinstance(output, tuple) else output


def with_states(output: object, states: torch.Tensor) -> object:
    """A module's output with other states; the rest of a tuple stays."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _as_pre_hook(
    edit: Edit, leading: LeadingAxes
) -> Callable[[nn.Module, Args, Kwargs], tuple[Args, Kwargs]]:
    def change(states: torch.Tensor) -> torch.Tensor:
        changed = edit(states)
        return states if changed is None else changed

    def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        return called_with(args, kwargs, leading, change)

    return hook


def _as_hook(
    path: str, edit: Edit, leading: LeadingAxes
) -> Callable[[nn.Module, Args, object], object]:
    def hook(module: nn.Module, args: Args, output: object) -> object:
        states = states_of(output)
        if not isinstance(states, torch.Tensor):
            kind = type(states).__name__
            raise KtraceError(f"module path {path!r}: its output is {kind}, not a tensor")
        edited = edit(leading.unflattened(states))
        if edited is None:
            return None
        if edited.ndim != states.ndim:
            edited = edited.reshape(states.shape)
        return with_states(output, edited)

    return hook
