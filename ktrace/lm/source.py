"""Where a model comes from, and which content that is, without loading it (no torch here)."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from ktrace.errors import KtraceError, NoSuchHubFileError
from ktrace.lm.digests import LEAST_BYTES, file_digest
from ktrace.lm.hub import hub_file
from ktrace.lm.told import Told, untold

# Number formats as safetensors and as torch name them.
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WEIGHTS = re.compile(r".+\.(safetensors|bin)")
_TOKENIZER = re.compile(
    r"tokenizer\.(json|model)|(tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|vocab\.txt|.+\.jinja"
)
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, and what pins its content.

    Attributes:
        location: folder or hub id, as transformers takes it.
        revision: the commit for a hub model, None for a folder.
        identity: what stores are bound to: `sha256:...` of a folder's weights, config and
            tokenizer, or `commit:...` of a hub model.
        folder: where its files lie; of a hub model, the snapshot in the cache, which holds its
            config and, once it was loaded, its weights and tokenizer.
        files: SHA-256 of every file that `identity` covers, by name; empty for a hub model.
    """

    location: str
    revision: str | None
    identity: str
    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)


def find_model(
    path: str,
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    told: Told = untold,
) -> ModelSource:
    """Find a model and pin its content.

    Args:
        path: local folder, or hub id such as `openai-community/gpt2`.
        revision: branch, tag or commit on the hub; not for folders.
        allow_pickle: whether a folder's weights may be `*.bin`.
        told: learns how many bytes of a folder's files are hashed; nothing where they were before.

    Raises:
        KtraceError: no such folder or hub id, no weights, an adapter, no access, or no network.
    """
    folder = _expanded(path)
    if folder.is_dir():
        if revision is not None:
            raise KtraceError(
                f"model.revision={revision!r} is for hub models; model.path={path} is a folder"
            )
        if (folder / _ADAPTER).is_file():
            raise _adapter_error(path, folder)
        files = _file_digests(folder, allow_pickle, told)
        listed = "".join(f"{name} {digest}\n" for name, digest in files.items())
        whole = hashlib.sha256(listed.encode()).hexdigest()
        return ModelSource(str(folder), None, f"sha256:{whole}", folder, files)
    if folder.exists():
        raise KtraceError(f"model.path={path} is a file: give the folder that holds the model")
    if path.startswith(("/", "./", "../", "~")):
        raise KtraceError(f"model.path={path} is not a folder")
    # The file lies at .../snapshots/<commit>/config.json, fresh or from the cache.
    try:
        snapshot = _download(path, revision, "config.json").parent
    except NoSuchHubFileError:
        _refuse_hub_adapter(path, revision)
        raise
    _refuse_hub_adapter(path, snapshot.name)
    return ModelSource(path, snapshot.name, f"commit:{snapshot.name}", snapshot)


def _refuse_hub_adapter(hub_id: str, revision: str | None) -> None:
    known = try_to_load_from_cache(hub_id, _ADAPTER, revision=revision)
    if known is not None and not isinstance(known, str):
        return  # the hub said so before
    try:
        found = _download(hub_id, revision, _ADAPTER)
    except KtraceError:  # none; or out of reach, then for transformers too, and load.py looks again
        return
    raise _adapter_error(hub_id, found.parent)


def _adapter_error(path: str, folder: Path) -> KtraceError:
    """transformers applies an adapter only where peft is installed: numbers would hang on that."""
    base = _named_in(folder / _ADAPTER, "base_model_name_or_path")
    return KtraceError(
        f"model.path={path} holds an adapter ({_ADAPTER}){base and f' of {base}'}, which is not "
        "applied: merge it into its base with peft's merge_and_unload, save the result and the "
        "tokenizer with save_pretrained, and give that folder; if the weights beside it alone are "
        "meant, take the adapter's files away"
    )


def _named_in(file: Path, key: str) -> str:
    """A text in a JSON file; empty where there is none."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(content.get(key) or "") if isinstance(content, dict) else ""


def local_folder(path: str, revision: str | None = None) -> Path | None:
    """Where a model's files lie on this machine, without asking the hub; None where they do not.

    Args:
        path: local folder or hub id.
        revision: branch, tag or commit on the hub.
    """
    folder = _expanded(path)
    if folder.is_dir():
        return folder
    try:
        config = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _expanded(path: str) -> Path:
    try:
        folder = Path(path).expanduser()
        folder.exists()  # raises where no system would take the name
    except RuntimeError as error:
        raise KtraceError(f"model.path={path}: there is no such user's home folder") from error
    except OSError as error:
        raise KtraceError(f"model.path={path} cannot be read: {error.strerror}") from error
    return folder


def own_dtype(source: ModelSource) -> str | None:
    """See `checkpoint_dtype`; a hub model's weights are fetched where its config does not tell.

    Raises:
        KtraceError: a file that cannot be read or fetched.
    """
    found = checkpoint_dtype(source.folder)
    if found is None and source.revision is not None:
        _fetch_first_weights(source.location, source.revision)
        found = checkpoint_dtype(source.folder)
    return found


def checkpoint_dtype(folder: Path) -> str | None:
    """The checkpoint's own number format: as `config.json` says, else that of its first weight.

    Args:
        folder: a model's files.

    Returns:
        torch's name, such as `bfloat16`; None where neither tells.

    Raises:
        KtraceError: a file that cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KtraceError(f"model.path={folder}: config.json cannot be used: {error}") from error
    named = None
    if isinstance(config, dict):
        named = config.get("dtype") or config.get("torch_dtype")
    return str(named).removeprefix("torch.") if named else _dtype_of_weights(folder)


