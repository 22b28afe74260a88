"""A file of a model on the Hugging Face hub, or one line that says why it cannot be had."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
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

from ktrace.errors import KtraceError, NoSuchHubFileError

_TRIES = logging.getLogger("huggingface_hub.utils._http")


def hub_file(repository: str, name: str, *, revision: str | None, asked: str) -> Path:
    """Download a file, or find it in the cache: `.../snapshots/<commit>/<name>`.

    Args:
        repository: `owner/name`.
        name: path in the repository.
        revision: branch, tag or commit; None for the main branch.
        asked: the config keys that ask for it, for messages.

    Raises:
        NoSuchHubFileError: the repository has no such file.
        KtraceError: no such repository or revision, no access, or no network.
    """
    try:
        with _tries_untold():
            return Path(hf_hub_download(repository, name, revision=revision))
    except HFValidationError as error:
        raise KtraceError(f"{asked} is neither a folder here nor a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise KtraceError(
            f"{asked} is gated: accept its licence at https://huggingface.co/{repository} and "
            "log in with 'hf auth login'"
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
            "or give the path of a downloaded copy"
        ) from error
    except EntryNotFoundError as error:
        raise NoSuchHubFileError(f"{asked}: the repository has no {name}") from error
    except (HfHubHTTPError, OSError) as error:
        raise KtraceError(f"{asked} cannot be reached: {error}") from error


@contextmanager
def _tries_untold() -> Iterator[None]:
    """Without two lines for each of many tries: the error that they end in says it once."""
    level = _TRIES.level
    _TRIES.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _TRIES.setLevel(level)
