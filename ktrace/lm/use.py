"""What ktrace changes of a model: of its own for good, of someone else's while it computes."""

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from threading import RLock
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ktrace.lm.model import Config, Untyped
from ktrace.lm.placement import devices_of
from ktrace.lm.quantization import multiply_int4_in_own_dtype, multiply_int8_exactly

_Held: TypeAlias = MutableMapping[str, object]

log = logging.getLogger(__name__)

_TOLD: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()  # modules with hooks, as told
_IN_USE: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()


def prepare(model: PreTrainedModel) -> None:
    """Let a model compute as every run needs it: without dropout, each row for itself.

    Weights of 8 bits are multiplied exactly from then on (`multiply_exactly`).
    """
    model.train(False)
    if model.dtype == torch.float64 and getattr(model.config, "_experts_implementation", None):
        # Mixtures of experts take products of many small matrices that torch has up to float32.
        model.set_experts_implementation("eager")
    multiply_int8_exactly(model)
    multiply_int4_in_own_dtype(model)


def attend_eagerly(model: PreTrainedModel) -> None:
    """Take attention's plain products in float32 on a CPU.

    Torch's fused kernel is made for long sequences; with as few tokens as facts have, plain
    products are up to four times as fast. In float64 they would take softmax in float32.
    """
    untyped: Untyped = model
    if (
        model.dtype == torch.float32
        and devices_of(model) == {torch.device("cpu")}
        and untyped._can_set_attn_implementation()  # else it would warn, every time
    ):
        model.set_attn_implementation("eager")


@contextmanager
def in_use(model: PreTrainedModel) -> Iterator[None]:
    """Compute with a model that may be someone else's, and leave it as it was.

    Inside it is prepared. Afterwards each of its modules and configs holds what it held: mode,
    buffers, forwards, attention, and whatever else runs leave in a module. Weights are not touched.
    Who else uses it, in another thread, waits. Hooks that somebody put on it take part in every
    run, as they do in its own; one logged line says so.
    """
    with _IN_USE.setdefault(model, RLock()):
        _tell_hooks(model)
        held = [(part, dict(part)) for part in _parts(model)]
        try:
            prepare(model)
            if getattr(model.config, "_attn_implementation", None) == "sdpa":
                attend_eagerly(model)  # transformers' choice, as when a model is loaded
            yield
        finally:
            for part, before in held:
                part.update(before)
                for name in part.keys() - before.keys():
                    del part[name]


def _tell_hooks(model: nn.Module) -> None:
    hooked = [
        name or type(model).__name__
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    if hooked and _TOLD.get(model) != hooked:
        _TOLD[model] = hooked
        log.warning(
            "%s has forward hooks on %d module%s (the first is %s): they take part in every run",
            type(model).__name__,
            len(hooked),
            "" if len(hooked) == 1 else "s",
            hooked[0],
        )


def _parts(model: PreTrainedModel) -> Iterator[_Held]:
    """Where modules and configs keep what they hold."""
    configs: dict[int, Config] = {}
    for module in model.modules():
        yield vars(module)
        yield module._buffers  # type: ignore[misc]  # of tensors
        _collect(getattr(module, "config", None), configs)
    for config in configs.values():
        yield config.__dict__


def _collect(config: Config, configs: dict[int, Config]) -> None:
    """A config and those within it, each once."""
    if isinstance(config, PretrainedConfig) and id(config) not in configs:
        configs[id(config)] = config
        for name in config.sub_configs:
            _collect(getattr(config, name, None), configs)
