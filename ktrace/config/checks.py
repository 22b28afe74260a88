"""What no type can refuse: numbers out of range, keys that exclude each other, empty names."""

from dataclasses import fields, is_dataclass
from math import inf

from ktrace.config.activations import check_activations
from ktrace.config.analysis import AnalysisConfig, Pool
from ktrace.config.dataset import DatasetConfig, Delimiter
from ktrace.config.folder_names import FOLDER_NAME
from ktrace.config.logger import check_logger
from ktrace.config.mediator import check_mediator
from ktrace.config.model import ModelConfig
from ktrace.config.noise import FOILS, NOISE_KEYS, Foil, NoiseConfig, NoiseKind
from ktrace.config.schema import RunConfig, Stage
from ktrace.config.shard import parse_shard
from ktrace.errors import KtraceError
from ktrace.terms import CLUSTERS, CONTRASTS, contrast_sides


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
        if not FOLDER_NAME.fullmatch(name):
            raise KtraceError(
                f"{key}={name!r} cannot name a folder: use up to 200 letters, digits and "
                f". _ + - (first a letter or digit); {key}=... chooses another"
            )
    if not config.output_dir:
        raise KtraceError("output_dir is empty: name a folder, or . for this one")
    if config.analysis.folder == "":
        raise KtraceError("analysis.folder is empty: name a folder, or . for this one")
    for key, folder in (
        ("output_dir", config.output_dir),
        ("analysis.folder", config.analysis.folder),
        ("logger.folder", config.logger.folder),
    ):
        if folder and folder.startswith("~"):  # nobody means a folder of that name
            raise KtraceError(f"{key}={folder}: write the home folder out, as $HOME")
    parse_shard(config.shard)
    _check_workers(config.engine.workers)
    _check_bounds(config)
    _check_noise(config.noise)
    _check_analysis(config.analysis)
    check_activations(config.activations)
    _check_comparison(config)
    check_mediator(config.mediator)
    check_logger(config.logger)
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


def _check_workers(workers: object) -> None:
    if workers != "auto" and not (type(workers) is int and workers >= 1):
        raise KtraceError(f"engine.workers={workers} is no number of processes: 1 or more, or auto")


def _check_bounds(part: object, prefix: str = "") -> None:
    """Hold every number to the bounds that its field names."""
    for entry in fields(part):  # type: ignore[arg-type]  # a dataclass
        key, value = f"{prefix}{entry.name}", getattr(part, entry.name)
        if is_dataclass(value):
            _check_bounds(value, f"{key}.")
        elif entry.metadata and value is not None:
            bounds = entry.metadata
            least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
            finite = ", and finite" if isinstance(value, float) else ""
            if least is not None and not least <= value < inf:
                raise KtraceError(f"{key}={value} is out of range: at least {least}{finite}")
            if above is not None and not above < value < inf:
                raise KtraceError(f"{key}={value} is out of range: above {above}{finite}")
            if most is not None and value > most:
                raise KtraceError(f"{key}={value} is out of range: at most {most}")


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
    if dataset.encoding is not None:
        _check_encoding(dataset.encoding)
    if dataset.hub is not None:
        _check_repository(dataset)
        return
    for key in ("subset", "split", "revision"):
        value = getattr(dataset, key)
        if value is not None:
            raise KtraceError(
                f"dataset.{key}={value!r} is for dataset=hub, and there is no dataset.hub"
            )
    if dataset.also and (dataset.prompt is None or dataset.attribute is None):
        raise KtraceError(
            f"dataset.also={dataset.also} is for dataset=prompt with a dataset.attribute; in a "
            "file, attribute may be a list"
        )
    for key in ("corrupted_prompt", "foil"):
        value = getattr(dataset, key)
        if value is not None and dataset.prompt is None:
            raise KtraceError(
                f"dataset.{key}={value!r} is for dataset=prompt; in a file, {key} is a column"
            )
    if dataset.prompt is None:
        if dataset.path is None:
            raise KtraceError("dataset.path is not set: give dataset.path=... or dataset=prompt")
        return
    if dataset.path is not None:
        raise KtraceError(f"dataset.path={dataset.path} and dataset.prompt exclude each other")
    if dataset.subject is None and dataset.corrupted_prompt is None:
        raise KtraceError("dataset.subject is not set: give dataset.subject=...")


def _check_encoding(name: str) -> None:
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:  # no name, or of what is no text
        raise KtraceError(
            f"dataset.encoding={name!r} is no encoding of text that Python knows: such as utf-8, "
            "utf-16-le, cp1252, mac_roman or shift_jis"
        ) from error


def _check_repository(dataset: DatasetConfig) -> None:
    for key in ("url", "prompt", "encoding"):
        value = getattr(dataset, key)
        if value is not None:
            raise KtraceError(f"dataset.{key}={value} and dataset.hub exclude each other")
    if dataset.delimiter is not Delimiter.auto:
        raise KtraceError(
            f"dataset.delimiter={dataset.delimiter} and dataset.hub exclude each other"
        )
    if not dataset.split:
        raise KtraceError("dataset.split is not set: name a split, such as dataset.split=train")


def _check_analysis(analysis: AnalysisConfig) -> None:
    if analysis.cluster not in (None, *CLUSTERS):
        raise KtraceError(
            f"analysis.cluster={analysis.cluster!r} is nothing that facts share: choose "
            f"from {', '.join(CLUSTERS)}, or null"
        )
    for text in analysis.contrasts:
        if text in CONTRASTS:
            continue
        try:
            contrast_sides(text)
        except (AttributeError, ValueError) as error:
            why = error if isinstance(error, ValueError) else "is no text"
            raise KtraceError(f"analysis.contrasts: {text!r} {why}") from error


def _check_comparison(config: RunConfig) -> None:
    runs = config.runs
    if config.mend and config.stage is not Stage.verify:
        raise KtraceError(
            f"mend=true and stage={config.stage.value} do not fit: only stage=verify mends"
        )
    is_named = runs is not None
    if is_named != (config.stage is Stage.compare) and config.stage is not Stage.verify:
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
    kind, read = noise.kind.value, NOISE_KEYS[noise.kind]
    for key, given in (
        ("multiple", noise.multiple is not None),
        ("std", noise.std is not None),
        ("replace", noise.replace),
    ):
        if given and key not in read:
            raise KtraceError(f"noise.{key} has no meaning for noise.kind={kind}")
    if "samples" not in read and noise.samples != 1:
        raise KtraceError(
            f"noise.samples={noise.samples} has no meaning for noise.kind={kind}, which is not "
            "random: it is 1"
        )
    if noise.kind is NoiseKind.multivariate and noise.std is not None:
        raise KtraceError(
            f"noise.std={noise.std} has no meaning for noise.kind={kind}, whose covariance is "
            "fitted: scale it with noise.multiple"
        )
    foils = [Foil.corrupted, *([FOILS[noise.kind]] if noise.kind in FOILS else [])]
    if noise.foil not in foils:
        raise KtraceError(
            f"noise.foil={noise.foil.value} has no meaning for noise.kind={kind}: choose from "
            f"{', '.join(foil.value for foil in foils)}"
        )
