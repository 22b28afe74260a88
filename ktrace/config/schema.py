"""The schema of every config group: types, defaults, meaning.

YAML under `conf/` fills these classes; Hydra refuses a key or a type that is not here. They are not
frozen only because OmegaConf would then refuse every override; nothing changes one after
`to_run_config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ktrace.config.activations import ActivationsConfig
from ktrace.config.engine import EngineConfig
from ktrace.config.mediator import MediatorConfig
from ktrace.terms import (
    CLUSTERS,
    CONTRASTS,
    ENOUGH,
    SMALLEST_EFFECT,
    Choice,
    ClaimKind,
    Metric,
)


class Stage(Choice):
    """Where a run stops. Each stage first runs what it needs and does not find.

    `compare` runs nothing: it sets runs that are stored side by side. Nor does `status`, which says
    how far a run is, nor `compact`, which merges the small parts of its stores, nor `verify`, which
    reads all that they hold.
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


class Dtype(Choice):
    """Number format that the model computes in; `auto` takes the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(Choice):
    """Bits that weights are rounded to when they are loaded."""

    int8 = "int8"
    int4 = "int4"


class NoiseKind(Choice):
    """How the subject's embeddings are corrupted; or, in a pair, which prompt is read instead."""

    gaussian = "gaussian"
    uniform = "uniform"
    student_t = "student_t"
    multivariate = "multivariate"
    zero = "zero"
    mean = "mean"
    token_replacement = "token_replacement"
    pair = "pair"


class Foil(Choice):
    """What `logit_difference` compares the answer with.

    `corrupted` is the token that the corrupted run finds most probable, `replacement` the answer of
    the subject that stands in (`token_replacement`), `given` the fact's own `foil`, where it has
    one (`pair`).
    """

    corrupted = "corrupted"
    replacement = "replacement"
    given = "given"


_DRAWN = frozenset({"samples", "seed"})
_LEVELLED = frozenset({"replace", "multiple", "std"}) | _DRAWN
# Which of the keys `noise.*` each kind reads: what determines its draws and its foils.
NOISE_KEYS: Mapping[NoiseKind, frozenset[str]] = {
    NoiseKind.gaussian: _LEVELLED,
    NoiseKind.uniform: _LEVELLED,
    NoiseKind.student_t: _LEVELLED | {"degrees"},
    NoiseKind.multivariate: _LEVELLED,
    NoiseKind.zero: frozenset(),
    NoiseKind.mean: frozenset(),
    NoiseKind.token_replacement: _DRAWN | {"foil"},
    NoiseKind.pair: frozenset({"foil"}),
}
# Beside what the corrupted run finds most probable, which is there for every kind.
FOILS: Mapping[NoiseKind, Foil] = {
    NoiseKind.token_replacement: Foil.replacement,
    NoiseKind.pair: Foil.given,
}

# What a number must lie in: `metadata` of its field, which `ktrace.config.checks` reads.
_WINDOW = {"least": 1}


class RoleScheme(Choice):
    """Rows of the heatmaps: six (`rome`) or four (`seed`)."""

    rome = "rome"
    seed = "seed"


class SingleToken(Choice):
    """Where the only token of a subject counts: under last subject alone, or under first, too."""

    last = "last"
    both = "both"


class Pool(Choice):
    """What weighs the same in an average: facts, or (as published) positions."""

    facts = "facts"
    positions = "positions"


class Palette(Choice):
    """Colours of the heatmaps: one for all mediators, or those of Meng et al. 2022."""

    shared = "shared"
    rome = "rome"


class Relations(Choice):
    """Which of the mediators shown get a figure with a panel for each relation."""

    first = "first"
    all = "all"


class Interval(Choice):
    """What intervals say was drawn: facts (or their clusters), or samples of the noise, too."""

    facts = "facts"
    facts_and_samples = "facts_and_samples"


@dataclass
class ModulesConfig:
    """Module paths of an unknown architecture; `[LAYER_NUM]` is the layer.

    Embedding and block are needed. Without `attn`, `mlp` or `heads`, mediators that restore, sever
    or cut it are refused.

    Example: `block: model.layers.[LAYER_NUM]`, `attn: model.layers.[LAYER_NUM].self_attn`.
    """

    embedding: str | None = None
    block: str | None = None
    attn: str | None = None
    mlp: str | None = None
    heads: str | None = None  # the attention's output projection, for mediator=head


@dataclass
class ModelConfig:
    """Which model, from where, and how it is loaded."""

    name: str = MISSING  # folder of the store, and the name in tables and titles
    path: str = MISSING  # local folder or hub id
    revision: str | None = None  # hub branch, tag or commit
    dtype: Dtype = Dtype.float32
    device: str = "auto"  # auto: CUDA, else MPS, else CPU; or cpu, cuda:1, ...
    device_map: Any = None  # passed to transformers (needs accelerate); excludes `device`
    attention: str | None = None  # eager, sdpa, ...: transformers' kernel; None: see load.py
    quantization: Quantization | None = None  # by bitsandbytes; needs it and accelerate
    trust_remote_code: bool = False  # whether Python code beside the weights may run
    allow_pickle: bool = False  # whether weights may be other than safetensors; these can run code
    # Layers restored together, unless mediator.window says otherwise.
    window: int = field(default=10, metadata=_WINDOW)
    # Not None by default: Hydra could then not override one of its keys. `to_run_config` makes it
    # None where no path is given.
    modules: ModulesConfig | None = field(default_factory=ModulesConfig)


