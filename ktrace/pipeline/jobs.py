"""What a job of a multirun leaves in its folder: `job.json`, whatever launcher ran it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ktrace.config.secret_values import from_environment
from ktrace.files import write_text
from ktrace.redaction import all_redacted

_FILE = "job.json"
STARTED, DONE, FAILED = "started", "done", "failed"
_KILLED = "it started and left no result: killed, or still running"


@dataclass(frozen=True)
class Job:
    """One job, as far as it has come.

    Attributes:
        job: its number, as text.
        overrides: what tells it from the others.
        model: name of the model; empty where the config does not even tell that.
        status: `started`, `done` or `failed`.
        message: why it has no result.
        traceback: of the error that ended it.
        folder: of its run.
        mediators: keys of what it was asked for.
        counts: facts by state.
        summary: the content of `summary.json`; None for a stage before the analysis.
    """

    job: str
    overrides: Sequence[str] = ()
    model: str = ""
    status: str = STARTED
    message: str = _KILLED
    traceback: str | None = None
    folder: str | None = None
    mediators: Sequence[str] = ()
    counts: Mapping[str, int] | None = None
    summary: Mapping[str, Any] | None = None

    def failed(self, message: str, traceback: str | None = None) -> "Job":
        """The same job, without a result."""
        return replace(self, status=FAILED, message=message, traceback=traceback)

    def write(self, folder: Path) -> None:
        """Write it into its folder.

        Raises:
            KtraceError: the folder cannot be written.
        """
        content = asdict(self)
        told = {name: value for name, value in content.items() if value not in (None, ())}
        if self.status == DONE:
            told |= {"summary": self.summary}
        write_text(folder / _FILE, json.dumps(all_redacted(told), indent=2) + "\n")


def jobs_in(sweep: Path) -> dict[str, Job]:
    """What the jobs of a sweep left, by their numbers."""
    contents = [json.loads(path.read_text("utf-8")) for path in sweep.glob(f"*/{_FILE}")]
    for content in contents:
        content["folder"] = from_environment(content.get("folder") or "") or None
    return {content["job"]: Job(**content) for content in contents}
