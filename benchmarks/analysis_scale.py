"""How long the analysis takes, and how much memory, on a store of the published size.

    python -m benchmarks.analysis_scale                     # 1,209 facts x 5 mediators x 32 layers
    python -m benchmarks.analysis_scale --facts 100         # smaller

The store is made up, through the same writers that a run uses, and removed afterwards. Each
measurement is a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypedDict

import numpy as np

from ktrace.store import CleanRecord, CorruptedRecord, RestoredRecord, RunFolders
from ktrace.terms import METRICS

KEYS = ("hidden", "hidden_attn_severed", "hidden_mlp_severed", "mlp-w10", "attn-w10")


def write_store(run: Path, *, facts: int, layers: int, samples: int, seed: int = 0) -> None:
    """A complete run of five mediators; prompts have 7 to 13 positions, subjects 1 to 4.

    Args:
        run: `outputs/<model>/<dataset>/<noise>`.
        facts: candidates.
        layers: of the model.
        samples: of the noise.
        seed: of the made-up numbers.
    """
    folders = RunFolders(run)
    generator = np.random.default_rng(seed)
    lengths = generator.integers(7, 14, size=facts).tolist()
    settings: dict[str, object] = {"model": {"identity": "made up"}, "dataset": {"n_facts": facts}}
    with folders.clean.writer(settings) as writer:
        for index, length in enumerate(lengths):
            writer.add(_clean(index, length, generator).row())
    settings |= {"noise": {"samples": samples, "seed": 1}}
    with folders.corrupted.writer(settings) as writer:
        for index in range(facts):
            writer.add(_corrupted(index, samples, generator).row())
    for key in KEYS:
        with folders.restored(key).writer(settings | {"mediator": key}) as writer:
            for index, length in enumerate(lengths):
                shape = (samples, layers, 1, length)
                scores = {m: generator.random(shape, dtype=np.float32) for m in METRICS}
                writer.add(RestoredRecord(index, index, key, np.arange(length), scores).row())


def _clean(index: int, length: int, generator: np.random.Generator) -> CleanRecord:
    stop = 1 + int(generator.integers(1, 5))
    subject = ["first subject", *["middle subject"] * 2, "last subject"]
    roles = ["", *subject[: stop - 2], "last subject", "first subsequent"]
    roles += ["further"] * (length - len(roles) - 1) + ["last"]
    return CleanRecord(
        index=index,
        known_id=index,
        prompt=f"prompt {index}",
        subject=f"subject {index}",
        attribute=f"attribute {index}",
        relation_id="",
        left_out="",
        is_candidate=True,
        input_ids=np.arange(length),
        tokens=[f" t{code}" for code in generator.integers(0, 5000, length)],
        offsets=np.zeros((length, 2), dtype=np.int64),
        roles=roles,
        span=(1, stop),
        answer_ids=np.array([0]),
        predicted_ids=np.array([0]),
        predicted="",
        predicted_probability=0.9,
        probability=0.9,
    )


def _corrupted(index: int, samples: int, generator: np.random.Generator) -> CorruptedRecord:
    return CorruptedRecord(
        index=index,
        known_id=index,
        left_out="",
        sigma=0.05,
        noise_level=0.15,
        foil_ids=np.full((samples, 1), 1),
        foil=[""] * samples,
        clean={metric: np.full(samples, 0.9) for metric in METRICS},
        corrupted={metric: generator.random(samples) / 10 for metric in METRICS},
    )


def _averages(run: Path) -> None:
    from ktrace.analysis.averaged_run import average_run
    from ktrace.analysis.rows import Averaging

    average_run(run, Averaging())


def _averages_and_effects(run: Path) -> None:
    from ktrace.analysis.averaged_run import average_run
    from ktrace.analysis.effects_file import effects_written
    from ktrace.analysis.rows import Averaging

    average_run(run, Averaging(), watch=effects_written(run / "effects.parquet"))


def _whole_stage(run: Path) -> None:
    from ktrace.analysis.analyze import analyze

    analyze(run)


class Measured(TypedDict):
    """Seconds on the clock, seconds of the processors, and GiB."""

    seconds: float
    processor_seconds: float
    peak_gib: float


def measured(work: Callable[[Path], None], run: Path) -> Measured:
    """A call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, run, sender))
    process.start()
    sender.close()
    try:
        found: Measured = receiver.recv()
    finally:
        process.join()
    return found


def _report(work: Callable[[Path], None], run: Path, sender: Connection) -> None:
    start, of_processors = time.perf_counter(), time.process_time()
    work(run)
    seconds, used = time.perf_counter() - start, time.process_time() - of_processors
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    sender.send({"seconds": seconds, "processor_seconds": used, "peak_gib": peak})


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Make the store, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=1209)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "outputs" / "made-up" / "facts" / "gaussian-x3-n10-seed1"
        write_store(run, **vars(options))
        found: dict[str, object] = {
            **vars(options),
            "the averages": measured(_averages, run),
            "the averages and effects.parquet": measured(_averages_and_effects, run),
            "the whole stage": measured(_whole_stage, run),
            "effects.parquet_gib": (run / "analysis" / "effects.parquet").stat().st_size / 2**30,
        }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
