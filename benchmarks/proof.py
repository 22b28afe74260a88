"""Seconds that the suffix engine's proof takes on the GPT-2-small shape: at first, and once known.

    python -m benchmarks.proof

Random weights, float32. The longest prompt is what `ktrace.trace` has it proven for.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from ktrace.config import Prove
from ktrace.lm.load import language_model
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.engine import Shape, Use
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.suffix.judge import judge
from ktrace.tracing.suffix.limits import MEASURED

_WINDOW = 10


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--length", type=int, default=16, help="tokens of the longest prompt")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.width,
        vocab_size=options.vocabulary,
        activation_function="gelu_pytorch_tanh",
    )
    lm = language_model(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))

    def seconds(name: str, prove: Prove) -> float:
        use = Use([make_mediator(name, _WINDOW)], [Shape(options.length, 1)])
        began = time.perf_counter()
        verdict = judge(lm, use, MEASURED, prove)
        assert verdict.problem is None
        return time.perf_counter() - began

    lines = ["| Mediator | seconds (median) | once known |", "| --- | --- | --- |"]
    for name in MEDIATOR_NAMES:
        anew = statistics.median(seconds(name, Prove.always) for _ in range(options.rounds))
        lines.append(f"| {name} | {anew:.2f} | {seconds(name, Prove.auto):.4f} |")
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    main()
