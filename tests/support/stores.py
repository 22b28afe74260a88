"""Made-up stores with known numbers, so that the analysis is checked without any model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace.store import RestoredRecord, RunFolders, StatesRecord
from ktrace.terms import METRICS, SITES

N_SAMPLES, N_LAYERS, WIDTH = 2, 3, 5

CLEAN_PRINT: dict[str, Any] = {
    "model": {"identity": "made up", "dtype": "float32", "quantization": None, "modules": None},
    "dataset": {"sha256": "made up", "n_facts": 6, "answer": "first_token"},
}
NOISE = f"gaussian-x3-n{N_SAMPLES}-seed1"  # the folder of this noise
NOISE_PRINT: dict[str, Any] = CLEAN_PRINT | {
    "noise": {
        "kind": "gaussian",
        "replace": False,
        "multiple": 3.0,
        "std": None,
        "samples": N_SAMPLES,
        "seed": 1,
    }
}


@dataclass(frozen=True)
class MadeUp:
    """One fact: its tokens and roles say how long it is."""

    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    is_candidate: bool = True


ROLES = ("first subject", "middle subject", "last subject", "first subsequent", "further", "last")
FACTS = (
    MadeUp(
        ("<s>", "The", " Space", " Need", "le", " is", " in", " the"),
        ("", "", *ROLES),
    ),
    MadeUp(("<s>", " Paris", " in"), ("", "last subject", "last")),
    MadeUp(("<s>", "Nobody", " is"), ("", "last subject", "last"), is_candidate=False),
    MadeUp(
        ("Zü", "rich", " liegt", " in", " 東", " der", " ¿"),
        ("first subject", "last subject", "first subsequent", *["further"] * 3, "last"),
    ),
    # Two prompts that end with their subject: its last token has the role `last`. The first says
    # the subject before, behind a letter that a JavaScript string counts twice.
    MadeUp(("<s>", "𝄞", " Ada", " or", " Ada"), ("", "", "", "", "last")),
    MadeUp(("<s>", "From", " New", " York"), ("", "", "first subject", "last")),
)

MEASURED_ON = {"dataset": "made-up", "facts": 5, "tokens": 12}


def known_id(index: int) -> int:
    """Not the index, so that a mix-up of the two is seen."""
    return 1000 + 7 * index


def span(index: int) -> tuple[int, int]:
    """Positions of the subject, as its roles say."""
    roles = FACTS[index].roles
    start = next(i for i, role in enumerate(roles) if role)
    return start, roles.index("last subject") + 1 if "last subject" in roles else len(roles)


def subject(index: int) -> str:
    """Its tokens, without the space before it."""
    start, stop = span(index)
    return "".join(FACTS[index].tokens[start:stop]).strip()


def offsets(index: int) -> list[tuple[int, int]]:
    """Characters of each token."""
    bounds = [0, *accumulate(len(token) for token in FACTS[index].tokens)]
    return list(pairwise(bounds))


def p_clean(index: int) -> float:
    """Exact in float32."""
    return 0.5 + index / 16


def clean_scores(index: int, metric: str) -> npt.NDArray[np.float32]:
    """`(sample,)`; exact in float32. Each sample has a foil of its own."""
    scores = np.full(N_SAMPLES, p_clean(index) + METRICS.index(metric), dtype=np.float32)
    if metric == "logit_difference":
        scores += np.arange(N_SAMPLES, dtype=np.float32) / 4
    return scores


def p_corrupted(index: int) -> npt.NDArray[np.float32]:
    """`(sample,)`; exact in float32."""
    return np.array([0.125 + index / 64, 0.25], dtype=np.float32)


def p_restored(index: int, key: str) -> npt.NDArray[np.float32]:
    """`(sample, layer, position)`: every number differs from every other."""
    shape = (N_SAMPLES, N_LAYERS, len(FACTS[index].tokens))
    generator = np.random.RandomState(index + 100 * len(key))
    return generator.rand(*shape).astype(np.float32)


def activations(
    index: int, site: str, dtype: Any = np.float32, kind: str = "clean"
) -> npt.NDArray[Any]:
    """`(layer, position, feature)`, with a first axis `sample` of the corrupted run.

    Nothing for facts that are no candidates.
    """
    axes = [N_SAMPLES] if kind == "corrupted" else []
    if not FACTS[index].is_candidate:
        return np.zeros([0] * (len(axes) + 3), dtype=dtype)
    generator = np.random.RandomState(index + 100 * len(site) + ord(site[0]))
    states = generator.randn(*axes, N_LAYERS, len(FACTS[index].tokens), WIDTH).astype(np.float32)
    if dtype == np.uint16:
        return (states.view(np.uint32) >> 16).astype(np.uint16)
    return states.astype(dtype)


def write_clean(
    folders: RunFolders,
    indices: Sequence[int] = range(len(FACTS)),
    fingerprint: Mapping[str, Any] = CLEAN_PRINT,
    as_index: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    relations: Mapping[int, str] = {},  # never changed
) -> None:
    """One part a fact, in the order given; `as_index` is another row of the dataset for it."""
    for index in indices:
        fact = FACTS[index]
        record: dict[str, Any] = {
            "index": index if as_index is None else as_index,
            "known_id": known_id(index),
            "prompt": "".join(fact.tokens),
            "subject": subject(index),
            "attribute": "!",
            "relation_id": relations.get(index, ""),
            "left_out": "" if fact.is_candidate else "another answer is predicted",
            "is_candidate": fact.is_candidate,
            "input_ids": list(range(len(fact.tokens))),
            "tokens": list(fact.tokens),
            "offsets": offsets(index),
            "roles": list(fact.roles),
            "span": span(index),
            "answer_ids": [3],
            "also_ids": np.empty(0, dtype=np.int64),
            "also_lengths": np.empty(0, dtype=np.int64),
            "predicted_ids": [3],
            "predicted": "!",
            "predicted_probability": 0.5,
            "probability": p_clean(index) if fact.is_candidate else float("nan"),
        }
        with folders.clean.writer(fingerprint, provenance) as writer:
            writer.add(record)


def write_activations(
    folders: RunFolders,
    indices: Sequence[int] = range(len(FACTS)),
    dtype: Any = np.float32,
    kind: str = "clean",
    **kept: Any,
) -> None:
    """All facts in one part, in the order given; `kept` is what the fingerprint says of it."""
    folders.run.mkdir(parents=True, exist_ok=True)  # as any stage leaves it
    whole = {"sites": [*SITES], "layers": None, "positions": "all"}
    samples = {"samples": N_SAMPLES} if kind == "corrupted" else {}
    prints = {"clean": CLEAN_PRINT, "corrupted": NOISE_PRINT}
    fingerprint = {**prints[kind], "activations": {**whole, **samples, **kept}}
    with folders.activations(kind).writer(fingerprint) as writer:
        for index in indices:
            fact = FACTS[index]
            tokens = fact.tokens if fact.is_candidate else ()
            record = StatesRecord(
                index=index,
                known_id=known_id(index),
                layers=np.arange(N_LAYERS if fact.is_candidate else 0),
                positions=np.arange(len(tokens)),
                roles=fact.roles[: len(tokens)],
                states={site: activations(index, site, dtype, kind) for site in SITES},
            )
            writer.add(record.row())


def write_corrupted(
    folders: RunFolders, indices: Sequence[int], fingerprint: Mapping[str, Any] = NOISE_PRINT
) -> None:
    """All facts in one part."""
    with folders.corrupted.writer(fingerprint, {"noise": {"measured_on": MEASURED_ON}}) as writer:
        for index in indices:
            record: dict[str, Any] = {
                "index": index,
                "known_id": known_id(index),
                "left_out": "",
                "sigma": 0.25,
                "noise_level": 0.75,
                "foil_ids": [[4]] * N_SAMPLES,
                "foil": ["?"] * N_SAMPLES,
            }
            for offset, metric in enumerate(METRICS):
                record[f"clean_{metric}"] = clean_scores(index, metric)
                record[metric] = p_corrupted(index) + offset
            writer.add(record)


def write_restored(
    folders: RunFolders,
    key: str,
    indices: Sequence[int],
    fingerprint: Mapping[str, Any] = NOISE_PRINT,
    scores: Mapping[int, npt.NDArray[np.float32]] | None = None,
) -> None:
    """All facts in one part."""
    with folders.restored(key).writer({**fingerprint, "mediator": key}) as writer:
        for index in indices:
            values = p_restored(index, key) if scores is None else scores[index]
            # As in the corrupted runs: metrics differ by whole numbers.
            metrics = {metric: values[:, :, None] + offset for offset, metric in enumerate(METRICS)}
            metrics["probability"] = metrics["probability"].clip(0, 1)
            places = np.arange(values.shape[-1])
            record = RestoredRecord(index, known_id(index), key, places, metrics)
            writer.add(record.row())


CANDIDATES = tuple(index for index, fact in enumerate(FACTS) if fact.is_candidate)


def write_run(root: Path, keys: Sequence[str] = ("hidden", "mlp-w3")) -> RunFolders:
    """A complete run, written out of order as shards would."""
    folders = RunFolders(root / "outputs" / "toy" / "made-up" / "gaussian-x3-n2-seed1")
    write_clean(folders, (3, 0, 5, 2, 1, 4))
    for some in ((3, 0), (5, 2, 1), (4,)):
        write_activations(folders, some)
    write_corrupted(folders, CANDIDATES[::-1])
    for key in keys:
        write_restored(folders, key, CANDIDATES[1:])
        write_restored(folders, key, CANDIDATES[:1])
    return folders
