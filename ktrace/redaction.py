"""What must not be told: user information and queries of URLs, and values from the environment.

One door: every error's message, every line that is logged or printed and everything that a run says
about itself goes through `redacted`. The config's door says which values came from the environment
(`ktrace.config.secret_values`).
"""

import json
import logging
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

HIDDEN = "***"

# `hf://` has no user: datasets' own `@` is a revision. A quote or a blank ends what stands in text.
_URL = re.compile(
    r"(?<![A-Za-z0-9+.-])(?!hf:)([A-Za-z][A-Za-z0-9+.-]*://)"
    r"([^\s'\"<>]*@)?([^\s'\"<>?#]*)([?#][^\s'\"<>]*)?"
)
# A shorter text is no secret, and stands in half of what is written.
_SHORTEST = 4
# A shorter one is taken for a secret where it is a word of its own.
_LONG = 8

_shown: dict[str, str] = {}  # by what must not be told


def keep_secret(value: str, shown: str = HIDDEN) -> None:
    """From now on, tell something else wherever a value would be told.

    Args:
        value: the secret; also as `repr`, JSON, a URL or one line would hold it.
        shown: in its place.
    """
    line = " ".join(value.split())
    for told in (value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value), line):
        if len(told) >= _SHORTEST:
            _shown.setdefault(told, shown)


def keep_url_secret(url: str) -> None:
    """Keep what a URL holds beside its place: also where a message quotes that alone."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://(.*@)?([^?#]*)([?#].*)?", url.strip(), re.DOTALL)
    if found is None or url.startswith("hf:"):
        return
    user, query = (found[1] or "")[:-1], (found[3] or "")[1:]
    password = user.partition(":")[2]
    # Short values of queries, such as `json`, are words of other texts.
    values = (value for value in re.split("[&;=#]", query) if len(value) >= _LONG)
    for value in (user, password, query, *values):
        keep_secret(value)
        keep_secret(unquote(value))


def redacted(text: str) -> str:
    """A text without what must not be told; of a redacted text, the same text."""
    known = sorted(_shown, key=len, reverse=True)
    if any(value in text for value in known):
        text = re.sub("|".join(map(_pattern, known)), lambda found: _shown[found[0]], text)
    return _URL.sub(_without_secrets, text) if "://" in text else text


def _pattern(value: str) -> str:
    exact = re.escape(value)
    return exact if len(value) >= _LONG else rf"(?<![A-Za-z0-9]){exact}(?![A-Za-z0-9])"


def _without_secrets(found: re.Match[str]) -> str:
    scheme, user, place, query = found.groups()
    return f"{scheme}{(user and f'{HIDDEN}@') or ''}{place}{(query and query[0] + HIDDEN) or ''}"


def all_redacted(value: object) -> object:
    """Dicts, lists and texts, without what must not be told; keys stay as they are."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: all_redacted(item) for key, item in value.items()}
    return [all_redacted(item) for item in value] if isinstance(value, list | tuple) else value


class RedactingFormatter(logging.Formatter):
    """Of log lines, tracebacks among them."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return redacted(super().format(record))
