"""What can be configured, how it is checked and composed, and what it is called on disk.

The rest of ktrace receives a `RunConfig` and never sees an OmegaConf object. No torch here: this
room is on the road to `--help`.
"""

from ktrace.config.activations import ActivationsConfig, KeptStates, require_layers
from ktrace.config.engine import EngineConfig, EngineName, Prove
from ktrace.config.mediator import MediatorConfig
from ktrace.config.schema import (
    NOISE_KEYS,
    Answer,
    Bos,
    ColumnsConfig,
    DatasetConfig,
    Dtype,
    Foil,
    ModelConfig,
    ModulesConfig,
    NoiseConfig,
    NoiseKind,
    Quantization,
    RoleScheme,
    RunConfig,
    Separator,
    Stage,
)
from ktrace.config.shard import parse_shard

__all__ = [
    "NOISE_KEYS",
    "ActivationsConfig",
    "Answer",
    "Bos",
    "ColumnsConfig",
    "DatasetConfig",
    "Dtype",
    "EngineConfig",
    "EngineName",
    "Foil",
    "KeptStates",
    "MediatorConfig",
    "ModelConfig",
    "ModulesConfig",
    "NoiseConfig",
    "NoiseKind",
    "Prove",
    "Quantization",
    "RoleScheme",
    "RunConfig",
    "Separator",
    "Stage",
    "parse_shard",
    "require_layers",
]
