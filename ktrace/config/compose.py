"""Hydra's door: the shipped files, and from a composition to a checked `RunConfig`.

One `OmegaConf.to_object` here; no `DictConfig` travels further in.
"""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from string import Template
from threading import Lock

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ktrace.config.checks import check
from ktrace.config.chosen import require_one_choice_each
from ktrace.config.complaints import explain, meant
from ktrace.config.folder_names import hub_name, path_name, prompt_name, pure_path
from ktrace.config.model import ModulesConfig
from ktrace.config.schema import RunConfig
from ktrace.config.secret_values import (
    TEXT_KEYS,
    keep_secrets,
    keep_url_secrets,
    require_open_names,
)
from ktrace.config.shard import resolved_shard
from ktrace.config.typed import literals, taken_as_given, without_interpolations
from ktrace.errors import KtraceError

HYDRA_VERSION_BASE = "1.3"  # whose defaults are meant

_COMPOSING = Lock()  # Hydra keeps what it is composing for the whole process

_PACKAGE = Path(__file__).resolve().parent.parent


def resource(name: str) -> Path:
    """Path of a shipped file or folder, named as in a checkout (`conf`, `data/tiny`).

    They lie beside the package in a checkout, inside it in a wheel.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"ktrace was installed without {name!r} (looked in {_PACKAGE})")


def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    for name, resolver in (
        ("bundled", lambda file: str(resource(f"data/{file}"))),
        ("smaller", min),
        ("hub_name", hub_name),
        ("basename", lambda path: path_name(pure_path(str(path)).name)),
        ("stem", lambda path: path_name(pure_path(str(path)).stem)),
        ("prompt_name", prompt_name),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    # Kept with the config, as the time is, so that it is drawn once for a sweep and its jobs.
    OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True, use_cache=True)


def _sweep_name() -> str:
    """Another one at each call."""
    return secrets.token_hex(4)


def to_run_config(config: DictConfig) -> RunConfig:
    """From Hydra's composition to a checked `RunConfig`.

    Raises:
        KtraceError: a value out of range or two keys that exclude each other.
        omegaconf.errors.OmegaConfBaseException: a missing or mistyped value.
    """
    _take_as_given(config)
    return _checked(config)


def _checked(config: DictConfig) -> RunConfig:
    keep_secrets(config)
    run = OmegaConf.to_object(config)
    assert isinstance(run, RunConfig)
    _refuse_unknown(run)
    keep_url_secrets(asdict(run))
    require_open_names(config)
    if run.model.modules is not None:
        paths = {key: path or None for key, path in vars(run.model.modules).items()}
        run.model.modules = ModulesConfig(**paths) if any(paths.values()) else None
    run.shard = resolved_shard(run.shard, os.environ)
    check(run)
    return run


def _take_as_given(config: DictConfig) -> None:
    """Let what people write about facts be what it is: `${...}` in a prompt is no interpolation.

    What `taken_as_given` took is left as it is.
    """
    dataset = OmegaConf.to_container(config.dataset, resolve=False)
    assert isinstance(dataset, dict)
    for key in TEXT_KEYS:
        given = dataset[key]
        if isinstance(given, str):
            config.dataset[key] = without_interpolations(given)
        elif isinstance(given, list):
            config.dataset[key] = [without_interpolations(text) for text in given]


def _plain(value: object) -> object:
    """A value of Python's own types: numbers and arrays of numpy or torch become these."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    as_python = getattr(value, "tolist", None)  # of a number, too; no such package is loaded here
    return as_python() if callable(as_python) else value


def _refuse_unknown(part: object, prefix: str = "") -> None:
    """Refuse keys that `+key=value` added: Hydra lets them through, and nothing would read them."""
    known = [entry.name for entry in fields(part)]  # type: ignore[arg-type]  # a dataclass
    for name, value in vars(part).items():
        if name not in known:
            raise KtraceError(f"unknown key {prefix}{name}; keys here: {', '.join(known)}")
        if is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{name}.")


def help_text() -> str:
    """What `--help` prints, as Hydra does, which copies all that it has loaded for each choice."""
    shipped = yaml.safe_load((resource("conf") / "config.yaml").read_text("utf-8"))
    with _hydra() as loader:
        told = {group: ", ".join(_listed(loader, group)) for group in groups()}
    listed = "".join(f"{group}: {names}\n" for group, names in told.items())
    template = shipped["hydra"]["help"]["template"]
    return Template(template).substitute(APP_CONFIG_GROUPS=listed)


def groups() -> list[str]:
    """What is chosen by name, such as `model`; Hydra's own are not meant."""
    found = sorted(folder.name for folder in resource("conf").iterdir() if folder.is_dir())
    return [group for group in found if group != "hydra"]


def choices(group: str) -> list[str]:
    """What may be chosen of a group, such as `model`: also what other packages bring."""
    with _hydra() as loader:
        return _listed(loader, group)


def _listed(loader: ConfigLoader, group: str) -> list[str]:
    """As Hydra's own list, which reads the whole config first."""
    sources = [source for source in loader.get_sources() if source.is_group(group)]
    return sorted({name for one in sources for name in one.list(group, ObjectType.CONFIG)})


def choice(group: str, name: object, among: Sequence[str] = (), called: str = "") -> str:
    """The override that makes a choice.

    Args:
        group: of the config.
        name: the choice.
        among: what may be chosen; by default every choice of the group.
        called: what the group is called where the name was given.

    Raises:
        KtraceError: there is no such choice.
    """
    among = among or choices(group)
    if name not in among:
        raise KtraceError(
            f"{called or group}={name!r:.60} is unknown{meant(name, among)}: choose from "
            f"{', '.join(among)}"
        )
    return f"{group}={name}"


def composed(
    overrides: Sequence[str], values: Mapping[str, Mapping[str, object]] | None = None
) -> RunConfig:
    """Compose a config in this process, as the command line does, and check it.

    Args:
        overrides: `group=choice` and `key=value`.
        values: by group and key. Not written as overrides: a prompt would need quoting.

    Raises:
        KtraceError: in one line, whatever is wrong.
    """
    with _one_line_errors():
        register()
        require_one_choice_each(overrides, groups())
        with _hydra():
            found = compose("config", taken_as_given(overrides))
        _take_as_given(found)
        for group, entries in (values or {}).items():
            for key, value in entries.items():
                OmegaConf.update(found, f"{group}.{key}", literals(_plain(value)))
        return _checked(found)


@contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra on the shipped files and on what plug-ins of other packages add to its search path.

    It leaves the Hydra of a program around this one, or of a notebook, as it is.
    """
    with _COMPOSING:
        of_others = copy(GlobalHydra.instance())
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(
                version_base=HYDRA_VERSION_BASE, config_dir=str(resource("conf"))
            ):
                yield GlobalHydra.instance().config_loader()
        finally:
            GlobalHydra.instance().hydra = of_others.hydra


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise KtraceError(explain(error)) from error
