"""Multiruns: each job leaves a record, and the sweep ends with one table.

The report reads the records, not this process's memory, so it works whatever launcher ran the jobs.
A job writes its own before it starts: one that is killed is seen to have no end. One that was
submitted and left none has failed, too.
"""

import glob
import logging
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ktrace.config.chosen import require_own_file
from ktrace.config.complaints import explain
from ktrace.config.compose import to_run_config
from ktrace.config.secret_values import hide_from_hydra, keep_secrets, refuse_told_folders
from ktrace.errors import KtraceError, Terminated
from ktrace.files import require_writable, write_text
from ktrace.pipeline.jobs import (
    DONE,
    FAILED,
    GOES_ON,
    STARTED,
    Job,
    Sweep,
    failures,
    numbered,
)
from ktrace.pipeline.signals import ended_by_signals
from ktrace.pipeline.swept import (
    analysis_overrides,
    require_own_places,
    shares_stores,
    submitted_by,
    variant,
)
from ktrace.redaction import redacted

log = logging.getLogger(__name__)

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra prints its own story about errors and exits, unless set


@dataclass
class Command:
    """One command in this process: how far it has come.

    Attributes:
        wants_traceback: whether errors are shown as they are.
        is_composed: whether its config stands: from here on, an unknown error is a bug.
        sweep: the multirun that is under way.
        submitted_before: what other multiruns have handed to Slurm from the same folder.
        failed: numbers of the sweep's jobs that ended without a result.
        told: reasons for it that were logged.
    """

    wants_traceback: bool = False
    is_composed: bool = False
    sweep: Sweep | None = None
    submitted_before: Collection[Path] = ()
    failed: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def tell(self, job: Job, sweep: Sweep) -> None:
        """Log why a job has no result, unless another one has the same reason.

        Args:
            job: before its record says so.
            sweep: whose other jobs may run in other processes.
        """
        elsewhere = () if self.sweep else {other.message for other in sweep.begun().values()}
        if job.message not in self.told and job.message not in elsewhere:
            log.error("job %s failed: %s", job.job, job.message)
        self.told.add(job.message)

    def report(self, why_lost: str = "it left no record") -> list[Job]:
        """End the sweep: print its table, write it, and note which jobs failed.

        Args:
            why_lost: why jobs have no record that were submitted.
        """
        from ktrace.pipeline.console import print_comparison
        from ktrace.pipeline.sweep_file import write_sweep

        assert self.sweep is not None
        sweep, on_slurm, self.sweep = self.sweep, bool(self._on_slurm()), None
        began = sweep.begun()
        jobs = sweep.jobs(why_lost)
        for message, alike in failures(jobs).items():
            # A process of this machine has told it here itself.
            is_told = not on_slurm and any(
                int(job.job) in began and job.status == FAILED for job in alike
            )
            if message not in self.told and not is_told:
                log.error("%s failed: %s", numbered(alike), message)
        self.failed += [job.job for job in jobs if job.status != DONE]
        print_comparison(jobs)
        print(redacted(f"wrote {sweep.folder}: {write_sweep(sweep.folder, jobs).name}"))
        return jobs

    def report_broken(self, error: Exception) -> bool:
        """Report on a sweep whose launcher gave up, as it does on the first job that was lost.

        On Slurm the other jobs go on without it. They are waited for, so that the report tells how
        they ended.

        Returns:
            Whether the report tells it: not where no job began, or where all are well.
        """
        if self.sweep is None:
            return False
        handed = self._on_slurm()
        _wait_for(handed)
        if not handed and not self.sweep.begun():
            self.sweep = None
            return False
        stopped = f"it did not begin: the launcher stopped ({explain(error)})"
        jobs = self.report("ended before it began" if handed else stopped)
        return any(job.status != DONE for job in jobs)

    def report_interrupted(self, what: str) -> None:
        """Report on a sweep that a signal ended, and with it the jobs in processes of this machine.

        Args:
            what: the signal did, such as "interrupted".
        """
        if self.sweep is None:
            return
        if self._on_slurm():
            self.report(f"{what} before it began; Slurm may still run it (scancel ends it)")
            return
        for job in self.sweep.begun().values():
            if job.status == STARTED:  # its launcher has killed it
                self.sweep.write(job.failed(f"{what}; {GOES_ON}"))
        self.report(f"{what} before it began")

    def _on_slurm(self) -> list[Path]:
        """Files that name the jobs which this sweep has handed to Slurm."""
        assert self.sweep is not None
        return sorted(_handed_over(self.sweep.folder) - set(self.submitted_before))


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
    keep_secrets(config)
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    job = Job(str(hydra.job.num), [redacted(text) for text in overrides], redacted(str(name or "")))
    sweep, command = Sweep.of(hydra, Path(str(hydra.runtime.cwd))), current_command()
    with ended_by_signals():
        sweep.write(job)
        try:
            job = _ended(config, job, sweep)
        except KeyboardInterrupt as stop:
            told = "terminated" if isinstance(stop, Terminated) else "interrupted"
            job = job.failed(f"{told}; {GOES_ON}")
            # Ctrl-C, and any signal in the command's own process, are meant for the whole sweep.
            if command.sweep is not None or told == "interrupted":
                sweep.write(job)
                raise
        if job.status != DONE:
            command.tell(job, sweep)
        sweep.write(job)
    if job.status == DONE:
        log.info("job %s done: %s", job.job, " ".join(job.overrides))


