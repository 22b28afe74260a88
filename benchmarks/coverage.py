"""How often the 95 % intervals hold the true mean, on simulated effects whose mean is known.

    python -m benchmarks.coverage                  # 1,000 repetitions

Each repetition draws facts, each fact positions and noise samples, and estimates an average as the
analysis does. A percentile bootstrap of the same draws stands beside it.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from ktrace.analysis.intervals import N_RESAMPLES, interval

Draw = Callable[[np.random.Generator, int, int], np.ndarray]

# Effects of a fact, by the shape of their distribution over facts, and their mean.
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, n, r: g.normal(0.2, 0.1, (n, r)), 0.2),
    "skewed": (lambda g, n, r: g.beta(0.3, 1.5, (n, r)), 0.3 / 1.8),
    "two groups": (lambda g, n, r: g.beta(0.5, 0.5, (n, r)), 0.5),
    "mostly nothing": (
        lambda g, n, r: np.where(g.random((n, r)) < 0.7, g.normal(0, 0.01, (n, r)), 0.5),
        0.15,
    ),
}
SIZES = (20, 50, 100, 408)


def coverage(
    draw: Draw, mean: float, n_facts: int, repetitions: int, pool: str, seed: int = 0
) -> tuple[float, float]:
    """Share of intervals that hold the mean: ours, and the percentile bootstrap's."""
    generator = np.random.default_rng(seed)
    effects = draw(generator, n_facts, repetitions)
    # Ten noise samples, averaged.
    effects = effects + generator.normal(0, 0.05, (n_facts, repetitions)) / np.sqrt(10)
    drawn = generator.multinomial(n_facts, np.full(n_facts, 1 / n_facts), N_RESAMPLES)
    if pool == "facts":
        low, high = interval(effects, np.ones(n_facts))
        bounds = np.percentile(drawn @ effects / n_facts, [2.5, 97.5], axis=0)
    else:
        pairs = []
        for column in effects.T:
            weights = generator.integers(1, 6, n_facts).astype(np.float64)
            totals = column * weights
            ours = np.concatenate(interval(totals[:, None], weights))
            theirs = np.percentile((drawn @ totals) / (drawn @ weights), [2.5, 97.5])
            pairs.append((*ours, *theirs))
        low, high, *bounds = np.array(pairs).T
    return _share(low, high, mean), _share(bounds[0], bounds[1], mean)


def _share(low: np.ndarray, high: np.ndarray, mean: float) -> float:
    return float(np.mean((low <= mean) & (mean <= high)))


def main(arguments: Sequence[str] | None = None) -> str:
    """Print a table; returns it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args(arguments)
    lines = [
        "| effects | pool | facts | coverage | of a percentile bootstrap |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (draw, mean) in DISTRIBUTIONS.items():
        for pool in ("facts", "positions"):
            for n_facts in options.sizes:
                ours, theirs = coverage(draw, mean, n_facts, options.repetitions, pool)
                lines.append(f"| {name} | {pool} | {n_facts} | {ours:.3f} | {theirs:.3f} |")
                print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
