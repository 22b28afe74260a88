"""`python -m ktrace`: Hydra composes the config, the pipeline runs it.

No torch here: `--help` and `stage=analyze` must not wait for it.
"""

import os
import signal
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ktrace.config.complaints import explain
from ktrace.config.compose import HYDRA_VERSION_BASE, register, resource, to_run_config
from ktrace.errors import KtraceError, Terminated
from ktrace.pipeline import sweep
from ktrace.pipeline.signals import ended_by_signals

# Hydra prints its own story about errors and exits, unless this is set.
_FULL_ERROR = "HYDRA_FULL_ERROR"
_WANTS_TRACEBACK = os.environ.get(_FULL_ERROR) == "1"
_began: list[DictConfig] = []  # what was composed: from here on, an unknown error is a bug


@hydra.main(
    version_base=HYDRA_VERSION_BASE, config_path=str(resource("conf")), config_name="config"
)
def _job(config: DictConfig) -> None:
    _began.append(config)
    if sweep.is_sweep():
        sweep.run_job(config)
        return
    try:
        _run(config)
    except (KtraceError, OmegaConfBaseException) as error:
        # Here and not in main(): Hydra would print the overrides above the message.
        if _WANTS_TRACEBACK:
            raise
        sys.exit(f"ktrace: {explain(error)}")


def _run(config: DictConfig) -> None:
    from ktrace.pipeline.console import print_counts, print_runs, print_summary
    from ktrace.pipeline.run import run

    outcome = run(to_run_config(config))
    if outcome.comparison is not None:
        for note in outcome.comparison.notes:
            print(note, file=sys.stderr)
        print_runs(outcome.comparison.runs.to_dict("records"), outcome.comparison.files)
        return
    if outcome.analysis is None:
        print_counts(outcome.counts, outcome.folder)
        return
    for note in outcome.analysis.notes:
        print(note, file=sys.stderr)
    print_summary(outcome.analysis.summary, outcome.analysis.files)


def main() -> None:
    """Entry point: errors that the user can mend are one message and exit code 1.

    Ctrl-C and SIGTERM keep the facts that are finished, and exit with 130 and 143.
    """
    _began.clear()
    register()
    with ended_by_signals():
        _main()


def _main() -> None:
    if _WANTS_TRACEBACK:
        _job()
    else:
        os.environ[_FULL_ERROR] = "1"
        try:
            _job()
        except (KtraceError, HydraException, OmegaConfBaseException) as error:
            sys.exit(f"ktrace: {explain(error)}")
        except BrokenPipeError:
            # A reader such as `head` has gone; the interpreter must not fail on it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:  # of Hydra's own files: ktrace's come with their key
            name = f"{error.filename}: " if error.filename else ""
            sys.exit(f"ktrace: {name}{error.strerror or error}")
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            what = "terminated" if terminated else "interrupted"
            print(
                f"ktrace: {what}; the same command goes on where this run stopped", file=sys.stderr
            )
            sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))
        except Exception as error:
            # Before a job began, Hydra raises whatever it likes about what was typed; afterwards a
            # launcher does, about the first job that it lost.
            if not _began and not sweep.has_begun():
                sys.exit(f"ktrace: {explain(error)}")
            if not sweep.report_broken(error):
                raise
    if sweep.failed_jobs():
        sys.exit(1)


if __name__ == "__main__":
    main()
