"""The schema of `engine.*`: what computes the scores, and how it is held to be right."""

from dataclasses import dataclass, field
from typing import Any

from ktrace.terms import Choice


class EngineName(Choice):
    """What computes the scores; every engine gives the same numbers."""

    suffix = "suffix"
    reference = "reference"


class Prove(Choice):
    """When the suffix engine is compared with the reference engine on the loaded model.

    `auto` takes a verdict that is known, in this process or beside the model's runs; `never` takes
    the engine for proven, and says so.
    """

    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class EngineConfig:
    """What computes the scores."""

    name: EngineName = EngineName.suffix
    # Most rows in one block call; null: what fits.
    row_budget: int | None = field(default=None, metadata={"least": 1})
    prove: Prove = Prove.auto
    # Processes of one thread that share the facts, on a CPU; auto: what cores and memory allow.
    workers: Any = "auto"
