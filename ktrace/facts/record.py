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
from ktrace.facts.fact import Fact
from ktrace.facts.text import difference, equivalents, line_ends, occurrences, trimmed

REQUIRED = ("known_id", "prompt", "subject", "attribute")
FIELDS = (*REQUIRED, "template", "relation_id", "subject_start", "corrupted_prompt", "foil")
ROW = "_row"  # the column that every file has: the record's number, from 0
_TEXTS = (*REQUIRED[1:], "template", "relation_id", "corrupted_prompt", "foil")
_SLOT = "{}"
_SHOWN = 100  # characters of a value in a message

# What reading may have made of a record: sentences for the log.
TRIMMED = "blank ends of prompts and subjects are trimmed"
RESPELLED = "subjects are taken in the code points of their prompts"
OPEN = "without an attribute, what the model predicts is scored"


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


def renamed(
    record: Mapping[str, object], columns: Mapping[str, str], row: int, where: str
) -> Mapping[str, object]:
    """A record of another schema, with the fields that a fact needs.

    Args:
        record: as it stands in the file.
        columns: column by field; a dot reaches into a nested record, `_row` is the row's number,
            and an empty name says that the field is not given.
        row: the record's number in its file, from 0.
        where: for messages.

    Raises:
        KtraceError: no such column.
    """
    if not columns:
        return record
    found: dict[str, object] = {ROW: row, **record}
    for name, column in columns.items():
        if not column:
            found[name] = None
            continue
        value: object = found
        for part in [column] if column in found else column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise KtraceError(
                    f"{where}: there is no {column!r} (dataset.columns.{name}); "
                    f"here are {', '.join(record)}"
                )
            value = value[part]
        found[name] = value
    return found


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
    given = {key: record[key] for key in FIELDS if record.get(key) is not None}
    also: tuple[str, ...] = ()
    if isinstance(given.get("attribute"), list):
        given["attribute"], also = _answers(given["attribute"], where)
    slot = _from_template(given, where) if "prompt" not in given else None
    optional = ["subject", "attribute"] if given.get("corrupted_prompt") else ["attribute"]
    missing = [key for key in REQUIRED if key not in given]
    if not set(missing) <= set(optional):
        raise KtraceError(f"{where}: no {', '.join(missing)}; a fact has {', '.join(REQUIRED)}")
    known_id = _integer("known_id", given["known_id"], where)
    texts = {key: _text(key, given.get(key, ""), where) for key in _TEXTS}
    for key in ("prompt", "subject", "attribute"):
        # What is empty is left out: a cell of a CSV file is never missing.
        if trimmed(texts[key]) == (0, 0) and not (key in optional and texts[key] == ""):
            raise KtraceError(f"{where}: {key} is empty")
    if not texts["attribute"]:
        notes.add(OPEN, where)
    asked = given.get("subject_start", slot)
    place = _Place(*[trimmed(texts["prompt"])[0]] * 2)
    if texts["subject"]:
        place = _subject_place(texts["prompt"], texts["subject"], asked, where)
    fact = replace(_normalised(known_id, texts, place, where, notes), also=also)
    return _with_pair(fact, texts, where)


def _from_template(given: dict[str, object], where: str) -> int | None:
    """Write the prompt that a template makes; returns where the subject begins in it."""
    template, subject = given.get("template"), given.get("subject")
    if not isinstance(template, str) or not isinstance(subject, str):
        return None
    if template.count(_SLOT) != 1:
        raise KtraceError(f"{where}: template={template!r} needs one {_SLOT} for the subject")
    first, last = trimmed(subject)
    given["prompt"] = template.replace(_SLOT, subject[first:last])
    return template.index(_SLOT)


def _answers(values: object, where: str) -> tuple[str, tuple[str, ...]]:
    """The first of several right answers, and the others; each once."""
    assert isinstance(values, list)
    texts = [_text("attribute", value, where) for value in values]
    if not texts or any(trimmed(text) == (0, 0) for text in texts):
        raise KtraceError(f"{where}: attribute={_shown(values)} holds an empty answer, or none")
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
            f"{where}: corrupted_prompt={_shown(fact.prompt)} is the prompt: nothing is corrupted"
        )
    if found["foil"] and found["foil"] in [text.strip() for text in fact.answers]:
        raise KtraceError(f"{where}: foil={_shown(found['foil'])} is a right answer")
    rest = texts["corrupted_prompt"][trimmed(texts["corrupted_prompt"])[1] :]
    if found["corrupted_prompt"] and line_ends(rest) != fact.ending:
        raise KtraceError(f"{where}: corrupted_prompt and prompt end in other line breaks")
    return replace(fact, corrupted_prompt=found["corrupted_prompt"], foil=found["foil"])


def _text(key: str, value: object, where: str) -> str:
    if not isinstance(value, str):
        raise KtraceError(f"{where}: {key}={_shown(value)} is not text")
    # Half of a surrogate pair and NUL pass through JSON, but neither is text for a tokenizer.
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise KtraceError(f"{where}: {key}={_shown(value)} holds a character that is not text")
    return value


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
        notes.add(TRIMMED, f"{where}: prompt={_shown(texts['prompt'])}")
    if texts["subject"][begin:end] != texts["subject"]:
        notes.add(TRIMMED, f"{where}: subject={_shown(texts['subject'])}")
    if texts["subject"][begin:end] != subject:
        notes.add(RESPELLED, f"{where}: subject={_shown(texts['subject'])}")
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


def _subject_place(prompt: str, subject: str, asked: object, where: str) -> _Place:
    places = _places(prompt, subject)
    if not places:
        raise KtraceError(
            f"{where}: subject {_shown(subject)} is not in the prompt {_shown(prompt)}"
            + difference(prompt, subject.strip())
        )
    offered = " or ".join(str(place.start) for place in places)
    if asked is None or asked == "":  # a cell of a CSV file is never missing
        if len(places) > 1:
            raise KtraceError(
                f"{where}: subject {_shown(subject)} is more than once in the prompt "
                f"{_shown(prompt)}: subject_start says which one is meant, by its first character "
                f"({offered})"
            )
        return places[0]
    start = _integer("subject_start", asked, where)
    # Of a subject that begins with a blank, either the blank or what follows it.
    blank = trimmed(subject)[0]
    for place in places:
        if start in (place.start, place.start - blank):
            return place
    raise KtraceError(
        f"{where}: subject_start={start} is not where subject {_shown(subject)} begins in the "
        f"prompt {_shown(prompt)} ({offered})"
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


def _integer(key: str, value: object, where: str) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise ValueError
    except ValueError as error:
        raise KtraceError(
            f"{where}: {key}={_shown(value)} is not a whole number below 2**63"
        ) from error
    return number


def _shown(value: object) -> str:
    """As Python writes it, cut where a message would run over many lines."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
