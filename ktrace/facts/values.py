"""From a cell to the text or the number that it holds, or a complaint that names it."""

import math
import re
from decimal import Decimal

from ktrace.errors import KtraceError

_SHOWN = 100  # characters of a value in a message
# Not 1e3: a spreadsheet that shows so few digits has dropped the others.
_WHOLE = re.compile(r"[+-]?[0-9]+(?P<point>\.0*)?")
_EXACT = 2**53  # up to here, numbers with a point tell whole ones apart


def text_in(key: str, value: object, where: str) -> str:
    """A cell that holds text.

    Raises:
        KtraceError: it holds something else, or characters that no tokenizer takes.
    """
    if not isinstance(value, str):
        raise KtraceError(f"{where}: {key}={shown(value)} is not text")
    # Half of a surrogate pair and NUL pass through JSON, but neither is text for a tokenizer.
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise KtraceError(f"{where}: {key}={shown(value)} holds a character that is not text")
    return value


def has_point(value: object) -> bool:
    """Whether a number is written as 40.0 is, in a file or as text."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value.strip())
        return found is not None and found["point"] is not None
    return isinstance(value, float | Decimal)


def whole(key: str, value: object, where: str, hint: str = "") -> int:
    """A cell that holds a whole number: 40, "40", and 40.0, as pandas has it beside gaps.

    Args:
        key: its field.
        value: the cell.
        where: for messages.
        hint: for the end of a message: what to do instead.

    Raises:
        KtraceError: it holds something else.
    """
    number = _whole(value)
    most = _EXACT if has_point(value) else 2**63
    if number is None or not -most <= number < most:
        raise KtraceError(
            f"{where}: {key}={shown(value)} is not a whole number below 2**"
            f"{most.bit_length() - 1}{hint}"
        )
    return number


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float | Decimal):
        return int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, str):
        try:
            return int(value.strip().partition(".")[0]) if _WHOLE.fullmatch(value.strip()) else None
        except ValueError:  # more digits than Python reads
            return None
    return value if isinstance(value, int) else None


def shown(value: object) -> str:
    """As Python writes it, cut where a message would run over many lines."""
    told = repr(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}..."
