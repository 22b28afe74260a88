"""What was typed on a command line, as Hydra's grammar takes it.

Texts about facts, and paths, are what people have: a comma, an umlaut or a bracket in one is no
syntax. Hydra reads what it can; where it cannot, or would make something else of a text, the value
is put into its quotes here.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ktrace.config.schema import Stage
from ktrace.config.secret_values import PLACES, TEXT_KEYS
from ktrace.errors import KtraceError

_TEXT = re.compile(rf"(?P<key>\+{{0,2}}dataset\.({'|'.join(TEXT_KEYS)}))=(?P<value>.*)", re.DOTALL)
_PLACE = re.compile(
    rf"(?P<key>\+{{0,2}}({PLACES.pattern}|analysis\.folder|model\.modules\.\w+))=(?P<value>.*)",
    re.DOTALL,
)
_PLAIN_LIST = re.compile(r"\[(?P<items>[^\[\]{}'\"]*)\]")
_QUOTES = ("'", '"')


def taken_as_given(overrides: Sequence[str]) -> list[str]:
    """Overrides for Hydra in which texts about facts, and paths, are what they are.

    Args:
        overrides: as typed, among them flags such as `-m`, with which commas part a sweep's values.

    Raises:
        KtraceError: one takes a group or a key away, which Hydra lets through without an effect.
    """
    for text in overrides:
        if text.startswith("~") and not text.startswith("~hydra"):
            name = text[1:].partition("=")[0]
            raise KtraceError(
                f"{text} takes nothing away: every group has a choice, and every key a value; give "
                f"{name}=... to choose another one"
            )
    sweeps = any(text == "-m" or text.startswith(("--mul", "hydra.mode=")) for text in overrides)
    return [_taken(text, sweeps) for text in overrides]


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Arguments without the one shorthand: `check FILE` is a stage and a dataset.

    Args:
        arguments: as typed.

    Raises:
        KtraceError: it is misspelled, or there are two files.
    """
    # Options of Hydra may stand before it, with their values.
    before = list(takewhile(lambda text: text != "check" and "=" not in text, arguments))
    start = len(before)
    if arguments[start : start + 1] != ["check"]:
        _refuse_command(before)
        return [*arguments]
    flags, file, rest = arguments[:start], arguments[start + 1 :][:1], arguments[start + 2 :]
    if second := [text for text in rest if "=" not in text and not text.startswith(("-", "~"))]:
        raise KtraceError(f"check {file[0]} {second[0]}: one file is checked at a time")
    is_file = bool(file) and not file[0].startswith("-")
    if is_file and ("=" not in file[0] or Path(file[0]).exists()):
        return [*flags, "stage=check", "dataset=file", f"dataset.path={file[0]}", *rest]
    return [*flags, "stage=check", *file, *rest]


def _refuse_command(words: Sequence[str]) -> None:
    """Refuse a first word that is meant as a command."""
    word = next((text for text in words if not text.startswith("-")), "")
    if words[:1] != [word]:  # the value of an option
        return
    commands = {stage.value: f"stage={stage}" for stage in Stage} | {"check": "check"}
    if close := get_close_matches(word, commands, n=1, cutoff=0.75):
        meant = commands[close[0]]
        raise KtraceError(f"{word!r} is no command and no key=value (did you mean {meant}?)")


def quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    inner = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", text)
    slashes = len(inner) - len(inner.rstrip("\\"))
    return f"'{inner}{inner[len(inner) - slashes :]}'"


def _taken(override: str, sweeps: bool) -> str:
    if found := _TEXT.fullmatch(override):
        key, value = found["key"], found["value"]
        return literal(override if _is_read(override, value, sweeps) else f"{key}={_text(value)}")
    found = _PLACE.fullmatch(override)
    if found and parsed(override) is None and not (sweeps and "," in override):
        return f"{found['key']}={quoted(found['value'])}"
    return override


def _is_read(override: str, value: str, sweeps: bool) -> bool:
    """Whether Hydra reads a text as it was meant, so that it is left to it."""
    if value.startswith(_QUOTES) and parsed(override) is not None:
        return True
    if sweeps and "," in value:  # several texts; what cannot be read of them, Hydra says
        return True
    found = parsed(override)
    if found is None or "${" in value:
        return False
    if found.is_sweep_override():
        return sweeps
    # Of 1e3, true and {a:1} it would make numbers, truths and mappings.
    return found.value() is None or isinstance(found.value(), str | list)


def _text(value: str) -> str:
    """A text in quotes; of a list, each item."""
    items = _PLAIN_LIST.fullmatch(value)
    if items is None:
        return quoted(value)
    return f"[{','.join(quoted(item.strip()) for item in items['items'].split(','))}]"


def parsed(override: str) -> Override | None:
    """What Hydra makes of an override; None where it cannot read it."""
    try:
        return _parser().parse_override(override)
    except HydraException:
        return None


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def without_interpolations(text: str) -> str:
    """A text in which interpolations that are none yet are escaped."""
    return re.sub(r"(?<!\\)(\\\\)*\$\{", lambda found: literal(found[0]), text)


def literals(value: object) -> object:
    """A text, or texts in a list, as `literal` has them; anything else as it is."""
    if isinstance(value, str):
        return literal(value)
    return [literals(item) for item in value] if isinstance(value, list | tuple) else value


def literal(text: str) -> str:
    """Text that OmegaConf resolves to this text."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)
