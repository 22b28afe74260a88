"""`python -m ktrace`: Hydra composes the config, the pipeline runs it.

No torch here: `--help` and `stage=analyze` must not wait for it.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ktrace.config.chosen import (
    require_one_choice_each,
    require_one_override_each,
    require_own_file,
)
from ktrace.config.complaints import explain
from ktrace.config.compose import (
    HYDRA_VERSION_BASE,
    groups,
    help_text,
    register,
    resource,
    to_run_config,
)
from ktrace.config.typed import spelled_out, taken_as_given
from ktrace.errors import KtraceError, Terminated
from ktrace.pipeline.signals import ended_by_signals
from ktrace.pipeline.sweep import Command, current_command, is_sweep, new_command, run_job
from ktrace.redaction import redacted

_SAYS_HOW_TO_WAIT = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}


@hydra.main(
    version_base=HYDRA_VERSION_BASE, config_path=str(resource("conf")), config_name="config"
)
def _job(config: DictConfig) -> None:
    command = current_command()
    command.is_composed = True
    if is_sweep():
        run_job(config)
        return
    # Here as well as in main(): Hydra would print the overrides above the message.
    with _in_one_line(command):
        _run(config)


def _run(config: DictConfig) -> None:
    from ktrace.pipeline.check import print_checked
    from ktrace.pipeline.console import (
        print_compared,
        print_counts,
        print_summary,
        print_upkeep,
    )
    from ktrace.pipeline.logger import at_job_end
    from ktrace.pipeline.run import run
    from ktrace.pipeline.unread import say_unread

    run_config = to_run_config(config)
    typed = HydraConfig.get().overrides.task
    require_own_file(typed, run_config.dataset)
    say_unread(run_config, typed, in_sweep=False, said=set())
    outcome = run(run_config)
    at_job_end(run_config, outcome)
    if outcome.comparison is not None:
        print_compared(outcome.comparison)
        return
    if outcome.checked is not None:
        print_checked(outcome.checked)
        return
    if outcome.upkeep is not None:
        print_upkeep(outcome.upkeep)
        if outcome.upkeep.problem:
            raise KtraceError(outcome.upkeep.problem)
        return
    if outcome.analysis is None:
        print_counts(outcome.counts, outcome.folder, outcome.candidates)
        return
    for note in outcome.analysis.notes:
        print(redacted(note), file=sys.stderr)
    print_summary(outcome.analysis.summary, outcome.analysis.files)


def main() -> None:
    """Entry point: errors that the user can mend are one message and exit code 1.

    Ctrl-C and SIGTERM keep the facts that are finished, and exit with 130 and 143.
    """
    register()
    _wait_asleep()
    sys.excepthook = _show_traceback
    with new_command() as command, ended_by_signals(), _in_one_line(command):
        if sys.argv[1:] in (["--help"], ["-h"]):
            print(help_text())
        else:
            given = spelled_out(sys.argv[1:])
            require_one_choice_each(given, groups())
            require_one_override_each(given, groups())
            sys.argv[1:] = taken_as_given(given)
            _job()
    if command.failed:
        sys.exit(1)


def _wait_asleep() -> None:
    """Let torch's threads sleep while they wait for each other, unless the user says otherwise.

    By default they spin. Two runs on the same cores then spend their time in waiting for threads
    that the other's spinning keeps from running. libgomp reads this when torch loads it.
    """
    if not _SAYS_HOW_TO_WAIT & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"


@contextmanager
def _in_one_line(command: Command) -> Iterator[None]:
    """End the process as a person at the terminal should see it; a bug keeps its traceback."""
    if command.wants_traceback:
        yield
        return
    try:
        yield
    except (KtraceError, HydraException, OmegaConfBaseException) as error:
        command.report_broken(error)
        sys.exit(f"ktrace: {explain(error)}")
    except BrokenPipeError:
        # A reader such as `head` has gone; the interpreter must not fail on it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # of Hydra's own files: ktrace's come with their key
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(redacted(f"ktrace: {name}{error.strerror or error}"))
    except KeyboardInterrupt as stop:
        is_term = isinstance(stop, Terminated)
        what = "terminated" if is_term else "interrupted"
        command.report_interrupted(what)
        print(f"ktrace: {what}; the same command goes on where this run stopped", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if is_term else signal.SIGINT))
    except Exception as error:
        # Before a job began, Hydra raises whatever it likes about what was typed; afterwards a
        # launcher does, about the first job that it lost.
        if not command.is_composed and command.sweep is None:
            sys.exit(f"ktrace: {explain(error)}")
        if not command.report_broken(error):
            raise


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As Python does, but without secrets."""
    print(
        redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr
    )


if __name__ == "__main__":
    main()
