"""`sweep.csv`: the closing table of a multirun, as a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ktrace.analysis.csv_files import write_tables
from ktrace.pipeline.jobs import Job, own_overrides
from ktrace.redaction import all_redacted

_COLUMNS = (
    *("job", "overrides", "status", "message", "model", "dataset", "noise", "mediator", "metric"),
    *("n_facts", "n_candidates", "ate", "ate_ci_low", "ate_ci_high", "peak_last_subject"),
    *("peak_last_subject_layer", "peak_last", "peak_last_layer", "folder", "analysis"),
)
_PEAKS = {"peak_last_subject": "last subject", "peak_last": "last"}


def write_sweep(folder: Path, jobs: Sequence[Job]) -> Path:
    """Write `sweep.csv`: a row for each job and mediator; one for a job without an analysis.

    Raises:
        KtraceError: the folder cannot be written.
    """
    rows = [
        row for job, own in zip(jobs, own_overrides(jobs), strict=True) for row in _rows(job, own)
    ]
    told = [all_redacted(row) for row in rows]
    # As objects: numbers stay whole where others lack them.
    table: pd.DataFrame = pd.DataFrame(told, columns=list(_COLUMNS), dtype=object)
    [path] = write_tables(folder, {"sweep": table})
    return path


def _rows(job: Job, own: str) -> Iterator[dict[str, object]]:
    about: dict[str, object] = {
        **{"job": job.job, "overrides": own, "status": job.status, "message": job.message},
        **{"model": job.model, "folder": job.folder, "analysis": job.analysis},
    }
    counts = job.counts or {}
    about |= {f"n_{name}": counts[name] for name in ("facts", "candidates") if name in counts}
    if job.summary is None:
        yield about
        return
    names = ("model", "dataset", "noise", "metric", "n_facts", "n_candidates", "ate")
    about |= {name: job.summary[name] for name in names}
    about["ate_ci_low"], about["ate_ci_high"] = job.summary["ate_ci"]
    for key in job.mediators:
        found = job.summary["peaks"].get(key, {})
        peaks: dict[str, object] = {}
        for name, role in _PEAKS.items():
            if role in found:
                peaks |= {name: found[role]["aie"], f"{name}_layer": found[role]["layer"]}
        yield about | {"mediator": key} | peaks
