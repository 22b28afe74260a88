"""What shows of a text, and one text within another however the two are spelled in code points.

No tokens here: offsets are characters, as Python counts them.
"""

import unicodedata

# Beside white space: what takes no ink and changes no neighbour. Joiners, variation selectors and
# the tags of flags are not among them, because they change how the letter beside them looks.
_INVISIBLE = frozenset(
    "\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2800\u3164\ufeff\uffa0"
    "\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069"
)
_LINE_ENDS = "\r\n"
_LOOKALIKES = {
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("‘’‚‛ʼ′`´", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
}


def is_blank(letter: str) -> bool:
    """Whether nothing shows of a character: white space, control characters, marks of width 0."""
    return letter.isspace() or letter in _INVISIBLE or unicodedata.category(letter) == "Cc"


def trimmed(text: str) -> tuple[int, int]:
    """First character that shows, and one past the last; `(0, 0)` where none does."""
    shown = [place for place, letter in enumerate(text) if not is_blank(letter)]
    return (shown[0], shown[-1] + 1) if shown else (0, 0)


def blanks(text: str) -> frozenset[int]:
    """Places of the characters of which nothing shows."""
    return frozenset(place for place, letter in enumerate(text) if is_blank(letter))


def line_ends(text: str) -> str:
    """The line breaks of a text, without what stands between them."""
    return "".join(letter for letter in text if letter in _LINE_ENDS)


def occurrences(text: str, part: str) -> list[tuple[int, int]]:
    """Every place of a part, overlapping ones too: first character, and one past the last."""
    return [(n, n + len(part)) for n in range(len(text)) if text.startswith(part, n)]


def equivalents(text: str, part: str) -> list[tuple[int, int]]:
    """Places that Unicode calls the same text as `part`, however composed (NFC, NFD).

    None begins or ends inside a letter: "e" is no part of "é", whether this is one character or
    two.
    """
    # Decomposed text is the pieces' decompositions, one after another, if every piece begins with a
    # character that does not combine.
    place_of, length = {}, 0
    for place, letter in enumerate(text):
        spelled = unicodedata.normalize("NFD", letter)
        if not unicodedata.combining(spelled[0]):
            place_of[length] = place
        length += len(spelled)
    place_of[length] = len(text)
    decomposed = unicodedata.normalize("NFD", text)
    found = occurrences(decomposed, unicodedata.normalize("NFD", part))
    places = ((place_of.get(first, -1), place_of.get(last, -1)) for first, last in found)
    return [(first, last) for first, last in places if _is_apart(text, first, last)]


def _is_apart(text: str, first: int, last: int) -> bool:
    """Whether characters of a text are whole letters of it."""
    if min(first, last) < 0:
        return False
    composed = [unicodedata.normalize("NFC", t) for t in (text[:first], text[first:last])]
    rest = unicodedata.normalize("NFC", text[last:])
    return "".join((*composed, rest)) == unicodedata.normalize("NFC", text)


def difference(text: str, part: str) -> str:
    """Where a text holds what only looks like `part`: the first difference in code points.

    Returns:
        For the end of a message; empty where nothing looks like it.
    """
    folded, places = _folded(text)
    wanted, _ = _folded(part)
    start = folded.find(wanted.strip())
    if start < 0 or not wanted.strip():
        return ""
    first, last = places[start], places[start + len(wanted.strip()) - 1] + 1
    while last < len(text) and unicodedata.combining(text[last]):
        last += 1
    like = text[first:last]
    pairs = zip(like, part, strict=False)
    at = next((n for n, (its, own) in enumerate(pairs) if its != own), min(len(like), len(part)))
    return (
        f"; it holds {like!r}, with {_code_points(like[at:])} in place of {_code_points(part[at:])}"
    )


def _folded(text: str) -> tuple[str, list[int]]:
    """A text without what is easily overlooked, and where each of its characters comes from."""
    letters: list[str] = []
    places: list[int] = []
    for place, letter in enumerate(text):
        spelled = unicodedata.normalize("NFKD", letter).casefold()
        if is_blank(letter):
            spelled = " " if letter.isspace() else ""
        for one in spelled:
            plain = _LOOKALIKES.get(one, one)
            if unicodedata.combining(plain) or (plain == " " and letters[-1:] == [" "]):
                continue
            letters.append(plain)
            places.append(place)
    return "".join(letters), places


def _code_points(text: str) -> str:
    """The first characters of a text, as Unicode numbers them."""
    first = text[:1]
    for letter in text[1:]:
        if not unicodedata.combining(letter):
            break
        first += letter
    points = " ".join(f"U+{ord(letter):04X}" for letter in first)
    return f"{points} ({first})" if first.isprintable() and first.strip() else points or "nothing"
