"""Size and opening time of the HTML report of a large run.

    python -m benchmarks.report_scale                     # 1,209 facts x 5 mediators x 32 layers
    python -m benchmarks.report_scale --facts=40 --layers=8

The scores are made up, but not simple: each noise sample has its own, every cell differs from its
neighbours, and the five metrics follow from the logits as they do in a model. What is easy to
deflate here is so in real runs: nothing happens before the subject, and probabilities are small.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import numpy.typing as npt

from benchmarks.chromium import chromium, missing_programs, open_report
from ktrace.analysis.averaged_run import average_run
from ktrace.analysis.report import CellCollector, write_report
from ktrace.analysis.rows import Averaging
from ktrace.analysis.summary import Summary
from ktrace.store import CleanRecord, CorruptedRecord, RestoredRecord, RunFolders
from ktrace.terms import METRICS

MEDIATORS = ("hidden", "hidden_attn_severed", "hidden_mlp_severed", "mlp-w10", "attn-w10")
SAMPLES = 10
WORDS = ("Space", " Needle", " tower", " of", " Rome", " is", " located", " in", " the", " city")

Array = npt.NDArray[np.floating]


def write_stores(folders: RunFolders, n_facts: int, n_layers: int) -> None:
    """Clean, corrupted and restored stores of about ten positions a fact."""
    of_clean: dict[str, object] = {
        "model": {"name": "made-up"},
        "dataset": {"n_facts": n_facts},
    }
    fingerprint = of_clean | {"noise": {"samples": SAMPLES, "seed": 1}}
    generator = np.random.default_rng(0)
    shapes = [_shape(generator) for _ in range(n_facts)]
    corrupted_logits = [generator.normal(3, 1.5, SAMPLES) for _ in range(n_facts)]
    clean_logits = [generator.normal(10, 1.5) for _ in range(n_facts)]
    with folders.clean.writer(of_clean) as writer:
        for index, (n_positions, span) in enumerate(shapes):
            writer.add(_clean(index, n_positions, span).row())
    with folders.corrupted.writer(fingerprint) as writer:
        for index in range(n_facts):
            clean = _metrics(np.array(clean_logits[index]), generator)
            corrupted = _metrics(corrupted_logits[index], np.random.default_rng(index))
            writer.add(_corrupted(index, clean, corrupted).row())
    for key in MEDIATORS:
        with folders.restored(key).writer({**fingerprint, "mediator": key}) as writer:
            for index, (n_positions, span) in enumerate(shapes):
                logits = _restored_logits(
                    clean_logits[index],
                    corrupted_logits[index],
                    (n_layers, n_positions),
                    span,
                    np.random.default_rng([index, MEDIATORS.index(key)]),
                )
                scores = _metrics(logits[:, :, None], np.random.default_rng(index))
                writer.add(RestoredRecord(index, index, key, np.arange(n_positions), scores).row())


def _shape(generator: np.random.Generator) -> tuple[int, tuple[int, int]]:
    n_positions = int(generator.integers(8, 13))
    start = int(generator.integers(1, 4))
    return n_positions, (start, start + int(generator.integers(1, 4)))


def _clean(index: int, n_positions: int, span: tuple[int, int]) -> CleanRecord:
    roles = ["" if position < span[0] else "further" for position in range(n_positions)]
    roles[span[0] : span[1]] = ["middle subject"] * (span[1] - span[0])
    roles[span[0]], roles[span[1] - 1] = "first subject", "last subject"
    roles[span[1]], roles[-1] = "first subsequent", "last"
    tokens = [WORDS[(index + position) % len(WORDS)] for position in range(n_positions)]
    return CleanRecord(
        index=index,
        known_id=index,
        prompt="".join(tokens),
        subject="".join(tokens[span[0] : span[1]]),
        attribute=f"Answer {index}",
        relation_id="",
        left_out="",
        is_candidate=True,
        input_ids=np.arange(n_positions),
        tokens=tokens,
        offsets=np.zeros((n_positions, 2), dtype=np.int64),
        roles=roles,
        span=span,
        answer_ids=np.array([0]),
        predicted_ids=np.array([0]),
        predicted=f"Answer {index}",
        predicted_probability=0.9,
        probability=0.9,
    )


def _corrupted(
    index: int, clean: Mapping[str, Array], corrupted: Mapping[str, Array]
) -> CorruptedRecord:
    return CorruptedRecord(
        index=index,
        known_id=index,
        left_out="",
        sigma=0.1,
        noise_level=0.3,
        foil_ids=np.full((SAMPLES, 1), 1),
        foil=[" Paris"] * SAMPLES,
        clean={metric: np.full(SAMPLES, score) for metric, score in clean.items()},
        corrupted=corrupted,
    )


def _restored_logits(
    clean: float,
    corrupted: Array,
    shape: tuple[int, int],
    span: tuple[int, int],
    generator: np.random.Generator,
) -> Array:
    """`(sample, layer, position)`: an early site at the subject, a late one at the end, noise."""
    n_layers, n_positions = shape
    depth = np.linspace(0, 1, n_layers)[:, None]
    place = np.arange(n_positions)
    share = np.exp(-((place - span[1] + 1) ** 2) / 0.5) * np.exp(-((depth - 0.3) ** 2) / 0.08)
    share = share + (place == n_positions - 1) / (1 + np.exp(-20 * (depth - 0.6)))
    by_sample = share * generator.uniform(0.6, 1.1, (SAMPLES, 1, 1))
    rough = generator.normal(0, 0.15, (SAMPLES, n_layers, n_positions)).cumsum(axis=1) * 0.5
    logits: Array = (
        corrupted[:, None, None] + (clean - corrupted[:, None, None]) * by_sample + rough
    )
    logits[:, :, : span[0]] = corrupted[:, None, None]
    return logits


def _metrics(logits: Array, generator: np.random.Generator) -> dict[str, Array]:
    """The five metrics of an answer's logit, against the rest of a vocabulary."""
    rest, foil = generator.normal(8, 0.5), generator.normal(5, 1)
    log_probability = -np.log1p(np.exp(rest - logits))
    values = {
        "probability": np.exp(log_probability),
        "log_probability": log_probability,
        "logit": logits,
        "logit_difference": logits - foil,
        "kl": -log_probability + 0.05 * np.abs(np.sin(7 * logits)),
    }
    return {name: values[name].astype(np.float32) for name in METRICS}


