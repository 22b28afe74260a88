"""`python -m ktrace`: Hydra composes the config, the pipeline runs it.

No torch here: `--help` and `stage=analyze` must not wait for it.
"""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ktrace import config as config_schema
from ktrace import sweep
from ktrace.errors import KtraceError
from ktrace.messages import explain
from ktrace.resources import resource

# Hydra prints its own story about errors and exits, unless this is set.
_FULL_ERROR = "HYDRA_FULL_ERROR"
_WANTS_TRACEBACK = os.environ.get(_FULL_ERROR) == "1"
_began: list[DictConfig] = []  # what was composed: from here on, an unknown error is a bug


@hydra.main(version_base="1.3", config_path=str(resource("conf")), config_name="config")
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
    from ktrace.console import print_counts, print_summary
    from ktrace.pipeline import run

    outcome = run(config_schema.to_run_config(config))
    if outcome.analysis is None:
        print_counts(outcome.counts, outcome.folder)
        return
    for note in outcome.analysis.notes:
        print(note, file=sys.stderr)
    print_summary(outcome.analysis.summary, outcome.analysis.files)


def main() -> None:
    """Entry point: errors that the user can mend are one message and exit code 1."""
    _began.clear()
    config_schema.register(lambda name: resource(f"data/{name}"))
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
        except KeyboardInterrupt:
            sys.exit("ktrace: interrupted; the same command goes on where this run stopped")
        except Exception as error:
            # Hydra raises whatever it likes about what was typed.
            if _began:
                raise
            sys.exit(f"ktrace: {explain(error)}")
    if sweep.failed_jobs():
        sys.exit(1)


if __name__ == "__main__":
    main()
