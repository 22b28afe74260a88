"""How often the 95 % intervals hold the true value, on simulated effects whose mean is known.

    python -m benchmarks.coverage                  # 4,000 repetitions of each case
    python -m benchmarks.coverage --repetitions 500

Averages: over facts and over positions, with and without relations, IE over TE. Beside each stands
what facts as units give, and how wide the interval is over that of one who knows the true spread.
Then bounds for all cells of a heatmap at once, beside the single ones, and the layers that a peak
may lie in.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtr

from ktrace.analysis.clusters import Array, Clusters
from ktrace.analysis.intervals import averages
from ktrace.analysis.peaks import peak_set

Draw = Callable[[np.random.Generator, int], Array]  # of so many repetitions, (n_facts, n)


@dataclass(frozen=True)
class Case:
    """A kind of effects.

    Attributes:
        name: in the table.
        draw: gives them.
        mean: the true one.
        sizes: of relations; empty for facts without.
        pooled: whether facts have one to five positions, which weigh the same.
        least: coverage that is promised; below 0.93 only where docs/analysis.md names the limit.
        most: likewise; 1 for sparse effects, which are covered too often.
    """

    name: str
    draw: Draw
    mean: float
    sizes: tuple[int, ...] = ()
    pooled: bool = False
    least: float = 0.93
    most: float = 0.975

    @property
    def labels(self) -> Array:
        """The relation of each fact."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


def normal(n_facts: int) -> Draw:
    """Mean 0.2, as dense effects are."""
    return lambda g, n: g.normal(0.2, 0.1, (n_facts, n))


def beta(n_facts: int) -> Draw:
    """Mean 1/11: most facts near nothing, some far up."""
    return lambda g, n: g.beta(0.3, 3, (n_facts, n))


def carriers(n_facts: int, share: float) -> Draw:
    """0.5 at some facts, and nothing at the others."""
    return lambda g, n: np.where(g.random((n_facts, n)) < share, 0.5, 0.0)


def lognormal(n_facts: int) -> Draw:
    """Unbounded, with a long tail; mean sqrt(e)."""
    return lambda g, n: g.lognormal(0, 1, (n_facts, n))


def clustered(sizes: Sequence[int], icc: float) -> Draw:
    """Normal, variance 1, of which `icc` lies between relations; mean 0."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return lambda g, n: (
        np.sqrt(icc) * g.normal(size=(len(sizes), n))[labels]
        + np.sqrt(1 - icc) * g.normal(size=(len(labels), n))
    )


def clustered_carriers(sizes: Sequence[int], share: float, icc: float) -> Draw:
    """0.5 at a share of facts that differs between relations, beta distributed."""
    labels, rest = np.repeat(np.arange(len(sizes)), sizes), (1 - icc) / icc
    return lambda g, n: np.where(
        g.random((len(labels), n))
        < g.beta(share * rest, (1 - share) * rest, (len(sizes), n))[labels],
        0.5,
        0.0,
    )


def zipf(n_relations: int, n_facts: int = 408) -> tuple[int, ...]:
    """Sizes as 1, 1/2, 1/3 and so on."""
    shares = 1 / np.arange(1, n_relations + 1)
    sizes = np.maximum(1, np.round(n_facts * shares / shares.sum())).astype(int)
    return tuple(sizes.tolist())


def cases() -> Iterator[Case]:
    """All that is measured."""
    for n in (8, 10, 15, 20, 50, 400):
        yield Case(f"normal, {n} facts", normal(n), 0.2)
    for n in (8, 10, 15, 20, 50, 400):
        yield Case(f"beta(0.3, 3), {n} facts", beta(n), 1 / 11, least=0.925 if n < 10 else 0.93)
    for share, n in ((0.1, 20), (0.1, 50), (0.1, 400), (0.03, 100), (0.03, 400)):
        name = f"{share:.0%} of {n} facts carry the effect"
        yield Case(name, carriers(n, share), share / 2, most=1)
    for n in (10, 15, 20, 50, 400):
        least = 0.89 if n < 15 else 0.91 if n < 50 else 0.93
        yield Case(f"lognormal, {n} facts", lognormal(n), float(np.exp(0.5)), least=least)
    shapes = {"17 × 24": (24,) * 17, "40 × 6": (6,) * 40, "8 × 50": (50,) * 8}
    shapes |= {"17 unequal": zipf(17), "40 unequal": zipf(40)}
    for shape, sizes in shapes.items():
        most = 0.985 if "unequal" in shape else 0.975
        for icc in (0.0, 0.1, 0.2, 0.4):
            name = f"{shape}, correlation {icc:g}"
            yield Case(name, clustered(sizes, icc), 0.0, sizes, most=most)
    sizes = shapes["17 × 24"]
    name = "10% carry the effect, 17 × 24, correlation 0.4"
    yield Case(name, clustered_carriers(sizes, 0.1, 0.4), 0.05, sizes, most=1)
    for n in (20, 50, 400):
        yield Case(f"normal, {n} facts, positions", normal(n), 0.2, pooled=True)
        name = f"beta(0.3, 3), {n} facts, positions"
        yield Case(name, beta(n), 1 / 11, pooled=True, most=0.985)


@dataclass(frozen=True)
class Held:
    """Of the intervals that were given.

    Attributes:
        share: how many hold the true value.
        given: how many repetitions gave one.
        over_facts: the same share, of intervals that take facts as units.
        width: median width over that of one who knows the true spread of the averages.
    """

    share: float
    given: float
    over_facts: float
    width: float


def coverage(case: Case, repetitions: int, seed: int = 0) -> Held:
    """Measure one case."""
    generator = np.random.default_rng(seed)
    values = case.draw(generator, repetitions)
    n_facts = len(values)
    weights = np.ones(n_facts)
    if case.pooled:  # the number of positions says nothing about the effect
        weights = generator.integers(1, 6, n_facts).astype(np.float64)
    totals = values * weights[:, None]
    alone = Clusters.none(n_facts)
    clusters = Clusters.of("relation_id", case.labels.tolist()) if case.sizes else alone
    cells = averages(totals, weights, clusters)
    low, high = cells.interval()
    oracle = 2 * 1.96 * cells.value.std()
    return Held(
        share=_share(low, high, case.mean),
        given=float(np.mean(~np.isnan(low))),
        over_facts=_share(*averages(totals, weights, alone).interval(), case.mean),
        width=float(np.nanmedian(high - low) / oracle),
    )


def _share(low: Array, high: Array, true: float) -> float:
    given = ~np.isnan(low)
    return float(np.mean(((low <= true) & (true <= high))[given])) if given.any() else np.nan


def ratio_coverage(n_facts: int, sizes: Sequence[int], repetitions: int, seed: int = 0) -> float:
    """IE over TE: a share of total effects that varies from fact to fact, 0.4 on average."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes) if sizes else np.arange(n_facts)
    held = []
    for _ in range(repetitions):
        total = generator.beta(4, 2, n_facts)
        shift = 0.1 * generator.normal(size=labels.max() + 1)[labels]
        indirect = total * (0.4 + shift + 0.2 * generator.normal(size=n_facts))
        clusters = Clusters.of("relation_id", labels.tolist())
        cells = averages(indirect[:, None], total, clusters, np.ones(n_facts))
        held.append(_share(*cells.interval(), 0.4))
    return float(np.nanmean(held))


