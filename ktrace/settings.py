"""What a config's settings are called on disk: folder names and fingerprints."""

from dataclasses import asdict
from typing import Any

from ktrace.config import (
    LEVELLED_NOISE,
    RANDOM_NOISE,
    Answer,
    DatasetConfig,
    Dtype,
    Foil,
    ModelConfig,
    NoiseConfig,
    NoiseKind,
)
from ktrace.errors import KtraceError

DEFAULT_MULTIPLE = 3.0  # of sigma; the published level


def dataset_key(dataset: DatasetConfig) -> str:
    """Folder of a dataset: its name; whole answers have other candidates, and a folder apart."""
    return dataset.name + ("-full" if dataset.answer is Answer.full else "")


def dataset_fingerprint(dataset: DatasetConfig, sha256: str, n_facts: int) -> dict[str, Any]:
    """What determines the prompts and what is scored of the answers."""
    return {"sha256": sha256, "n_facts": n_facts, "answer": dataset.answer.value}


def noise_multiple(noise: NoiseConfig) -> float:
    """The level relative to sigma."""
    return DEFAULT_MULTIPLE if noise.multiple is None else noise.multiple


def noise_fingerprint(noise: NoiseConfig) -> dict[str, Any]:
    """What determines a noise's draws and its foils: the settings that its kind reads, alone."""
    settings: dict[str, Any] = {"kind": noise.kind.value}
    if noise.kind in LEVELLED_NOISE:
        settings["replace"] = noise.replace
        settings["multiple"] = None if noise.std is not None else noise_multiple(noise)
        settings["std"] = noise.std
    if noise.kind is NoiseKind.student_t:
        settings["degrees"] = noise.degrees
    if noise.kind is NoiseKind.token_replacement:
        settings["foil"] = noise.foil.value
    if noise.kind in RANDOM_NOISE:
        settings |= {"samples": noise.samples, "seed": noise.seed}
    return settings


def noise_key(noise: NoiseConfig) -> str:
    """Folder of a noise: its fingerprint, readable, e.g. `gaussian-x3-n10-seed1`."""
    settings = noise_fingerprint(noise)
    parts = [settings["kind"]]
    if settings.get("replace"):
        parts.append("replace")
    if "degrees" in settings:
        parts.append(f"df{settings['degrees']:.12g}")
    if settings.get("multiple") is not None:
        parts.append(f"x{settings['multiple']:.12g}")
    if settings.get("std") is not None:
        parts.append(f"std{settings['std']:.12g}")
    if settings.get("foil") == Foil.corrupted.value:  # not what one stands in for another for
        parts.append("foil-corrupted")
    if "samples" in settings:
        parts += [f"n{settings['samples']}", f"seed{settings['seed']}"]
    return "-".join(parts)


def resolved_dtype(model: ModelConfig, own: str | None) -> Dtype:
    """The number format that a model computes in: never `auto`.

    Args:
        model: the config; `auto` stands for the checkpoint's own.
        own: what the checkpoint says.

    Raises:
        KtraceError: `auto`, and the checkpoint does not say, or says another than ktrace knows.
    """
    if model.dtype is not Dtype.auto:
        return model.dtype
    known = [dtype.value for dtype in Dtype if dtype is not Dtype.auto]
    if own not in known:
        said = f"says {own!r}" if own else "does not say which"
        raise KtraceError(
            f"model.dtype=auto takes the checkpoint's own, and model.path={model.path} {said}: "
            f"choose from {', '.join(known)}"
        )
    return Dtype(own)


def model_fingerprint(model: ModelConfig, identity: str) -> dict[str, Any]:
    """What determines a model's numbers, apart from the device; its dtype is resolved."""
    return {
        "identity": identity,
        "dtype": model.dtype.value,
        "quantization": model.quantization.value if model.quantization else None,
        "modules": asdict(model.modules) if model.modules else None,
    }
