"""What a run says about itself: on every part that it writes, in `runs/` and in `run.yaml`.

Not what its numbers depend on: that is the fingerprint (`settings.py`). No torch here unless a
model was loaded.
"""

import math
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from enum import Enum
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import yaml

from ktrace.config import DatasetConfig, ModelConfig, RunConfig
from ktrace.errors import KtraceError
from ktrace.files import write_text
from ktrace.lm.source import ModelSource, content_hashes
from ktrace.store import RunFolders

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
    "plotly",
    "pyarrow",
    "safetensors",
    "seaborn",
    "tokenizers",
    "torch",
    "transformers",
)
_GIT_SECONDS = 5


class RunLog:
    """The record of one run, from its start to its end.

    Entering and leaving it as a context sets its `status`. It reaches the disk when the run begins
    to add to the stores (`save`) and when it ends; a run that is refused before leaves nothing.
    """

    def __init__(self, config: RunConfig, folders: RunFolders) -> None:
        now = datetime.now(timezone.utc)
        host = re.sub(r"[^A-Za-z0-9.-]", "_", platform.node()) or "unknown"
        self.name = f"{now:%Y%m%dT%H%M%S.%fZ}-{host}-{os.getpid()}"
        self._folders = folders
        self._clock = time.monotonic()
        self._adds_numbers = False
        self._ending: dict[str, Any] = {"status": "started"}
        self._seconds: dict[str, float] = {}
        self._about: dict[str, Any] = {
            "run": self.name,
            "started": now.isoformat(timespec="seconds"),
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "git": git_commit(),
            "versions": package_versions(),
            "config": _plain(asdict(config)),
        }

    def add(self, **about: Any) -> None:
        """Note what only shows on the way, such as the model's device."""
        self._about |= _plain(about)

    def on_parts(self) -> dict[str, Any]:
        """What a part that is written now says about its origin."""
        return dict(self._about)

    def save(self) -> None:
        """Write the record as it is now: from the first time on, the stores may grow.

        Raises:
            KtraceError: the folder cannot be written.
        """
        self._adds_numbers = True
        self._write()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the wall time of a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self._seconds.get(stage, 0.0) + time.monotonic() - began
            self._seconds[stage] = round(seconds, 3)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending = {"status": "done"}
        if error is not None:
            reason = str(error) or type(error).__name__
            self._ending = {"status": "failed", "reason": reason}
        self._ending["wall_seconds"] = round(time.monotonic() - self._clock, 3)
        if error is None:
            self._write()
        elif self._adds_numbers:
            with suppress(KtraceError):  # such as a full disk, which is the error already
                self._write()

    def _write(self) -> None:
        content = {**self._ending, **self._about, "wall_seconds_by_stage": self._seconds}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(self._folders.runs / f"{self.name}.yaml", text)
        if self._adds_numbers:
            write_text(self._folders.run_yaml, text)


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


def about_model(config: ModelConfig, source: ModelSource, lm: "LanguageModel") -> dict[str, Any]:
    """What a loaded model is and where it runs; the config's dtype is resolved."""
    return {
        "model": {
            "path": config.path,
            "revision": source.revision,
            "identity": source.identity,
            "architecture": type(lm.model).__name__,
            "dtype": config.dtype,
            "attention": getattr(lm.model.config, "_attn_implementation", None),
            **content_hashes(source),
        },
        "device": _about_device(lm.device),
    }


def about_dataset(config: DatasetConfig) -> dict[str, Any]:
    """Where the facts come from, as far as the config says."""
    origin = {key: getattr(config, key) for key in ("path", "hub", "subset", "split", "revision")}
    return {key: value for key, value in origin.items() if value is not None}


def about_noise(sigma: float, level: float, measured_on: Mapping[str, Any]) -> dict[str, Any]:
    """The measured level; `multiple` is what it comes to, also where noise.std gave the level.

    Args:
        sigma: standard deviation of the subjects' embeddings.
        level: what draws are multiplied with; NaN for a noise without a level.
        measured_on: `dataset`, `facts` and `tokens` whose subjects sigma is of.
    """
    known = not math.isnan(level)
    return {
        "sigma": sigma,
        "level": level if known else None,
        "multiple": level / sigma if known and sigma else None,
        "measured_on": dict(measured_on),
    }


def _about_device(device: "torch.device") -> dict[str, Any]:
    """Where the model runs; how many threads share a sum changes its rounding on a CPU."""
    import torch

    name = _device_name(device)
    return {"device": str(device), "name": name, "threads": torch.get_num_threads()}


def _device_name(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        cpu = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        if named := re.search(r"^model name\s*:\s*(.+)$", cpu, re.MULTILINE):
            return named[1]
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """Enums by name and tuples as lists, for YAML and JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