def _ended(config: DictConfig, job: Job, sweep: Sweep) -> Job:
    from ktrace.pipeline.check import print_checked
    from ktrace.pipeline.console import print_upkeep
    from ktrace.pipeline.logger import at_job_end
    from ktrace.pipeline.run import analysis_folder, run
    from ktrace.pipeline.unread import say_unread

    try:
        own = to_run_config(config)
        require_own_file(job.overrides, own.dataset)
        say_unread(own, job.overrides, in_sweep=True, said=current_command().told)
        apart = variant(analysis_overrides(job.overrides, sweep.submitted()))
        if apart and own.analysis.folder is None:
            own.analysis.folder = f"{analysis_folder(own)}{apart}"
        outcome = run(own)
        at_job_end(own, outcome)
        if outcome.checked is not None:
            print_checked(outcome.checked)
        if outcome.upkeep is not None:
            print_upkeep(outcome.upkeep)
            if outcome.upkeep.problem:
                raise KtraceError(outcome.upkeep.problem)
    except (KtraceError, OmegaConfBaseException) as error:
        return job.failed(explain(error), traceback.format_exc())
    except Exception as error:  # a bug in one job must not cost the others their results
        log.debug("job %s", job.job, exc_info=True)
        message = redacted(f"{type(error).__name__}: {error}")
        return job.failed(message, traceback.format_exc())
    return replace(
        job,
        status=DONE,
        message="",
        folder=str(outcome.folder),
        analysis=None if outcome.upkeep or outcome.checked else str(analysis_folder(own)),
        mediators=list(outcome.mediator_keys),
        counts=dict(outcome.counts),
        summary=outcome.analysis.summary if outcome.analysis else None,
    )


class SweepReport(Callback):
    """Prints the comparison when the last job has ended; keeps secrets out of Hydra's own words."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks. What it raises Hydra would only warn of, so this exits."""
        try:
            if not config.output_dir:
                raise KtraceError("output_dir is empty: name a folder, or . for this one")
            keep_secrets(config)
            refuse_told_folders(config)
            hide_from_hydra(config)
            sweep = Sweep.of(config.hydra)
            require_writable(sweep.folder)
            submitted = submitted_by(config)
            require_own_places(config, submitted)
            sweep.begin(submitted)
        except (KtraceError, OmegaConfBaseException) as error:
            sys.exit(f"ktrace: {explain(error)}")
        if note := shares_stores(submitted):
            log.warning("%s", note)  # Hydra lets no less through before the jobs
        command = current_command()
        command.sweep, command.submitted_before = sweep, _handed_over(sweep.folder)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks. Of a single run it prints the overrides above a traceback."""
        hide_from_hydra(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks: its own record of the job is there, where one was asked for."""
        if config.hydra.output_subdir is not None:
            own = Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir
            for path in own.glob("*.yaml"):
                write_text(path, redacted(path.read_text("utf-8")))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks. What it raises Hydra would only warn of, so this exits."""
        jobs = current_command().report()
        if not config.compare or any(job.status != DONE for job in jobs):
            return
        try:
            _compare(config, jobs)
        except (KtraceError, OmegaConfBaseException) as error:
            sys.exit(f"ktrace: {explain(error)}")


def _compare(config: DictConfig, jobs: Sequence[Job]) -> None:
    """Compare what jobs stored: those of one analysis with each other."""
    from ktrace.pipeline.console import print_compared
    from ktrace.pipeline.logger import group_of, log_results
    from ktrace.pipeline.run import compare_runs

    submitted = [job.overrides for job in jobs]
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(variant(analysis_overrides(job.overrides, submitted)), []).append(job)
    loader = GlobalHydra.instance().config_loader()
    for apart, same in alike.items():
        own = loader.load_sweep_config(config, list(same[0].overrides))
        with open_dict(own):
            del own["hydra"]  # of no job, so that parts of it are not set
            own.shard = "1/1"  # all of what the jobs stored, whoever did which part of it
            own.analysis.folder = f"{config.output_dir}/comparison{apart}"
        folders = list(dict.fromkeys(glob.escape(str(job.folder)) for job in same))
        run_config = to_run_config(own)
        outcome = compare_runs(run_config, folders)
        assert outcome.comparison is not None
        print_compared(outcome.comparison)
        log_results(run_config, outcome, group_of(config))


def _handed_over(folder: Path) -> set[Path]:
    return set(folder.glob(".submitit/*/*_submitted.pkl"))  # only their names are read


def _wait_for(handed: Sequence[Path]) -> None:
    """Wait until the jobs have ended that a sweep has handed to Slurm."""
    if not handed:
        return
    from submitit import SlurmJob  # of the extra `cluster`, which submitted them

    log.info("waiting for the other jobs of this sweep")
    for path in handed:
        identifier = path.name.removesuffix("_submitted.pkl")
        SlurmJob[None](path.parent.parent / "%j", identifier).wait()
