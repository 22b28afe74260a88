"""Where a model computes, which is not always where its weights are.

accelerate leaves weights in memory or on disk (`model.device_map`), an empty tensor in their place,
and fetches them to a device whenever their module is called.
"""

import torch
from torch import nn

from ktrace.lm.hooks import module_at


def input_device(model: nn.Module, embedding: str) -> torch.device:
    """Where token ids must be: where the embedding at this path computes.

    Raises:
        KtraceError: the path leads nowhere.
    """
    # A path that is not proven yet may lead to a module without weights.
    modules = (*module_at(model, embedding).modules(), *model.modules())
    return next(device for device in map(_device_of, modules) if device is not None)


def devices_of(model: nn.Module) -> set[torch.device]:
    """Every device on which a part of the model computes."""
    return {device for device in map(_device_of, model.modules()) if device is not None}


def _device_of(module: nn.Module) -> torch.device | None:
    """Where a module computes with weights of its own; None where it has none."""
    weight = next(module.parameters(recurse=False), None)
    if weight is None or weight.device.type != "meta":
        return None if weight is None else weight.device
    hook = getattr(module, "_hf_hook", None)
    # Several hooks on one module are one that holds them.
    fetching = (getattr(each, "execution_device", None) for each in getattr(hook, "hooks", [hook]))
    return next((torch.device(place) for place in fetching if place is not None), weight.device)
