"""From Hydra's composition to a checked `RunConfig`: what no type can refuse is refused here."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ktrace.config.schema import (
    LEVELLED_NOISE,
    RANDOM_NOISE,
    DatasetConfig,
    Foil,
    ModelConfig,
    ModulesConfig,
    NoiseConfig,
    NoiseKind,
    Pool,
    RunConfig,
    Stage,
)
from ktrace.errors import KtraceError

# One folder level, portable, and never "." or "..": a name from a config must not leave output_dir.
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{,199}")
_MOST_SAMPLES = 2**15 - 1  # tables number the samples in 16 bits


def to_run_config(config: DictConfig) -> RunConfig:
    """The door: from Hydra's composition to a checked `RunConfig`.

    Raises:
        KtraceError: a value out of range or two keys that exclude each other.
        omegaconf.errors.OmegaConfBaseException: a missing or mistyped value.
    """
    run = OmegaConf.to_object(config)
    assert isinstance(run, RunConfig)
    _refuse_unknown(run)
    if run.model.modules is not None:
        paths = {key: path or None for key, path in vars(run.model.modules).items()}
        run.model.modules = ModulesConfig(**paths) if any(paths.values()) else None
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
        given = config.model.modules
        # Some models have neither attention nor MLP (Mamba).
        lacking = [key for key in ("embedding", "block") if not getattr(given, key)]
        if lacking:
            raise KtraceError(
                f"model.modules lacks {', '.join(lacking)}: give embedding and block, and attn and "
                "mlp where the model has them, or none of the four"
            )
    _check_device_map(config.model)


def _check_device_map(model: ModelConfig) -> None:
    given = model.device_map
    if given is None:
        return
    if model.device != "auto":
        raise KtraceError(f"model.device={model.device!r} and model.device_map exclude each other")
    devices = list(given.values()) if isinstance(given, dict) else [given]
    names = list(given) if isinstance(given, dict) else []
    if not devices or not (
        all(type(device) in (str, int) for device in devices)
        and all(isinstance(name, str) for name in names)
    ):
        raise KtraceError(
            f"model.device_map={given} is neither a name (auto, balanced, sequential, or a device) "
            "nor a map from modules to devices"
        )


def _check_dataset(dataset: DatasetConfig) -> None:
    for key in ("hub", "prompt"):  # empty where a choice needs it (conf/dataset)
        if getattr(dataset, key) == "":
            raise KtraceError(f"dataset.{key} is not set: give dataset.{key}=...")
    if dataset.hub is not None:
        _check_repository(dataset)
        return
    for key in ("subset", "split", "revision"):
        value = getattr(dataset, key)
        if value is not None:
            raise KtraceError(
                f"dataset.{key}={value!r} is for dataset=hub, and there is no dataset.hub"
            )
    if dataset.prompt is None:
        if dataset.path is None:
            raise KtraceError("dataset.path is not set: give dataset.path=... or dataset=prompt")
        return
    if dataset.path is not None:
        raise KtraceError(f"dataset.path={dataset.path} and dataset.prompt exclude each other")
    if dataset.subject is None:
        raise KtraceError("dataset.subject is not set: give dataset.subject=...")


def _check_repository(dataset: DatasetConfig) -> None:
    for key in ("url", "prompt"):
        value = getattr(dataset, key)
        if value is not None:
            raise KtraceError(f"dataset.{key}={value} and dataset.hub exclude each other")
    if not dataset.split:
        raise KtraceError("dataset.split is not set: name a split, such as dataset.split=train")


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
    if noise.foil is Foil.replacement and noise.kind is not NoiseKind.token_replacement:
        raise KtraceError(
            f"noise.foil={noise.foil.value} has no meaning for noise.kind={kind}, which puts no "
            f"other subject in place of the fact's: it is {Foil.corrupted.value}"
        )
    if not 0 < noise.degrees < float("inf"):
        raise KtraceError(f"noise.degrees={noise.degrees} is out of range: above 0, and finite")
