"""Letters that the usual font lacks are taken from other fonts that are installed.

matplotlib draws each letter in the first font of a list that has it; which fonts those are is found
here, by asking the fonts.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# They choose between shapes of the letter before them, and have none of their own.
_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
# A family that was made for many scripts comes before those with a letter or two of them.
_FIRST = ("Noto Sans", "Noto", "Symbola", "Unifont")
# Comes with matplotlib, and has a picture of the script in place of each letter.
_NO_LETTERS = "Last Resort"


class Chosen(NamedTuple):
    """Fonts for a text.

    Attributes:
        families: their names, the usual ones first.
        bold: whether there are bold letters of all of them.
        lacking: letters that none has.
    """

    families: list[str]
    bold: bool
    lacking: frozenset[str]


def use_installed_fonts(figure: Figure) -> frozenset[str]:
    """Give every text of a figure fonts that have its letters.

    Returns:
        Letters that no installed font has: they are drawn as boxes.
    """
    lacking: frozenset[str] = frozenset()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text().isascii():
            continue
        chosen = fonts_for(frozenset(text.get_text()) - _SELECTORS)
        if len(chosen.families) > len(_usual()):
            text.set_fontfamily(chosen.families)
            if not chosen.bold:
                text.set_fontweight("normal")
        lacking |= chosen.lacking
    return lacking


@cache
def fonts_for(letters: frozenset[str]) -> Chosen:
    """Which families draw some letters.

    Args:
        letters: single characters.
    """
    left = {ord(letter) for letter in letters if letter.isprintable()}
    for family in _usual():
        left -= _letters_of(font_manager.findfont(font_manager.FontProperties(family=[family])))
    families = _usual()
    for name, path in _others() if left else ():
        found = left & _letters_of(path)
        if found:
            families.append(name)
            left -= found
        if not left:
            break
    entries = font_manager.fontManager.ttflist
    bold = {entry.name for entry in entries if entry.weight in (700, "bold")}
    return Chosen(families, bold.issuperset(families[len(_usual()) :]), frozenset(map(chr, left)))


def _usual() -> list[str]:
    return list(rcParams["font.family"])


def _others() -> Iterator[tuple[str, str]]:
    """Families that are installed with a file of each, those made for many scripts first."""
    _know_all_installed()
    upright = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular", "book")
        and not entry.name.startswith(_NO_LETTERS)
    }
    rank = {
        name: next((i for i, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))
        for name in upright
    }
    for name in sorted(upright, key=lambda name: (rank[name], name)):
        yield name, upright[name]


@cache
def _know_all_installed() -> None:
    """matplotlib keeps a list of fonts, which lacks those that were installed later."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            try:
                font_manager.fontManager.addfont(path)
            except (OSError, RuntimeError, NotImplementedError):  # such as pictures in colour
                continue


@cache
def _letters_of(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # such as a font that has been removed
        return frozenset()
