"""From what a caller asks for to a checked config: the same for one prompt and for many facts."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields

from ktrace.config import Answer, NoiseConfig, RunConfig
from ktrace.config.complaints import meant
from ktrace.config.compose import choice, choices, composed
from ktrace.errors import KtraceError
from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES

Values = Mapping[str, object]


@contextmanager
def arguments_named(group: str, *names: str) -> Iterator[None]:
    """An error within names the arguments of a call, not the keys of the config they stand for."""
    try:
        yield
    except KtraceError as error:
        told = re.sub(rf"\b{group}\.(?=({'|'.join(names)})\b)", "", str(error))
        raise KtraceError(told) from error


def required_model(model: object) -> LanguageModel:
    """What a caller gave as the model.

    Raises:
        KtraceError: it is none that ktrace loaded with its tokenizer.
    """
    if not isinstance(model, LanguageModel) or model.tokenizer is None:
        shown = f"{model!r:.60}" if isinstance(model, str) else type(model).__name__
        raise KtraceError(
            f"model={shown} is no model with a tokenizer: give what ktrace.load_model returns"
        )
    return model


def one_mediator(mediator: object) -> str:
    """The override that chooses one.

    Raises:
        KtraceError: there is no such mediator, or it stands for several.
    """
    if isinstance(mediator, str) and mediator not in MEDIATOR_NAMES:
        if mediator in choices("mediator"):
            raise KtraceError(
                f"mediator={mediator!r} stands for several, which ktrace.trace_many takes: choose "
                f"from {', '.join(MEDIATOR_NAMES)}"
            )
        if not meant(mediator, MEDIATOR_NAMES):  # the answer comes after it
            raise KtraceError(
                f"mediator={mediator!r:.60} is unknown: choose from {', '.join(MEDIATOR_NAMES)}; "
                "an answer is given by its name, as answer=..."
            )
    return choice("mediator", mediator, MEDIATOR_NAMES)


def config_of(
    function: Callable[..., object],
    lm: LanguageModel,
    chosen: Sequence[str],
    options: Values,
    dataset: Values,
    noise: Values,
) -> RunConfig:
    """Compose the config of a call.

    Args:
        function: that was called, whose arguments a misspelt one may mean.
        lm: the model, for its window.
        chosen: overrides of the groups `dataset` and `mediator`.
        options: arguments that both functions have, by name.
        dataset: keys `dataset.*` beside those.
        noise: `noise`, the kind, with keys `noise.*`.

    Raises:
        KtraceError: an unknown argument, or a value that is not allowed.
    """
    own = dict(noise)
    _require_names(own, function)
    kinds = [own.pop(name, None) for name in ("noise", "kind")]
    given = [kind for kind in kinds if kind is not None]
    if len(given) > 1:
        raise KtraceError(
            f"noise={given[0]!r} and kind={given[1]!r} are one and the same: give one"
        )
    pair = dataset.get("corrupted_prompt") is not None
    kind = given[0] if given else ("pair" if pair else "gaussian")
    mediator = {name: options[name] for name in ("direction", "positions", "query")}
    mediator |= {} if options["window"] is None else {"window": options["window"]}
    mediator |= {} if options.get("names") is None else {"names": options["names"]}
    read = {name: options[name] for name in ("separator", "chat", "bos")}
    read |= {} if options["noise_facts"] is None else {"noise_facts": options["noise_facts"]}
    read["answer"] = (Answer.full if options["whole_answer"] else Answer.first_token).value
    return composed(
        [*chosen, choice("noise", kind, called="noise"), choice("engine", options["engine"])],
        {
            "model": {"window": lm.window},
            "dataset": {**dataset, **read},
            "noise": own,
            "mediator": mediator,
        },
    )


def _require_names(noise: Values, function: Callable[..., object]) -> None:
    """Refuse what is neither an argument nor a key of the noise."""
    arguments = inspect.signature(function).parameters.values()
    own = [entry.name for entry in arguments if entry.kind is not entry.VAR_KEYWORD]
    known = [*own, *(entry.name for entry in fields(NoiseConfig))]
    for name in noise:
        if name not in known:
            raise KtraceError(
                f"{function.__name__} has no argument {name!r}{meant(name, known)}: choose from "
                f"{', '.join(known)}"
            )
