"""What a multirun keeps of its jobs, whatever launcher runs them and wherever their folders are.

`<hydra.sweep.dir>/jobs/<sweep>/` holds `submitted.json`, which jobs there are, and a file for each
job, by its number. The sweep's own name keeps those apart that share a folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf

from ktrace.config.secret_values import from_environment
from ktrace.files import write_text
from ktrace.redaction import all_redacted

STARTED, DONE, FAILED = "started", "done", "failed"
GOES_ON = "the same command goes on where this job stopped"
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
        analysis: folder of its tables and figures.
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
    analysis: str | None = None
    mediators: Sequence[str] = ()
    counts: Mapping[str, int] | None = None
    summary: Mapping[str, Any] | None = None

    def failed(self, message: str, traceback: str | None = None) -> "Job":
        """The same job, without a result."""
        return replace(self, status=FAILED, message=message, traceback=traceback)


@dataclass(frozen=True)
class Sweep:
    """The records of one multirun.

    Attributes:
        folder: `hydra.sweep.dir`.
        name: drawn once for the multirun, and the same in all of its jobs.
    """

    folder: Path
    name: str

    @classmethod
    def of(cls, hydra: HydraConf, root: Path = Path()) -> "Sweep":
        """The multirun that a config is of.

        Args:
            hydra: its node `hydra`.
            root: what a relative folder is relative to.
        """
        return cls(root / str(hydra.sweep.dir), str(hydra.job.env_set["KTRACE_SWEEP"]))

    @property
    def _records(self) -> Path:
        return self.folder / "jobs" / self.name

    def begin(self, submitted: Sequence[Sequence[str]]) -> None:
        """Note which jobs there are.

        Args:
            submitted: the overrides of each; none, where that shows only on the way.

        Raises:
            KtraceError: the folder cannot be written.
        """
        told = all_redacted([*map(list, submitted)])
        write_text(self._records / "submitted.json", json.dumps(told) + "\n")

    def submitted(self) -> list[list[str]]:
        """As they were given to `begin`."""
        found: list[list[str]] = json.loads((self._records / "submitted.json").read_text("utf-8"))
        return found

    def write(self, job: Job) -> None:
        """Keep how far a job has come.

        Raises:
            KtraceError: the folder cannot be written.
        """
        content = asdict(job)
        told = {name: value for name, value in content.items() if value not in (None, ())}
        if job.status == DONE:
            told |= {"summary": job.summary}
        path = self._records / f"{job.job}.json"
        write_text(path, json.dumps(all_redacted(told), indent=2) + "\n")

    def begun(self) -> dict[int, Job]:
        """The jobs that left a record, by number."""
        paths = self._records.glob("[0-9]*.json")
        contents = [json.loads(path.read_text("utf-8")) for path in paths]
        for content in contents:
            for key in ("folder", "analysis"):
                content[key] = from_environment(content.get(key) or "") or None
        return {int(content["job"]): Job(**content) for content in contents}

    def jobs(self, why_lost: str) -> list[Job]:
        """All jobs, in their order; one without a record has failed.

        Args:
            why_lost: what is said of these.
        """
        begun, submitted = self.begun(), self.submitted()
        count = max([len(submitted), *(number + 1 for number in begun)])
        overrides = submitted + [[]] * (count - len(submitted))
        lost = [Job(str(n), overrides[n]).failed(why_lost) for n in range(count)]
        return [begun.get(number, job) for number, job in enumerate(lost)]


def own_overrides(jobs: Sequence[Job]) -> list[str]:
    """What tells each job from the others; what all jobs share tells none of them apart."""
    told = [set(job.overrides) for job in jobs if job.overrides]
    shared = set.intersection(*told) if told else set()
    return [" ".join(text for text in job.overrides if text not in shared) for job in jobs]


def failures(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Jobs without a result, by the reason."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if job.status != DONE:
            found.setdefault(job.message, []).append(job)
    return found


def numbered(jobs: Sequence[Job]) -> str:
    """Such as `job 3`, or `3 jobs (0, 2, 5)`."""
    if len(jobs) == 1:
        return f"job {jobs[0].job}"
    return f"{len(jobs)} jobs ({', '.join(job.job for job in jobs)})"
