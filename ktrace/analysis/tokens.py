"""How a token is shown, in figures and on the page: on one line, with nothing in it that acts."""

MOST_CHARACTERS = 22
_SIGNS = {"\n": "↵", "\t": "⇥"}


def visible(token: str) -> str:
    """A token as a label.

    The blank before it, which most tokens have, is left out; other blanks at its ends are shown.
    Line ends and tabs are signs. Control characters, marks of direction and whatever else has no
    shape of its own are escaped, such as `\\u202e`, which would turn around what follows.
    """
    shown = "".join(_shown(character) for character in token)
    if not shown.strip(" "):
        return "␣" * max(1, len(shown))
    kept = shown.removeprefix(" ")
    before, after = len(kept) - len(kept.lstrip(" ")), len(kept) - len(kept.rstrip(" "))
    return "␣" * before + kept.strip(" ") + "␣" * after


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text with its end cut off where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def abridged(text: str, most: int = 60) -> str:
    """A text without its middle where it is longer than `most` characters: both ends tell it."""
    half = most // 2
    return text if len(text) <= most else f"{text[: half - 1]}…{text[-half:]}"


def _shown(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    return character if character.isprintable() else repr(character)[1:-1]
