"""The schema of every config group: types, defaults, meaning, and the checks across fields.

YAML under `conf/` fills these classes; Hydra refuses a key or a type that is not here. The rest of
ktrace receives a `RunConfig` and never sees an OmegaConf object. The classes are not frozen only
because OmegaConf would then refuse every override; nothing changes one after `to_run_config`.
No torch here: this module is on the road to `--help`.
"""

import hashlib
import re
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ktrace.errors import KtraceError


class Stage(Enum):
    """Where a run stops. Each stage first runs what it needs and does not find.

    `compare` runs nothing: it sets runs that are stored side by side.
    """

    filter = "filter"
    clean = "clean"
    corrupted = "corrupted"
    restore = "restore"
    analyze = "analyze"
    all = "all"
    compare = "compare"


class Dtype(Enum):
    """Number format that the model computes in; `auto` takes the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(Enum):
    """Bits that weights are rounded to when they are loaded."""

    int8 = "int8"
    int4 = "int4"


class NoiseKind(Enum):
    """How the subject's embeddings are corrupted."""

    gaussian = "gaussian"
    uniform = "uniform"
    student_t = "student_t"
    multivariate = "multivariate"
    zero = "zero"
    mean = "mean"
    token_replacement = "token_replacement"


# Kinds with a level (multiple or std, replace), and kinds with samples and a seed.
LEVELLED_NOISE = (
    NoiseKind.gaussian,
    NoiseKind.uniform,
    NoiseKind.student_t,
    NoiseKind.multivariate,
)
RANDOM_NOISE = (*LEVELLED_NOISE, NoiseKind.token_replacement)


class Metric(Enum):
    """What is scored of the answer; every run stores all, the figures show one."""

    probability = "probability"
    log_probability = "log_probability"
    logit = "logit"
    logit_difference = "logit_difference"
    kl = "kl"


class RoleScheme(Enum):
    """Rows of the heatmaps: six (`rome`) or four (`seed`)."""

    rome = "rome"
    seed = "seed"


class SingleToken(Enum):
    """Where the only token of a subject counts: under last subject alone, or under first, too."""

    last = "last"
    both = "both"


class Pool(Enum):
    """What weighs the same in an average: facts, or (as published) positions."""

    facts = "facts"
    positions = "positions"


class EngineName(Enum):
    """What computes the scores; every engine gives the same numbers."""

    suffix = "suffix"
    reference = "reference"


@dataclass
class ModulesConfig:
    """Module paths of an unknown architecture: all four or none; `[LAYER_NUM]` is the layer.

    Example: `block: model.layers.[LAYER_NUM]`, `attn: model.layers.[LAYER_NUM].self_attn`.
    """

    embedding: str | None = None
    block: str | None = None
    attn: str | None = None
    mlp: str | None = None


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
    window: int = 10  # layers restored together, unless mediator.window says otherwise
    # Not None by default: Hydra could then not override one of its keys. `to_run_config` makes it
    # None where no path is given.
    modules: ModulesConfig | None = field(default_factory=ModulesConfig)


@dataclass
class MediatorConfig:
    """What is restored."""

    names: list[str] = MISSING
    window: int = "${model.window}"  # type: ignore[assignment]  # OmegaConf interpolates an int


@dataclass
class NoiseConfig:
    """How the subject's embeddings are corrupted."""

    kind: NoiseKind = NoiseKind.gaussian
    multiple: float | None = None  # of sigma, the spread of the dataset's subject embeddings
    std: float | None = None  # or an absolute standard deviation
    samples: int = 10  # draws for each fact; 1 for zero and mean, which are not random
    seed: int = 1
    replace: bool = False  # the draw stands in place of the embedding instead of being added
    degrees: float = 5.0  # of freedom, for student_t


class Answer(Enum):
    """How much of an answer is scored."""

    first_token = "first_token"  # as published
    full = "full"  # all of its tokens, each given those before it


@dataclass
class ColumnsConfig:
    """Where a file of another schema keeps the fields of a fact; `a.b` is b inside a."""

    known_id: str | None = None  # `_row` numbers the records from 0
    prompt: str | None = None
    subject: str | None = None
    attribute: str | None = None
    template: str | None = None  # a prompt with {} where the subject belongs
    relation_id: str | None = None
    subject_start: str | None = None


