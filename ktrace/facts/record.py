"""From a record of a file to a checked `Fact`, or a complaint that names it.

The schema is that of known_1000 (Meng et al. 2022): `known_id, prompt, subject, attribute`, and
optionally `template`, `relation_id`, `subject_start`, `corrupted_prompt` and `foil`; other columns
(such as the published `prediction`) are ignored. `attribute` may be a list of right answers. A
template, with `{}` where the subject belongs, serves in place of a prompt. With a
`corrupted_prompt` the subject may be missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ktrace.errors import KtraceError
from ktrace.facts.columns import FIELDS, REQUIRED, ROW, lacking
from ktrace.facts.fact import Fact
from ktrace.facts.reading import is_missing
from ktrace.facts.text import difference, equivalents, line_ends, occurrences, trimmed
from ktrace.facts.values import has_point, shown, text_in, whole

_TEXTS = (*REQUIRED[1:], "template", "relation_id", "corrupted_prompt", "foil")
_SLOT = "{}"
_NA = "NA"  # how R writes what is missing, and what somebody's answer may be

# What reading may have made of a record: sentences for the log.
TRIMMED = "blank ends of prompts and subjects are trimmed"
RESPELLED = "subjects are taken in the code points of their prompts"
OPEN = "without an attribute, what the model predicts is scored"
FILLED = "{} in a prompt is filled with its subject"
POINTS = "whole numbers that are written with a point, as 40.0, are read without"
NOT_GIVEN = "NA in subject_start is read as not given"
NA_TEXT = "NA is read as text; where nothing is meant, leave the cell empty (in R, na='')"


class Notes:
    """What reading made of the records of a dataset: one line for each kind of change."""

    def __init__(self) -> None:
        self._met: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Note a change.

        Args:
            kind: which, as a sentence about every record that has met it.
            where: the record, and what stands there.
        """
        self._met.setdefault(kind, []).append(where)

    def lines(self) -> list[tuple[str, str]]:
        """Each kind, and a line that says how many records have met it and which was the first."""
        return [
            (kind, f"{kind} ({len(met)}; the first is {met[0]})") for kind, met in self._met.items()
        ]


def fact_of(record: Mapping[str, object], where: str, notes: Notes) -> Fact:
    """Check a record.

    Args:
        record: by field; a field that is None counts as missing.
        where: file and line, or config key, for messages.
        notes: learns what was made of it.

    Raises:
        KtraceError: a field is missing or of a wrong type, or the subject is not in the prompt, or
            more than once and without `subject_start`.
    """
    # A cell of a CSV file is never missing: where it is empty, nothing is given.
    cells = {key: record.get(key) for key in FIELDS}
    given = {key: cell for key, cell in cells.items() if not is_missing(cell) and cell != ""}
    also: tuple[str, ...] = ()
    if isinstance(given.get("attribute"), list):
        given["attribute"], also = _answers(given["attribute"], where)
    slot = _filled(given, where, notes) if "prompt" in given else _from_template(given, where)
    optional = ["subject", "attribute"] if given.get("corrupted_prompt") else ["attribute"]
    missing = [key for key in REQUIRED if key not in given]
    if not set(missing) <= set(optional):
        raise KtraceError(lacking(missing, record, where))
    numbers = _numbers(given, where, notes)
    texts = {key: text_in(key, given.get(key, ""), where) for key in _TEXTS}
    for key in ("prompt", "subject", "attribute"):
        if key in given and trimmed(texts[key]) == (0, 0):
            raise KtraceError(f"{where}: {key} is empty")
    if not texts["attribute"]:
        notes.add(OPEN, where)
    for key in ("attribute", "relation_id", "foil"):
        if texts[key] == _NA:
            notes.add(NA_TEXT, f"{where}: {key}")
    known_id, asked = numbers["known_id"], numbers.get("subject_start", slot)
    place = _Place(*[trimmed(texts["prompt"])[0]] * 2)
    if texts["subject"]:
        place = _subject_place(texts["prompt"], texts["subject"], asked, where)
    fact = replace(_normalised(known_id, texts, place, where, notes), also=also)
    return _with_pair(fact, texts, where)


def _numbers(given: Mapping[str, object], where: str, notes: Notes) -> dict[str, int]:
    """The fields that are whole numbers, of those that are given."""
    found = {}
    for key, hint in (
        ("known_id", f": dataset.columns.known_id={ROW} numbers the records instead"),
        ("subject_start", ""),
    ):
        value = given.get(key)
        if key == "subject_start" and value == _NA:
            notes.add(NOT_GIVEN, where)
        elif value is not None:
            found[key] = whole(key, value, where, hint)
            if has_point(value):
                notes.add(POINTS, f"{where}: {key}={shown(value)}")
    return found


def _filled(given: dict[str, object], where: str, notes: Notes) -> int | None:
    """Put the subject into a prompt that has a place for it, as in ROME's requests.

    Returns:
        Where it begins there; None where the prompt is whole.

    Raises:
        KtraceError: there is more than one place, or the prompt holds the subject, too.
    """
    prompt, subject = given["prompt"], given.get("subject")
    if not (isinstance(prompt, str) and isinstance(subject, str) and _SLOT in prompt):
        return None
    if _places(prompt, subject):
        if "subject_start" in given:
            return None
        raise KtraceError(
            f"{where}: the prompt {shown(prompt)} holds both {_SLOT} and the subject "
            f"{shown(subject)}: a subject_start says that {_SLOT} is text, and "
            "dataset.columns.template=prompt dataset.columns.prompt= that it is to be filled"
        )
    notes.add(FILLED, f"{where}: prompt={shown(prompt)}")
    given.setdefault("template", prompt)
    return _fill(given, "prompt", prompt, subject, where)