_PUBLISHED_MULTIPLE = 3.0


@dataclass
class NoiseConfig:
    """How the subject's embeddings are corrupted."""

    kind: NoiseKind = NoiseKind.gaussian
    # Of sigma, the spread of the dataset's subject embeddings; 3, as published, where std is not
    # given either.
    multiple: float | None = field(default=None, metadata={"least": 0})
    # Or an absolute level: gaussian's standard deviation, uniform's half-width, student_t's scale.
    std: float | None = field(default=None, metadata={"least": 0})
    # Draws for each fact; 1 for zero, mean and pair, which are not random. Tables number them in 16
    # bits.
    samples: int = field(default=10, metadata={"least": 1, "most": 2**15 - 1})
    seed: int = field(default=1, metadata={"least": 0, "most": 2**32 - 1})
    replace: bool = False  # the draw stands in place of the embedding instead of being added
    degrees: float = field(default=5.0, metadata={"above": 0})  # of freedom, for student_t
    foil: Foil = Foil.corrupted  # replacement: for token_replacement; given: for pair

    @property
    def level_multiple(self) -> float:
        """The level relative to sigma; it has no meaning where `std` is given."""
        return _PUBLISHED_MULTIPLE if self.multiple is None else self.multiple


class Answer(Choice):
    """How much of an answer is scored."""

    # As published, but for answers of several tokens: docs/datasets.md.
    first_token = "first_token"
    full = "full"  # all of its tokens, each given those before it


class Separator(Choice):
    """What is put between a prompt and its answer; `auto` puts what the joined text needs."""

    auto = "auto"
    space = "space"
    none = "none"


class Bos(Choice):
    """Whether a prompt that has a BOS token of its own gets the tokenizer's as well."""

    keep = "keep"
    strip = "strip"


@dataclass
class ColumnsConfig:
    """Where a file of another schema keeps the fields of a fact; `a.b` is b inside a.

    An empty name says that the field is not given.
    """

    known_id: str | None = None  # `_row` numbers the records from 0
    prompt: str | None = None
    subject: str | None = None
    attribute: str | None = None
    template: str | None = None  # a prompt with {} where the subject belongs
    relation_id: str | None = None
    subject_start: str | None = None
    corrupted_prompt: str | None = None
    foil: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Column by field, of the fields that are somewhere else."""
        return {name: column for name, column in vars(self).items() if column is not None}


@dataclass
class DatasetConfig:
    """Which facts: those of a file, of a dataset repository, or one prompt."""

    name: str = MISSING  # folder of the store
    path: str | None = MISSING
    # The first n facts; never changes a fact's numbers.
    limit: int | None = field(default=None, metadata={"least": 1})
    url: str | None = None  # where a missing file is downloaded from
    sha256: str | None = None  # of the canonical JSON, checked after reading
    answer: Answer = Answer.first_token
    separator: Separator = Separator.auto
    chat: bool = False  # whether prompts are the user's turn in the tokenizer's chat template
    bos: Bos = Bos.keep
    hub: str | None = None  # dataset repository; `path` are data files in it, if anything
    subset: str | None = None  # which of its configurations
    split: str | None = None  # of it
    revision: str | None = None  # its branch, tag or commit
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    prompt: str | None = None  # in place of a file
    subject: str | None = None
    attribute: str | None = None  # null: what the model predicts
    also: list[str] = field(default_factory=list)  # other right answers of that prompt
    subject_start: int | None = None  # character, where the prompt holds the subject twice
    corrupted_prompt: str | None = None  # the other prompt of a pair, for noise=pair
    foil: str | None = None  # a wrong answer, for logit_difference with noise=pair
    # Facts whose subjects the noise is measured on; null: the dataset's own.
    noise_facts: str | None = None


@dataclass
class RolesConfig:
    """How positions are grouped into the rows of a heatmap."""

    scheme: RoleScheme = RoleScheme.rome
    single_token: SingleToken = SingleToken.last


@dataclass
class AnalysisConfig:
    """How stored effects are averaged and shown."""

    # Where tables and figures go, so that stores which cannot be written are analysed; null: into
    # the run's folder.
    folder: str | None = None
    partial: bool = False  # whether to take what is there of an unfinished run
    pool: Pool = Pool.facts
    palette: Palette = Palette.shared
    # What facts share that makes them dependent (ktrace.terms.CLUSTERS); null: nothing.
    cluster: str | None = CLUSTERS[0]
    interval: Interval = Interval.facts
    # Effects and differences below it count as none, in the metric's unit.
    smallest: float = field(default=SMALLEST_EFFECT, metadata={"least": 0})
    # Of the total effect: layers.json names the smallest window that brings back so much.
    share: float = field(default=ENOUGH, metadata={"above": 0, "most": 1})
    facts: list[int] = field(default_factory=list)  # known_ids that get heatmaps of their own
    relations: Relations = Relations.first
    # Paired differences of contrasts.csv: by name (ktrace.terms.CONTRASTS), or written out, such as
    # "mlp: last subject minus attn: last subject" or "layers 0-5 minus layers 6-11".
    contrasts: list[str] = field(default_factory=lambda: [*CONTRASTS])


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