@dataclass
class DatasetConfig:
    """Which facts: those of a file here or on the hub, or one prompt."""

    name: str = MISSING  # folder of the store
    path: str | None = MISSING
    limit: int | None = None  # the first n facts; never changes a fact's numbers
    url: str | None = None  # where a missing file is downloaded from
    sha256: str | None = None  # of the canonical JSON, checked after reading
    answer: Answer = Answer.first_token
    hub: str | None = None  # dataset repository that holds `path`
    revision: str | None = None  # its branch, tag or commit
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    prompt: str | None = None  # in place of a file
    subject: str | None = None
    attribute: str | None = None  # null: what the model predicts
    subject_start: int | None = None  # character, where the prompt holds the subject twice
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

    partial: bool = False  # whether to take what is there of an unfinished run
    pool: Pool = Pool.facts
    facts: list[int] = field(default_factory=list)  # known_ids that get heatmaps of their own


@dataclass
class EngineConfig:
    """What computes the scores."""

    name: EngineName = EngineName.suffix
    row_budget: int | None = None  # most rows in one block call; null: what fits


@dataclass
class RunConfig:
    """One run: everything that determines its numbers and where they go."""

    model: ModelConfig = field(default_factory=ModelConfig)
    mediator: MediatorConfig = field(default_factory=MediatorConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    roles: RolesConfig = field(default_factory=RolesConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    metric: Metric = Metric.probability  # of figures and closing table; aie.csv holds all
    stage: Stage = Stage.all
    runs: Any = None  # for stage=compare: a pattern of run folders, or a list of patterns
    shard: str = "1/1"  # k/n: of n parts of equal cost, the k-th; all go into the same stores
    output_dir: str = "outputs"


def register(bundled: "Any") -> None:
    """Make the schema and the resolvers known to Hydra.

    Args:
        bundled: function from the name of a shipped data file to its path.
    """
    ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("bundled", lambda name: str(bundled(name)), replace=True)
    OmegaConf.register_new_resolver(
        "basename", lambda path: PurePosixPath(str(path)).name, replace=True
    )
    OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).stem, replace=True)
    OmegaConf.register_new_resolver("prompt_name", _prompt_name, replace=True)


def _prompt_name(subject: object, *rest: object) -> str:
    """A folder for one prompt: readable, and another one for every other prompt."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(subject).lower()).strip("-")[:24].strip("-")
    digest = hashlib.sha256(repr((subject, *rest)).encode(errors="surrogatepass")).hexdigest()
    return "-".join(part for part in ("prompt", slug, digest[:8]) if part)


def to_run_config(config: DictConfig) -> RunConfig:
    """The door: from Hydra's composition to a checked `RunConfig`.

    Raises:
        KtraceError: a value out of range or two keys that exclude each other.
        omegaconf.errors.OmegaConfBaseException: a missing or mistyped value.
    """
    run = OmegaConf.to_object(config)
    assert isinstance(run, RunConfig)
    _refuse_unknown(run)
    if run.model.modules == ModulesConfig():
        run.model.modules = None
    check(run)
    return run


def _refuse_unknown(part: Any, prefix: str = "") -> None:
    """Refuse keys that `+key=value` added: Hydra lets them through, and nothing would read them."""
    known = [entry.name for entry in fields(part)]
    for name, value in vars(part).items():
        if name not in known:
            raise KtraceError(f"unknown key {prefix}{name}; keys here: {', '.join(known)}")
        if is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{name}.")


# One folder level, portable, and never "." or "..": a name from a config must not leave output_dir.
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{,199}")
_MOST_SAMPLES = 2**15 - 1  # tables number the samples in 16 bits


def check(config: RunConfig) -> None:
    """Refuse values that no type can refuse.

    Raises:
        KtraceError: naming the key, the value and what is allowed.
    """
    # Before the names, which follow from the paths.
    for key, path in (("model.path", config.model.path), ("dataset.path", config.dataset.path)):
        if path == "":
            raise KtraceError(f"{key} is empty")
    _check_dataset(config.dataset)
    for key, name in (("model.name", config.model.name), ("dataset.name", config.dataset.name)):
        if not _FOLDER_NAME.fullmatch(name):
            raise KtraceError(
                f"{key}={name!r} cannot name a folder: use up to 200 letters, digits and "
                f". _ + - (first a letter or digit); {key}=... chooses another"
            )
    if not config.output_dir:
        raise KtraceError("output_dir is empty: name a folder, or . for this one")
    if config.output_dir.startswith("~"):  # nobody means a folder of that name
        raise KtraceError(f"output_dir={config.output_dir}: write the home folder out, as $HOME")
    parse_shard(config.shard)
    for key, value, least in (
        ("dataset.limit", config.dataset.limit, 1),
        ("model.window", config.model.window, 1),
        ("mediator.window", config.mediator.window, 1),
        ("noise.samples", config.noise.samples, 1),
        ("noise.seed", config.noise.seed, 0),
        ("engine.row_budget", config.engine.row_budget, 1),
        ("noise.multiple", config.noise.multiple, 0),
        ("noise.std", config.noise.std, 0),
    ):
        if value is not None and not least <= value < float("inf"):
            finite = ", and finite" if isinstance(value, float) else ""
            raise KtraceError(f"{key}={value} is out of range: at least {least}{finite}")
    if config.noise.seed >= 2**32:
        raise KtraceError(f"noise.seed={config.noise.seed} is out of range: less than 2**32")
    if config.noise.samples > _MOST_SAMPLES:
        raise KtraceError(
            f"noise.samples={config.noise.samples} is out of range: at most {_MOST_SAMPLES}"
        )
    _check_noise(config.noise)
    _check_comparison(config)
    if not config.mediator.names:
        raise KtraceError("mediator.names is empty: name at least one mediator")
    for name in config.mediator.names:
        if not isinstance(name, str):  # OmegaConf lets a list within the list through
            raise KtraceError(f"mediator.names: {name!r} is not the name of a mediator")
    if config.model.modules is not None:
        lacking = [key for key, path in vars(config.model.modules).items() if not path]
        if lacking:
            raise KtraceError(
                f"model.modules lacks {', '.join(lacking)}: give all four module paths, or none"
            )
    if config.model.device_map is not None and config.model.device != "auto":
        raise KtraceError(
            f"model.device={config.model.device!r} and model.device_map exclude each other"
        )


def _check_dataset(dataset: DatasetConfig) -> None:
    for key in ("hub", "prompt"):  # empty where a choice needs it (conf/dataset)
        if getattr(dataset, key) == "":
            raise KtraceError(f"dataset.{key} is not set: give dataset.{key}=...")
    if dataset.prompt is None:
        if dataset.path is None:
            raise KtraceError("dataset.path is not set: give dataset.path=... or dataset=prompt")
        if dataset.revision is not None and dataset.hub is None:
            raise KtraceError(
                f"dataset.revision={dataset.revision!r} is for dataset=hub; "
                f"dataset.path={dataset.path} is a file"
            )
        if dataset.url is not None and dataset.hub is not None:
            raise KtraceError(f"dataset.url={dataset.url} and dataset.hub exclude each other")
        return
    if dataset.path is not None:
        raise KtraceError(f"dataset.path={dataset.path} and dataset.prompt exclude each other")
    if dataset.subject is None:
        raise KtraceError("dataset.subject is not set: give dataset.subject=...")


def parse_shard(text: str) -> tuple[int, int]:
    """The k and n of `shard=k/n`.

    Raises:
        KtraceError: it is not of that form, or k is not from 1 to n.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise KtraceError(
            f"shard={text!r} is out of range: k/n with k from 1 to n, such as 1/8 and 8/8"
        )
    return number, count


