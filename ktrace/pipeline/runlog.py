"""What a run says about itself: on every part that it writes, in `runs/` and in `run.yaml`."""

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from enum import Enum
from types import TracebackType

import yaml

from ktrace.config import RunConfig, Stage
from ktrace.errors import KtraceError
from ktrace.files import write_text
from ktrace.pipeline.origin import git_commit, package_versions
from ktrace.redaction import all_redacted, redacted
from ktrace.store import RunFolders


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
        # Beside an analysis that leaves the stores' folder alone.
        is_apart = config.stage is Stage.analyze and folders.elsewhere is not None
        self._runs = folders.analysis / "runs" if is_apart else folders.runs
        self._clock = time.monotonic()
        self._adds_numbers = False
        self._ending: dict[str, object] = {"status": "started"}
        self._seconds: dict[str, float] = {}
        self._about: dict[str, object] = {
            "run": self.name,
            "started": now.isoformat(timespec="seconds"),
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "git": git_commit(),
            "versions": package_versions(),
            "config": told(asdict(config)),
        }

    def add(self, **about: object) -> None:
        """Note what only shows on the way, such as the model's device."""
        self._about |= {name: told(value) for name, value in about.items()}

    def on_parts(self) -> dict[str, object]:
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
            self._ending = {"status": "failed", "reason": redacted(reason)}
        self._ending["wall_seconds"] = round(time.monotonic() - self._clock, 3)
        if error is None:
            self._write()
        elif self._adds_numbers:
            with suppress(KtraceError):  # such as a full disk, which is the error already
                self._write()

    def _write(self) -> None:
        content = {**self._ending, **self._about, "wall_seconds_by_stage": self._seconds}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(self._runs / f"{self.name}.yaml", text)
        if self._adds_numbers:
            write_text(self._folders.run_yaml, text)


def told(value: object) -> object:
    """What may be told, for YAML and JSON."""
    return all_redacted(_plain(value))


def _plain(value: object) -> object:
    """Enums by name and tuples as lists, for YAML and JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
