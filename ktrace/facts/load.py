"""Read facts from JSON, JSONL or CSV and refuse what is not in the schema.

The schema is that of known_1000 (Meng et al. 2022): `known_id, prompt, subject, attribute`, and
optionally `template` and `relation_id`; other columns (such as the published `prediction`) are
ignored. Every complaint names the file and the record.
"""

import csv
import hashlib
import http.client
import io
import json
import os
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktrace.errors import KtraceError

FORMATS = (".json", ".jsonl", ".csv")
_DOWNLOAD_SECONDS = 60
_TOO_MANY_DIGITS = "a number with more digits than Python reads"  # its one other ValueError
_SHOWN = 100  # characters of a value in a message


@dataclass(frozen=True)
class Fact:
    """One prompt with its subject and answer."""

    known_id: int
    prompt: str
    subject: str
    attribute: str
    template: str = ""
    relation_id: str = ""

    @property
    def subject_start(self) -> int:
        """First character of the subject in the prompt; `load_facts` made sure there is one."""
        return self.prompt.index(self.subject)


@dataclass(frozen=True)
class FactSet:
    """All facts of a file in their order, and the digest of their content."""

    facts: tuple[Fact, ...]
    digest: str  # SHA-256 of the facts' canonical JSON: what the numbers depend on

    def __len__(self) -> int:
        return len(self.facts)


def load_facts(path: str | Path, *, url: str | None = None, sha256: str | None = None) -> FactSet:
    """Read and check every fact of a file.

    Args:
        path: `.json` (a list of records), `.jsonl` (a record a line) or `.csv` (with a header).
        url: where a missing file is downloaded from; nothing is written before it is checked.
        sha256: expected digest of the records' canonical JSON (sorted keys, no spaces, UTF-8).

    Raises:
        KtraceError: the file is missing, empty or malformed, a record does not fit the schema, a
            `known_id` comes twice, or a subject is not exactly once in its prompt.
    """
    path = _expanded(Path(path))
    if path.suffix.lower() not in FORMATS:
        raise KtraceError(
            f"dataset.path={path} has no known format: {', '.join(FORMATS)} can be read"
        )
    if _is_file(path):
        source, raw = str(path), _read(path)
    elif url is not None:
        source, raw = url, _download(path, url)
    else:
        raise KtraceError(f"dataset.path={path} is not a file")
    try:
        records = _parse(source, path.suffix.lower(), raw)
        if not records:
            raise KtraceError(f"dataset.path={source} holds no facts")
        _check_digest(records, sha256, source)
    except RecursionError as error:
        raise KtraceError(f"{source}: malformed JSON: it is nested too deeply") from error
    facts = tuple(_fact(record, where) for where, record in records)
    _check_unique(facts, [where for where, _ in records])
    if not _is_file(path):
        _write(path, raw)
    return FactSet(facts, _digest([asdict(fact) for fact in facts]))


_Records = list[tuple[str, dict[str, Any]]]  # (where it stands, for messages; its fields)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise KtraceError(f"dataset.path={path}: there is no such user's home folder") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise KtraceError(f"dataset.path={path} cannot be read: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KtraceError(f"dataset.path={path} cannot be read: {error.strerror}") from error


def _download(path: Path, url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_SECONDS) as response:
            content: bytes = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise KtraceError(
            f"dataset.path={path} is not a file, and {url} cannot be downloaded ({error}); "
            "give a copy with dataset.path=..."
        ) from error
    return content


