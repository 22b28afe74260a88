"""From the parts to one tidy frame: a row for each score."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.roles import rows
from ktrace.errors import KtraceError
from ktrace.store import METRICS, RunFolders

COLUMNS = (
    "model",
    "known_id",
    "mediator",
    "metric",
    "sample",
    "layer",
    "position",
    "token",
    "role",
    "clean",
    "corrupted",
    "restored",
)


def load_effects(
    run_folder: str | Path, limit: int | None = None, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Every score of a run.

    The indirect effect of a row is `restored - corrupted`, its total effect `clean - corrupted`.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        limit: only facts among the first `limit` of the dataset.
        metrics: some of `probability`, `log_probability`, `logit`, `logit_difference`, `kl`.

    Returns:
        One row for each (fact, mediator, metric, sample, layer, position) with the columns
        `COLUMNS`. `mediator` is the store's key (`hidden`, `mlp-w10`); `role` is one of the scheme
        `rome`, missing before the subject; scores are float32, probabilities unitless in [0, 1].

    Raises:
        KtraceError: the folder holds no restorations, parts of different settings, or a damaged
            part.
    """
    folders = RunFolders(Path(run_folder).resolve())
    keys = folders.mediator_keys()
    if not keys:
        raise KtraceError(f"{run_folder} holds no restorations: run stage=restore or stage=all")
    require_same_settings(folders, keys)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise KtraceError(f"metric {unknown[0]!r} is unknown: choose from {', '.join(METRICS)}")
    return effects_frame(folders, keys, limit, metrics)


def require_same_settings(folders: RunFolders, keys: Iterable[str]) -> None:
    """Refuse restorations and corrupted runs that do not belong to the clean runs beside them.

    Raises:
        KtraceError: stores of different models, datasets or noises.
    """
    later = [folders.corrupted, *(folders.restored(key) for key in keys)]
    source, expected = folders.clean, folders.clean.fingerprint() or {}
    for store in later:
        found = store.fingerprint()
        if found is None:
            continue
        differing = [
            f"{name}: {json.dumps(found.get(name))} and {json.dumps(value)}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        if differing:
            raise KtraceError(
                f"{store.folder} and {source.folder} hold results of different settings "
                f"({'; '.join(differing)}): remove one of them"
            )
        if store.folder == folders.corrupted.folder:
            source, expected = store, found


def effects_frame(
    folders: RunFolders, keys: Iterable[str], limit: int | None, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """See `load_effects`; for some mediators only."""
    clean = {
        record["index"]: record for record in folders.clean.read("known_id", "tokens", "roles")
    }
    scores = [*metrics, *(f"clean_{metric}" for metric in metrics)]
    corrupted = {record["index"]: record for record in folders.corrupted.read(*scores)}
    frames = []
    for metric in metrics:
        for key in keys:
            records = folders.restored(key).read("known_id", metric)
            wanted = [record for record in records if limit is None or record["index"] < limit]
            for record in wanted:
                if record["index"] not in clean or record["index"] not in corrupted:
                    raise KtraceError(
                        f"{folders.run} lacks the clean or corrupted run of the fact with "
                        f"known_id={record['known_id']}: finish the run"
                    )
            frame = _mediator_frame(wanted, clean, corrupted, metric)
            if frame is not None:
                frames.append(frame.assign(mediator=key, metric=metric))
    if not frames:
        raise KtraceError(f"{folders.run} holds no restorations of these facts")
    effects: pd.DataFrame = pd.concat(frames, ignore_index=True)
    effects["model"] = folders.run.parent.parent.name
    categories = {"model": None, "mediator": list(keys), "metric": list(METRICS)}
    for column, order in categories.items():
        effects[column] = pd.Categorical(effects[column], categories=order)
    effects["role"] = pd.Categorical(effects["role"].replace({"": None}), categories=rows("rome"))
    effects["token"] = effects["token"].astype("category")
    ordered: pd.DataFrame = effects[list(COLUMNS)]
    return ordered


def _mediator_frame(
    records: Iterable[Mapping[str, Any]],
    clean: Mapping[int, Mapping[str, Any]],
    corrupted: Mapping[int, Mapping[str, Any]],
    metric: str,
) -> pd.DataFrame | None:
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    for record in records:
        index = record["index"]
        for name, values in _columns(record, clean[index], corrupted[index], metric):
            columns.setdefault(name, []).append(values)
    if not columns:
        return None
    frame: pd.DataFrame = pd.DataFrame({n: np.concatenate(p) for n, p in columns.items()})
    return frame


def _columns(
    record: Mapping[str, Any],
    clean: Mapping[str, Any],
    corrupted: Mapping[str, Any],
    metric: str,
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    restored = record[metric]
    shape = restored.shape  # (sample, layer, position)

    def spread(values: Any, axis: int, dtype: Any) -> npt.NDArray[Any]:
        along = [1, 1, 1]
        along[axis] = -1
        return np.broadcast_to(np.asarray(values, dtype=dtype).reshape(along), shape).ravel()

    yield "known_id", np.full(restored.size, clean["known_id"], dtype=np.int64)
    for axis, name in enumerate(("sample", "layer", "position")):
        yield name, spread(np.arange(shape[axis]), axis, np.int16)
    yield "token", spread(clean["tokens"], 2, object)
    yield "role", spread(clean["roles"], 2, object)
    yield "clean", np.full(restored.size, corrupted[f"clean_{metric}"], dtype=np.float32)
    yield "corrupted", spread(corrupted[metric], 0, np.float32)
    yield "restored", restored.ravel()
