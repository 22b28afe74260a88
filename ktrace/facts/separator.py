"""What stands between a prompt and its answer, where the two are to be read as one text.

A space, unless the prompt ends in what the answer belongs to (an opening quote, a hyphen, an
elision), the answer begins with what belongs to the prompt (a comma, an accent), or their script
has no spaces between words.
"""

import unicodedata
from collections.abc import Iterable

from ktrace.facts.text import is_blank

# Scripts without spaces between words, by the first and the last character of their blocks. Those
# of East Asia put none before words of other scripts either; those of South-East Asia do.
_EAST_ASIAN = (
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3031, 0x303C),
    (0x3041, 0x30FF),  # kana
    (0x3105, 0x312F),  # bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # Han
    (0xA000, 0xA4CF),  # Yi
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # kana of half width
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)
_SOUTH_EAST_ASIAN = (
    (0x0E01, 0x0E3A),  # Thai
    (0x0E40, 0x0E5B),
    (0x0E80, 0x0EFF),  # Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x19E0, 0x19FF),
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0xA980, 0xA9DF),  # Javanese
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
)
# What belongs to the word before it, whatever its category says.
_CLOSING = frozenset(".,;:!?%‰…،؛؟٪۔।॥")
# What belongs to the word behind it where it does not end another one.
_PREFIXES = frozenset("#~±¿¡<")
# What ties two words together where no blank stands before it.
_TIES = frozenset("/\\=~^&<>")
# What marks both ends of a piece of text.
_PAIRED = frozenset('"`*_')
# Which marks open what these close. „Paris“ and »Paris« are German; elsewhere “ and « open.
_OPENERS = {"“": "„", "”": "“„", "’": "‘‚", "‘": "‚", "»": "«", "«": "»", "›": "‹", "‹": "›"}
_CLITICS = frozenset({"s", "t", "re", "ve", "ll", "d", "m"})


def separator(prompt: str, answer: str) -> str:
    """What to put between the two: a space or nothing.

    Args:
        prompt: without blanks at its ends, as `answer`.
        answer: what is written after it.
    """
    joined = _ends_open(prompt, answer) or _begins_closing(prompt, answer)
    return "" if joined or _needs_no_space(prompt, answer) else " "


def _ends_open(prompt: str, answer: str) -> bool:
    """Whether a prompt ends in what belongs to the next word."""
    last, before = prompt[-1], prompt[:-1]
    category = unicodedata.category(last)
    apart = not before or is_blank(before[-1]) or _may_open(before[-1])
    if _is_wide(last) or category == "Ps" or last == "@":
        return True
    if last in _PAIRED:
        return _begins_pair(prompt)
    if last == "'" or category in ("Pi", "Pf"):
        opens = not _is_open(before, last) and (category == "Pi" or apart)
        return opens or _elides(before, last)
    if category == "Pd" or last == "−":  # "Franco-", and "a temperature of -"; not "a city -"
        return not apart or answer[0].isdigit()
    if category == "Sc":  # "costs $", not "5 €"
        return not before.rstrip()[-1:].isdigit()
    return last in (_PREFIXES if apart else _TIES)


def _begins_pair(text: str) -> bool:
    """Whether the mark, or the run of it, that ends a text opens rather than closes."""
    run = text[len(text.rstrip(text[-1])) :]
    before = text.removesuffix(run)
    # Two of a kind close what they open; and behind a digit they are inches.
    return before.count(run) % 2 == 0 and not (run == '"' and before[-1:].isdigit())


def _is_open(text: str, mark: str) -> bool:
    """Whether a text holds a quotation that a mark behind it closes."""
    if mark not in _OPENERS:
        return False
    return max(map(text.rfind, _OPENERS[mark])) > text.rfind(mark)


def _elides(before: str, last: str) -> bool:
    """Whether an apostrophe stands for a letter, as in l'Angleterre; not as in the dogs' house."""
    if last not in "'’" or not before[-1:].isalpha() or _is_open(before, last):
        return False
    *others, word = before.split()
    begun = any(other.startswith("'") and other.count("'") == 1 for other in (*others, word))
    plural = word[-1] in "sxzSXZ" and len(word) > 1
    return not (plural or begun)


def _begins_closing(prompt: str, answer: str) -> bool:
    """Whether an answer begins with what belongs to the word before it."""
    first, rest = answer[0], answer[1:]
    category = unicodedata.category(first)
    if category.startswith("M") or first in "\u200c\u200d":
        return True
    if _is_wide(first):
        return category not in ("Ps", "Pi")
    if first in "'’" and rest[:1].isalpha() and rest.split()[0].lower() in _CLITICS:
        return True
    if first == '"' or category in ("Pi", "Pf"):  # it ends a quotation that the prompt has begun
        return not _begins_pair(prompt + first) if first == '"' else _is_open(prompt, first)
    if category == "Pd":  # "-speaking", not "-5"
        return rest[:1].isalpha() and prompt[-1].isalnum()
    if first in _CLOSING:  # the end of a sentence, not ".NET"
        return not rest[:1].isalnum()
    return category == "Pe"


def _needs_no_space(prompt: str, answer: str) -> bool:
    """Whether the script puts none between these words."""
    chunk = prompt.split()[-1]
    for blocks, also_before_others in ((_EAST_ASIAN, True), (_SOUTH_EAST_ASIAN, False)):
        if _is_in(answer[0], blocks) and any(_is_in(letter, blocks) for letter in chunk):
            return True
        if also_before_others and _is_in(prompt[-1], blocks):
            return True
    return False


def _is_in(letter: str, blocks: Iterable[tuple[int, int]]) -> bool:
    return any(first <= ord(letter) <= last for first, last in blocks)


def _is_wide(letter: str) -> bool:
    """Whether it is punctuation of East Asian texts, which brings its own space."""
    width = unicodedata.east_asian_width(letter)
    return width == "F" or (width == "W" and unicodedata.category(letter).startswith("P"))


def _may_open(letter: str) -> bool:
    return unicodedata.category(letter) in ("Ps", "Pi") or letter in "\"'"