def _write(path: Path, raw: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(raw)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise KtraceError(f"dataset.path={path} cannot be written: {error.strerror}") from error


def _parse(source: str, suffix: str, raw: bytes) -> _Records:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise KtraceError(f"{source}, line {line}: not UTF-8 text") from error
    if suffix == ".json":
        return _parse_json(source, text)
    if suffix == ".jsonl":
        return _parse_jsonl(source, text)
    return _parse_csv(source, text)


def _parse_json(source: str, text: str) -> _Records:
    if not text.strip():
        return []
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise KtraceError(f"{source}, line {error.lineno}: malformed JSON: {error.msg}") from error
    except ValueError as error:
        raise KtraceError(f"{source}: malformed JSON: {_TOO_MANY_DIGITS}") from error
    if not isinstance(data, list):
        raise KtraceError(f"{source}: a list of facts was expected, not {type(data).__name__}")
    places = [f"{source}, record {number}" for number in range(1, len(data) + 1)]
    return [(where, _as_object(r, where)) for where, r in zip(places, data, strict=True)]


def _parse_jsonl(source: str, text: str) -> _Records:
    records = []
    # Not splitlines(): a JSON string may hold U+2028 and its like, which are no line ends here.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise KtraceError(f"{where}: malformed JSON: {error.msg}") from error
        except ValueError as error:
            raise KtraceError(f"{where}: malformed JSON: {_TOO_MANY_DIGITS}") from error
        records.append((where, _as_object(record, where)))
    return records


def _parse_csv(source: str, text: str) -> _Records:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    records = []
    try:
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row or None in row.values():
                raise KtraceError(f"{where}: the row has more or fewer cells than the header")
            records.append((where, dict[str, Any](row)))
    except csv.Error as error:
        line = reader.reader.line_num  # DictReader's own counts finished rows only
        raise KtraceError(f"{source}, line {line}: malformed CSV: {error}") from error
    return records


def _as_object(record: object, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise KtraceError(f"{where}: a fact must be an object, not {type(record).__name__}")
    return record


def _fact(record: dict[str, Any], where: str) -> Fact:
    missing = [k for k in ("known_id", "prompt", "subject", "attribute") if k not in record]
    if missing:
        raise KtraceError(
            f"{where}: no {', '.join(missing)}; a fact has known_id, prompt, subject, attribute"
        )
    try:
        known_id = _integer(record["known_id"])
    except ValueError as error:
        raise KtraceError(
            f"{where}: known_id={_shown(record['known_id'])} is not a whole number below 2**63"
        ) from error
    texts = {}
    for key in ("prompt", "subject", "attribute", "template", "relation_id"):
        value = record.get(key, "")
        if not isinstance(value, str):
            raise KtraceError(f"{where}: {key}={_shown(value)} is not text")
        # Half of a surrogate pair and NUL pass through JSON, but neither is text for a tokenizer.
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise KtraceError(f"{where}: {key}={_shown(value)} holds a character that is not text")
        texts[key] = value
    for key in ("prompt", "subject", "attribute"):
        if not texts[key].strip():
            raise KtraceError(f"{where}: {key} is empty")
    prompt, subject = texts["prompt"], texts["subject"]
    # Overlapping occurrences count too, so str.count is not enough.
    first = prompt.find(subject)
    if first < 0:
        raise KtraceError(
            f"{where}: subject {_shown(subject)} is not in the prompt {_shown(prompt)}"
        )
    if prompt.find(subject, first + 1) >= 0:
        raise KtraceError(
            f"{where}: subject {_shown(subject)} is more than once in the prompt {_shown(prompt)}"
        )
    return Fact(known_id=known_id, **texts)


def _shown(value: object) -> str:
    """As Python writes it, cut where a message would run over many lines."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _check_unique(facts: tuple[Fact, ...], places: list[str]) -> None:
    seen: dict[int, str] = {}
    for fact, where in zip(facts, places, strict=True):
        if fact.known_id in seen:
            raise KtraceError(
                f"{where}: known_id={fact.known_id} is already at {seen[fact.known_id]}"
            )
        seen[fact.known_id] = where


def _digest(records: list[dict[str, Any]]) -> str:
    text = json.dumps(records, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _check_digest(records: _Records, expected: str | None, source: str) -> None:
    if expected is None:
        return
    found = _digest([record for _, record in records])
    if found != expected:
        raise KtraceError(
            f"{source} is not the published dataset: SHA-256 {found}, expected {expected}"
        )
