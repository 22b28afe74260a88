"""From the bytes of a file to its text: by the mark at its start, as UTF-8, or as it is said.

Which encoding of 8 bits a file is in, no content tells for sure: such files are refused until
`dataset.encoding` says it.
"""

import codecs
import re
from collections.abc import Iterator

from ktrace.errors import KtraceError
from ktrace.facts.reading import Form

# The longer ones first: that of UTF-32 begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(rb"\r\n|\r|\n")
# What spreadsheets save text in where they do not save UTF-8, as examples for a person.
_USUAL = ("cp1252", "cp1250", "cp1251", "mac_roman", "cp850", "shift_jis", "gb18030")
_MOST_EXAMPLES = 3
_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")
_SHOWN = 24  # bytes of a word in a message


def text_of(source: str, raw: bytes, form: Form) -> tuple[str, str]:
    """A file's text, and how its encoding is called.

    Args:
        source: where the bytes come from, for messages.
        raw: the file's content.
        form: with its encoding, if that is known.

    Raises:
        KtraceError: it is not in that encoding, its mark names another one, or none is known and
            it is not UTF-8.
    """
    mark, marked = next(((m, name) for m, name in _MARKS if raw.startswith(m)), (b"", ""))
    if marked and form.encoding and not codecs.lookup(form.encoding).name.startswith(marked):
        raise KtraceError(
            f"{source}: its first bytes are the mark of {marked}, and dataset.encoding="
            f"{form.encoding}"
        )
    if not (marked or form.encoding) and b"\0" in raw:
        raise KtraceError(_holds_nul(source, raw))
    name = form.encoding or marked or "utf-8"
    try:
        text = raw.decode(name).removeprefix("\ufeff")
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        raise KtraceError(_not_text(source, raw, start, form, marked)) from error
    if "\0" in text:
        line = len(re.findall(r"\r\n|\r|\n", text[: text.index("\0")])) + 1
        raise KtraceError(f"{source}, line {line}: NUL is not text")
    return text, f"{name} by its mark" if mark else name


def _place(raw: bytes, start: int) -> str:
    """Line and byte within it, both from 1."""
    ends = [found.end() for found in _LINE_END.finditer(raw, 0, start)]
    return f"line {len(ends) + 1}, byte {start - (ends[-1] if ends else 0) + 1}"


def _not_text(source: str, raw: bytes, start: int, form: Form, marked: str) -> str:
    """What stands where decoding stopped, and which key settles what it is."""
    byte = f"0x{raw[start]:02X}" if start < len(raw) else "the end"
    if form.encoding:
        return f"{source}, {_place(raw, start)}: {byte} is not {form.encoding} (dataset.encoding)"
    if marked:
        return f"{source}, {_place(raw, start)}: {byte} is not {marked}, which its mark names"
    said = f"{source}, {_place(raw, start)}: {byte} is not UTF-8"
    if form.key != "dataset.path":
        return f"{said}: save {form.key} as UTF-8"
    examples = ", ".join(_examples(raw, start))
    return (
        f"{said}, and encodings of 8 bits cannot be told apart: dataset.encoding=... says which "
        f"it is{examples and f' ({examples})'}"
    )


def _examples(raw: bytes, start: int) -> Iterator[str]:
    """How usual encodings read the word that holds a byte, each reading once."""
    begin = max(0, start - _SHOWN)
    word = next(w[0][:_SHOWN] for w in _WORD.finditer(raw, begin) if w.start() <= start < w.end())
    seen: set[str] = set()
    for name in _USUAL:
        try:
            read = word.decode(name)
        except UnicodeDecodeError:
            continue
        if read.isalnum() and read not in seen and len(seen) < _MOST_EXAMPLES:
            seen.add(read)
            yield f"{name} reads {read!r}"


def _holds_nul(source: str, raw: bytes) -> str:
    """That bytes are no text, or may be text of another encoding."""
    said = f"{source}, {_place(raw, raw.index(0))}: NUL is not text"
    # Every other byte of plain text in UTF-16 is NUL.
    for name, zeros in (("utf-16-le", raw[1::2]), ("utf-16-be", raw[::2])):
        if zeros.count(0) > len(zeros) // 2:
            return f"{said}; in UTF-16 without its mark it would be: dataset.encoding={name}"
    return said
