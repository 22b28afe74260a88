"""What a store's folder is bound to: one fingerprint, and the names it lies under.

`store.json` is created before the first part and never changed, so that two runs of different
settings cannot fill one folder, even if both begin while it is empty. A folder that was renamed,
swapped or copied lies under other names than it was made under: its name would say another content.
Folders of older versions have no such file; their parts say the same.
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ktrace.errors import KtraceError
from ktrace.files import new_file, read_regular
from ktrace.store.content import parsed_object, require_fingerprint
from ktrace.store.schema import VERSION, JsonObject
from ktrace.terms import dataset_key, noise_key

FILE = "store.json"
_MOST_BYTES = 2**20
_RENAMED = "a folder's name says what it holds: name it as it was, or compute it anew"


@dataclass(frozen=True)
class Binding:
    """What a folder is bound to.

    Attributes:
        fingerprint: what determines the numbers of every part.
        names: what the folders around it were called: `model`, `dataset`, `noise`, `mediator`, as
            far as there are such.
    """

    fingerprint: JsonObject
    names: Mapping[str, str]


def read_binding(folder: Path) -> Binding | None:
    """What a folder is bound to; None where it does not say.

    Raises:
        KtraceError: the file cannot be read, or is none that ktrace writes.
    """
    path = folder / FILE
    try:
        content = parsed_object(read_regular(path, _MOST_BYTES), "text")
        fingerprint, names = content["fingerprint"], content["names"]
        if not isinstance(fingerprint, dict) or not isinstance(names, dict):
            raise ValueError("it holds no objects")
        if not all(isinstance(name, str) for name in names.values()):
            raise ValueError("its names are no text")
        require_fingerprint(fingerprint)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KtraceError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise KtraceError(
            f"damaged: {path}: {error}; remove that file, the parts beside it say the same"
        ) from error
    return Binding(fingerprint, names)


def create_binding(folder: Path, binding: Binding) -> bool:
    """Bind a folder, whole or not at all; False where it is bound already.

    Raises:
        KtraceError: the folder cannot be written.
    """
    content = {
        "schema_version": VERSION,
        "fingerprint": binding.fingerprint,
        "names": dict(binding.names),
    }
    path = folder / FILE
    text = json.dumps(content, indent=2) + "\n"
    # Under a name of its own first: whoever reads `store.json` reads all of it.
    draft = folder / f"draft-{secrets.token_hex(4)}.json"
    with new_file(draft) as temporary:
        temporary.write_text(text, "utf-8")
    try:
        return _linked(draft, path, text)
    except OSError as error:
        raise KtraceError(f"output_dir: {path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _linked(draft: Path, path: Path, text: str) -> bool:
    try:
        os.link(draft, path)
    except FileExistsError:
        # A file server that was asked twice made it the first time, and says so the second.
        return path.samefile(draft)
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            return False
    return True


def require_own_names(folder: Path, names: Mapping[str, str], found: Binding) -> None:
    """Refuse a folder that lies under other names than those of its content.

    Args:
        folder: the store's.
        names: what the folders around it are called.
        found: what it is bound to.

    Raises:
        KtraceError: with both names.
    """
    noise, mediator = found.fingerprint.get("noise"), found.fingerprint.get("mediator")
    content = dict(found.names)
    if isinstance(noise, dict) and "kind" in noise:
        content["noise"] = noise_key(noise)
    if isinstance(mediator, str):
        content["mediator"] = mediator
    for kind, name in names.items():
        if content.get(kind, name) != name:
            raise KtraceError(
                f"{folder} holds results of {kind} {content[kind]}, and lies in {name}: {_RENAMED}"
            )


def names_told(about: JsonObject, fingerprint: JsonObject) -> dict[str, str]:
    """What the folders of a run were called, as far as a part's provenance and fingerprint tell."""
    try:
        config = about["config"]
        model, dataset = config["model"]["name"], config["dataset"]
        names = {"model": model, "dataset": dataset_key(dataset["name"], fingerprint["dataset"])}
    except (AttributeError, KeyError, TypeError):
        return {}
    return {kind: name for kind, name in names.items() if isinstance(name, str)}


def require_same(place: Path, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Refuse results of other settings.

    Args:
        place: the store or part that holds them.
        found: its fingerprint.
        expected: what it should be.

    Raises:
        KtraceError: with both values of each setting that differs.
    """
    differing = [
        f"{key}: stored {json.dumps(found.get(key))}, now {json.dumps(expected.get(key))}"
        for key in sorted({*found, *expected})
        if found.get(key) != expected.get(key)
    ]
    if differing:
        raise KtraceError(
            f"{place} holds results of other settings ({'; '.join(differing)}). Choose another "
            "output_dir, model.name or dataset.name, or remove it"
        )
