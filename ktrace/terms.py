"""The field's words, each defined once: metrics, sites, roles, mediators with titles and order."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class Metric(Enum):
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


class Direction(Enum):
    """Which run a mediator changes, and which it takes states from.

    Attributes:
        denoise: clean states are put into the corrupted run: what suffices for the answer.
        noise: corrupted states are put into the clean run: what is necessary for it.
    """

    denoise = "denoise"
    noise = "noise"


# Where states are read and edited: a block's output, and what its attention and MLP add to it.
SITES = ("hidden", "attn", "mlp")

# The scheme `rome`, in the order of the prompt. Coarser schemes are groupings of these
# (ktrace/analysis/rows.py).
ROLES = (
    "first subject",
    "middle subject",
    "last subject",
    "first subsequent",
    "further",
    "last",
)

# What facts may share that makes them dependent: the units of intervals. The first by default.
CLUSTERS = ("relation_id", "subject", "attribute")

# Effects and differences below it count as none, in the metric's unit, unless the config says
# otherwise.
SMALLEST_EFFECT = 0.01

# By name, in the order of panels and tables: from what is restored as a whole to its parts.
# ktrace/tracing/mediators.py says what each restores and severs.
MEDIATOR_TITLES: Mapping[str, str] = {
    "hidden": "hidden states",
    "hidden_attn_severed": "hidden, attention severed",
    "hidden_mlp_severed": "hidden, MLP severed",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
}
MEDIATOR_NAMES = tuple(MEDIATOR_TITLES)
# Mediators whose effects are subtracted, the second from the first: what severing takes away, and
# which of a block's parts carries more.
MEDIATOR_PAIRS = (
    ("hidden", "hidden_attn_severed"),
    ("hidden", "hidden_mlp_severed"),
    ("mlp", "attn"),
)

_WINDOW = "-w"
_NOISING = f"-{Direction.noise.value}"


def mediator_key(name: str, window: int, direction: Direction = Direction.denoise) -> str:
    """What a mediator's store and figures are called: what determines its numbers.

    Args:
        name: of the mediator.
        window: layers that are restored together; 0 for a mediator without a window.
        direction: see `Direction`.
    """
    key = f"{name}{_WINDOW}{window}" if window else name
    return key + _NOISING if direction is Direction.noise else key


def is_noising(key: str) -> bool:
    """Whether a mediator, by its key, puts corrupted states into the clean run."""
    return key.endswith(_NOISING)


def effects_fall(metric: str, key: str) -> bool:
    """Whether a strong effect of a mediator, by its key, is a negative number.

    Restoring makes a divergence fall, and all else rise; noising the other way round.
    """
    return lower_helps(metric) != is_noising(key)


def _parts(key: str) -> tuple[str, str]:
    """A mediator's name, and its window as text: empty where it has none."""
    name, _, window = key.removesuffix(_NOISING).partition(_WINDOW)
    return name, window


def mediator_pairs(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Which of some mediators' keys are `MEDIATOR_PAIRS`: of one window, where they have one.

    Both are of one direction.
    """
    named = {(*_parts(key), is_noising(key)): key for key in keys}
    return [
        (key, named[second, window, noises])
        for first, second in MEDIATOR_PAIRS
        for (name, window, noises), key in named.items()
        if name == first and (second, window, noises) in named
    ]


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


def same_window(left: str, right: str) -> bool:
    """Whether mediators, by their keys, are of one direction and, where both have one, window."""
    windows = {_parts(key)[1] for key in (left, right)} - {""}
    return len(windows) < 2 and is_noising(left) == is_noising(right)


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
    """A mediator's name without its window and direction."""
    return _parts(key)[0]


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
    """A mediator's key in words, with its window and direction."""
    name, window = _parts(key)
    title = MEDIATOR_TITLES.get(name, name) + (f", window {window}" if window else "")
    return f"{title}, noised" if is_noising(key) else title


def panel_order(key: str) -> tuple[int, str]:
    """Sorts keys of mediators as panels and tables are ordered; unknown ones go last."""
    name = mediator_name(key)
    return (MEDIATOR_NAMES.index(name) if name in MEDIATOR_NAMES else len(MEDIATOR_NAMES), key)


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
