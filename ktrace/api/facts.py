"""Facts as a caller has them: a file, a frame, or records in memory."""

import os
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import pandas as pd

from ktrace.errors import KtraceError
from ktrace.facts import FactSet
from ktrace.facts.columns import REQUIRED, ROW
from ktrace.facts.fact import fact_set
from ktrace.facts.load import checked_facts

Facts: TypeAlias = str | os.PathLike[str] | pd.DataFrame | Iterable[Mapping[str, object]]

_ORIGIN = "facts"


def path_of(facts: object) -> str | None:
    """The file that holds them; None where they are in memory."""
    return os.fspath(facts) if isinstance(facts, str | os.PathLike) else None


def facts_in_memory(facts: object) -> FactSet:
    """Check facts that are in memory.

    Args:
        facts: a frame with a row for each, or an iterable of mappings. Where none has a `known_id`,
            they are numbered from 0.

    Raises:
        KtraceError: they are nothing of the kind, or none, or one is no fact; the message names it.
    """
    if isinstance(facts, pd.DataFrame):
        rows: list[object] = list(facts.to_dict("records"))
    elif isinstance(facts, Iterable) and not isinstance(facts, Mapping | bytes):
        rows = list(facts)
    else:
        raise KtraceError(
            f"facts={type(facts).__name__} is no file, no DataFrame and no list of facts: a fact "
            f"has {', '.join(REQUIRED)}"
        )
    if not rows:
        raise KtraceError("facts is empty: give at least one fact")
    records = []
    for number, row in enumerate(rows):
        where = f"{_ORIGIN}[{number}]"
        if not isinstance(row, Mapping):
            raise KtraceError(f"{where}={row!r:.60} is no fact, which is a mapping by field")
        records.append((where, {str(key): _cell(value) for key, value in row.items()}))
    given = {key for _, record in records for key in record}
    if "attribute" not in given:
        raise KtraceError(
            f"{_ORIGIN}: none has an attribute, the answer; here are {', '.join(sorted(given))}: "
            "rename what holds it, or give attribute=None for what the model predicts"
        )
    has_ids = any(record.get("known_id") is not None for _, record in records)
    columns = {} if has_ids else {"known_id": ROW}
    return fact_set(checked_facts(records, _ORIGIN, None, columns), _ORIGIN)


def _cell(value: object) -> object:
    """As JSON would hold it: numpy's numbers as Python's own, and what is missing as None."""
    as_python = getattr(value, "tolist", None)
    plain = as_python() if callable(as_python) else value
    if isinstance(plain, tuple):
        return list(plain)
    missing = plain is pd.NA or plain is pd.NaT or (isinstance(plain, float) and plain != plain)
    return None if missing else plain
