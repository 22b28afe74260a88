"""The field's words, each defined once: metrics, sites, roles, mediators with titles and order."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Choice(Enum):
    """A value of a config by its name, also where `${...}` puts it into another value."""

    def __str__(self) -> str:
        return str(self.value)


class Metric(Choice):
    """What is scored of the answer where it is predicted; every run stores all of them.

    An answer of several tokens is read under teacher forcing: each token is scored given those
    before it; all metrics but the probability, which is their product, are sums over the tokens.
    Of several right answers the probability is the sum, and `log_probability` its logarithm; the
    others are of the one that is predicted (docs/datasets.md).

    Attributes:
        probability: unitless, in [0, 1].
        log_probability: natural logarithm.
        logit: before softmax.
        logit_difference: the answer's logit minus the foil's; the foil is what the noise names
            (`ktrace.tracing.noise.Noise.foils`), else the token, other than the answer, that the
            corrupted run finds most probable (mean over samples).
        kl: Kullback-Leibler divergence from the clean run's distribution, in nats.
    """

    probability = "probability"
    log_probability = "log_probability"
    logit = "logit"
    logit_difference = "logit_difference"
    kl = "kl"


METRICS = tuple(metric.value for metric in Metric)


class Direction(Choice):
    """Which run a mediator changes, and which it takes states from.

    Attributes:
        denoise: clean states are put into the corrupted run: what suffices for the answer.
        noise: corrupted states are put into the clean run: what is necessary for it.
    """

    denoise = "denoise"
    noise = "noise"


class ClaimKind(Choice):
    """How processes on one store keep out of each other's way.

    Attributes:
        auto: by the kernel's locks, and by files where the file system keeps none.
        locks: by the kernel's locks alone.
        files: by files that live processes keep young, where locks end at the machine.
        none: not at all: facts may be computed twice.
    """

    auto = "auto"
    locks = "locks"
    files = "files"
    none = "none"


# Where states are read and edited: a block's output, and what its attention and MLP add to it.
SITES = ("hidden", "attn", "mlp")
# Where one head's output is: a slice of what the output projection of the attention is called with.
HEAD = "head"

# The scheme `rome`, in the order of the prompt. Coarser schemes are groupings of these
# (ktrace/analysis/rows.py).
ROLES = (
    *("first subject", "middle subject", "last subject"),
    *("first subsequent", "further", "last"),
)
# As the config and Python's arguments call them: `last_subject`.
ROLE_KEYS = tuple(role.replace(" ", "_") for role in ROLES)


def role_named(text: str) -> str | None:
    """The role of this name or key; None where there is none."""
    role = text.replace("_", " ").lower()
    return role if role in ROLES else None


RUN_KINDS = ("clean", "corrupted")  # of which states are stored

# What a query sees, in groups whose edges are cut together: before the subject, the subject, behind
# it, and the query itself, which is in none of the others. Stores number them -1, -2, ... where a
# source's position would stand.
SOURCE_GROUPS = ("before subject", "subject", "after subject", "query itself")

# What facts may share that makes them dependent: the units of intervals. The first by default.
CLUSTERS = ("relation_id", "subject", "attribute")

# Effects and differences below it count as none, in the metric's unit: the config's default.
SMALLEST_EFFECT = 0.01
# Of the total effect, what a window of layers is to bring back: the default, too.
ENOUGH = 0.5

# By name, in the order of panels and tables: from what is restored as a whole to its parts.
# ktrace/tracing/mediators.py says what each restores, severs and cuts.
MEDIATOR_TITLES: Mapping[str, str] = {
    "hidden": "hidden states",
    "hidden_attn_severed": "hidden, attention severed",
    "hidden_mlp_severed": "hidden, MLP severed",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
    HEAD: "attention heads",
    "knockout": "attention knockout",
}
MEDIATOR_NAMES = tuple(MEDIATOR_TITLES)
# Those of Meng et al. (2022), and what `mediator=all` stands for.
PUBLISHED_MEDIATORS = MEDIATOR_NAMES[:5]

# `positions` of a mediator that takes every one.
EVERYWHERE = ("all",)
# Where heads are restored unless `mediator.positions` says otherwise: a prompt has few such places,
# and a model many heads.
_HEAD_POSITIONS = ("last_subject", "last")
_QUERY = "last"
_KEY = re.compile(
    rf"(?P<name>[a-z_]+)(-w(?P<window>\d+))?(?P<noises>-{Direction.noise.value})?"
    r"(-at-(?P<positions>[a-z_+]+))?(-from-(?P<query>[a-z_]+))?"
)


class MediatorKey(NamedTuple):
    """What determines a mediator's numbers; as text it names its store and figures.

    Attributes:
        name: of the mediator.
        window: layers that are restored, or cut, together; 0 for a mediator without a window.
        direction: see `Direction`.
        positions: roles, with `_` for blanks, of the positions that are restored; `EVERYWHERE`, or
            empty for the mediator's own.
        query: role of the position whose edges are cut; empty for a mediator that cuts none.
    """

    name: str
    window: int = 0
    direction: Direction = Direction.denoise
    positions: tuple[str, ...] = ()
    query: str = ""

    def __str__(self) -> str:
        key = f"{self.name}-w{self.window}" if self.window else self.name
        if self.direction is Direction.noise:
            key += f"-{Direction.noise.value}"
        if self.positions and self.positions != own_positions(self.name):
            key += f"-at-{'+'.join(self.positions)}"
        return f"{key}-from-{self.query}" if self.query not in ("", _QUERY) else key

    @classmethod
    def parse(cls, key: str) -> "MediatorKey":
        """The parts of a key; of text that is none, a mediator of that name."""
        found = _KEY.fullmatch(key)
        if found is None:
            return cls(key)
        direction = Direction.noise if found["noises"] else Direction.denoise
        positions = tuple((found["positions"] or "").split("+")) if found["positions"] else ()
        window = int(found["window"] or 0)
        return cls(found["name"], window, direction, positions, found["query"] or "")


def own_positions(name: str) -> tuple[str, ...]:
    """Where a mediator restores unless `mediator.positions` says otherwise."""
    return _HEAD_POSITIONS if name == HEAD else EVERYWHERE


def is_noising(key: str) -> bool:
    """Whether a mediator, by its key, puts corrupted states into the clean run."""
    return MediatorKey.parse(key).direction is Direction.noise


def cuts_edges(key: str) -> bool:
    """Whether a mediator, by its key, cuts edges of the attention, and so has sources."""
    return MediatorKey.parse(key).name == "knockout"


def has_heads(key: str) -> bool:
    """Whether a mediator, by its key, acts on one head of the attention."""
    return MediatorKey.parse(key).name == HEAD


def changes_clean_run(key: str) -> bool:
    """Whether a mediator, by its key, changes the clean run; others change the corrupted one."""
    return is_noising(key) or cuts_edges(key)


def effects_fall(metric: str, key: str) -> bool:
    """Whether a strong effect of a mediator, by its key, is a negative number.

    Restoring makes a divergence fall, and all else rise; noising and cutting the other way round.
    """
    return lower_helps(metric) != changes_clean_run(key)


# Paired differences that a run's analysis gives, by name: docs/analysis.md says which each is.
CONTRASTS = ("mediators", "roles", "layers")
_MINUS = " minus "
_LAYERS = re.compile(r"layers? (\d{1,4})(?:-(\d{1,4}))?")


class Side(NamedTuple):
    """What a contrast subtracts, or subtracts from; None where it has a row for each.

    Attributes:
        mediator: its name or key.
        role: a position's place in the prompt.
        layers: first and last of those whose effects are averaged.
    """

    mediator: str | None
    role: str | None
    layers: tuple[int, int] | None


def contrast_sides(text: str) -> tuple[Side, Side]:
    """A contrast that is written out: `mlp: last subject minus attn: last subject`.

    Args:
        text: two sides, each of a mediator, a role and `layers 0-5`, or some of them.

    Raises:
        ValueError: what is wrong with it.
    """
    sides = text.split(_MINUS)
    if len(sides) != 2:
        raise ValueError(f"is neither {', '.join(CONTRASTS)} nor two sides with{_MINUS}between")
    left, right = map(_side, sides)
    for what, mine, theirs in zip(Side._fields, left, right, strict=True):
        if (mine is None) != (theirs is None):
            raise ValueError(f"names {what} on one side only")
    if left == right:
        raise ValueError("has the same on both sides")
    return left, right


def _side(text: str) -> Side:
    found: dict[str, str | tuple[int, int]] = {}
    for part in (part.strip() for part in text.split(":")):
        of_layers = _LAYERS.fullmatch(part)
        name: str
        value: str | tuple[int, int] = part
        if of_layers:
            first, last = (int(number or of_layers[1]) for number in of_layers.groups())
            if last < first:
                raise ValueError(f"names layers that end before they begin: {part!r}")
            name, value = "layers", (first, last)
        elif part in ROLES:
            name = "role"
        elif mediator_name(part) in MEDIATOR_TITLES:
            name = "mediator"
        else:
            raise ValueError(
                f"holds {part!r}, which is no mediator ({', '.join(MEDIATOR_TITLES)}), no role "
                f"({', '.join(ROLES)}) and no range such as layers 0-5"
            )
        if name in found:
            raise ValueError(f"names {name} twice on one side")
        found[name] = value
    return Side(**{name: found.get(name) for name in Side._fields})  # type: ignore[arg-type]


def noise_key(settings: Mapping[str, object]) -> str:
    """What a noise's folder is called: its fingerprint, readable, e.g. `gaussian-x3-n10-seed1`.

    Args:
        settings: the keys `noise.*` that its kind reads, with `kind`.
    """
    parts = [str(settings["kind"])]
    if settings.get("replace"):
        parts.append("replace")
    for key, short in (("degrees", "df"), ("multiple", "x"), ("std", "std")):
        value = settings.get(key)
        if isinstance(value, int | float):
            parts.append(f"{short}{value:.12g}")
    if settings.get("foil") == "corrupted":  # not what one stands in for another for
        parts.append("foil-corrupted")
    if "samples" in settings:
        parts += [f"n{settings['samples']}", f"seed{settings['seed']}"]
    return "-".join(parts)


def mediator_name(key: str) -> str:
    """A mediator's name without its window, direction and positions."""
    return MediatorKey.parse(key).name