def _check_comparison(config: RunConfig) -> None:
    runs = config.runs
    if (runs is not None) != (config.stage is Stage.compare):
        raise KtraceError(
            f"runs={runs} and stage={config.stage.value} do not fit: runs names the folders that "
            "stage=compare compares, such as runs='outputs/*/*/*'"
        )
    patterns = [runs] if isinstance(runs, str) else runs
    if runs is not None and not (
        isinstance(patterns, list) and patterns and all(isinstance(p, str) and p for p in patterns)
    ):
        raise KtraceError(
            f"runs={runs!r} names no folders: give a pattern such as 'outputs/*/*/*', or a list"
        )
    if config.stage is Stage.compare and config.analysis.pool is not Pool.facts:
        raise KtraceError(
            f"analysis.pool={config.analysis.pool.value} has no meaning for stage=compare, which "
            "pairs facts: it is facts"
        )


def _check_noise(noise: NoiseConfig) -> None:
    if noise.multiple is not None and noise.std is not None:
        raise KtraceError(
            f"noise.multiple={noise.multiple} and noise.std={noise.std} exclude each other: give "
            "the level relative to sigma or as an absolute number"
        )
    kind = noise.kind.value
    if noise.kind not in LEVELLED_NOISE:
        for key, given in (
            ("multiple", noise.multiple is not None),
            ("std", noise.std is not None),
            ("replace", noise.replace),
        ):
            if given:
                raise KtraceError(f"noise.{key} has no meaning for noise.kind={kind}")
    if noise.kind not in RANDOM_NOISE and noise.samples != 1:
        raise KtraceError(
            f"noise.samples={noise.samples} has no meaning for noise.kind={kind}, which is not "
            "random: it is 1"
        )
    if noise.kind is NoiseKind.multivariate and noise.std is not None:
        raise KtraceError(
            f"noise.std={noise.std} has no meaning for noise.kind={kind}, whose covariance is "
            "fitted: scale it with noise.multiple"
        )
    if not 0 < noise.degrees < float("inf"):
        raise KtraceError(f"noise.degrees={noise.degrees} is out of range: above 0, and finite")
