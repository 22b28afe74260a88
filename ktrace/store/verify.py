"""Read all that lies in stores: what is damaged, what is not theirs, what the dead left behind."""

import os
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from ktrace.errors import DamagedPartError, GonePartError, KtraceError
from ktrace.files import set_aside, stale_in
from ktrace.store.binding import FILE, read_binding, require_own_names, require_same
from ktrace.store.claims import Claims, holders
from ktrace.store.layout import RunFolders
from ktrace.store.listing import is_part
from ktrace.store.lockfiles import FOLDER
from ktrace.store.locks import NAME
from ktrace.store.part import binding_of, part_name, read_part, verify_part
from ktrace.store.store import Store
from ktrace.terms import ClaimKind


class Fault(Enum):
    """What is wrong with a file.

    Attributes:
        damaged: a part that cannot be read, or says what no run writes.
        foreign: something that the folder is not for.
        leftover: what a killed process left.
    """

    damaged = "damaged"
    foreign = "foreign"
    leftover = "leftover"


class Finding(NamedTuple):
    """A file that is wrong.

    Attributes:
        path: which.
        fault: how.
        why: in words.
    """

    path: Path
    fault: Fault
    why: str


def stores_below(folder: Path, claims: ClaimKind = ClaimKind.auto) -> Iterator[Store]:
    """The stores in a folder and below it, itself among them; links are not followed."""
    for place, folders, _ in os.walk(folder):
        folders.sort()
        found = _store_at(Path(place), claims)
        if found is not None:
            yield found


def _store_at(folder: Path, claims: ClaimKind) -> Store | None:
    """What a folder is by its place: `ktrace.store.layout.RunFolders`."""
    above = folder.absolute().parent
    if above.name == "restored":
        return RunFolders(folder.parent.parent, claims).restored(folder.name)
    if above.name == "corrupted" and above.parent.name == "activations":
        dataset = folder.parent.parent.parent
        return RunFolders(dataset / folder.name, claims).activations("corrupted")
    if above.name == "activations":
        run = RunFolders(folder.parent.parent / "noise", claims)
        return run.activations("clean") if folder.name == "clean" else None
    if folder.name == "clean":
        return RunFolders(folder.parent / "noise", claims).clean
    return RunFolders(folder.parent, claims).corrupted if folder.name == "corrupted" else None


def faults_of(store: Store, read: Callable[[], None] | None = None) -> Iterator[Finding]:
    """What is wrong in a store, file by file; every byte of its parts is read.

    Args:
        store: which.
        read: called after each part.

    Raises:
        KtraceError: a part may not be read.
    """
    try:
        bound = read_binding(store.folder)
        if bound is not None:
            require_own_names(store.folder, store.names, bound)
    except KtraceError as error:
        yield Finding(store.folder / FILE, Fault.foreign, str(error))
        bound = None
    fingerprint = None if bound is None else bound.fingerprint
    for entry in sorted(store.folder.iterdir()):
        if is_part(entry.name):
            yield from _of_part(store, entry, fingerprint)
            if read is not None:
                read()
        elif entry.name in (NAME, FOLDER):
            # Any fact: the file is one for all, and nobody works on more than some thousands.
            if not holders(store.folder, range(_MOST_FACTS)):
                yield Finding(entry, Fault.leftover, "nobody holds a claim there")
        elif not entry.name.startswith((".", "damaged-", "draft-")) and entry.name != FILE:
            yield Finding(entry, Fault.foreign, "a store holds no such file")


_MOST_FACTS = 2**12


def _of_part(store: Store, path: Path, bound: dict[str, object] | None) -> Iterator[Finding]:
    try:
        verify_part(path, store.schema)
        indices = [row["index"] for row in read_part(path, store.schema, ["index"])]
        found = binding_of(path)
    except GonePartError:  # another process has merged it
        return
    except DamagedPartError as error:
        yield Finding(path, Fault.damaged, str(error).removeprefix(f"{path}: "))
        return
    try:
        require_same(path, found.fingerprint, found.fingerprint if bound is None else bound)
        require_own_names(store.folder, store.names, found)
    except KtraceError as error:
        yield Finding(path, Fault.foreign, str(error))
    else:
        if path.name != part_name(indices):
            yield Finding(path, Fault.foreign, f"its facts are those of {part_name(indices)}")


def leftovers_in(folder: Path) -> Iterator[Finding]:
    """Temporary files of the dead, in a folder and below it."""
    for path in stale_in(folder):
        yield Finding(path, Fault.leftover, "its writer is gone")


def mended(store: Store, findings: Iterable[Finding]) -> list[Finding]:
    """Set damaged parts aside and remove what the dead left, where nobody works on the store.

    Returns:
        What was mended. Foreign files are a person's to judge.

    Raises:
        KtraceError: the folder cannot be written.
    """
    done = []
    with Claims(store.folder, store.claims).all_of_it() as is_alone:
        for finding in findings if is_alone else ():
            if finding.fault is Fault.damaged:
                set_aside(finding.path)
                done.append(finding)
            elif finding.fault is Fault.leftover:
                # Of claims: who closes them last, as now this process does, removes them.
                if finding.path.name == FOLDER:
                    _emptied(finding.path)
                done.append(finding)
    return done


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()
