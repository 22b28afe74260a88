"""What stands between a prompt and its answer, where the two are to be read as one text.

A space, unless the prompt ends in what the answer belongs to (an opening quote, a hyphen, an
elision), the answer begins with what belongs to the prompt (a comma, an accent), or their script
has no spaces between words. Arrows ("->") and comparison signs stand between blanks.
"""

import re
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
_PREFIXES = frozenset("#¿¡")
# What ties two words together where no blank stands before it; so do the signs of mathematics.
_TIES = frozenset("/\\^&")
_NO_TIES = frozenset("+|")  # "C++", "grade A+", and the cells of a table
_MINUS = frozenset("-−")
# What makes an arrow or a comparison sign together with a sign behind it.
_ARROW_PARTS = frozenset("-−=<>~!:|+*/\\^&")
_SLASHES = frozenset("/\\")
# What marks both ends of a piece of text.
_PAIRED = frozenset('"`*_')
_TAG = re.compile(r"<(?P<closing>/?)(?:[^\W\d]|\|)[^<>]*>$")
_BLANK_TO_FILL = re.compile(r"(?:___|(?:^|\s)__|_\s+_)$")
_FORMULA = re.compile(r"(?:^|[\s(])\$(?:[^$\s\d][^$]*|[^$\s]*)(?<=\S)\$$")  # $x + 1$, as in TeX
_OPERAND = re.compile(r"(?:\d|[)\]]|\b[^\W\d_])$")
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
    if _is_wide(last) or category == "Ps":
        return True
    if last in _PAIRED:
        return _begins_pair(prompt) and not _stands_alone(prompt, answer)
    if last == "'" or category in ("Pi", "Pf"):
        opens = not _is_open(before, last) and (category == "Pi" or _begins_word(before))
        return opens or _elides(before, last)
    if last == ">" and (tag := _TAG.search(prompt)):  # "The <b>"; not "The <b>city</b>"
        return not tag["closing"]
    text = prompt.rstrip(last)
    if _begins_word(text):
        return len(prompt) == len(text) + 1 and _is_prefix(text, last, answer)
    if category == "Sc":  # "US$"; not "5€", nor the end of "$x$"
        return not text[-1].isdigit() and not _FORMULA.search(prompt)
    if last in _SLASHES and text[-1] in ":~<":  # "http://", "~/", "</"
        return True
    if category == "Pd" and last not in _MINUS:
        return True
    if text[-1] in _ARROW_PARTS or unicodedata.category(text[-1]) == "Sm":
        return False
    if last == "+":
        return text[-1].isdigit() and answer[0].isdigit()
    signs = category == "Sm" and last not in _NO_TIES and not _is_arrow(last)
    return signs or last in _TIES or last in _MINUS or last == "@"


def _is_prefix(text: str, sign: str, answer: str) -> bool:
    """Whether a sign that follows a blank belongs to what follows it."""
    amount = answer[0].isdigit() or unicodedata.category(answer[0]) == "Sc"
    operand = _OPERAND.search(text.rstrip()) is not None
    if _begins_line(text) and sign not in "¿¡@":  # a list, a heading, a shell's prompt
        return sign == "$" and amount
    if unicodedata.category(sign) == "Sc":  # "costs $", not "5 €"
        return not text.rstrip()[-1:].isdigit()
    if sign in _MINUS or sign in "~±":  # "a temperature of -"; not "a city -", nor "5 -"
        return amount and not operand
    if sign == "<":  # "write to <", "<Rome>, <"; not "x <"
        return ">" in answer or re.search(r"<\S+>", text) is not None
    if sign == "@":  # "the name @", not "two pounds @"
        return not amount
    return sign in _PREFIXES


def _stands_alone(text: str, answer: str) -> bool:
    """Whether marks that come in pairs are no pair: a blank to fill, a list, a product."""
    if text[-1] == "_":
        return _BLANK_TO_FILL.search(text) is not None
    if text[-1] != "*":
        return False
    before = text.rstrip("*")
    if before[-1:] in _SLASHES:  # a comment
        return True
    if not before or not is_blank(before[-1]):
        return False
    factor = answer[0].isdigit() or (len(answer) == 1 and answer.isalpha())
    in_list = _begins_line(before) and len(text) == len(before) + 1
    return in_list or (factor and _OPERAND.search(before.rstrip()) is not None)


def _begins_word(text: str) -> bool:
    """Whether what follows a text begins a word of its own."""
    return not text or is_blank(text[-1]) or _may_open(text[-1])


def _begins_line(text: str) -> bool:
    """Whether what follows a text begins a line, but the first."""
    return text.rstrip(" \t").endswith(("\n", "\r"))


def _is_arrow(sign: str) -> bool:
    return "ARROW" in unicodedata.name(sign, "")


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
