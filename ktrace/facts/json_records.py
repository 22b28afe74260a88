"""JSON and JSON Lines, told by what the text holds: a list of records, or one after another."""

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import NamedTuple

from ktrace.errors import KtraceError
from ktrace.facts.reading import Records

_TOO_MANY_DIGITS = "a number with more digits than Python reads"  # its one other ValueError
_BLANKS = re.compile(r"[ \t\n\r]*")  # as JSON has them
_SHOWN = 10  # keys in a message


class _DuplicateKeyError(ValueError):
    """A record has a key twice; the parser would take the last."""


class Parsed(NamedTuple):
    """Records, and whether they stand one after another."""

    records: Records
    is_lines: bool


def parse_json(source: str, text: str, *, lines: bool, names: frozenset[str]) -> Parsed:
    """Read records.

    Args:
        source: where the text comes from, for messages.
        text: a list of objects, or objects that each begin on a line of their own.
        lines: whether one object alone is a record, as in JSON Lines.
        names: columns of a fact: an object alone that has one of them is a record anywhere.

    Raises:
        KtraceError: it is neither, or holds something else.
    """
    try:
        values = list(_values(source, text))
    except RecursionError as error:
        raise KtraceError(f"{source}: malformed JSON: it is nested too deeply") from error
    if not values:
        return Parsed([], lines)
    first = values[0][1]
    if isinstance(first, list) and len(values) == 1:
        places = [(f"{source}, record {n}", value) for n, value in enumerate(first, start=1)]
        return Parsed([(where, _as_object(value, where)) for where, value in places], False)
    if len(values) == 1 and not lines and not _is_record(first, names):
        raise KtraceError(_no_list(source, first))
    places = [(f"{source}, line {line}", value) for line, value in values]
    return Parsed([(where, _as_object(value, where)) for where, value in places], True)


def _values(source: str, text: str) -> Iterator[tuple[int, object]]:
    """Each value of a text, with the line where it begins."""
    decoder = JSONDecoder(object_pairs_hook=_object)
    end, line, counted = 0, 1, 0
    while True:
        # Line ends are JSON's: a text in it may hold U+2028 and its like.
        blanks = _BLANKS.match(text, end)
        assert blanks is not None
        start = blanks.end()
        line, counted = line + text.count("\n", counted, start), start
        if start == len(text):
            return
        # A list is one value of many records: its beginning is no place for a message.
        where = source if text[start] == "[" else f"{source}, line {line}"
        if end and not {"\n", "\r"} & {*text[end:start]}:
            raise KtraceError(f"{where}: malformed JSON: Extra data")
        try:
            value, end = decoder.raw_decode(text, start)
        except JSONDecodeError as error:
            at = f"{source}, line {error.lineno}"
            raise KtraceError(f"{at}: malformed JSON: {_sentence(error)}") from error
        except _DuplicateKeyError as error:
            raise KtraceError(f"{where}: {error}") from error
        except ValueError as error:
            raise KtraceError(f"{where}: malformed JSON: {_TOO_MANY_DIGITS}") from error
        yield line, value


def _sentence(error: JSONDecodeError) -> str:
    """Python's words, some of which are to be followed by the place."""
    return f"{error.msg.removesuffix(' at')}, column {error.colno}"


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKeyError(f"an object has the key {twice!r} twice")
    return found


def _is_record(value: object, names: frozenset[str]) -> bool:
    """Whether a value has a field of a fact, and not columns of many, as pandas may write them."""
    if not isinstance(value, dict):
        return False
    return any(name in names and not isinstance(value[name], dict | list) for name in value)


def _as_object(record: object, where: str) -> dict[str, object]:
    if not isinstance(record, dict):
        raise KtraceError(f"{where}: a fact must be an object, not {type(record).__name__}")
    return record


def _no_list(source: str, found: object) -> str:
    """That a text holds something else than records, and what."""
    said = f"{source}: a list of facts was expected, not {type(found).__name__}"
    if not isinstance(found, dict):
        return said
    keys = [*found]
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    said += f" with the keys {', '.join(map(repr, keys[:_SHOWN]))}{more}"
    lists = [key for key, value in found.items() if isinstance(value, list)]
    if lists:
        return f"{said}: give what {lists[0]!r} holds a file of its own"
    return f"{said}: put records into a list (pandas writes one with to_json(orient='records'))"
