"""What ktrace changes of a model: of its own for good, of someone else's while it computes."""

import logging
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.devices import first_line
from ktrace.lm.made_up import PROMPT
from ktrace.lm.model import Config, Untyped
from ktrace.lm.placement import devices_of
from ktrace.lm.quantization import multiply_int4_in_own_dtype, multiply_int8_exactly

_Held: TypeAlias = MutableMapping[str, object]

log = logging.getLogger(__name__)

# What a config may ask every forward pass to give beside the logits, or to note with hooks.
_BESIDE = ("output_hidden_states", "output_attentions", "output_router_logits")
# Whose hooks are a part of the model: notes of outputs, gradients of inputs, places of weights.
_LIBRARIES = ("transformers", "transformers_modules", "peft", "accelerate", "bitsandbytes", "torch")
# Of what a module holds: its weights, which are not touched, and the modules that hold others.
_KEPT = ("_parameters", "_modules")

_TOLD: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()  # modules with hooks, as told
_IN_USE: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()


def prepare(model: PreTrainedModel) -> None:
    """Let a model compute as every run needs it: without dropout, each row for itself.

    It gives logits by name and nothing beside them, whatever its config asks for. Weights of 8 bits
    are multiplied exactly from then on (`multiply_exactly`).
    """
    model.train(False)
    for config in _configs(model):
        config.return_dict = True
        for name in _BESIDE:
            if getattr(config, name, None):
                setattr(config, name, False)
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
    hooks, buffers, forwards, attention, and whatever else runs leave in a module. Weights are not
    touched. Who else uses it, in another thread, waits. Hooks that somebody put on it take part in
    every run, as they do in its own; one logged line says so.

    Raises:
        KtraceError: its weights are nowhere, or what is done with it fails and so does a plain
            forward pass.
    """
    with _IN_USE.setdefault(model, RLock()):
        _require_numbers(model)
        _tell_hooks(model)
        held = [(part, dict(part)) for part in _parts(model)]
        try:
            prepare(model)
            if getattr(model.config, "_attn_implementation", None) == "sdpa":
                attend_eagerly(model)  # transformers' choice, as when a model is loaded
            yield
        except KtraceError:
            raise
        except Exception as error:
            _require_runs(model, error)
            raise
        finally:
            for part, before in held:
                _put_back(part, before)


def _require_numbers(model: PreTrainedModel) -> None:
    if any(device.type == "meta" for device in devices_of(model)):
        raise KtraceError(
            f"model={type(model).__name__} has weights on the device meta, which holds no numbers: "
            "load it with from_pretrained"
        )


def _require_runs(model: PreTrainedModel, error: Exception) -> None:
    """Where something failed: say whether the model does so by itself, whatever is asked of it."""
    untyped: Untyped = model
    embeds = devices_of(untyped.get_input_embeddings())
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([PROMPT], device=next(iter(embeds), None)))
    except Exception as own:
        raise KtraceError(
            f"model={type(model).__name__} fails on a made-up prompt: {first_line(own)}"
        ) from error


def _put_back(part: _Held, before: Mapping[str, object]) -> None:
    """Let it hold what it held, also in the order in which it did: hooks run in theirs."""
    part.update(before)
    for name in part.keys() - before.keys():
        del part[name]
    if list(part) != list(before):
        for name, value in before.items():
            del part[name]
            part[name] = value


def _tell_hooks(model: nn.Module) -> None:
    hooked = [
        name or type(model).__name__
        for name, module in model.named_modules()
        if _of_somebody(module._forward_hooks.values())
        or _of_somebody(module._forward_pre_hooks.values())
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


def _of_somebody(hooks: Iterable[object]) -> bool:
    """Whether a hook is of neither the model's library nor one that works on the model."""
    for hook in hooks:
        while isinstance(hook, partial):
            hook = hook.func
        if str(getattr(hook, "__module__", "")).partition(".")[0] not in _LIBRARIES:
            return True
    return False


def _parts(model: PreTrainedModel) -> Iterator[_Held]:
    """Where modules and configs keep what they hold; hooks and buffers have tables of their own."""
    for module in model.modules():
        yield vars(module)
        for name, table in vars(module).items():
            if isinstance(table, dict) and name not in _KEPT:
                yield table
    for config in _configs(model):
        yield config.__dict__


def _configs(model: PreTrainedModel) -> list[Config]:
    """Those of the model and of all that is in it, each once."""
    configs: dict[int, Config] = {}
    for module in model.modules():
        _collect(getattr(module, "config", None), configs)
    return list(configs.values())


def _collect(config: Config, configs: dict[int, Config]) -> None:
    """A config and those within it, each once."""
    if isinstance(config, PretrainedConfig) and id(config) not in configs:
        configs[id(config)] = config
        for name in config.sub_configs:
            _collect(getattr(config, name, None), configs)
