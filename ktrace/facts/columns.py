"""Which column holds which field of a fact, and what to offer where one is not found."""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches

from ktrace.errors import KtraceError
from ktrace.facts.reading import Records, columns_of

REQUIRED = ("known_id", "prompt", "subject", "attribute")
FIELDS = (*REQUIRED, "template", "relation_id", "subject_start", "corrupted_prompt", "foil")
ROW = "_row"  # the column that every file has: the record's number, from 0
_SHOWN = 20  # columns in a message
# What people call fields in tables of their own, beside names that are spelled nearly alike.
_ALSO_CALLED = {
    "known_id": ("id", "case_id", "fact_id"),
    "attribute": ("answer", "target", "label", "object"),
}


def renamed(
    record: Mapping[str, object], columns: Mapping[str, str], row: int, where: str
) -> Mapping[str, object]:
    """A record of another schema, with the fields that a fact needs.

    Args:
        record: as it stands in the file.
        columns: column by field; a dot reaches into a nested record, `_row` is the row's number,
            and an empty name says that the field is not given.
        row: the record's number in its file, from 0.
        where: for messages.

    Raises:
        KtraceError: no such column.
    """
    if not columns:
        return record
    found: dict[str, object] = {ROW: row, **record}
    for name, column in columns.items():
        if not column:
            found[name] = None
            continue
        value: object = found
        for part in [column] if column in found else column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise KtraceError(
                    f"{where}: there is no {column!r} (dataset.columns.{name}); "
                    f"here are {', '.join(record)}"
                )
            value = value[part]
        found[name] = value
    return found


def names_of(columns: Mapping[str, str]) -> frozenset[str]:
    """What the columns of a file may be called that hold fields, nested ones by their first part.

    Args:
        columns: column by field, of the fields that are somewhere else.
    """
    told = (columns.get(field, field) for field in FIELDS)
    return frozenset(name for column in told for name in (column, column.split(".")[0]) if name)


def lacking(missing: Collection[str], record: Mapping[str, object], where: str) -> str:
    """That a record lacks fields, what it has, and which keys may settle it.

    Args:
        missing: fields.
        record: as it was read.
        where: for the message.
    """
    absent = [field for field in missing if field not in record]
    lacks = [f"no {', '.join(absent)}"] if absent else []
    empty = [f"{field} is empty" for field in missing if field in record]
    said = f"{where}: {', '.join([*lacks, *empty])}"
    numbers = f"dataset.columns.known_id={ROW} numbers the records"
    if not absent:
        return f"{said}: fill it, or {numbers} instead" if "known_id" in missing else said
    said += f"; a fact has {', '.join(REQUIRED)}"
    there = [name for name, value in record.items() if name != ROW and value not in (None, "")]
    if there:
        said += f", and here are {_listed(_with_nested(record, there))}"
    keys = _offers(absent, there)
    offers = [f"did you mean {' '.join(keys.values())}?"] if keys else []
    if "known_id" in absent and "known_id" not in keys:
        offers.insert(0, numbers)
    return f"{said}: {', '.join(offers)}" if offers else said


def no_answers(records: Records, source: str) -> str:
    """That every answer is left out, which is likelier a column of another name than meant."""
    names = [*columns_of(records)]
    offered = _offers(["attribute"], names).get("attribute", "dataset.columns.attribute=...")
    return (
        f"{source}: no record has an attribute, the answer; here are "
        f"{_listed(_with_nested(records[0][1], names))}: name its column with {offered}, "
        "or take what the model predicts by null in a record or an empty dataset.columns.attribute="
    )


def _with_nested(record: Mapping[str, object], names: Iterable[str]) -> Iterator[str]:
    """Names of columns; of a nested record's fields, as `dataset.columns` calls them."""
    for name in names:
        value = record.get(name)
        yield from (f"{name}.{key}" for key in value) if isinstance(value, Mapping) else [name]


def _listed(names: Iterable[str]) -> str:
    told = [*names]
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + more


def _offers(missing: Iterable[str], there: Collection[str]) -> dict[str, str]:
    """By field that is missing, the key that says which column of nearly its name holds it."""
    plain = {_plain(name): name for name in there if name not in FIELDS}
    found = {}
    for field in missing:
        called = [name for name in _ALSO_CALLED.get(field, ()) if name in plain]
        close = get_close_matches(field, plain, n=1) or called
        if close:
            found[field] = f"dataset.columns.{field}={shlex.quote(plain.pop(close[0]))}"
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")
