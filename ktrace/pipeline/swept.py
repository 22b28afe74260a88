"""What the jobs of a multirun differ in: places named by it, and jobs that would share one."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ktrace.errors import KtraceError

Overrides = Sequence[str]

# What the analysis alone reads. A preset may hold anything.
_OF_ANALYSIS = re.compile(r"dataset\.limit|metric|experiment|(roles|analysis)\..*")
_OF_ENGINE = re.compile(r"engine(\..*)?")
# What jobs may differ in that write into the same analysis.
_SHARED = re.compile(r"shard|mediator(\..*)?|engine(\..*)?|logger(\..*)?|activations\..*")
# What determines numbers and names no folder, and what names the folder.
_UNNAMED = {
    "model.dtype": "model.name",
    "model.quantization": "model.name",
    "model.revision": "model.name",
    "dataset.noise_facts": "dataset.name",
}
_ROOT, _FOLDER = "output_dir", "analysis.folder"
_LONGEST = 80


def submitted_by(config: DictConfig) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper hands them out.

    Returns:
        Nothing, where another sweeper decides on the way, or where Hydra will say what is wrong.
    """
    sweeper, given = config.hydra.sweeper, OmegaConf.to_container(config.hydra.overrides.task)
    if not str(sweeper.get("_target_")).endswith(f".{BasicSweeper.__name__}"):
        return []
    assert isinstance(given, list)
    preset = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        overrides = parser.parse_overrides([*preset, *map(str, given)])
        [batch] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except HydraException:
        return []
    return batch


def _values(overrides: Overrides) -> Mapping[str, str]:
    pairs = (text.lstrip("+~").partition("=") for text in overrides)
    return {key: value for key, _, value in pairs}


def swept_keys(submitted: Sequence[Overrides]) -> list[str]:
    """Keys that differ over the jobs, in their order."""
    jobs = [_values(overrides) for overrides in submitted]
    keys = dict.fromkeys(key for values in jobs for key in values)
    return [key for key in keys if len({values.get(key) for values in jobs}) > 1]


def analysis_overrides(overrides: Overrides, submitted: Sequence[Overrides]) -> list[str]:
    """Those of a job's overrides that tell its analysis from others of the same run.

    Args:
        overrides: of the job.
        submitted: of all jobs; none, where nobody knows them: then any may differ.
    """
    keys = set(swept_keys(submitted) if submitted else _values(overrides))
    return [
        f"{key}={value}"
        for key, value in _values(overrides).items()
        if key in keys and _OF_ANALYSIS.fullmatch(key)
    ]


def variant(overrides: Overrides) -> str:
    """What overrides are called in a folder's name, such as `-limit-20`; different ones differ."""
    if not overrides:
        return ""
    told = ["-".join((key.rpartition(".")[2], value)) for key, value in _values(overrides).items()]
    text = "-".join(told)
    name = re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-")
    if name != text or len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"-{name}"


def require_own_places(config: DictConfig, submitted: Sequence[Overrides]) -> None:
    """Refuse, before any work, jobs whose results would have one place.

    Args:
        config: of the multirun, without what is swept.
        submitted: the overrides of the jobs.

    Raises:
        KtraceError: naming the key that is swept, and the key that gives each job its own place.
    """
    keys = swept_keys(submitted)
    for key, naming in _UNNAMED.items():
        if key in keys and not any(_follows(config, keys, one, key) for one in (naming, _ROOT)):
            group = naming.partition(".")[0]
            raise KtraceError(
                f"{key} is swept, and no folder is named by it: give {naming} as well, such as "
                f"'{naming}={_shown(config, group)}-${{{key}}}'"
            )
    analysed, given = [key for key in keys if not _SHARED.fullmatch(key)], _raw(config, _FOLDER)
    if given and not all(_follows(config, keys, _FOLDER, key) for key in analysed):
        told = "-".join(f"${{{key}}}" for key in analysed)
        raise KtraceError(
            f"{_FOLDER}={given} is one folder for jobs that differ in {', '.join(analysed)}: name "
            f"it by what is swept, such as '{_FOLDER}={given}/{told}'"
        )
    if config.compare and keys and all(map(_OF_ANALYSIS.fullmatch, keys)):
        raise KtraceError(
            f"compare=true compares runs, and jobs that differ in {', '.join(keys)} alone are "
            "analyses of one run: sweep.csv has them side by side"
        )


def _follows(config: DictConfig, keys: Sequence[str], naming: str, key: str) -> bool:
    """Whether a key that places results is swept itself, or written with what is swept."""
    own = rf"\$\{{.*\b{re.escape(key)}\b"
    return naming in keys or re.search(own, str(_raw(config, naming))) is not None


def _raw(config: DictConfig, key: str) -> object:
    """A value as it was written, with its interpolations."""
    group, _, name = key.rpartition(".")
    container = OmegaConf.to_container(config[group] if group else config, resolve=False)
    assert isinstance(container, dict)
    return container[name]


def _shown(config: DictConfig, group: str) -> str:
    name = OmegaConf.select(config, f"{group}.name", throw_on_resolution_failure=False)
    return str(name or group)


def shares_stores(submitted: Sequence[Overrides]) -> str:
    """A line for jobs that differ in their engine; empty where none do.

    The stores do not depend on it: what one job has stored, the others find.
    """
    if not any(map(_OF_ENGINE.fullmatch, swept_keys(submitted))):
        return ""
    return (
        "engine is swept, and stores do not depend on it: the job that comes first computes, the "
        "others find its numbers; 'output_dir=outputs/${engine.name}' has each engine compute"
    )
