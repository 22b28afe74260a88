"""Seconds a fact on the GPT-2-small shape: suffix engine, reference engine and peers, paired.

    python -m benchmarks.gpt2_small --write report.md

Random weights, float32; the first published facts, as the GPT-2 tokenizer cuts them
(known_prompts.json). The suffix engine is timed on whole facts. The others run the same forward
pass for every cell, so some cells of each fact are timed, spread over layers and positions, and
scaled to all of them. Contestants alternate, in another order for each fact.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from benchmarks.arithmetic import Shape, ceiling, gpt2_shape, loop_operations, operations
from benchmarks.peers import PEERS, CellRunner, Probabilities
from ktrace.config import EngineConfig
from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import Direction
from ktrace.tracing.engine import Case, Scores, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine

CPU = torch.device("cpu")
HIDDEN = make_mediator("hidden", 1)
REFERENCE = "ktrace reference"
PROMPTS = Path(__file__).with_name("known_prompts.json")


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the benchmark, print and optionally write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n-facts", type=int, default=20, help="at most 20")
    parser.add_argument(
        "--tokenizer", type=Path, help="GPT-2's, which TransformerLens else asks the hub for"
    )
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--cells", type=int, default=3, help="timed cells a fact and contestant")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=5, help="of the growth's measurements")
    parser.add_argument("--largest", type=int, default=16, help="L, T and facts of the growth")
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    options = parser.parse_args(arguments)

    lm, public = _models(options)
    cases = _cases(options)
    noise = RandomNoise(3 * 0.02, options.samples)
    measured = _measure(lm, public, cases, noise, options)
    walks = _mediators(lm, cases[:5], noise, options)
    alone = _one_sample(lm, cases[:5])
    report = _report(options, cases, measured, walks, alone, _growth(options))
    print(report)
    if options.write:
        options.write.write_text(report, encoding="utf-8")
    return report


def _models(options: argparse.Namespace) -> tuple[LanguageModel, LanguageModel]:
    """The model as ktrace loads it on a CPU, and as transformers does, for the peers."""
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.width,
        n_head=max(1, options.width // 64),
        vocab_size=options.vocabulary,
    )
    torch.manual_seed(0)
    public = AutoModelForCausalLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else None
    return _as_loaded(config, public), language_model(public, tokenizer)


def _as_loaded(config: GPT2Config, public: Any = None) -> LanguageModel:
    # The same function and the same attention by other kernels (ktrace/lm/load.py).
    config = GPT2Config.from_dict(config.to_dict() | {"activation_function": "gelu_pytorch_tanh"})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if public is not None:
        model.load_state_dict(public.state_dict())
    return language_model(model)


def _cases(options: argparse.Namespace) -> list[Case]:
    records = json.loads(PROMPTS.read_text("utf-8"))[: options.n_facts]
    return [
        Case(
            number,
            tuple(token % options.vocabulary for token in record["input_ids"]),
            Span(*record["span"]),
            (5,),
        )
        for number, record in enumerate(records)
    ]


def _made_up(number: int, length: int, vocabulary: int) -> Case:
    ids = np.random.RandomState(number).randint(0, vocabulary, length).tolist()
    return Case(number, tuple(ids), Span(0, min(2, length)), (5,))


@dataclass
class Measured:
    """What was measured, one entry for each fact.

    Attributes:
        suffix: seconds a fact.
        others: by contestant, seconds a fact, scaled from the timed cells.
        difference: by contestant, largest |Δp| to the suffix engine in the timed cells.
        ceilings: operations a second.
        missing: contestants that could not run, and why.
    """

    suffix: list[float] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    ceilings: list[float] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def _measure(
    lm: LanguageModel,
    public: LanguageModel,
    cases: Sequence[Case],
    noise: RandomNoise,
    options: argparse.Namespace,
) -> Measured:
    measured = Measured()
    runners: dict[str, CellRunner] = {}
    for name, make in PEERS.items():
        try:
            # Each gets a model of its own: some wrap its modules for good.
            own = lm if name == REFERENCE else public
            runners[name] = make(replace(own, model=deepcopy(own.model)), noise)
            runners[name](cases[0], 0, cases[0].span.start)  # warm up
        except Exception as error:  # a peer that fails is reported, not hidden
            lines = str(error).splitlines() or ["without a word"]
            measured.missing[name] = f"{type(error).__name__}: {lines[0]}"
            runners.pop(name, None)
    engine = make_engine(EngineConfig(), lm, noise, Use([HIDDEN], [c.shape for c in cases]))
    list(engine.restored([cases[0]], [HIDDEN]))
    group_of = {
        case.index: group for group in group_cases(cases, engine.cases_together) for case in group
    }
    results: dict[int, tuple[float, dict[str, Scores]]] = {}

    def trace_group(case: Case) -> None:
        group = group_of[case.index]
        began = time.perf_counter()
        found = list(engine.restored(group, [HIDDEN]))
        seconds = (time.perf_counter() - began) / len(group)
        results.update({done.index: (seconds, dict(scores)) for done, scores in found})

    names = ["", *runners]  # the suffix engine has no name there
    for number, case in enumerate(cases):
        measured.ceilings.append(ceiling(CPU, torch.float32, _product(options)))
        cells = _spread_cells(lm, case, options.cells)
        found: dict[str, list[Probabilities]] = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if not name:
                if case.index not in results:
                    trace_group(case)
                continue
            began = time.perf_counter()
            found[name] = [runners[name](case, layer, position) for layer, position in cells]
            seconds = (time.perf_counter() - began) / len(cells)
            # The reference engine too leaves out what comes before the subject.
            first = case.span.start if name == REFERENCE else 0
            n_all = lm.n_layers * (len(case.input_ids) - first)
            measured.others.setdefault(name, []).append(seconds * n_all)
        seconds, restored = results[case.index]
        measured.suffix.append(seconds)
        scores = restored[HIDDEN.key]["probability"]
        for name, by_cell in found.items():
            worst = max(
                float(np.abs(scores[:, layer, position] - p).max())
                for (layer, position), p in zip(cells, by_cell, strict=True)
            )
            measured.difference[name] = max(measured.difference.get(name, 0.0), worst)
    return measured


def _product(options: argparse.Namespace) -> tuple[int, int, int]:
    """Of many rows with the weights of the MLP's first layer: the largest of a block."""
    return 1024, options.width, 4 * options.width


