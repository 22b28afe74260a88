"""Which values of a config are secrets, and how Hydra's own files are kept free of them."""

import os
import re
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf, flag_override

from ktrace.errors import KtraceError
from ktrace.redaction import HIDDEN, keep_secret, keep_url_secret, redacted

# Keys that hold a place or a name of somebody's. Others take numbers and words of ktrace's own,
# which stand in folders' names and tables: they are no secrets, wherever they come from.
PLACES = re.compile(
    r"(model\.(name|path|revision)|output_dir|runs(\.\d+)?|logger\.(name|folder|uri)"
    r"|dataset\.(name|path|url|sha256|hub|subset|split|revision|noise_facts|columns\.\w+))"
)
# Texts about facts, which are data, and no interpolations.
TEXT_KEYS = ("prompt", "subject", "attribute", "also", "corrupted_prompt", "foil")
_TEXT = re.compile(rf"\+{{0,2}}dataset\.({'|'.join(TEXT_KEYS)})\b")

_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^\s,{}]+)")
_FROM_ENVIRONMENT_ALONE = re.compile(r"\$\{oc\.env:([^\s,{}]+)\}")
_INNERMOST = re.compile(r"\$\{\s*oc\.env\s*:[^{}]*\}")
_OWN_VARIABLE = "KTRACE_SECRET_"
# As typed: a comma or a bracket ends a value that is not quoted.
_QUOTED = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""")
_SCHEME = r"(?!hf:)([A-Za-z][A-Za-z0-9+.-]*://)"
_BARE_URL = re.compile(
    rf"{_SCHEME}([^\s,\[\](){{}}]*@)?([^\s,?#\[\](){{}}]*)([?#][^\s,\[\](){{}}]*)?"
)
_WHOLE_URL = re.compile(rf"{_SCHEME}(.*@)?([^?#]*)([?#].*)?", re.DOTALL)


def keep_secrets(config: DictConfig) -> None:
    """Keep what places and names take from the environment.

    Args:
        config: not resolved.
    """
    for key, text in _texts(OmegaConf.to_container(config, resolve=False)):
        for name in _FROM_ENVIRONMENT.findall(text) if PLACES.fullmatch(key) else ():
            own = name.startswith(_OWN_VARIABLE)
            keep_secret(os.environ.get(name, ""), HIDDEN if own else f"${{oc.env:{name}}}")


def keep_url_secrets(values: object) -> None:
    """Keep the secrets of every URL among resolved values: dicts and lists of texts."""
    for key, text in _texts(values):
        if PLACES.fullmatch(key):
            keep_url_secret(text)


def from_environment(text: str) -> str:
    """What was redacted of a text, where it came from this environment."""
    return _FROM_ENVIRONMENT_ALONE.sub(lambda name: os.environ.get(name[1], name[0]), text)


def require_open_names(config: DictConfig) -> None:
    """Refuse names that others see, of folders and projects, and that hang on the environment.

    Raises:
        KtraceError: there is one.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    if not any(_FROM_ENVIRONMENT.search(text) for _, text in _texts(raw)):
        return
    masked = OmegaConf.create({key: _masked(item) for key, item in raw.items()})
    for key in ("model.name", "dataset.name", "logger.project"):
        if OmegaConf.select(config, key) != OmegaConf.select(masked, key):
            raise KtraceError(
                f"{key} would hang on a value of ${{oc.env:...}}, which no file may show: it "
                f"names a {'project' if key.startswith('logger') else 'folder'}: give {key}=..."
            )


def _masked(value: object) -> object:
    if isinstance(value, dict):
        return {key: item if key in TEXT_KEYS else _masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    before = None
    while isinstance(value, str) and value != before:
        before, value = value, _INNERMOST.sub("masked", value)
    return value


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{key}.{number}")


def hide_from_hydra(config: DictConfig) -> None:
    """Put secrets of URLs into this process's environment, and interpolations in their place.

    Hydra writes and prints a config and its overrides as they stand, and hands them to launchers.
    What these start inherits the environment.
    """
    with flag_override(config, ["readonly", "struct"], False):
        for key, text in list(_texts(OmegaConf.to_container(config, resolve=False))):
            if _TEXT.match(text if key.startswith("hydra.") else key):
                continue
            if key.startswith("hydra."):
                hidden = _hidden_in_override(text)
            else:
                hidden = _WHOLE_URL.sub(_hidden_url, text)
            if hidden != text:
                OmegaConf.update(config, key, hidden)


def refuse_told_folders(config: DictConfig) -> None:
    """Refuse folders of jobs that are named by overrides that hold a secret.

    Raises:
        KtraceError: naming them.
    """
    own = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(own, dict)
    if "overrid" not in str(own["sweep"]["subdir"]):
        return
    left_out = own["job"]["config"]["override_dirname"]["exclude_keys"]
    for text in own["overrides"]["task"]:
        key = text.partition("=")[0].lstrip("+")
        if key not in left_out and (_FROM_ENVIRONMENT.search(text) or redacted(text) != text):
            raise KtraceError(
                f"hydra.sweep.subdir={own['sweep']['subdir']} would name folders by {key}, whose "
                f"value is not to be told: hydra.job.config.override_dirname.exclude_keys=[{key}]"
            )


def _hidden_in_override(text: str) -> str:
    """An override as it was typed: within quotes everything up to them belongs to a value."""
    pieces = []
    for number, piece in enumerate(_QUOTED.split(text)):
        if number % 2:
            mark = piece[0]
            inner = piece[1:-1].replace(f"\\{mark}", mark)
            hidden = _WHOLE_URL.sub(_hidden_url, inner)
            pieces.append(piece if hidden == inner else f"{mark}{hidden}{mark}")
        else:
            pieces.append(_BARE_URL.sub(_hidden_url, piece))
    return "".join(pieces)


def _hidden_url(found: re.Match[str]) -> str:
    scheme, user, place, query = found.groups()
    of_user = f"{_hidden(user[:-1])}@" if user else ""
    return f"{scheme}{of_user}{place}{query[0] + _hidden(query[1:]) if query else ''}"


def _hidden(secret: str) -> str:
    """Interpolations in place of a text; those in it stay."""
    pieces = re.split(r"(\$\{[^{}]*\})", secret)
    return "".join(
        piece if number % 2 or not piece else f"${{oc.env:{_variable(piece)}}}"
        for number, piece in enumerate(pieces)
    )


def _variable(secret: str) -> str:
    known = {value: name for name, value in os.environ.items() if name.startswith(_OWN_VARIABLE)}
    name = known.get(secret, f"{_OWN_VARIABLE}{len(known) + 1}")
    os.environ[name] = secret
    return name
