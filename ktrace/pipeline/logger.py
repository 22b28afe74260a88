"""What an analysis found, logged with trackio, Weights & Biases or MLflow at the end of a job.

A process of its own does it (`ktrace.pipeline.loggers`): it is told by its environment where files
go, it may print, hang or fail, and what the run has written is there all the same.
"""

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ktrace.config import LoggerKind, RunConfig, Stage
from ktrace.errors import KtraceError
from ktrace.pipeline.bars import waiting
from ktrace.pipeline.jobs import Sweep
from ktrace.pipeline.loggers import ADAPTERS, Record
from ktrace.pipeline.runlog import told
from ktrace.redaction import redacted
from ktrace.store import one_at_a_time

if TYPE_CHECKING:
    from ktrace.pipeline.run import Outcome

log = logging.getLogger(__name__)

_ANALYSING = (Stage.all, Stage.analyze, Stage.compare)
# Besides the library of the same name: without them MLflow has no store but a server's.
_NEEDED = {LoggerKind.mlflow: ("sqlalchemy", "alembic")}
_SECONDS = 600  # for a large upload
# Tables with a row for each average; those with one for each fact or sample stay files of the run.
_TABLES = {"aie", "contrasts", "peaks", "heads", "knockout"}
_TABLES |= {"runs", "differences", "methods", "agreement"}  # of a comparison
# Parts of the summary that say what made it, or are files of their own.
_NO_NUMBERS = {"settings", "provenance", "layers", "heads"}
_LONGEST_NAME = 128
# Variables by which a library would send what is meant to stay here, or take the jobs of a sweep
# for one run.
_NOT_OURS = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL"}
_NOT_OURS |= {"WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "MLFLOW_RUN_ID"}
# A server that is not there is asked some seconds long, unless somebody wants otherwise.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def require_logger(config: RunConfig) -> None:
    """Refuse, before any work, a logger whose library is not installed.

    Raises:
        KtraceError: naming the extra.
    """
    kind = config.logger.kind
    if kind is LoggerKind.none or config.stage not in _ANALYSING:
        return
    for package in (kind.value, *_NEEDED.get(kind, ())):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # a folder of that name is no library
            raise KtraceError(f"logger={kind} needs the extra {kind}: pip install 'ktrace[{kind}]'")


class LogResults(Callback):
    """Logs what the job that ends has analysed, whatever launcher runs it."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        """See Hydra's callbacks."""
        global _analysed
        ended, _analysed = _analysed, None
        if ended is not None:
            is_job = config.hydra.mode is RunMode.MULTIRUN
            log_results(*ended, group_of(config) if is_job else None)


# Hydra hands nothing but the job's config to a callback, and what a job returns goes through the
# launcher's files: this is where the callback finds what the job of its process found.
_analysed: "tuple[RunConfig, Outcome] | None" = None


def at_job_end(config: RunConfig, outcome: "Outcome") -> None:
    """Have an outcome logged when Hydra ends the job."""
    global _analysed
    _analysed = config, outcome


def group_of(config: DictConfig) -> str:
    """What the jobs of one sweep have in common: its folder's name, and its own."""
    sweep = Sweep.of(config.hydra)
    return f"{sweep.folder.name} {sweep.name}"


def log_results(config: RunConfig, outcome: "Outcome", group: str | None = None) -> None:
    """Log an analysis or a comparison; of another outcome, nothing.

    Whatever goes wrong is said in a line: the results are there.

    Args:
        config: of the run.
        outcome: of the same.
        group: the sweep that it belongs to.
    """
    kind = config.logger.kind
    if kind is LoggerKind.none or (outcome.analysis is None and outcome.comparison is None):
        return
    folder = Path(config.logger.folder or Path(config.output_dir) / "loggers")
    where = config.logger.uri or folder / kind.value
    try:
        record = _record(config, outcome, group, folder.absolute())
        _log(record, config)
    except (KtraceError, OSError) as error:
        log.warning("logger=%s failed, and the results are there without it: %s", kind, error)
    else:
        print(redacted(f"logged to {where}: {record.name}, in the project {record.project}"))


def _log(record: Record, config: RunConfig) -> None:
    """Log in another process.

    Raises:
        KtraceError, OSError: it failed.
    """
    folder = Path(record.folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Libraries write into files that they share, and MLflow makes its tables only once.
    with (
        one_at_a_time(folder, "logs into the same folder", config.claims),
        waiting(f"logging with {record.kind}"),
        subprocess.Popen(
            [sys.executable, "-m", ADAPTERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(record),
            start_new_session=True,  # with processes of the library's own
        ) as process,
    ):
        try:
            printed, errors = process.communicate(json.dumps(asdict(record)), _SECONDS)
        except subprocess.TimeoutExpired:
            raise KtraceError(f"it did not end within {_SECONDS} s") from None
        finally:
            _end(process)
    if process.returncode:
        lines = [line for line in (printed or errors).splitlines() if line.strip()]
        raise KtraceError(lines[-1].strip() if lines else f"exit code {process.returncode}")


def _end(process: "subprocess.Popen[str]") -> None:
    """Leave nothing of a process and what it has started, also after Ctrl-C."""
    process.kill()
    if hasattr(os, "killpg"):  # not on Windows
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment(record: Record) -> dict[str, str]:
    """Of the process that logs: it finds what this one finds, and sends nothing unasked."""
    folder = Path(record.folder) / record.kind
    own = {key: value for key, value in os.environ.items() if key not in _NOT_OURS}
    if record.uri is None:
        own["HF_HUB_OFFLINE"] = "1"
        if own.get("WANDB_MODE") != "disabled":
            own["WANDB_MODE"] = "offline"
    return (
        _PATIENCE
        | own
        | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_DATA_DIR": str(folder / "data"),
            "TRACKIO_DIR": str(folder),
        }
    )


def _record(config: RunConfig, outcome: "Outcome", group: str | None, folder: Path) -> Record:
    """What is logged, without secrets but for the address."""
    analysis, comparison = outcome.analysis, outcome.comparison
    summary: Mapping[str, object] = analysis.summary if analysis else {}
    files = analysis.files if analysis else comparison.files if comparison else []
    paths = [str(path.absolute()) for path in files]
    told_config = told(asdict(config))
    assert isinstance(told_config, dict)
    return Record(
        kind=config.logger.kind.value,
        project=config.logger.project,
        name=redacted(config.logger.name or _name(outcome)),
        group=group,
        folder=str(folder),
        uri=config.logger.uri,
        config=told_config,
        numbers=dict(_numbers({k: v for k, v in summary.items() if k not in _NO_NUMBERS})),
        answer=redacted(str(summary.get("answer", ""))),
        tables=[p for p in paths if p.endswith(".csv") and Path(p).stem in _TABLES],
        documents=[path for path in paths if path.endswith(".json")],
        figures=[path for path in paths if path.endswith(".png")],
    )


def _name(outcome: "Outcome") -> str:
    """Such as `tiny facts gaussian-x3-n10-seed1 hidden`."""
    if outcome.comparison is not None:
        return "comparison"
    name = " ".join([*outcome.folder.parts[-3:], "+".join(outcome.mediator_keys)])
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a summary, by its place, such as `peaks/hidden/last subject/aie`."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            # Other characters are none of a metric's name in MLflow.
            part = re.sub(r"[^\w. :-]", "_", str(name))
            yield from _numbers(item, f"{key}/{part}" if key else part)
    elif isinstance(value, list) and len(value) == 2:  # an interval
        yield from _numbers(dict(zip(("low", "high"), value, strict=True)), key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
