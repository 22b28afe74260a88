"""The schema of a run: every config group has a module of its own; here they come together.

YAML under `conf/` fills these classes; Hydra refuses a key or a type that is not here. They are not
frozen only because OmegaConf would then refuse every override; nothing changes one after
`to_run_config`.
"""

from dataclasses import dataclass, field
from typing import Any

from ktrace.config.activations import ActivationsConfig
from ktrace.config.analysis import AnalysisConfig, RolesConfig
from ktrace.config.dataset import DatasetConfig
from ktrace.config.engine import EngineConfig
from ktrace.config.logger import LoggerConfig
from ktrace.config.mediator import MediatorConfig
from ktrace.config.model import ModelConfig
from ktrace.config.noise import NoiseConfig
from ktrace.terms import Choice, ClaimKind, Metric


class Stage(Choice):
    """Where a run stops. Each stage first runs what it needs and does not find.

    `compare` runs nothing: it sets runs that are stored side by side. Nor does `status`, which says
    how far a run is, nor `compact`, which merges the small parts of its stores, nor `verify`, which
    reads all that they hold, nor `check`, which says how the facts are read.
    """

    filter = "filter"
    clean = "clean"
    corrupted = "corrupted"
    restore = "restore"
    analyze = "analyze"
    all = "all"
    compare = "compare"
    status = "status"
    compact = "compact"
    verify = "verify"
    check = "check"


@dataclass
class RunConfig:
    """One run: everything that determines its numbers and where they go."""

    model: ModelConfig = field(default_factory=ModelConfig)
    mediator: MediatorConfig = field(default_factory=MediatorConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    roles: RolesConfig = field(default_factory=RolesConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    metric: Metric = Metric.probability  # of figures and closing table; aie.csv holds all
    stage: Stage = Stage.all
    runs: Any = None  # for stage=compare and verify: a pattern of folders, or a list of patterns
    mend: bool = False  # whether stage=verify sets damaged parts aside and removes leftovers
    compare: bool = False  # whether a sweep ends in stage=compare of what its jobs stored
    # k/n: of n parts of equal cost, the k-th; all go into the same stores. auto: as the launcher
    # numbers its tasks.
    shard: str = "1/1"
    claims: ClaimKind = ClaimKind.auto  # how processes on one store keep out of each other's way
    output_dir: str = "outputs"
