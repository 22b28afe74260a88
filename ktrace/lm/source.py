"""Where a model comes from, and which content that is, without loading it (no torch here)."""

import hashlib
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ktrace.errors import KtraceError


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, and what pins its content.

    Attributes:
        location: folder or hub id, as transformers takes it.
        revision: the commit for a hub model, None for a folder.
        identity: what stores are bound to: `sha256:...` of a folder's weights, config and
            tokenizer, or `commit:...` of a hub model.
    """

    location: str
    revision: str | None
    identity: str


def find_model(
    path: str, revision: str | None = None, *, allow_pickle: bool = False
) -> ModelSource:
    """Find a model and pin its content.

    Args:
        path: local folder, or hub id such as `openai-community/gpt2`.
        revision: branch, tag or commit on the hub; not for folders.
        allow_pickle: whether a folder's weights may be `*.bin`.

    Raises:
        KtraceError: no such folder or hub id, no weights, no access, or no network.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise KtraceError(
                f"model.revision={revision!r} is for hub models; model.path={path} is a folder"
            )
        return ModelSource(str(folder), None, f"sha256:{_digest(folder, allow_pickle)}")
    if folder.exists():
        raise KtraceError(f"model.path={path} is a file: give the folder that holds the model")
    if path.startswith(("/", "./", "../", "~")):
        raise KtraceError(f"model.path={path} is not a folder")
    commit = _commit(path, revision)
    return ModelSource(path, commit, f"commit:{commit}")


def _digest(folder: Path, allow_pickle: bool) -> str:
    if not (folder / "config.json").is_file():
        raise KtraceError(f"model.path={folder} is not a model: it has no config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and allow_pickle:
        weights = sorted(folder.glob("*.bin"))
    if not weights:
        raise KtraceError(f"model.path={folder} has no weights: no *.safetensors in it")
    whole = hashlib.sha256()
    # Every file that can change a number: JSON and text hold the config and the tokenizer, Python
    # the code of a model of its own (model.trust_remote_code).
    others = (folder.glob(f"*.{kind}") for kind in ("json", "txt", "model", "py"))
    files = sorted({*weights, *chain.from_iterable(others)})
    for file in files:
        if file.is_dir():
            continue
        digest = hashlib.sha256()
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:  # a link whose target was not copied, for one
            raise KtraceError(f"model.path={folder}: {file.name}: {error.strerror}") from error
        whole.update(f"{file.name} {digest.hexdigest()}\n".encode())
    return whole.hexdigest()


def _commit(hub_id: str, revision: str | None) -> str:
    asked = f"model.path={hub_id}" + (f" model.revision={revision}" if revision else "")
    try:
        # The file lies at .../snapshots/<commit>/config.json, fresh or from the cache.
        config = hf_hub_download(hub_id, "config.json", revision=revision)
    except HFValidationError as error:
        raise KtraceError(f"{asked} is neither a folder here nor a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise KtraceError(
            f"{asked} is gated: accept its licence at https://huggingface.co/{hub_id} and log in "
            "with 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise KtraceError(f"{asked}: the hub has no such revision") from error
    except RepositoryNotFoundError as error:
        raise KtraceError(
            f"{asked}: no such folder here, and the hub has no such model that you may see"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = (
            "HF_HUB_OFFLINE is set"
            if os.environ.get("HF_HUB_OFFLINE")
            else "the hub is out of reach"
        )
        raise KtraceError(
            f"{asked} is no folder here and not in the hub cache, and {why}: go online once, "
            "or give the folder of a downloaded copy"
        ) from error
    except EntryNotFoundError as error:
        raise KtraceError(f"{asked} is not a model: it has no config.json") from error
    except (HfHubHTTPError, OSError) as error:
        raise KtraceError(f"{asked} cannot be reached: {error}") from error
    return Path(config).parent.name
