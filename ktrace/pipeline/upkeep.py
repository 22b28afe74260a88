"""What is done with stores apart from computing them: how far they are, and merging their parts.

Neither loads a model, nor torch.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import NamedTuple

from ktrace.analysis.stored import expected_facts
from ktrace.config import RunConfig
from ktrace.errors import KtraceError
from ktrace.pipeline.bars import progress
from ktrace.store import Owner, RunFolders, Store, compact, holders, one_at_a_time, progress_of
from ktrace.terms import RUN_KINDS

log = logging.getLogger(__name__)

_SEVERAL = 4  # holders that are named


class Upkeep(NamedTuple):
    """A small table.

    Attributes:
        title: above it.
        columns: names; the first tells the rows apart.
        rows: cells, as text.
        problem: what the command ends in, after the table; empty where all is well.
        texts: columns of words beside the first one; others hold numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    problem: str = ""
    texts: Sequence[str] = ()


def compact_run(folders: RunFolders) -> Upkeep:
    """Merge the small parts of every store of a run.

    Raises:
        KtraceError: there is no such run, or its folder cannot be written.
    """
    stores = dict(_stores(folders))
    _require_some(folders, stores)
    folders.run.mkdir(parents=True, exist_ok=True)
    rows = []
    with (
        one_at_a_time(folders.run, "analyses or compacts the same run", folders.claims),
        progress("merging parts", len(stores), "stores") as advance,
    ):
        for name, store in stores.items():
            found = compact(store)
            if found is None:
                log.warning(
                    "%s is left as it is: another process works on it, or nobody can tell "
                    "(claims=none)",
                    store.folder,
                )
                rows.append((name, str(len(store.parts())), "left as it is"))
            else:
                rows.append((name, str(found.before), str(found.after)))
            advance(1)
    return Upkeep(f"Parts of {folders.run}", ("store", "before", "after"), rows)


def status_of(config: RunConfig, folders: RunFolders, keys: Sequence[str]) -> Upkeep:
    """How far a run is: each store's facts, done, claimed and left.

    What is left of a later stage counts the facts that earlier ones found to be its own so far.

    Args:
        config: of the run.
        folders: of the run.
        keys: mediators that were asked for.

    Raises:
        KtraceError: there is no such run, or a store is of another version.
    """
    stores = dict(_stores(folders, keys))
    _require_some(folders, stores)
    wanted = _wanted(config, folders)
    rows = [
        _status(name, store, wanted["restored" if name.startswith("restored/") else name])
        for name, store in stores.items()
    ]
    columns = ("store", "facts", "done", "claimed", "by", "left", "seconds left")
    return Upkeep(f"{folders.run}", columns, rows, texts=("by",))


def _stores(folders: RunFolders, keys: Sequence[str] = ()) -> Iterator[tuple[str, Store]]:
    """By what they are called below the dataset's folder or the noise's."""
    yield "clean", folders.clean
    yield "corrupted", folders.corrupted
    for key in dict.fromkeys((*keys, *folders.mediator_keys())):
        yield f"restored/{key}", folders.restored(key)
    for kind in RUN_KINDS:
        store = folders.activations(kind)
        if store.parts():
            yield f"activations/{kind}", store


def _require_some(folders: RunFolders, stores: Mapping[str, Store]) -> None:
    if not any(store.folder.is_dir() for store in stores.values()):
        raise KtraceError(
            f"output_dir: {folders.run} holds no store: the settings name another run than the one "
            "that was begun"
        )


def _wanted(config: RunConfig, folders: RunFolders) -> Mapping[str, frozenset[int] | None]:
    """By store (or `restored`), the facts that it should hold; None where nobody can tell."""
    limit = config.dataset.limit
    known = {row["index"]: row["is_candidate"] for row in folders.clean.read("is_candidate")}
    left_out = {row["index"]: row["left_out"] for row in folders.corrupted.read("left_out")}
    n_facts = expected_facts(folders, limit, whole_dataset=True) if known else limit
    within = frozenset(known if limit is None else range(limit))
    traced = within.intersection(index for index, why in left_out.items() if not why)
    return {
        "clean": None if n_facts is None else frozenset(range(n_facts)),
        "corrupted": within.intersection(index for index, is_one in known.items() if is_one),
        "restored": traced,
        "activations/clean": None if n_facts is None else frozenset(range(n_facts)),
        "activations/corrupted": traced,
    }


def _status(name: str, store: Store, wanted: frozenset[int] | None) -> Sequence[str]:
    """The cells of one store."""
    found = progress_of(store)
    if found.damaged:
        log.warning("damaged: %d parts of %s; a run computes them again", *found[2:], store.folder)
    if wanted is None:
        return (name, "?", str(len(found.done)), "", "", "?", "?")
    left = wanted - found.done
    claimed = holders(store.folder, sorted(left))
    seconds = "0" if not left else "?"
    if left and found.facts_per_second:
        seconds = str(ceil(len(left) / found.facts_per_second))
    return (
        *(name, str(len(wanted)), str(len(wanted & found.done))),
        *(str(len(claimed)), _told(Counter(claimed.values())), str(len(left)), seconds),
    )


def _told(holders: Counter[Owner]) -> str:
    """Who claims facts, those with the most first."""
    told = [owner.name for owner, _ in holders.most_common()]
    more = [f"{len(told) - _SEVERAL} more"] if len(told) > _SEVERAL else []
    return ", ".join([*told[:_SEVERAL], *more])