def _from_template(given: dict[str, object], where: str) -> int | None:
    """Write the prompt that a template makes; returns where the subject begins in it."""
    template, subject = given.get("template"), given.get("subject")
    if not isinstance(template, str) or not isinstance(subject, str):
        return None
    return _fill(given, "template", template, subject, where)


def _fill(given: dict[str, object], key: str, pattern: str, subject: str, where: str) -> int:
    if pattern.count(_SLOT) != 1:
        raise KtraceError(f"{where}: {key}={pattern!r} needs one {_SLOT} for the subject")
    first, last = trimmed(subject)
    given["prompt"] = pattern.replace(_SLOT, subject[first:last])
    return pattern.index(_SLOT)


def _answers(values: object, where: str) -> tuple[str, tuple[str, ...]]:
    """The first of several right answers, and the others; each once."""
    assert isinstance(values, list)
    texts = [text_in("attribute", value, where) for value in values]
    if not texts or any(trimmed(text) == (0, 0) for text in texts):
        raise KtraceError(f"{where}: attribute={shown(values)} holds an empty answer, or none")
    first, *others = dict.fromkeys(texts)
    return first, tuple(others)


def _with_pair(fact: Fact, texts: Mapping[str, str], where: str) -> Fact:
    """With the other prompt of a pair and the foil, without blank ends, where there are such.

    Raises:
        KtraceError: the second prompt is the first one, or the foil a right answer.
    """
    found = {}
    for key in ("corrupted_prompt", "foil"):
        first, last = trimmed(texts[key])
        if texts[key] and first == last:
            raise KtraceError(f"{where}: {key} is empty")
        found[key] = texts[key][first:last]
    if found["corrupted_prompt"] == fact.prompt:
        raise KtraceError(
            f"{where}: corrupted_prompt={shown(fact.prompt)} is the prompt: nothing is corrupted"
        )
    if found["foil"] and found["foil"] in [text.strip() for text in fact.answers]:
        raise KtraceError(f"{where}: foil={shown(found['foil'])} is a right answer")
    rest = texts["corrupted_prompt"][trimmed(texts["corrupted_prompt"])[1] :]
    if found["corrupted_prompt"] and line_ends(rest) != fact.ending:
        raise KtraceError(f"{where}: corrupted_prompt and prompt end in other line breaks")
    return replace(fact, corrupted_prompt=found["corrupted_prompt"], foil=found["foil"])


class _Place(NamedTuple):
    """Characters of a subject in its prompt, without its blank ends."""

    start: int
    stop: int


def _normalised(
    known_id: int, texts: Mapping[str, str], place: _Place, where: str, notes: Notes
) -> Fact:
    """The fact of a checked record, without blank ends."""
    first, last = trimmed(texts["prompt"])
    prompt, rest = texts["prompt"][first:last], texts["prompt"][last:]
    subject = texts["prompt"][place.start : place.stop]
    begin, end = trimmed(texts["subject"])
    # What becomes of the line breaks at its end is told where it is known: in tracing/encode.py.
    if prompt + line_ends(rest) != texts["prompt"]:
        notes.add(TRIMMED, f"{where}: prompt={shown(texts['prompt'])}")
    if texts["subject"][begin:end] != texts["subject"]:
        notes.add(TRIMMED, f"{where}: subject={shown(texts['subject'])}")
    if texts["subject"][begin:end] != subject:
        notes.add(RESPELLED, f"{where}: subject={shown(texts['subject'])}")
    return Fact(
        known_id=known_id,
        prompt=prompt,
        subject=subject,
        attribute=texts["attribute"],
        template=texts["template"],
        relation_id=texts["relation_id"],
        subject_start=place.start - first,
        ending=line_ends(rest),
    )


def _subject_place(prompt: str, subject: str, start: int | None, where: str) -> _Place:
    places = _places(prompt, subject)
    if not places:
        raise KtraceError(
            f"{where}: subject {shown(subject)} is not in the prompt {shown(prompt)}"
            + difference(prompt, subject.strip())
        )
    offered = " or ".join(str(place.start) for place in places)
    if start is None:
        if len(places) > 1:
            raise KtraceError(
                f"{where}: subject {shown(subject)} is more than once in the prompt "
                f"{shown(prompt)}: subject_start says which one is meant, by its first character "
                f"({offered})"
            )
        return places[0]
    # Of a subject that begins with a blank, either the blank or what follows it.
    blank = trimmed(subject)[0]
    for place in places:
        if start in (place.start, place.start - blank):
            return place
    raise KtraceError(
        f"{where}: subject_start={start} is not where subject {shown(subject)} begins in the "
        f"prompt {shown(prompt)} ({offered})"
    )


def _places(prompt: str, subject: str) -> Sequence[_Place]:
    """Where a subject stands: as it is given, else without its blank ends, else respelled."""
    first, last = trimmed(subject)
    shown = subject[first:last]
    whole = [_Place(n + first, n + last) for n, _ in occurrences(prompt, subject)]
    return (
        whole
        or [_Place(*place) for place in occurrences(prompt, shown)]
        or [_Place(*place) for place in equivalents(prompt, shown)]
    )