def dataset_key(name: str, settings: Mapping[str, object]) -> str:
    """What a dataset's folder is called: its name, and how prompts and answers are put.

    Other answers or prompts have other candidates, so theirs is a folder apart.

    Args:
        name: of the dataset.
        settings: its fingerprint, such as `answer`; settings that are the default may be absent.
    """
    parts = [name]
    if settings.get("answer") == "full":
        parts.append("full")
    if "separator" in settings:
        parts.append(f"separator-{settings['separator']}")
    if settings.get("chat"):
        parts.append("chat")
    if "bos" in settings:
        parts.append(f"bos-{settings['bos']}")
    return "-".join(parts)


def mediator_title(key: str) -> str:
    """A mediator's key in words, with its window, direction and positions."""
    parts = MediatorKey.parse(key)
    title = MEDIATOR_TITLES.get(parts.name, parts.name)
    title += f", window {parts.window}" if parts.window else ""
    title += ", noised" if parts.direction is Direction.noise else ""
    title += f", at {' and '.join(parts.positions)}".replace("_", " ") if parts.positions else ""
    return f"{title}, from {parts.query}".replace("_", " ") if parts.query else title


def panel_order(key: str) -> tuple[int, int, str]:
    """Sorts keys of mediators as panels and tables are ordered; unknown ones go last."""
    parts = MediatorKey.parse(key)
    known = parts.name in MEDIATOR_NAMES
    place = MEDIATOR_NAMES.index(parts.name) if known else len(MEDIATOR_NAMES)
    return place, parts.window, key


def metric_title(metric: str) -> str:
    """A metric in words."""
    return metric.replace("_", " ")


def metric_label(metric: str) -> str:
    """A metric as an axis or a colour bar names it: in words, with its unit if it has one."""
    units = {"log_probability": "log probability, nats", "kl": "KL divergence, nats"}
    return units.get(metric, metric_title(metric))


def lower_helps(metric: str) -> bool:
    """Whether a state that helps makes the metric fall, as it does a divergence."""
    return metric == "kl"
