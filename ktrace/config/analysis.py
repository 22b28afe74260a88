"""How stored effects are averaged and shown: the keys `roles.*` and `analysis.*`."""

from dataclasses import dataclass, field

from ktrace.terms import CLUSTERS, CONTRASTS, ENOUGH, SMALLEST_EFFECT, Choice


class RoleScheme(Choice):
    """Rows of the heatmaps: six (`rome`) or four (`seed`)."""

    rome = "rome"
    seed = "seed"


class SingleToken(Choice):
    """Where the only token of a subject counts: under last subject alone, or under first, too."""

    last = "last"
    both = "both"


class Pool(Choice):
    """What weighs the same in an average: facts, or (as published) positions."""

    facts = "facts"
    positions = "positions"


class Palette(Choice):
    """Colours of the heatmaps: one for all mediators, or those of Meng et al. 2022."""

    shared = "shared"
    rome = "rome"


class Relations(Choice):
    """Which of the mediators shown get a figure with a panel for each relation."""

    first = "first"
    all = "all"


class Interval(Choice):
    """What intervals say was drawn: facts (or their clusters), or samples of the noise, too."""

    facts = "facts"
    facts_and_samples = "facts_and_samples"


@dataclass
class RolesConfig:
    """How positions are grouped into the rows of a heatmap."""

    scheme: RoleScheme = RoleScheme.rome
    single_token: SingleToken = SingleToken.last


@dataclass
class AnalysisConfig:
    """How stored effects are averaged and shown."""

    # Where tables and figures go, so that stores which cannot be written are analysed; null: into
    # the run's folder.
    folder: str | None = None
    partial: bool = False  # whether to take what is there of an unfinished run
    pool: Pool = Pool.facts
    palette: Palette = Palette.shared
    # What facts share that makes them dependent (ktrace.terms.CLUSTERS); null: nothing.
    cluster: str | None = CLUSTERS[0]
    interval: Interval = Interval.facts
    # Effects and differences below it count as none, in the metric's unit.
    smallest: float = field(default=SMALLEST_EFFECT, metadata={"least": 0})
    # Of the total effect: layers.json names the smallest window that brings back so much.
    share: float = field(default=ENOUGH, metadata={"above": 0, "most": 1})
    facts: list[int] = field(default_factory=list)  # known_ids that get heatmaps of their own
    relations: Relations = Relations.first
    # Paired differences of contrasts.csv: by name (ktrace.terms.CONTRASTS), or written out, such as
    # "mlp: last subject minus attn: last subject" or "layers 0-5 minus layers 6-11".
    contrasts: list[str] = field(default_factory=lambda: [*CONTRASTS])
