"""One adapter for each library that logs, run as a process: `python -m ktrace.pipeline.loggers`.

It reads a `Record` from its standard input. What went wrong is its only output, in one line; what
libraries print goes to stderr.
"""

import contextlib
import csv
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTERS = __name__
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100  # of MLflow
_LONGEST_PARAM = 6000  # likewise
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?")


@dataclass(frozen=True)
class Record:
    """What is logged of one run.

    Attributes:
        kind: the library.
        project: of its runs.
        name: of the run.
        group: the sweep that it belongs to; None for a single run.
        folder: each library has a folder of its own in it.
        uri: where it is sent; None: nowhere.
        config: of the run, as `run.yaml` holds it.
        numbers: of `summary.json`, by name.
        answer: what the summary says in words.
        tables: CSV files.
        documents: JSON files.
        figures: PNG files.
    """

    kind: str
    project: str
    name: str
    group: str | None
    folder: str
    uri: str | None
    config: Mapping[str, object]
    numbers: Mapping[str, float]
    answer: str
    tables: Sequence[str]
    documents: Sequence[str]
    figures: Sequence[str]


def _to_trackio(record: Record) -> None:
    import trackio

    uri = record.uri or ""
    remote = {"server_url" if "://" in uri else "space_id": uri} if uri else {}
    with warnings.catch_warnings(record=True) as said:  # it raises nothing, and goes on without
        warnings.simplefilter("always")
        trackio.init(
            record.project,
            record.name,
            group=record.group,
            config=dict(record.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
            **remote,
        )
        # `answer` is text, which it keeps beside the numbers.
        trackio.log({**record.numbers, "answer": record.answer, **_media(record, trackio)})
        if record.documents:
            kept = trackio.Artifact(f"analysis-{time.time_ns()}", "analysis")
            for path in record.documents:
                kept.add_file(path)
            trackio.log_artifact(kept)
        trackio.finish()
    lost = [str(one.message) for one in said if "trackio" in str(one.message).lower()]
    if lost:
        raise RuntimeError(lost[0])


def _to_wandb(record: Record) -> None:
    import wandb

    Path(record.folder).mkdir(parents=True, exist_ok=True)
    remote = {"base_url": record.uri} if record.uri else {}
    settings = wandb.Settings(
        silent=True,
        console="off",
        # Who runs what command on which machine, of which git remote, is not asked for.
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        **remote,
    )
    run = wandb.init(
        project=record.project,
        name=record.name,
        group=record.group,
        notes=record.answer,
        config=dict(record.config),
        dir=record.folder,
        mode="online" if record.uri else "offline",
        settings=settings,
    )
    run.log({**record.numbers, **_media(record, wandb)})
    if record.documents:
        kept = wandb.Artifact(f"analysis-{run.id}", type="analysis")
        for path in record.documents:
            kept.add_file(path)
        run.log_artifact(kept)
    run.finish()


def _media(record: Record, library: Any) -> dict[str, object]:
    """Tables and figures, as trackio has them, and W&B, whose names it took."""
    media: dict[str, object] = {}
    for path in record.tables:
        with Path(path).open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
        data = [[_cell(text) for text in row] for row in rows]
        table = library.Table(columns=columns, data=data, allow_mixed_types=True)
        media[f"tables/{Path(path).stem}"] = table
    for path in record.figures:
        media[f"figures/{Path(path).stem}"] = library.Image(path)
    return media


def _cell(text: str) -> str | int | float | None:
    """A cell of a CSV file: its number to the last bit, None where it is empty."""
    if text in ("True", "False"):
        return text == "True"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text or None


def _to_mlflow(record: Record) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    own = Path(record.folder) / "mlflow"
    own.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(record.uri or f"sqlite:///{(own / 'mlflow.db').as_posix()}")
    found = client.get_experiment_by_name(record.project)
    place = None if record.uri else (own / "artifacts").as_uri()
    experiment = (
        found.experiment_id
        if found
        else client.create_experiment(record.project, artifact_location=place)
    )
    run = client.create_run(experiment, run_name=record.name).info.run_id
    try:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in record.numbers.items()]
        params = [Param(*pair) for pair in _flat(record.config).items()]
        tags = {"mlflow.note.content": record.answer, "sweep": record.group}
        client.log_batch(run, tags=[RunTag(key, text) for key, text in tags.items() if text])
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            client.log_batch(run, metrics=metrics[start : start + _METRICS_AT_ONCE])
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            client.log_batch(run, params=params[start : start + _PARAMS_AT_ONCE])
        for path in (*record.tables, *record.documents):
            client.log_artifact(run, path, "tables")
        for path in record.figures:
            client.log_artifact(run, path, "figures")
    except Exception:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)


def _flat(value: object, key: str = "") -> dict[str, str]:
    """A config as MLflow's params: `model.path`, and text."""
    if isinstance(value, Mapping) and value:
        pairs = [_flat(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()]
        return {name: text for flat in pairs for name, text in flat.items()}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {key: text[:_LONGEST_PARAM]}


_BY_KIND: dict[str, Callable[[Record], None]] = {
    "trackio": _to_trackio,
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
}


def main() -> None:
    """Log the record on the standard input; exits 1 where that fails."""
    verdict = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        record = Record(**json.load(sys.stdin))
        try:
            _BY_KIND[record.kind](record)
        except Exception as error:  # whatever a library raises is one line for the run
            told = next(iter(str(error).strip().splitlines()), "")
            print(f"{type(error).__name__}: {told}", file=verdict, flush=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
