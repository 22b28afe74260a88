"""The schema of `logger.*`: what an analysis is logged with, beside its own files."""

import re
from dataclasses import dataclass

from ktrace.errors import KtraceError
from ktrace.terms import Choice


class LoggerKind(Choice):
    """The library that logs; each is an extra of its own."""

    none = "none"
    trackio = "trackio"
    wandb = "wandb"
    mlflow = "mlflow"


@dataclass
class LoggerConfig:
    """Where results are logged: keys that every library understands."""

    kind: LoggerKind = LoggerKind.none
    project: str = "ktrace"  # an experiment of MLflow's
    name: str | None = None  # of the run; null: model, dataset, noise and mediators
    folder: str | None = None  # of the library's files; null: <output_dir>/loggers
    # Where it is sent; null: nowhere, it stays in the folder. A server's address, a user/space of
    # trackio's, any other tracking URI of MLflow's.
    uri: str | None = None


# What all three take, and what names a file of trackio's.
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_NAME = 128
_URI = {
    LoggerKind.trackio: (r"https?://\S+|[\w.-]+/[\w.-]+", "https://... of a server, or user/space"),
    LoggerKind.wandb: (r"https?://\S+", "https://api.wandb.ai, or the address of your own server"),
    LoggerKind.mlflow: (r"[a-z+-]+:\S+|databricks", "https://..., sqlite:///... or databricks"),
}


def check_logger(config: LoggerConfig) -> None:
    """Refuse names and addresses that the library would refuse after the work.

    Raises:
        KtraceError: naming the key, the value and what is allowed.
    """
    if not _PROJECT.fullmatch(config.project):
        raise KtraceError(
            f"logger.project={config.project!r}: use up to 100 letters, digits and . _ - (first a "
            "letter or digit)"
        )
    name = config.name
    if name is not None and not (name.strip() and name.isprintable() and "/" not in name):
        raise KtraceError(f"logger.name={name!r} is empty, or holds a line break or a slash")
    if name is not None and len(name) > _LONGEST_NAME:
        raise KtraceError(f"logger.name is too long: {len(name)} characters of {_LONGEST_NAME}")
    if config.folder == "":
        raise KtraceError("logger.folder is empty: name a folder, or . for this one")
    if config.uri is not None and config.kind is not LoggerKind.none:
        pattern, allowed = _URI[config.kind]
        if not re.fullmatch(pattern, config.uri):
            raise KtraceError(
                f"logger.uri={config.uri!r} is no address for logger={config.kind}: give "
                f"{allowed}; or null to log into logger.folder alone"
            )
