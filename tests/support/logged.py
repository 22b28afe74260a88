"""What loggers kept, read back by each library's own interface or from its files."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# trackio takes its folder from the environment as it is imported.
_TRACKIO = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
found = []
for run in trackio.Api().runs(sys.argv[1]):
    [logged] = SQLiteStorage.get_logs(sys.argv[1], run.name)
    found.append((run.name, run.config, logged))
print(json.dumps(found, default=str))
"""


@dataclass(frozen=True)
class Logged:
    """One run that was logged: tables by name, as rows; names of figures and documents."""

    name: str
    group: str | None
    config: dict[str, Any]
    numbers: dict[str, float]
    tables: dict[str, list[dict[str, Any]]]
    figures: set[str]
    answer: str


def logged_by(kind: str, folder: Path, project: str = "ktrace") -> list[Logged]:
    """The runs of a project, in the order in which they were logged."""
    return list(_READERS[kind](folder / kind, project))


def _of_trackio(folder: Path, project: str) -> Iterator[Logged]:
    printed = subprocess.run(
        [sys.executable, "-c", _TRACKIO, project],
        env=os.environ | {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    runs = json.loads(printed.splitlines()[-1])
    for name, config, logged in sorted(runs, key=lambda run: str(run[1]["_Created"])):
        media = {key: value for key, value in logged.items() if isinstance(value, dict)}
        plain = {key: value for key, value in logged.items() if key not in ("step", "timestamp")}
        images = {k: v for k, v in media.items() if v["_type"] == "trackio.image"}
        assert all((folder / "media" / image["file_path"]).is_file() for image in images.values())
        yield Logged(
            name,
            config["_Group"],
            {key: value for key, value in config.items() if not key.startswith("_")},
            {key: value for key, value in plain.items() if isinstance(value, int | float)},
            {k: v["_value"] for k, v in media.items() if v["_type"] == "trackio.table"},
            set(images),
            logged["answer"],
        )


def _of_wandb(folder: Path, project: str) -> Iterator[Logged]:
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        records = list(_wandb_records(path))
        [run] = [record.run for record in records if record.HasField("run")]
        [history] = [record.history for record in records if record.HasField("history")]
        logged: dict[str, Any] = {}
        for item in history.item:
            name, *below = item.nested_key or [item.key]
            value = json.loads(item.value_json)
            logged[name] = {**logged.get(name, {}), below[0]: value} if below else value
        logged = {key: value for key, value in logged.items() if not key.startswith("_")}
        media = {key: value for key, value in logged.items() if isinstance(value, dict)}
        files = {key: path.parent / "files" / value["path"] for key, value in media.items()}
        tables = {
            key: json.loads(files[key].read_text("utf-8"))
            for key, value in media.items()
            if value["_type"] == "table-file"
        }
        assert run.project == project
        yield Logged(
            run.display_name,
            run.run_group or None,
            {item.key: json.loads(item.value_json) for item in run.config.update},
            {key: value for key, value in logged.items() if key not in media},
            {
                key: [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
                for key, found in tables.items()
            },
            {key for key in media if key not in tables and files[key].stat().st_size},
            run.notes,
        )


def _wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: a log as LevelDB's, of W&B's messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, begun = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        place += 7
        begun += content[place : place + length]
        place += length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(begun)
            begun = b""
            yield record


def _of_mlflow(folder: Path, project: str) -> Iterator[Logged]:
    import pandas as pd
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(project)
    for run in client.search_runs([experiment.experiment_id], order_by=["start_time"]):
        assert run.info.status == "FINISHED"
        names = {
            kept: [found.path for found in client.list_artifacts(run.info.run_id, kept)]
            for kept in ("tables", "figures")
        }
        own = folder / "artifacts" / run.info.run_id / "artifacts"
        assert all((own / name).stat().st_size for paths in names.values() for name in paths)
        yield Logged(
            run.info.run_name,
            run.data.tags.get("sweep"),
            dict(run.data.params),
            dict(run.data.metrics),
            {
                name.removesuffix(".csv"): pd.read_csv(own / name).to_dict("records")
                for name in names["tables"]
                if name.endswith(".csv")
            },
            {name.removesuffix(".png") for name in names["figures"]},
            run.data.tags.get("mlflow.note.content", ""),
        )


_READERS = {"trackio": _of_trackio, "wandb": _of_wandb, "mlflow": _of_mlflow}
