"""What can be configured, how it is checked and composed, and what it is called on disk.

The rest of ktrace receives a `RunConfig` and never sees an OmegaConf object. No torch here: this
room is on the road to `--help`.
"""

from ktrace.config.activations import ActivationsConfig, KeptStates, require_layers
from ktrace.config.analysis import RoleScheme
from ktrace.config.dataset import Answer, Bos, ColumnsConfig, DatasetConfig, Delimiter, Separator
from ktrace.config.engine import EngineConfig, EngineName, Prove
from ktrace.config.logger import LoggerConfig, LoggerKind
from ktrace.config.mediator import MediatorConfig
from ktrace.config.model import Dtype, ModelConfig, ModulesConfig, Quantization
from ktrace.config.noise import NOISE_KEYS, Foil, NoiseConfig, NoiseKind
from ktrace.config.schema import RunConfig, Stage
from ktrace.config.shard import parse_shard

__all__ = [
    "NOISE_KEYS",
    "ActivationsConfig",
    "Answer",
    "Bos",
    "ColumnsConfig",
    "DatasetConfig",
    "Delimiter",
    "Dtype",
    "EngineConfig",
    "EngineName",
    "Foil",
    "KeptStates",
    "LoggerConfig",
    "LoggerKind",
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
