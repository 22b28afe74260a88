"""The Llama-3.1-8B shape on an accelerator: seconds a fact, utilisation, ratio to the reference.

    python -m benchmarks.llama_cuda --write docs/benchmarks-cuda.md
    python -m benchmarks.llama_cuda --shape micro --device cpu      # anywhere, in seconds

Random weights are made on the device. All five mediators run in one call.
"""

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.arithmetic import Shape, ceiling, operations, synchronize
from ktrace.config import EngineConfig
from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import PUBLISHED_MEDIATORS
from ktrace.tracing.engine import Case, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine

SHAPES: dict[str, dict[str, int]] = {
    "llama3_8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "micro": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
    },
}
# Lengths and subject starts of known facts with a BOS token before them.
_PROMPTS = ((11, 1), (7, 1), (8, 1), (8, 1), (12, 1), (12, 2), (18, 5), (10, 1))


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the benchmark, print and optionally write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama3_8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--cells", type=int, default=8, help="timed cells of the reference engine")
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    options = parser.parse_args(arguments)

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    lm = _model(SHAPES[options.shape], device, dtype)
    noise = RandomNoise(0.06, options.samples)
    mediators = [make_mediator(name, 10) for name in PUBLISHED_MEDIATORS]
    cases = _cases(SHAPES[options.shape]["vocab_size"])
    engine = make_engine(EngineConfig(), lm, noise, Use(mediators, [c.shape for c in cases]))
    groups = group_cases(cases, engine.cases_together)
    list(engine.restored(groups[0], mediators))  # warm up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronize(device)
    began = time.perf_counter()
    for group in groups:
        list(engine.restored(group, mediators))
    synchronize(device)
    seconds = (time.perf_counter() - began) / len(cases)
    needed = [
        operations(_shape(lm), mediators, len(c.input_ids), c.span, options.samples) for c in cases
    ]
    peak = ceiling(device, dtype, (4096, 4096, 14336) if device.type == "cuda" else (256, 256, 256))
    reference = _reference_seconds(lm, noise, cases[0], options.cells)
    cells = np.mean([lm.n_layers * (len(c.input_ids) - c.span.start) for c in cases])
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report = "\n".join(
        (
            f"# {options.shape} on {name}",
            "",
            f"Written by `python -m benchmarks.llama_cuda` on {datetime.date.today().isoformat()}, "
            f"torch {torch.__version__}. Random {options.dtype} weights, {options.samples} noise "
            f"samples, {len(cases)} facts of {min(len(c.input_ids) for c in cases)} to "
            f"{max(len(c.input_ids) for c in cases)} tokens, five mediators.",
            "",
            "| | |",
            "| --- | --- |",
            f"| seconds a fact, five mediators | {seconds:.4f} |",
            f"| seconds a cell, reference engine | {reference:.5f} |",
            f"| times faster than the reference engine | "
            f"{reference * cells * len(mediators) / seconds:.1f} |",
            f"| operations a fact | {np.mean(needed) / 1e12:.4g} Tflop |",
            f"| ceiling | {peak / 1e12:.4g} Tflop/s |",
            f"| utilisation | {np.mean(needed) / seconds / peak:.2f} |",
            f"| peak memory | {memory:.1f} GiB |",
            "",
        )
    )
    print(report)
    if options.write:
        options.write.write_text(report, encoding="utf-8")
    return report


def _model(sizes: dict[str, int], device: torch.device, dtype: torch.dtype) -> LanguageModel:
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=dtype)
    return language_model(model)


def _cases(vocabulary: int) -> list[Case]:
    generator = np.random.RandomState(0)
    return [
        Case(number, tuple(generator.randint(0, vocabulary, n).tolist()), Span(b, b + 2), (5,))
        for number, (n, b) in enumerate(_PROMPTS)
    ]


def _shape(lm: LanguageModel) -> Shape:
    config: Any = lm.model.config
    d, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    return Shape(
        n_layers=lm.n_layers,
        d_model=d,
        vocabulary=config.vocab_size,
        keys_values=2 * d * head * config.num_key_value_heads,
        queries=d * d,
        output=d * d,
        mlp=3 * d * config.intermediate_size,
    )


def _reference_seconds(lm: LanguageModel, noise: RandomNoise, case: Case, n_cells: int) -> float:
    engine, hidden = ReferenceEngine(lm, noise), make_mediator("hidden", 1)
    engine.cell(case, hidden, 0, case.span.start)
    synchronize(lm.device)
    began = time.perf_counter()
    for layer in range(n_cells):
        # Two passes: the corrupted run that is scored against, and the cell's own.
        engine.cell(case, hidden, layer % lm.n_layers, case.span.start)
    synchronize(lm.device)
    return (time.perf_counter() - began) / (2 * n_cells)


if __name__ == "__main__":
    main()
