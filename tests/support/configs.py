"""Configs composed in this process."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from omegaconf import OmegaConf

from ktrace.config import RunConfig
from ktrace.config.compose import composed
from ktrace.errors import KtraceError
from ktrace.pipeline.run import run

Compose = Callable[..., RunConfig]
Part = TypeVar("Part")


def configured(part: type[Part], **keys: Any) -> Part:
    """A part of the config with some keys, given as on the command line."""
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part), keys))
    assert isinstance(found, part)
    return found


def refusal(*overrides: str) -> str:
    """Why a run of these overrides is refused: what the command prints after `ktrace: `."""
    with pytest.raises(KtraceError) as raised:
        run(composed(overrides))
    return str(raised.value)
