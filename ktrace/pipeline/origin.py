"""Who computes: versions, commit, device; which model, dataset and noise.

Not what the numbers depend on: that is the fingerprint (ktrace/config/identity.py). No torch here
unless a model was loaded.
"""

import hashlib
import math
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ktrace.config import DatasetConfig, ModelConfig
from ktrace.lm.source import ModelSource, content_hashes

if TYPE_CHECKING:
    import torch

    from ktrace.lm.model import LanguageModel

# Whose versions can change a number or a figure.
_PACKAGES = (
    "ktrace",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "h5py",
    "hydra-core",
    "matplotlib",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "seaborn",
    "tokenizers",
    "torch",
    "transformers",
)
# Those of them that a run's scores go through.
_COMPUTING = {"ktrace", "accelerate", "bitsandbytes", "numpy", "torch", "transformers"}
_ATTENTION = "_attn_implementation"  # of a config of transformers
_GIT_SECONDS = 5


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that matter; None for one that is not installed."""
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # ktrace itself, where its source tree is on the path
        return None


@lru_cache
def git_commit() -> str | None:
    """Commit of ktrace's checkout, with `-dirty` where files differ; None outside of one."""
    package = Path(__file__).resolve().parent
    git = shutil.which("git")
    if git is None:
        return None
    # A file that is not tracked lies in somebody else's repository: an environment below it.
    for question in (
        ("ls-files", "--error-unmatch", Path(__file__).name),
        ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
    ):
        try:
            answer = subprocess.run(
                [git, "-C", str(package), *question],
                capture_output=True,
                text=True,
                check=True,
                timeout=_GIT_SECONDS,
            )
        except (OSError, subprocess.SubprocessError):
            return None
    return answer.stdout.strip()


def about_model(config: ModelConfig, source: ModelSource, lm: "LanguageModel") -> dict[str, object]:
    """What a loaded model is; the config's dtype is resolved."""
    return {
        "model": {
            "path": config.path,
            "revision": source.revision,
            "identity": source.identity,
            "architecture": type(lm.model).__name__,
            "dtype": config.dtype,
            "attention": getattr(lm.model.config, _ATTENTION, None),
            **content_hashes(source),
        },
    }


def about_proof(
    config: ModelConfig, fingerprint: Mapping[str, object], lm: "LanguageModel"
) -> dict[str, object]:
    """What a proof of the suffix engine hangs on, beside what it is a proof of.

    Not the number of threads: it changes the order of sums, and so does the number of facts.

    Args:
        config: of the model.
        fingerprint: of the model.
        lm: the model, loaded.
    """
    import torch

    own = {name: version for name, version in package_versions().items() if name in _COMPUTING}
    return {
        "model": {**fingerprint, "attention": getattr(lm.model.config, _ATTENTION, None)},
        "devices": sorted({_device_name(device) for device in {lm.device, *lm.accelerators}}),
        "device_map": _plain_map(config.device_map),
        "versions": {**own, "cuda": torch.version.cuda, "code": _code()},
        "arithmetic": {
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.enabled,
            "float32": torch.get_float32_matmul_precision(),
        },
    }


def _plain_map(device_map: object) -> object:
    """A `model.device_map`, in JSON's values."""
    if isinstance(device_map, dict):
        return {str(module): str(device) for module, device in device_map.items()}
    return device_map if device_map is None else str(device_map)


@lru_cache
def _code() -> str:
    """SHA-256 of the code that computes: a checkout has one version for many states."""
    package, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for room in ("lm", "tracing"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def about_device(device: "torch.device", workers: Mapping[str, int]) -> dict[str, object]:
    """Where the model runs.

    Args:
        device: which.
        workers: how many there are, and threads of each: how many share a sum changes its rounding.
    """
    return {"device": str(device), "name": _device_name(device), **workers}


def about_dataset(config: DatasetConfig) -> dict[str, object]:
    """Where the facts come from, as far as the config says."""
    origin = {key: getattr(config, key) for key in ("path", "hub", "subset", "split", "revision")}
    return {key: value for key, value in origin.items() if value is not None}


def about_noise(sigma: float, level: float, measured_on: Mapping[str, object]) -> dict[str, object]:
    """The measured level; `multiple` is what it comes to, also where noise.std gave the level.

    Args:
        sigma: standard deviation of the subjects' embeddings; NaN for a noise that is not measured.
        level: what draws are multiplied with; NaN for a noise without a level.
        measured_on: `dataset`, `facts` and `tokens` whose subjects sigma is of.
    """
    if math.isnan(sigma):
        return {}
    known = not math.isnan(level)
    return {
        "sigma": sigma,
        "level": level if known else None,
        "multiple": level / sigma if known and sigma else None,
        "measured_on": dict(measured_on),
    }


def _device_name(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        cpu = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        if named := re.search(r"^model name\s*:\s*(.+)$", cpu, re.MULTILINE):
            return named[1]
    return platform.processor() or platform.machine()
