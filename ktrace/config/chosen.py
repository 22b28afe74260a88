"""One choice of each group: Hydra takes the last of several, without a word."""

import shlex
from collections.abc import Collection, Iterator, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override

from ktrace.config.dataset import DatasetConfig
from ktrace.config.typed import parsed
from ktrace.errors import KtraceError

_READ_TOGETHER = "experiment"  # presets of several keys, of which a list drops none
_NAMES_SEVERAL = "mediator"
_ANY_FILE = "file"


def require_one_choice_each(overrides: Sequence[str], groups: Collection[str]) -> None:
    """Refuse lists of a group's choices.

    Args:
        overrides: as typed, among them flags such as `-m`.
        groups: what is chosen by name.

    Raises:
        KtraceError: naming the list, and what takes several.
    """
    for group, override in _choosing(overrides, groups):
        several = _listed(override)
        if several and group != _READ_TOGETHER:
            raise KtraceError(f"{override.input_line}: {takes_one(group, several)}")


def require_one_override_each(overrides: Sequence[str], groups: Collection[str]) -> None:
    """Refuse a group that is chosen twice on one command line.

    Args:
        overrides: as typed, among them flags such as `-m`.
        groups: what is chosen by name.

    Raises:
        KtraceError: naming both choices, and what takes several.
    """
    met: dict[str, str] = {}
    for group, override in _choosing(overrides, groups):
        choice = override.get_value_string()
        before = met.setdefault(group, choice)
        if before != choice:
            both = [before, choice]
            raise KtraceError(f"{group}={before} {group}={choice}: {takes_one(group, both)}")


def require_own_file(overrides: Sequence[str], dataset: DatasetConfig) -> None:
    """Refuse another file under the name of a preset that has its own.

    A published dataset has an address, and may be a copy elsewhere.

    Args:
        overrides: of the run that Hydra has composed.
        dataset: as it was composed.

    Raises:
        KtraceError: naming the choice that takes any file.
    """
    choice = HydraConfig.get().runtime.choices["dataset"]
    if choice == _ANY_FILE or dataset.path is None or dataset.url or dataset.hub:
        return
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    if "dataset.path" in given and "dataset.name" not in given:
        raise KtraceError(
            f"dataset.path={dataset.path}: dataset={choice} has a file of its own: give "
            f"dataset={_ANY_FILE} dataset.path={shlex.quote(dataset.path)}"
        )


def takes_one(key: str, several: Sequence[str]) -> str:
    """That several choices make several runs, and how they are asked for.

    Args:
        key: a group, or a key that takes one value.
        several: choices that were given.
    """
    told = ",".join(several)
    said = f"one choice of {key} makes a run; -m {key}={told} makes a run for each"
    if key != _NAMES_SEVERAL:
        return said
    return f"{said}, and '{key}.names=[{told}]' one run of all"


def _choosing(overrides: Sequence[str], groups: Collection[str]) -> Iterator[tuple[str, Override]]:
    """The overrides that choose of a group, with its name."""
    for text in overrides:
        found = parsed(text)
        if found is not None and found.key_or_group in groups and not found.is_delete():
            yield found.key_or_group, found


def _listed(override: Override) -> list[str]:
    """The choices of a list, or of the first list among the values of a sweep."""
    value = override.value()
    values = [value] if isinstance(value, list) else getattr(value, "list", [])
    return next(([*map(str, one)] for one in values if isinstance(one, list)), [])