def _spread_cells(lm: LanguageModel, case: Case, n_cells: int) -> list[tuple[int, int]]:
    layers = np.linspace(0, lm.n_layers - 2, n_cells).round().astype(int)
    positions = np.linspace(case.span.start, len(case.input_ids) - 1, n_cells).round().astype(int)
    return list(zip(layers.tolist(), positions.tolist()[::-1], strict=True))


@dataclass(frozen=True)
class Walked:
    """What mediators that walk together cost: medians over the facts.

    Attributes:
        title: of the row.
        seconds: a fact.
        times_hidden: of pairs, as long as `hidden` alone.
        operations: of pairs, as many as `hidden` alone needs.
        share: of the ceiling, which is measured beside each.
    """

    title: str
    seconds: float
    times_hidden: float
    operations: float
    share: float


def _walks() -> dict[str, list[Mediator]]:
    """Mediators by the row's title."""
    at_last = make_mediator("head", 1, positions=["last"])
    return {
        "`hidden`": [HIDDEN],
        "`mlp-w10`": [make_mediator("mlp", 10)],
        "`attn-w10`": [make_mediator("attn", 10)],
        "`mlp`, windows 1, 3, 5, 10 in one walk": [make_mediator("mlp", w) for w in (1, 3, 5, 10)],
        "`head` at the last position": [at_last],
        "`head` at last subject and last": [make_mediator("head", 1)],
        "`knockout-w9`": [make_mediator("knockout", 9)],
        "`hidden-noise`": [make_mediator("hidden", 1, Direction.noise)],
    }


