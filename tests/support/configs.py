"""Configs composed in this process."""

from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import OmegaConf

from ktrace.config import RunConfig

Compose = Callable[..., RunConfig]
Part = TypeVar("Part")


def configured(part: type[Part], **keys: Any) -> Part:
    """A part of the config with some keys, given as on the command line."""
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part), keys))
    assert isinstance(found, part)
    return found
