"""Multiruns: each job leaves a `job.json`, and the sweep ends with one table.

The report reads the files, not this process's memory, so it works whatever launcher ran the jobs.
A job writes its file before it starts: one that is killed is seen to have no end.
"""

import glob
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ktrace.config.complaints import explain
from ktrace.config.compose import to_run_config
from ktrace.errors import KtraceError, Terminated
from ktrace.files import require_writable
from ktrace.pipeline.jobs import DONE, Job, jobs_in
from ktrace.pipeline.signals import ended_by_signals

log = logging.getLogger(__name__)

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra prints its own story about errors and exits, unless set


@dataclass
class Command:
    """One command in this process: how far it has come.

    Attributes:
        wants_traceback: whether errors are shown as they are.
        is_composed: whether its config stands: from here on, an unknown error is a bug.
        sweep: folder of the multirun that is under way.
        failed: numbers of the sweep's jobs that ended without a result.
        told: those whose failure was logged.
    """

    wants_traceback: bool = False
    is_composed: bool = False
    sweep: Path | None = None
    failed: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def tell(self, job: Job) -> None:
        """Log once why a job has no result."""
        if job.job not in self.told:
            self.told.add(job.job)
            log.error("job %s failed: %s", job.job, job.message)

    def report(self, submitted: Sequence[str] = ()) -> list[Job]:
        """End the sweep: print its table, and note which jobs failed.

        Args:
            submitted: numbers of jobs that a launcher has taken, though some may never have begun.
        """
        from ktrace.pipeline.console import print_comparison

        assert self.sweep is not None
        folder, self.sweep = self.sweep, None
        lost = {number: Job(number).failed("ended before it began") for number in submitted}
        jobs = sorted((lost | jobs_in(folder)).values(), key=lambda job: int(job.job))
        for job in jobs:
            if job.status != DONE:
                self.tell(job)  # it may have failed in another process
                self.failed.append(job.job)
        print_comparison(jobs)
        print(f"wrote {folder}")
        return jobs

    def report_broken(self, error: Exception) -> bool:
        """Report on a sweep whose launcher gave up, as it does on the first job that was lost.

        The other jobs go on without it. They are waited for, so that the report tells how they
        ended.

        Returns:
            Whether there was a sweep.
        """
        if self.sweep is None:
            return False
        jobs = self.report(_wait_for_submitted(self.sweep))
        if all(job.status == DONE for job in jobs):  # then it is not about a job
            raise error
        return True


# Hydra makes the callback and calls the jobs itself, with nothing but their config: this is where
# both find the command. A worker process of a launcher has no command, and one that knows nothing.
_current = Command()


def current_command() -> Command:
    """The command that runs in this process."""
    return _current


@contextmanager
def new_command() -> Iterator[Command]:
    """Begin a command; inside, Hydra raises its errors."""
    global _current
    before, full_error = _current, os.environ.get(FULL_ERROR)
    _current = Command(wants_traceback=full_error == "1")
    os.environ[FULL_ERROR] = "1"
    try:
        yield _current
    finally:
        _current = before
        if full_error is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = full_error


def is_sweep() -> bool:
    """Whether this job belongs to a multirun."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def run_job(config: DictConfig) -> None:
    """Run one job and record how it ended; a failing job does not stop the others.

    Under a launcher this is another process than the command's: SIGTERM, such as from `scancel`,
    ends this job alone, and keeps its finished facts.
    """
    hydra = HydraConfig.get()
    # The name may hang on a key that is not set, which `to_run_config` then explains.
    name = OmegaConf.select(config, "model.name", throw_on_resolution_failure=False)
    job = Job(str(hydra.job.num), list(hydra.overrides.task), str(name or ""))
    folder = Path(hydra.runtime.output_dir)
    with ended_by_signals():
        job.write(folder)
        try:
            job = _ended(config, job)
        except KeyboardInterrupt as stop:
            told = "terminated" if isinstance(stop, Terminated) else "interrupted"
            job = job.failed(f"{told}; the same command goes on where this job stopped")
            # Ctrl-C, and any signal in the command's own process, are meant for the whole sweep.
            if current_command().sweep is not None or told == "interrupted":
                job.write(folder)
                raise
        job.write(folder)
    if job.status == DONE:
        log.info("job %s done: %s", job.job, " ".join(job.overrides))
    else:
        current_command().tell(job)


def _ended(config: DictConfig, job: Job) -> Job:
    from ktrace.pipeline.console import print_upkeep
    from ktrace.pipeline.run import run

    try:
        outcome = run(to_run_config(config))
        if outcome.upkeep is not None:
            print_upkeep(outcome.upkeep)
            if outcome.upkeep.problem:
                raise KtraceError(outcome.upkeep.problem)
    except (KtraceError, OmegaConfBaseException) as error:
        return job.failed(explain(error), traceback.format_exc())
    except Exception as error:  # a bug in one job must not cost the others their results
        log.debug("job %s", job.job, exc_info=True)
        return job.failed(f"{type(error).__name__}: {error}", traceback.format_exc())
    return replace(
        job,
        status=DONE,
        message="",
        folder=str(outcome.folder),
        mediators=list(outcome.mediator_keys),
        counts=dict(outcome.counts),
        summary=outcome.analysis.summary if outcome.analysis else None,
    )


class SweepReport(Callback):
    """Prints the comparison when the last job has ended."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks. What it raises Hydra would only warn of, so this exits."""
        try:
            if not config.output_dir:
                raise KtraceError("output_dir is empty: name a folder, or . for this one")
            folder = Path(str(config.hydra.sweep.dir))
            require_writable(folder)
        except (KtraceError, OmegaConfBaseException) as error:
            sys.exit(f"ktrace: {explain(error)}")
        current_command().sweep = folder

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks. What it raises Hydra would only warn of, so this exits."""
        jobs = current_command().report()
        if not config.compare or any(job.status != DONE for job in jobs):
            return
        from ktrace.pipeline.console import print_compared
        from ktrace.pipeline.run import compare_runs

        folders = list(dict.fromkeys(glob.escape(str(job.folder)) for job in jobs))
        own = config.copy()
        with open_dict(own):
            del own["hydra"]  # of no job, so that parts of it are not set
            own.shard = "1/1"  # all of what the jobs stored, whoever did which part of it
        try:
            outcome = compare_runs(to_run_config(own), folders)
        except (KtraceError, OmegaConfBaseException) as error:
            sys.exit(f"ktrace: {explain(error)}")
        assert outcome.comparison is not None
        print_compared(outcome.comparison)


def _wait_for_submitted(folder: Path) -> list[str]:
    """Numbers of the jobs that a sweep has handed to Slurm, when all of them have ended."""
    files = sorted(folder.glob(".submitit/*/*_submitted.pkl"))  # only their names are read
    if not files:
        return []
    from submitit import SlurmJob  # of the extra `cluster`, which submitted them

    identifiers = [path.name.removesuffix("_submitted.pkl") for path in files]
    log.info("waiting for the other jobs of this sweep")
    for path, identifier in zip(files, identifiers, strict=True):
        SlurmJob[None](path.parent.parent / "%j", identifier).wait()
    return [identifier.rpartition("_")[2] for identifier in identifiers]
