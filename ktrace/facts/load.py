"""Read facts from a file, from a publisher's address, or from one prompt.

Every complaint names the file and the record, or the config key.
"""

import base64
import http.client
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ktrace.errors import KtraceError, NoFactsError
from ktrace.facts.columns import names_of, no_answers, renamed
from ktrace.facts.fact import Fact, FactSet, canonical_digest, fact_set
from ktrace.facts.formats import parse, require_format
from ktrace.facts.reading import Form, Records
from ktrace.facts.record import OPEN, Notes, fact_of
from ktrace.facts.text import trimmed
from ktrace.files import new_file, read_regular
from ktrace.redaction import keep_url_secret, redacted

log = logging.getLogger(__name__)

_PLAIN = Form()
_DOWNLOAD_SECONDS = 60
_MOST_BYTES = 2**30  # of a download: facts are text
_SCHEMES = ("http", "https")


def load_facts(
    path: str | Path,
    *,
    url: str | None = None,
    sha256: str | None = None,
    columns: Mapping[str, str] | None = None,
    form: Form = _PLAIN,
) -> FactSet:
    """Read and check every fact of a file; what had to be assumed is logged.

    Args:
        path: JSON (a list of records), JSON Lines, a table of text with a header, or Parquet.
        url: where a missing file is downloaded from; nothing is written before it is checked.
        sha256: expected digest of the records' canonical JSON (sorted keys, no spaces, UTF-8).
        columns: for files of another schema, column by field; see `ktrace.facts.columns.renamed`.
        form: which key of the config named it, and how its text is to be read, if that is known.

    Raises:
        KtraceError: the file is missing, empty or malformed, or may be read in more than one way; a
            record does not fit the schema, a `known_id` comes twice, or a subject is not exactly
            once in its prompt and no `subject_start` says which one is meant.
    """
    path = _expanded(Path(path), form.key)
    if url is None and os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on names that are too long
        raise KtraceError(f"{form.key}={path} is a folder: name a file in it")
    require_format(path, form.key)
    is_here = url is None or _exists(path, form.key)
    if is_here:
        source, raw = str(path), _read(path, form.key)
    else:
        assert url is not None
        source, raw = redacted(url), _download(path, url)
    form = form._replace(names=names_of(columns or {}))
    records, read_as = parse(source, path.suffix.lower(), raw, form)
    if read_as.assumed:
        name = read_as.form.partition(",")[0]
        log.warning("%s: read as %s: %s", source, name, "; ".join(read_as.assumed))
    if not records:
        raise KtraceError(f"{form.key}={source} holds no facts")
    facts = checked_facts(records, source, sha256, columns)
    if not is_here:
        with new_file(path, "dataset.path") as temporary:
            temporary.write_bytes(raw)
        if sha256 is None:
            digest = canonical_digest([record for _, record in records])
            log.warning(
                "nothing vouches for what %s gave: pin it with dataset.sha256=%s", source, digest
            )
    return replace(fact_set(facts, f"{form.key}={path}"), read_as=read_as)


def prompt_facts(
    prompt: str,
    subject: str | None,
    attribute: str | None = None,
    *,
    subject_start: int | None = None,
    also: Sequence[str] = (),
    pair: tuple[str | None, str | None] = (None, None),
) -> FactSet:
    """A dataset of one fact, `known_id` 0.

    Args:
        prompt: ends where the answer begins.
        subject: a part of the prompt; None is for a pair alone.
        attribute: the answer; None for what the model predicts.
        subject_start: which one is meant, where the prompt holds the subject more than once.
        also: other right answers.
        pair: `corrupted_prompt` and `foil`, see `Fact`.

    Raises:
        KtraceError: the subject is not in the prompt, or more than once without `subject_start`; or
            an answer is empty, as None alone leaves it out.
    """
    if attribute is not None and trimmed(attribute) == (0, 0):
        raise KtraceError(
            f"dataset.attribute={attribute!r} is empty: give the answer, or null for what the "
            "model predicts"
        )
    record: dict[str, object] = {
        "known_id": 0,
        "prompt": prompt,
        "subject": subject,
        "attribute": [attribute, *also] if also else attribute,
        "subject_start": subject_start,
        "corrupted_prompt": pair[0],
        "foil": pair[1],
    }
    notes = Notes()
    fact = fact_of(record, "dataset.prompt", notes)
    _log(notes, "dataset.prompt", but=OPEN)  # which is the rule for one prompt
    return fact_set((fact,), "dataset.prompt")


