"""Hydra's and OmegaConf's complaints in one line that names the key and the choices."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ktrace.config.chosen import takes_one
from ktrace.redaction import redacted

_AT_A_PATH = {"dataset": "file", "model": "auto"}  # choices that take any path


def explain(error: BaseException) -> str:
    """One line for a person, without secrets.

    The innermost OmegaConf error knows the key and its class; Hydra's own errors list the choices
    of a group over several lines.
    """
    return redacted(_explained(error))


def _explained(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException):
            return _explain_omegaconf(cause)
        if isinstance(cause, OverrideParseException):
            return (
                f"{cause.override!r} cannot be read as key=value; a value with special characters "
                "is quoted, and again for the shell: key='\"value\"'"
            )
        if isinstance(cause, MissingConfigException) and cause.options:
            return _explain_choice(cause.missing_cfg_file or "", cause.options)
        cause = cause.__cause__
    if "Config group override must be a string" in str(error):  # names neither group nor value
        return (
            "a group (model, mediator, noise, dataset, engine, logger, experiment) takes the name "
            "of a choice, not null, a number or nothing; --help lists them"
        )
    if several := re.match(
        r"Ambiguous value for argument '(?P<key>[^=]*)=(?P<value>.*)'", str(error)
    ):
        return _explain_several(*several.groups())
    return _one_line(str(error))


def _explain_several(key: str, value: str) -> str:
    """Of values that a comma parts, where nothing is swept."""
    if "." not in key:
        return f"{key}={value}: {takes_one(key, value.split(','))}"
    return (
        f"{key}={value}: -m makes a run for each of these; where {key} takes a list, that is "
        f"'{key}=[{value}]'"
    )


def _explain_choice(missing: str, options: Sequence[str]) -> str:
    # Hydra's own groups have two levels, and a choice may hold a slash too many.
    levels = 2 if missing.startswith("hydra/") else 1
    parts = missing.split("/")
    group, choice = "/".join(parts[:levels]), "/".join(parts[levels:])
    if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
        return f"hydra/launcher={choice} needs the extra cluster: pip install 'ktrace[cluster]'"
    hint = meant(choice, options)
    if group in _AT_A_PATH and re.search(r"[./]", choice) and (group == "dataset" or not hint):
        whole = f"{group}={_AT_A_PATH[group]} {group}.path={shlex.quote(choice)}"
        hint = f" (did you mean {whole}?)"
    return f"{group}={choice} is unknown{hint}: choose from {', '.join(options)}"


def meant(given: object, options: Sequence[str]) -> str:
    """What was likely meant by something that is none of the options, for the end of a clause."""
    close = get_close_matches(str(given), options, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _explain_omegaconf(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key or "")
    message = _one_line((error.msg or str(error)).split("full_key:")[0])
    # The key that was asked for may be another one, whose value comes from the missing one.
    if unset := re.search(r"[Mm]issing mandatory value: (\S+)", message):
        name = key or unset[1] if message.startswith("Structured config") else unset[1]
        return f"{name} is not set: give {name}=..."
    if "is not Optional" in message:
        return f"{key}=null: this key is not Optional, it needs a value"
    owner = error.object_type
    if (
        isinstance(error, ConfigKeyError | ConfigAttributeError)
        and owner is not None
        and is_dataclass(owner)
    ):
        names = [field.name for field in fields(owner)]
        hint = meant(error.key, names)
        return f"unknown key {key}{hint}; keys here: {', '.join(names)}"
    return f"{key}: {message}" if key and key not in message else message


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
