"""What can be configured, how it is checked and composed, and what it is called on disk.

The rest of ktrace receives a `RunConfig` and never sees an OmegaConf object. No torch here: this
room is on the road to `--help`.
"""

from ktrace.config.checks import parse_shard
from ktrace.config.schema import (
    NOISE_KEYS,
    Answer,
    ColumnsConfig,
    DatasetConfig,
    Dtype,
    EngineConfig,
    EngineName,
    Foil,
    ModelConfig,
    ModulesConfig,
    NoiseConfig,
    NoiseKind,
    Quantization,
    RoleScheme,
    RunConfig,
    Stage,
)

__all__ = [
    "NOISE_KEYS",
    "Answer",
    "ColumnsConfig",
    "DatasetConfig",
    "Dtype",
    "EngineConfig",
    "EngineName",
    "Foil",
    "ModelConfig",
    "ModulesConfig",
    "NoiseConfig",
    "NoiseKind",
    "Quantization",
    "RoleScheme",
    "RunConfig",
    "Stage",
    "parse_shard",
]