def _mediators(
    lm: LanguageModel, cases: Sequence[Case], noise: RandomNoise, options: argparse.Namespace
) -> list[Walked]:
    walks, found = _walks(), []
    use = Use([m for some in walks.values() for m in some], [case.shape for case in cases])
    engine = make_engine(EngineConfig(), lm, noise, use)
    config = lm.model.config
    shape = gpt2_shape(lm.n_layers, lm.d_embedding, config.vocab_size, config.n_head)
    # As in a run, where corrupted runs come first.
    cases = [
        replace(case, baseline=baseline)
        for one in cases
        for case, baseline in engine.baseline([one])
    ]
    for title, mediators in walks.items():
        seconds, times, counted, shares = [], [], [], []
        list(engine.restored([cases[0]], mediators))  # warm up
        for case in cases:
            peak = ceiling(CPU, torch.float32, _product(options))
            pair = []
            for some in (mediators, [HIDDEN]):
                began = time.perf_counter()
                list(engine.restored([case], some))
                pair.append(time.perf_counter() - began)
            needed, of_hidden = (
                _operations(shape, case, some, noise.samples) for some in (mediators, [HIDDEN])
            )
            seconds.append(pair[0])
            times.append(pair[0] / pair[1])
            counted.append(needed / of_hidden)
            shares.append(needed / pair[0] / peak)
        medians = (statistics.median(one) for one in (seconds, times, counted, shares))
        found.append(Walked(title, *medians))
    return found


def _one_sample(lm: LanguageModel, cases: Sequence[Case]) -> tuple[float, float]:
    """With one noise sample: median seconds a fact, and how often as long the reference takes."""
    noise = RandomNoise(3 * 0.02, 1)
    use = Use([HIDDEN], [case.shape for case in cases])
    engines = [make_engine(EngineConfig(), lm, noise, use), ReferenceEngine(lm, noise)]
    seconds: list[list[float]] = []
    for case in cases:
        pair = []
        for engine in engines:
            began = time.perf_counter()
            list(engine.restored([case], [HIDDEN]))
            pair.append(time.perf_counter() - began)
        seconds.append(pair)
    ratios = [reference / own for own, reference in seconds]
    return statistics.median(own for own, _ in seconds), statistics.median(ratios)


def _operations(shape: Shape, case: Case, mediators: Sequence[Mediator], samples: int) -> float:
    return operations(shape, mediators, len(case.input_ids), case.span, samples)


def _growth_base(options: argparse.Namespace) -> dict[str, int]:
    half, quarter = options.largest // 2, options.largest // 4
    return {"n_layers": half, "length": half, "samples": 5, "n_facts": quarter}