def _dtype_of_weights(folder: Path) -> str | None:
    for name in _weights(folder, "safetensors"):
        path = folder / name
        try:
            with safe_open(path, framework="np") as weights:
                found = [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise KtraceError(
                f"model.path={folder}: the model cannot be loaded: {path.name}: {error}"
            ) from error
        for kind in found:
            if kind in _FLOATS:
                return _FLOATS[kind]
    return None


def _fetch_first_weights(hub_id: str, commit: str) -> None:
    # Nothing is fetched in vain: loading the model takes these files from the cache.
    try:
        _download(hub_id, commit, "model.safetensors")
    except NoSuchHubFileError:
        index = _download(hub_id, commit, "model.safetensors.index.json")
        first = min(json.loads(index.read_text("utf-8"))["weight_map"].values())
        _download(hub_id, commit, first)


def content_hashes(source: ModelSource) -> dict[str, dict[str, str]]:
    """SHA-256 of each file of weights and of the tokenizer, by `weights` and `tokenizer`.

    Of a hub model that was loaded: large files by the digest under which the hub keeps them.
    """
    files = source.files or {
        path.relative_to(source.folder).as_posix(): _hub_digest(path)
        for path in sorted(source.folder.rglob("*"))
        if path.is_file()
    }
    kinds = {"weights": _WEIGHTS, "tokenizer": _TOKENIZER}
    return {
        kind: {name: digest for name, digest in files.items() if pattern.fullmatch(name)}
        for kind, pattern in kinds.items()
    }


def _hub_digest(path: Path) -> str:
    # The cache names what a snapshot links to: large files by their SHA-256, small ones by git's.
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else file_digest(path)


def _file_digests(folder: Path, allow_pickle: bool, told: Told) -> dict[str, str]:
    if not (folder / "config.json").is_file():
        raise KtraceError(f"model.path={folder} is not a model: it has no config.json")
    weights = _weights(folder, "safetensors") or (_weights(folder, "bin") if allow_pickle else [])
    if not weights:
        raise KtraceError(f"model.path={folder} has no weights: no *.safetensors in it")
    elsewhere = _named_in(folder / "config.json", "transformers_weights")
    if len(PurePath(elsewhere).parts) > 1:
        raise KtraceError(
            f"model.path={folder}: config.json names its weights {elsewhere!r} "
            "(transformers_weights): they must lie in the folder itself"
        )
    # Every file that can change a number: JSON, text and Jinja hold the config and the tokenizer,
    # Python the code of a model of its own (model.trust_remote_code).
    kinds = ("json", "txt", "model", "jinja", "py")
    others = chain.from_iterable(folder.glob(f"*.{kind}") for kind in kinds)
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    names = sorted({*weights, *(file.name for file in others if not file.is_dir())})

    def read(n_bytes: int) -> None:
        told(sum(sizes[other] for other in digests) + n_bytes, sum(sizes.values()))

    try:
        for name in names:
            size = (folder / name).stat().st_size
            sizes[name] = size if size >= LEAST_BYTES else 0  # nothing is told of small ones
        for name in names:
            digests[name] = file_digest(folder / name, read)
    except OSError as error:  # a link whose target was not copied, for one
        raise KtraceError(f"model.path={folder}: {name}: {error.strerror}") from error
    return digests


def _weights(folder: Path, kind: str) -> list[str]:
    """Names of a folder's files of weights, and of those that an index in it names.

    Raises:
        KtraceError: an index that cannot be used, or that names a file outside the folder.
    """
    names = {path.name for path in folder.glob(f"*.{kind}")}
    for index in folder.glob(f"*.{kind}.index.json"):
        where = f"model.path={folder}: {index.name}"
        try:
            weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            named = {str(name) for name in weight_map.values()}
        except (
            OSError,
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            RecursionError,
        ) as error:
            raise KtraceError(f"{where} cannot be used: {error}") from error
        for name in sorted(named):
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise KtraceError(
                    f"{where} names {name!r}: weights outside the folder are refused, copy them in"
                )
        names |= named
    return sorted(names)


def _download(hub_id: str, revision: str | None, name: str) -> Path:
    asked = f"model.path={hub_id}" + (f" model.revision={revision}" if revision else "")
    return hub_file(hub_id, name, revision=revision, asked=asked)
