"""Overrides that nothing reads: which keys a stage, a mediator, a noise and a dataset take.

What excludes another key is refused (`ktrace.config.checks`); what has no effect is said here.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

from ktrace.config import NOISE_KEYS, LoggerKind, NoiseKind, RunConfig, Stage
from ktrace.tracing.mediators import make_mediators

log = logging.getLogger(__name__)

# Of a group, what is read all the same; the empty text stands for the choice itself.
_But = dict[str, tuple[str, ...]]

_OF_NAMES: _But = {
    "model": ("", "name", "path", "window"),
    "dataset": (
        *("", "name", "path", "answer", "separator", "chat", "bos"),
        *("hub", "subset", "split", "prompt", "subject", "attribute", "also", "subject_start"),
        *("corrupted_prompt", "foil"),
    ),
}
_OF_STATUS: _But = _OF_NAMES | {"dataset": ("limit", *_OF_NAMES["dataset"])}
_OF_ANALYSIS: _But = {"roles": (), "analysis": (), "logger": ()}
_OF_COMPUTING: _But = {"activations": (), "engine": (), "shard": ()}
_BEFORE_NOISE: _But = {
    "mediator": (),
    "activations.corrupted": (),
    "activations.samples": (),
    "engine": ("workers",),
}
_OF_STORES: _But = _OF_COMPUTING | _OF_ANALYSIS | _OF_NAMES | {"metric": (), "mediator": ()}
_UNREAD: Mapping[Stage, _But] = {
    Stage.filter: _OF_ANALYSIS | _BEFORE_NOISE,
    Stage.clean: _OF_ANALYSIS | _BEFORE_NOISE,
    Stage.corrupted: _OF_ANALYSIS | {"mediator": ()},
    Stage.restore: _OF_ANALYSIS,
    Stage.all: {},
    Stage.analyze: _OF_COMPUTING
    | {"model.device": (), "model.device_map": (), "model.trust_remote_code": ()}
    | {"model.allow_pickle": (), "dataset.noise_facts": ()},
    Stage.compare: _OF_COMPUTING
    | {"model": (), "mediator": (), "noise": (), "dataset": ("limit",)}
    | {"analysis.facts": (), "analysis.relations": (), "claims": ()},
    Stage.status: _OF_COMPUTING | _OF_ANALYSIS | _OF_STATUS | {"metric": ()},
    Stage.check: _OF_COMPUTING
    | _OF_ANALYSIS
    | {"model": ("", "path", "revision", "trust_remote_code"), "noise": ("", "kind", "foil")}
    | {"mediator": (), "dataset.name": (), "claims": (), "output_dir": ()},
    Stage.verify: _OF_STORES,
    Stage.compact: _OF_STORES,
}


def say_unread(
    config: RunConfig, overrides: Sequence[str], *, in_sweep: bool, said: set[str]
) -> None:
    """Warn of every override that has no effect on a run, each once.

    Args:
        config: of the run.
        overrides: as given.
        in_sweep: whether the run is a job of one.
        said: warnings that were given; those given now are added.
    """
    for line in unread(config, overrides, in_sweep=in_sweep):
        if line not in said:
            said.add(line)
            log.warning("%s", line)


def unread(config: RunConfig, overrides: Sequence[str], *, in_sweep: bool = False) -> list[str]:
    """A line for every key among overrides that a run does not read: the key and why."""
    keys = dict.fromkeys(text.partition("=")[0].lstrip("+") for text in overrides)
    reasons = list(_reasons(config, in_sweep))
    lines = []
    for key in keys:
        why = next((why for prefix, but, why in reasons if _is_below(key, prefix, but)), None)
        if why is not None:
            lines.append(f"{key} has no effect: {why}")
    return lines


def _is_below(key: str, prefix: str, but: Collection[str]) -> bool:
    if key != prefix and not key.startswith(f"{prefix}."):
        return False
    return key[len(prefix) + 1 :].split(".")[0] not in but


def _reasons(config: RunConfig, in_sweep: bool) -> Iterator[tuple[str, Collection[str], str]]:
    stage = config.stage
    for prefix, but in _UNREAD[stage].items():
        yield prefix, but, f"stage={stage.value} does not read it"
    if not in_sweep:
        yield "compare", (), "it ends a sweep (-m), and this is a single run"
    if stage is not Stage.compare:
        yield from _of_mediators(config)
        yield from _of_noise(config)
        yield from _of_dataset(config)
    if config.logger.kind is LoggerKind.none:
        yield "logger", ("",), "no logger is chosen (logger=trackio, wandb or mlflow)"
    if not config.activations.corrupted:
        yield "activations.samples", (), "activations.corrupted names no site"
        if not config.activations.clean:
            for key in ("layers", "positions"):
                why = "activations.clean and activations.corrupted name no site"
                yield f"activations.{key}", (), why


def _of_mediators(config: RunConfig) -> Iterator[tuple[str, Collection[str], str]]:
    made = make_mediators(config.mediator)
    names = ", ".join(dict.fromkeys(mediator.name for mediator in made))
    if not any(mediator.window for mediator in made):
        for key in ("mediator.window", "model.window"):
            yield key, (), f"{names} takes one layer at a time"
    elif config.mediator.window != config.model.window:
        yield "model.window", (), f"mediator.window={config.mediator.window} is given"
    if not any(mediator.cuts for mediator in made):
        yield "mediator.query", (), f"{names} cuts no edges: it is for knockout"


def _of_noise(config: RunConfig) -> Iterator[tuple[str, Collection[str], str]]:
    noise, read = config.noise, NOISE_KEYS[config.noise.kind]
    for key in sorted(frozenset().union(*NOISE_KEYS.values()) - read):
        yield f"noise.{key}", (), f"noise.kind={noise.kind.value} does not read it"
    if noise.kind is NoiseKind.pair:
        yield "dataset.noise_facts", (), "noise.kind=pair is measured on no facts"
    elif config.dataset.corrupted_prompt is None or config.dataset.subject is not None:
        for key in ("corrupted_prompt", "foil"):
            yield f"dataset.{key}", (), f"it is for noise=pair, not noise.kind={noise.kind.value}"


def _of_dataset(config: RunConfig) -> Iterator[tuple[str, Collection[str], str]]:
    if config.dataset.prompt is None:
        for key in ("subject", "attribute", "subject_start"):
            yield f"dataset.{key}", (), f"it is for dataset=prompt; in a file, {key} is a column"
    else:
        for key in ("url", "sha256", "encoding", "delimiter", "columns"):
            yield f"dataset.{key}", (), "it is for a file, and dataset.prompt is given"