def _growth(options: argparse.Namespace) -> list[tuple[str, list[tuple[int, float]]]]:
    """Seconds a fact of the suffix engine as one of L, T, S, facts grows, on a small shape."""
    width, vocabulary = min(256, options.width), min(5000, options.vocabulary)
    most = options.largest

    def prepared(n_layers: int, length: int, samples: int, n_facts: int) -> Callable[[], float]:
        torch.manual_seed(0)
        config = GPT2Config(n_layer=n_layers, n_embd=width, n_head=4, vocab_size=vocabulary)
        cases = [_made_up(number, length, vocabulary) for number in range(n_facts)]
        use = Use([HIDDEN], [case.shape for case in cases])
        engine = make_engine(EngineConfig(), _as_loaded(config), RandomNoise(0.06, samples), use)
        groups = group_cases(cases, engine.cases_together)

        def seconds() -> float:
            began = time.perf_counter()
            for group in groups:
                list(engine.restored(group, [HIDDEN]))
            return (time.perf_counter() - began) / n_facts

        seconds()  # warm up
        return seconds

    base = _growth_base(options)
    axes = {
        "n_layers": (most // 4, most // 2, most),
        "length": (most // 4, most // 2, most),
        "samples": (1, 5, 10),
        "n_facts": (1, most // 4, most),
    }
    settings = {
        (name, value): {**base, name: value} for name, axis in axes.items() for value in axis
    }
    distinct = {tuple(setting.values()): prepared(**setting) for setting in settings.values()}
    rounds = [{key: timed() for key, timed in distinct.items()} for _ in range(options.rounds)]
    median = {key: statistics.median(found[key] for found in rounds) for key in distinct}
    return [
        (name, [(value, median[tuple(settings[name, value].values())]) for value in axis])
        for name, axis in axes.items()
    ]


def _report(
    options: argparse.Namespace,
    cases: Sequence[Case],
    measured: Measured,
    walks: Sequence[Walked],
    alone: tuple[float, float],
    growth: Sequence[tuple[str, list[tuple[int, float]]]],
) -> str:
    shape = gpt2_shape(options.layers, options.width, options.vocabulary)
    peak = statistics.median(measured.ceilings)
    m, k, n = _product(options)
    base = _growth_base(options)
    needed = [_operations(shape, case, [HIDDEN], options.samples) for case in cases]
    shares = [n / s / peak for n, s in zip(needed, measured.suffix, strict=True)]
    loops = [loop_operations(shape, len(case.input_ids), options.samples) for case in cases]
    lines = [
        "# Benchmarks",
        "",
        "[ktrace](../README.md). Written by `python -m benchmarks.gpt2_small`, not by hand. "
        + _method(options, cases),
        "",
        f"{_machine()}; {datetime.date.today().isoformat()}; {_versions()}.",
        "",
        "## Seconds a fact, mediator `hidden`",
        "",
        "| Contestant | median seconds a fact | times the suffix engine (median of pairs) "
        "| largest difference of p to the suffix engine |",
        "| --- | --- | --- | --- |",
        f"| ktrace suffix | {statistics.median(measured.suffix):.3f} | 1 | |",
    ]
    for name, seconds in measured.others.items():
        ratios = [s / own for s, own in zip(seconds, measured.suffix, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(seconds):.2f} | {statistics.median(ratios):.1f} "
            f"| {measured.difference[name]:.1e} |"
        )
    lines += [f"| {name} | did not run: {why} | | |" for name, why in measured.missing.items()]
    lines += [
        "",
        "## Share of the arithmetic ceiling",
        "",
        f"Ceiling: {peak / 1e9:.0f} Gflop/s, a float32 product of {m} x {k} by {k} x {n} by "
        "torch's BLAS or by oneDNN, whichever is faster, median over the facts. Operations are "
        "counted for the method (`benchmarks/arithmetic.py`), not measured.",
        "",
        "| | median |",
        "| --- | --- |",
        f"| operations a fact, the method | {statistics.median(needed) / 1e12:.3f} Tflop |",
        "| operations a fact, one pass for each cell "
        f"| {statistics.median(loops) / 1e12:.3f} Tflop |",
        f"| share of the ceiling, suffix engine | {statistics.median(shares):.2f} |",
        "",
        "Medians over the first five facts, one at a time; times `hidden` within pairs.",
        "",
        "| Mediators | seconds a fact | times `hidden` | operations by those of `hidden` "
        "| share of the ceiling |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {one.title} | {one.seconds:.2f} | {one.times_hidden:.3f} | {one.operations:.3f} "
            f"| {one.share:.2f} |"
            for one in walks
        ),
        "",
        f"With one noise sample (first five facts, one at a time): {alone[0]:.2f} s a fact; the "
        f"reference engine takes {alone[1]:.1f} times as long.",
        "",
        "## Growth of the suffix engine's cost",
        "",
        f"Width {min(256, options.width)}; {base['n_layers']} layers, {base['length']} positions, "
        f"{base['samples']} samples and {base['n_facts']} facts, unless varied. Seconds a fact, "
        f"median of {options.rounds} rounds.",
        "",
        "| Varied | | | |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in growth:
        cells = " | ".join(f"{value}: {seconds:.4f}" for value, seconds in values)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def _method(options: argparse.Namespace, cases: Sequence[Case]) -> str:
    lengths = sorted(len(case.input_ids) for case in cases)
    return (
        f"GPT-2 shape ({options.layers} layers, width {options.width}, vocabulary "
        f"{options.vocabulary}), random weights, float32, {options.samples} noise samples, "
        f"{len(cases)} facts (the first published ones, {lengths[0]} to {lengths[-1]} tokens). The "
        "suffix engine runs whole facts; those of one shape share a batch, as in a run. The others "
        f"run one forward pass for each cell: {options.cells} cells of each fact are timed, scaled "
        "to all layers and positions, for the reference engine to those from the subject on, as it "
        "leaves out the others. Contestants alternate, in another order for each fact; ratios are "
        "taken within a fact, which has the time of its batch. ktrace's engines run the model as "
        "ktrace loads it on a CPU, the peers as transformers does; the suffix engine multiplies by "
        "oneDNN ([engines](runs.md#engines))."
    )


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def _versions() -> str:
    found = []
    for package in ("torch", "transformers", "nnsight", "transformer-lens", "pyvene"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


if __name__ == "__main__":
    main()
