"""Jobs of a multirun: each leaves a `job.json`, and the sweep ends with one table.

The report reads the files, not this process's memory, so it works whatever launcher ran the jobs.
A job writes its file before it starts: one that is killed is seen to have no end.
"""

import json
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ktrace.config.complaints import explain
from ktrace.config.compose import to_run_config
from ktrace.errors import KtraceError, Terminated
from ktrace.files import require_writable, write_text
from ktrace.pipeline.signals import ended_by_signals

log = logging.getLogger(__name__)

_RECORD = "job.json"
_KILLED = "it started and left no result: killed, or still running"
_failed: list[str] = []
_told: set[str] = set()  # jobs whose failure this process has logged
_open_sweeps: list[Path] = []  # begun in this process and not reported yet


def is_sweep() -> bool:
    """Whether this job belongs to a multirun."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def has_begun() -> bool:
    """Whether a multirun is under way in this process."""
    return bool(_open_sweeps)


def failed_jobs() -> list[str]:
    """Jobs of the sweep that ended in this process without a result."""
    return list(_failed)


def run_job(config: DictConfig) -> None:
    """Run one job and record how it ended; a failing job does not stop the others.

    Under a launcher this is another process than the command's: SIGTERM, such as from `scancel`,
    ends this job alone, and keeps its finished facts.
    """
    with ended_by_signals():
        _run_job(config)


def _run_job(config: DictConfig) -> None:
    from ktrace.pipeline.run import run

    hydra = HydraConfig.get()
    # The name may hang on a key that is not set, which `to_run_config` then explains.
    name = OmegaConf.select(config, "model.name", throw_on_resolution_failure=False)
    record: dict[str, Any] = {
        "job": str(hydra.job.num),
        "overrides": list(hydra.overrides.task),
        "model": str(name or ""),
        "status": "started",
        "message": _KILLED,
    }
    path = Path(hydra.runtime.output_dir) / _RECORD
    _write(path, record)
    record["status"] = "failed"
    try:
        outcome = run(to_run_config(config))
    except (KtraceError, OmegaConfBaseException) as error:
        record |= {"message": explain(error), "traceback": traceback.format_exc()}
    except Exception as error:  # a bug in one job must not cost the others their results
        message = f"{type(error).__name__}: {error}"
        record |= {"message": message, "traceback": traceback.format_exc()}
    except KeyboardInterrupt as stop:
        ended = "terminated" if isinstance(stop, Terminated) else "interrupted"
        record["message"] = f"{ended}; the same command goes on where this job stopped"
        if has_begun() or ended == "interrupted":  # it is meant for the whole sweep
            _write(path, record)
            raise
    else:
        record |= {
            "status": "done",
            "folder": str(outcome.folder),
            "mediators": list(outcome.mediator_keys),
            "counts": dict(outcome.counts),
            "summary": outcome.analysis.summary if outcome.analysis else None,
            "message": "",
        }
    _write(path, record)
    if record["status"] == "failed":
        _tell(record)
    else:
        log.info("job %s done: %s", record["job"], " ".join(record["overrides"]))


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")


def _tell(record: Mapping[str, Any]) -> None:
    _told.add(record["job"])
    log.error("job %s failed: %s", record["job"], record["message"])


class SweepReport(Callback):
    """Prints the comparison when the last job has ended."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks. What it raises Hydra would only warn of, so this exits."""
        try:
            if not config.output_dir:
                raise KtraceError("output_dir is empty: name a folder, or . for this one")
            require_writable(Path(str(config.hydra.sweep.dir)))
        except (KtraceError, OmegaConfBaseException) as error:
            sys.exit(f"ktrace: {explain(error)}")
        _open_sweeps.append(Path(str(config.hydra.sweep.dir)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks."""
        _report(_open_sweeps.pop())


def report_broken(error: Exception) -> bool:
    """Report on a sweep whose launcher gave up, as it does on the first job that was lost.

    The other jobs go on without it. They are waited for, so that the report tells how they ended.

    Returns:
        Whether there was a sweep.
    """
    if not _open_sweeps:
        return False
    folder = _open_sweeps.pop()
    submitted = _wait_for_submitted(folder)
    jobs = _report(folder, submitted)
    if all(job["status"] == "done" for job in jobs):  # then it is not about a job
        raise error
    return True


def _report(folder: Path, submitted: Sequence[str] = ()) -> list[dict[str, Any]]:
    from ktrace.pipeline.console import print_comparison

    records = [json.loads(path.read_text("utf-8")) for path in folder.glob(f"*/{_RECORD}")]
    by_job = {job["job"]: job for job in records}
    for job in submitted:
        nothing = {"job": job, "overrides": [], "model": "", "status": "failed"}
        by_job.setdefault(job, nothing | {"message": "ended before it began"})
    jobs = sorted(by_job.values(), key=lambda job: int(job["job"]))
    failed = [job for job in jobs if job["status"] != "done"]
    for job in failed:
        if job["job"] not in _told:  # it failed in another process
            _tell(job)
    _failed.extend(job["job"] for job in failed)
    print_comparison(jobs)
    print(f"wrote {folder}")
    return jobs


def _wait_for_submitted(folder: Path) -> list[str]:
    """Numbers of the jobs that a sweep has handed to Slurm, when all of them have ended."""
    files = sorted(folder.glob(".submitit/*/*_submitted.pkl"))  # only their names are read
    if not files:
        return []
    from submitit import SlurmJob  # of the extra `cluster`, which submitted them

    identifiers = [path.name.removesuffix("_submitted.pkl") for path in files]
    log.info("waiting for the other jobs of this sweep")
    for path, identifier in zip(files, identifiers, strict=True):
        SlurmJob[Any](path.parent.parent / "%j", identifier).wait()
    return [identifier.rpartition("_")[2] for identifier in identifiers]
