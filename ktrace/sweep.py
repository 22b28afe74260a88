"""Jobs of a multirun: each leaves a `job.json`, and the sweep ends with one table.

The report reads the files, not this process's memory, so it works whatever launcher ran the jobs.
A job writes its file before it starts: one that is killed is seen to have no end.
"""

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ktrace.config import to_run_config
from ktrace.errors import KtraceError
from ktrace.messages import explain
from ktrace.store.files import require_writable, write_text

log = logging.getLogger(__name__)

_RECORD = "job.json"
_KILLED = "it started and left no result: killed, or still running"
_failed: list[str] = []


def is_sweep() -> bool:
    """Whether this job belongs to a multirun."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def failed_jobs() -> list[str]:
    """Jobs of the sweep that ended in this process without a result."""
    return list(_failed)


def run_job(config: DictConfig) -> None:
    """Run one job and record how it ended; a failing job does not stop the others."""
    from ktrace.pipeline import run

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
        record["message"] = explain(error)
    except Exception as error:  # a bug in one job must not cost the others their results
        record["message"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
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
        log.error("job %s failed: %s", record["job"], record["message"])
    else:
        log.info("job %s done: %s", record["job"], " ".join(record["overrides"]))


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")


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

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra's callbacks."""
        from ktrace.console import print_comparison

        folder = Path(str(config.hydra.sweep.dir))
        jobs = [json.loads(path.read_text("utf-8")) for path in folder.glob(f"*/{_RECORD}")]
        jobs.sort(key=lambda job: int(job["job"]))
        _failed.extend(job["job"] for job in jobs if job["status"] != "done")
        print_comparison(jobs)
        print(f"wrote {folder}")
