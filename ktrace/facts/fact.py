"""What a fact is: from a record of a file to a checked `Fact`, or a complaint that names it.

The schema is that of known_1000 (Meng et al. 2022): `known_id, prompt, subject, attribute`, and
optionally `template`, `relation_id` and `subject_start`; other columns (such as the published
`prediction`) are ignored. A template, with `{}` where the subject belongs, serves in place of a
prompt.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ktrace.config.identity import Content
from ktrace.errors import KtraceError

FIELDS = (
    "known_id",
    "prompt",
    "subject",
    "attribute",
    "template",
    "relation_id",
    "subject_start",
)
ROW = "_row"  # the column that every file has: the record's number, from 0
_SLOT = "{}"
_SHOWN = 100  # characters of a value in a message


@dataclass(frozen=True)
class Fact:
    """One prompt with its subject and answer.

    Attributes:
        attribute: the answer. Empty for a single prompt whose answer is what the model predicts.
        subject_start: first character of the subject in the prompt; where the subject stands once,
            it need not be given.
    """

    known_id: int
    prompt: str
    subject: str
    attribute: str
    template: str = ""
    relation_id: str = ""
    subject_start: int = -1

    def __post_init__(self) -> None:
        if self.subject_start < 0:
            object.__setattr__(self, "subject_start", self.prompt.index(self.subject))


@dataclass(frozen=True)
class FactSet:
    """All facts of a dataset in their order.

    Attributes:
        facts: in the order of the file.
        digest: SHA-256 of their canonical JSON: what the numbers depend on.
        origin: the config key that gave them, with its value, for messages.
    """

    facts: tuple[Fact, ...]
    digest: str
    origin: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def content(self) -> Content:
        """What fingerprints say of it."""
        return Content(self.digest, len(self.facts))


def fact_set(facts: tuple[Fact, ...], origin: str) -> FactSet:
    """Facts with the digest of their content."""
    return FactSet(facts, canonical_digest([_content(fact) for fact in facts]), origin)


def _content(fact: Fact) -> dict[str, object]:
    content = asdict(fact)
    # Where the subject stands once, its place follows from the rest.
    if len(_occurrences(fact.prompt, fact.subject)) == 1:
        del content["subject_start"]
    return content


def canonical_digest(records: Sequence[Mapping[str, object]]) -> str:
    """SHA-256 of records as JSON with sorted keys, no spaces, and no ASCII escapes."""
    text = json.dumps(
        records, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def renamed(
    record: Mapping[str, object], columns: Mapping[str, str], row: int, where: str
) -> Mapping[str, object]:
    """A record of another schema, with the fields that a fact needs.

    Args:
        record: as it stands in the file.
        columns: column by field; a dot reaches into a nested record, `_row` is the row's number.
        row: the record's number in its file, from 0.
        where: for messages.

    Raises:
        KtraceError: no such column.
    """
    if not columns:
        return record
    found: dict[str, object] = {ROW: row, **record}
    for name, column in columns.items():
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


def fact_of(record: Mapping[str, object], where: str, *, open_answer: bool = False) -> Fact:
    """Check a record.

    Args:
        record: by field; a field that is None counts as missing.
        where: file and line, or config key, for messages.
        open_answer: whether `attribute` may be missing.

    Raises:
        KtraceError: a field is missing or of a wrong type, or the subject is not in the prompt, or
            more than once and without `subject_start`.
    """
    given = {key: record[key] for key in FIELDS if record.get(key) is not None}
    slot = _from_template(given, where) if "prompt" not in given else None
    missing = [
        key
        for key in ("known_id", "prompt", "subject", "attribute")
        if key not in given and not (open_answer and key == "attribute")
    ]
    if missing:
        raise KtraceError(
            f"{where}: no {', '.join(missing)}; a fact has known_id, prompt, subject, attribute"
        )
    known_id = _integer("known_id", given["known_id"], where)
    texts = {}
    for key in ("prompt", "subject", "attribute", "template", "relation_id"):
        value = given.get(key, "")
        if not isinstance(value, str):
            raise KtraceError(f"{where}: {key}={_shown(value)} is not text")
        # Half of a surrogate pair and NUL pass through JSON, but neither is text for a tokenizer.
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise KtraceError(f"{where}: {key}={_shown(value)} holds a character that is not text")
        texts[key] = value
    for key in ("prompt", "subject", "attribute"):
        if key in given and not texts[key].strip():
            raise KtraceError(f"{where}: {key} is empty")
    asked = given.get("subject_start", slot)
    start = _subject_start(texts["prompt"], texts["subject"], asked, where)
    return Fact(known_id=known_id, **texts, subject_start=start)


def _from_template(given: dict[str, object], where: str) -> int | None:
    """Write the prompt that a template makes; returns where the subject begins in it."""
    template, subject = given.get("template"), given.get("subject")
    if not isinstance(template, str) or not isinstance(subject, str):
        return None
    if template.count(_SLOT) != 1:
        raise KtraceError(f"{where}: template={template!r} needs one {_SLOT} for the subject")
    given["prompt"] = template.replace(_SLOT, subject)
    return template.index(_SLOT)


def _subject_start(prompt: str, subject: str, asked: object, where: str) -> int:
    places = _occurrences(prompt, subject)
    if not places:
        raise KtraceError(
            f"{where}: subject {_shown(subject)} is not in the prompt {_shown(prompt)}"
        )
    offered = " or ".join(map(str, places))
    if asked is None or asked == "":  # a cell of a CSV file is never missing
        if len(places) > 1:
            raise KtraceError(
                f"{where}: subject {_shown(subject)} is more than once in the prompt "
                f"{_shown(prompt)}: subject_start says which one is meant, by its first character "
                f"({offered})"
            )
        return places[0]
    start = _integer("subject_start", asked, where)
    if start not in places:
        raise KtraceError(
            f"{where}: subject_start={start} is not where subject {_shown(subject)} begins in the "
            f"prompt {_shown(prompt)} ({offered})"
        )
    return start


def _occurrences(prompt: str, subject: str) -> list[int]:
    # Overlapping occurrences count too, so str.count is not enough.
    return [n for n in range(len(prompt)) if prompt.startswith(subject, n)]


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