def checked_facts(
    records: Records, source: str, sha256: str | None, columns: Mapping[str, str] | None
) -> tuple[Fact, ...]:
    """Facts of records.

    Args:
        records: with the places where they stand.
        source: where they come from, for messages.
        sha256: see `load_facts`.
        columns: see `load_facts`.

    Raises:
        KtraceError: as `load_facts`.
    """
    try:
        _check_digest(records, sha256, source)
    except RecursionError as error:
        raise KtraceError(f"{source}: malformed JSON: it is nested too deeply") from error
    notes = Notes()
    facts: dict[str, Fact] = {}
    complaints: dict[str, str] = {}
    has_answers = False
    for row, (where, record) in enumerate(records):
        try:
            found = renamed(record, columns or {}, row, where)
            has_answers = has_answers or "attribute" in found
            facts[where] = fact_of(found, where, notes)
        except KtraceError as error:
            complaints[where] = str(error)
    if not complaints and not has_answers:
        raise KtraceError(no_answers(records, source))
    complaints |= _twice(facts)
    if complaints:
        told = [complaints[where] for where, _ in records if where in complaints]
        raise NoFactsError(told, len(records))
    _log(notes, source)
    return tuple(facts.values())


def _log(notes: Notes, source: str, but: str = "") -> None:
    for kind, line in notes.lines():
        if kind != but:
            log.warning("%s: %s", source, line)


def _expanded(path: Path, key: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise KtraceError(f"{key}={path}: there is no such user's home folder") from error


def _exists(path: Path, key: str) -> bool:
    try:
        return path.exists() and not path.is_dir()  # whether it can be read, reading tells
    except OSError as error:
        raise KtraceError(f"{key}={path} cannot be read: {error.strerror}") from error


def _read(path: Path, key: str) -> bytes:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise KtraceError(f"{key}={path} is not a file") from error
    except OSError as error:
        raise KtraceError(f"{key}={path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # nobody may ever write to a pipe
        what = "" if path.is_dir() else ": pipes and devices are not read, save what they give"
        raise KtraceError(f"{key}={path} is not a file{what}") from error


def _download(path: Path, url: str) -> bytes:
    try:
        with _opener().open(_request(url), timeout=_DOWNLOAD_SECONDS) as response:
            content: bytes = response.read(_MOST_BYTES + 1)
            if len(content) <= _MOST_BYTES:
                content += response.read()  # notices what was announced and did not come
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise KtraceError(
            f"dataset.path={path} is not a file, and {redacted(url)} cannot be downloaded "
            f"({error}); "
            "give a copy with dataset.path=..."
        ) from error
    if len(content) > _MOST_BYTES:
        raise KtraceError(
            f"{url} gives more than {_MOST_BYTES // 2**20} MiB, which are no facts; give a copy "
            "with dataset.path=..."
        )
    return content


def _request(url: str) -> urllib.request.Request:
    """A request by a URL that may hold a user and a password, which no other server is to get.

    Raises:
        ValueError: it is no URL.
    """
    keep_url_secret(url)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise KtraceError(
            f"dataset.url begins with {parts.scheme!r}: {' and '.join(_SCHEMES)} can be downloaded"
        )
    user, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl())
    if user:
        told = base64.b64encode(urllib.parse.unquote(user).encode()).decode("ascii")
        request.add_unredirected_header("Authorization", f"Basic {told}")
    return request


def _opener() -> urllib.request.OpenerDirector:
    """Opens what is on the web, and no file here, wherever a server redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _twice(facts: Mapping[str, Fact]) -> dict[str, str]:
    """Complaints about facts, by where they stand, whose `known_id` an earlier one has."""
    seen: dict[int, str] = {}
    return {
        where: f"{where}: known_id={fact.known_id} is already at {seen[fact.known_id]}"
        for where, fact in facts.items()
        if seen.setdefault(fact.known_id, where) != where
    }


def _check_digest(records: Records, expected: str | None, source: str) -> None:
    if expected is None:
        return
    found = canonical_digest([record for _, record in records])
    if found != expected:
        raise KtraceError(
            f"{source} is not the published dataset: SHA-256 {found}, expected {expected}"
        )