def main(arguments: Sequence[str] | None = None) -> str:
    """Write the stores and the report, open it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--facts", type=int, default=1209)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="how often it is opened")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        folders = RunFolders(Path(temporary) / "made-up" / "facts" / "gaussian-x3-n10-seed1")
        write_stores(folders, options.facts, options.layers)
        cells = CellCollector()
        run = average_run(folders.run, Averaging(), watch=nullcontext(cells.add))
        start = time.perf_counter()
        summary = _summary(options.facts)
        path = write_report(
            *(run.survey, run.keys, cells.of(run.keys)), summary=summary, figures=list
        )
        lines = [
            f"{options.facts:,} facts, {len(MEDIATORS)} mediators, {options.layers} layers, "
            f"{SAMPLES} samples",
            f"written in {time.perf_counter() - start:.1f} s",
            f"{path.stat().st_size / 1e6:.1f} MB",
        ]
        if missing := missing_programs():
            lines.append(f"not opened: {' and '.join(missing)} missing")
        else:
            for _ in range(options.repeats):
                with chromium() as browser:  # a fresh one each time: nothing is cached
                    lines.append(f"first heatmap after {open_report(browser, path):.2f} s")
    report = "\n".join(lines)
    print(report)
    return report


def _summary(n_facts: int) -> Summary:
    """What the report shows of one."""
    scores = {"clean": 0.8, "corrupted": 0.1, "ate": 0.7, "ate_ci": [0.6, 0.8]}
    counts = dict.fromkeys(("n_facts", "n_candidates", "n_traced"), n_facts)
    shown = {
        **counts,
        "left_out": {},
        "metric": METRICS[0],
        "metrics": {METRICS[0]: scores},
        "layers": {"mediators": {}},
        "answer": "Made up.",
        "n_samples": 10,
        "missing": [],
        "model": "made-up",
        "dataset": "facts",
        "noise": "gaussian-x3-n10-seed1",
    }
    return cast(Summary, shown)


if __name__ == "__main__":
    main()
