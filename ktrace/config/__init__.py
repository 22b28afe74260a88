"""What can be configured: the schema of every group, and the checks that no type can make.

The rest of ktrace receives a `RunConfig` and never sees an OmegaConf object. No torch here: this
room is on the road to `--help`.
"""

from ktrace.config.checks import check, parse_shard, to_run_config
from ktrace.config.schema import (
    LEVELLED_NOISE,
    RANDOM_NOISE,
    Answer,
    ColumnsConfig,
    DatasetConfig,
    Dtype,
    EngineName,
    Foil,
    ModelConfig,
    ModulesConfig,
    NoiseConfig,
    NoiseKind,
    RoleScheme,
    RunConfig,
    Stage,
    register,
)

__all__ = [
    "LEVELLED_NOISE",
    "RANDOM_NOISE",
    "Answer",
    "ColumnsConfig",
    "DatasetConfig",
    "Dtype",
    "EngineName",
    "Foil",
    "ModelConfig",
    "ModulesConfig",
    "NoiseConfig",
    "NoiseKind",
    "RoleScheme",
    "RunConfig",
    "Stage",
    "check",
    "parse_shard",
    "register",
    "to_run_config",
]