# From a normal draw of variance 1 to an effect, and the mean of that.
SHAPES: Mapping[str, tuple[Callable[[Array], Array], float]] = {
    "normal": (lambda drawn: drawn, 0.0),
    "skewed": (lambda drawn: betaincinv(0.3, 3, ndtr(drawn)), 0.3 / 3.3),
    "lognormal": (np.exp, float(np.exp(0.5))),
}


def heatmap_coverage(
    n_units: int, repetitions: int, seed: int = 0, shape: str = "normal"
) -> tuple[float, float]:
    """Shares of heatmaps (72 cells, alike along layers) that bounds hold as a whole.

    Args:
        n_units: of each heatmap.
        repetitions: heatmaps.
        seed: of the draws.
        shape: of the effects, one of `SHAPES`.

    Returns:
        For bounds of all cells at once, and for single ones.
    """
    generator = np.random.default_rng(seed)
    (bent, mean), held = SHAPES[shape], []
    for _ in range(repetitions):
        steps = generator.normal(size=(n_units, 6, 12))
        effects = np.cumsum(steps, axis=-1).reshape(n_units, -1) + generator.normal(
            size=(n_units, 1)
        )
        if shape != "normal":  # which is the same at any scale
            effects = effects / np.tile(np.sqrt(np.arange(12) + 2), 6)
        effects = bent(effects)
        cells = averages(effects, np.ones(n_units), Clusters.none(n_units))
        bounds = (cells.at_once(fewest=0), cells.interval())
        held.append([bool(((low <= mean) & (high >= mean)).all()) for low, high in bounds])
    together, alone = np.mean(held, axis=0)
    return float(together), float(alone)


def peak_coverage(n_units: int, flat: bool, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """Share of peak sets that hold the true peak, and their mean size, of 12 layers."""
    generator = np.random.default_rng(seed)
    true = np.zeros(12) if flat else 0.5 * np.exp(-((np.arange(12) - 5) ** 2) / 8)
    held, size = [], []
    for _ in range(repetitions):
        own = generator.normal(size=(n_units, 12)) + generator.normal(size=(n_units, 1))
        found = peak_set(true + own, np.ones(n_units), Clusters.none(n_units))
        assert found is not None
        held.append(5 in found)
        size.append(len(found))
    return float(np.mean(held)), float(np.mean(size))


def main(arguments: Sequence[str] | None = None) -> str:
    """Print tables; returns them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=4000)
    options = parser.parse_args(arguments)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say("| effects | coverage | given | facts as units | width over an oracle's |")
    say("| --- | --- | --- | --- | --- |")
    for case in cases():
        one = coverage(case, options.repetitions)
        say(
            f"| {case.name} | {one.share:.3f} | {one.given:.3f} | {one.over_facts:.3f} "
            f"| {one.width:.2f} |"
        )
    fewer = max(options.repetitions // 8, 50)
    for n_facts, sizes in ((20, ()), (400, ()), (408, (24,) * 17)):
        name = "17 × 24" if sizes else f"{n_facts} facts"
        say(f"| IE over TE, {name} | {ratio_coverage(n_facts, sizes, fewer):.3f} | | | |")
    say("\n| effects | units | all cells at once | each alone, all held |")
    say("| --- | --- | --- | --- |")
    for shape in SHAPES:
        for n_units in (8, 17, 40, 100, 400):
            together, alone = heatmap_coverage(n_units, fewer, shape=shape)
            say(f"| {shape} | {n_units} | {together:.3f} | {alone:.3f} |")
    say("\n| units | curve | the set holds the peak | layers in it |\n| --- | --- | --- | --- |")
    for n_units in (17, 40, 400):
        for flat in (True, False):
            held, size = peak_coverage(n_units, flat, fewer)
            say(f"| {n_units} | {'flat' if flat else 'one peak'} | {held:.3f} | {size:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
