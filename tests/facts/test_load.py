"""Facts are read whole and unchanged, or refused with the file and the line."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from ktrace.errors import KtraceError
from ktrace.facts import Fact, load, load_facts, prompt_facts
from tests.support.places import ROOT

Records = list[dict[str, Any]]

RECORDS: Records = [
    {
        "known_id": 7,
        "prompt": "The Eiffel Tower, in",
        "subject": "Eiffel Tower",
        "attribute": "Paris",
        "template": "The {}, in",
        "relation_id": "P131",
    },
    {
        "known_id": -2,
        # Unicode, quotes, and a line separator that is a line end to str.splitlines alone.
        "prompt": 'Der "Süd\u2028sudan", 日本 🗼 ist in',
        "subject": "Süd\u2028sudan",
        "attribute": "África",
        "template": "",
        "relation_id": "",
    },
]
FACTS = tuple(Fact(**record) for record in RECORDS)


def as_json(records: Records) -> str:
    return json.dumps(records, ensure_ascii=False, indent=2)


def as_jsonl(records: Records) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n"


def as_csv(records: Records) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


FORMATS: dict[str, Callable[[Records], str]] = {
    "facts.json": as_json,
    "facts.jsonl": as_jsonl,
    "facts.csv": as_csv,
    "FACTS.JSON": as_json,
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def changed(**fields: Any) -> Records:
    """A good record and a second one with other values; None takes a key out."""
    record = RECORDS[0] | {"known_id": 8} | fields
    return [RECORDS[0], {key: value for key, value in record.items() if value is not None}]


def canonical_sha256(records: Records) -> str:
    text = json.dumps(records, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_parquet(records: Records) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_every_format_gives_the_same_facts(
    tmp_path: Path, name: str, mark: bytes, line_end: bytes
) -> None:
    text = FORMATS[name](RECORDS).replace("\r\n", "\n").encode()
    path = write(tmp_path / name, mark + text.replace(b"\n", line_end))
    facts = load_facts(path)
    assert facts.facts == FACTS
    # The digest is of the content: a store does not care how the facts were written down.
    assert facts.digest == canonical_sha256(RECORDS)
    assert len(facts) == 2


def test_parquet_gives_the_same_facts(tmp_path: Path) -> None:
    facts = load_facts(write(tmp_path / "facts.parquet", as_parquet(RECORDS)))
    assert facts.facts == FACTS
    assert facts.digest == canonical_sha256(RECORDS)
    # A table has a cell for every column: an empty one is a field that is not given.
    four = {key: RECORDS[0][key] for key in ("known_id", "prompt", "subject", "attribute")}
    two = [four | {"subject_start": None, "template": None}, RECORDS[1]]
    assert load_facts(write(tmp_path / "b.parquet", as_parquet(two))).facts[0] == Fact(**four)


def test_text_keeps_its_line_ends_in_csv(tmp_path: Path) -> None:
    record = RECORDS[0] | {"prompt": "A\r\nB,\nEiffel Tower is"}
    assert load_facts(write(tmp_path / "a.csv", as_csv([record]))).facts == (Fact(**record),)


def test_other_columns_are_ignored_and_optional_ones_may_lack(tmp_path: Path) -> None:
    four = {key: RECORDS[0][key] for key in ("known_id", "prompt", "subject", "attribute")}
    plain = load_facts(write(tmp_path / "a.jsonl", as_jsonl([four])))
    more = load_facts(write(tmp_path / "b.jsonl", as_jsonl([four | {"prediction": ["x", 1.5]}])))
    assert more == plain
    assert plain.facts[0].template == plain.facts[0].relation_id == ""


def test_digest_depends_on_every_field_and_on_the_order(tmp_path: Path) -> None:
    variants = [RECORDS, RECORDS[::-1], RECORDS[:1]]
    variants += [changed(subject="Tower"), changed(attribute="Rome"), changed(template="{}")]
    digests = {
        load_facts(write(tmp_path / f"{number}.json", as_json(records))).digest
        for number, records in enumerate(variants)
    }
    assert len(digests) == len(variants)


def test_subject_start_counts_characters(tmp_path: Path) -> None:
    facts = load_facts(write(tmp_path / "a.json", as_json(RECORDS))).facts
    assert [fact.subject_start for fact in facts] == [4, 5]


TWICE = {"prompt": "Ana met Anatol, and Ana is", "subject": "Ana"}


@pytest.mark.parametrize("start", [8, 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_subject_start_says_which_one_is_meant(tmp_path: Path, name: str, start: int) -> None:
    records = changed(**TWICE, subject_start=start)
    if name == "a.csv":
        records[0] = records[0] | {"subject_start": ""}  # every row has the cell
    write_as = {"a.jsonl": as_jsonl, "a.csv": as_csv, "a.parquet": as_parquet}[name]
    if name == "a.parquet":
        records.reverse()  # the first row names the columns
    facts = load_facts(write(tmp_path / name, write_as(records)))
    starts = {fact.known_id: fact.subject_start for fact in facts.facts}
    assert starts == {7: 4, 8: start}


def test_another_place_is_another_dataset(tmp_path: Path) -> None:
    def digest(records: Records) -> str:
        return load_facts(write(tmp_path / "a.jsonl", as_jsonl(records))).digest

    digests = {digest(changed(**TWICE, subject_start=start)) for start in (0, 8, 20)}
    assert len(digests) == 3
    # To say what is plain changes nothing: stores made before stay valid.
    assert digest(changed(subject_start=4)) == digest(changed())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            TWICE,
            "subject 'Ana' is more than once in the prompt 'Ana met Anatol, and Ana is': "
            "subject_start says which one is meant, by its first character (0 or 8 or 20)",
        ),
        (TWICE | {"subject_start": 4}, "subject_start=4 is not where subject 'Ana' begins"),
        (TWICE | {"subject_start": -1}, "subject_start=-1 is not where subject 'Ana' begins"),
        (TWICE | {"subject_start": 1.5}, "subject_start=1.5 is not a whole number"),
        ({"subject_start": 5}, "subject_start=5 is not where subject 'Eiffel Tower' begins"),
    ],
)
def test_a_subject_start_that_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "facts.jsonl", as_jsonl(changed(**fields)))
    with pytest.raises(KtraceError) as raised:
        load_facts(path)
    assert str(raised.value).startswith(f"{path}, line 2: {message}")


# As published with ROME: what CounterFact's records look like.
COUNTERFACT: Records = [
    {
        "case_id": 5,
        "pararel_idx": 1,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": ["..."],
    },
    {
        "case_id": 9,
        "requested_rewrite": {
            "prompt": "Ana likes {} and",  # the subject is also elsewhere: the slot says which
            "relation_id": "P1",
            "target_true": {"str": "tea"},
            "subject": "Ana",
        },
    },
]


def counterfact_columns() -> dict[str, str]:
    columns: dict[str, str] = yaml.safe_load(
        (ROOT / "conf" / "dataset" / "counterfact.yaml").read_text()
    )["columns"]
    return columns


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_counterfact_is_read_by_its_columns(tmp_path: Path, name: str) -> None:
    write_as = {"a.json": as_json, "a.jsonl": as_jsonl, "a.parquet": as_parquet}[name]
    path = write(tmp_path / name, write_as(COUNTERFACT))
    first, second = load_facts(path, columns=counterfact_columns()).facts
    assert first == Fact(
        known_id=5,
        prompt="The mother tongue of Danielle Darrieux is",
        subject="Danielle Darrieux",
        attribute="French",
        template="The mother tongue of {} is",
        relation_id="P103",
    )
    assert (second.prompt, second.subject_start) == ("Ana likes Ana and", 10)


def test_columns_of_another_schema(tmp_path: Path) -> None:
    records = [{"text": f"{name} is in", "a.b": name, "answer": "x"} for name in ("Rome", "Bonn")]
    columns = {"known_id": "_row", "prompt": "text", "subject": "a.b", "attribute": "answer"}
    path = write(tmp_path / "a.csv", as_csv(records))
    facts = load_facts(path, columns=columns).facts
    assert facts == (Fact(0, "Rome is in", "Rome", "x"), Fact(1, "Bonn is in", "Bonn", "x"))
    with pytest.raises(KtraceError) as raised:
        load_facts(path, columns=columns | {"subject": "a.c"})
    assert str(raised.value) == (
        f"{path}, line 2: there is no 'a.c' (dataset.columns.subject); here are text, a.b, answer"
    )


@pytest.mark.parametrize("template", ["no slot", "{} and {}"])
def test_a_template_has_one_slot(tmp_path: Path, template: str) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl(changed(prompt=None, template=template)))
    with pytest.raises(KtraceError, match=rf"line 2: template='{template}' needs one {{}} for"):
        load_facts(path)


def test_one_prompt() -> None:
    [fact] = prompt_facts("Ana met Ana at", "Ana", subject_start=8).facts
    assert fact == Fact(0, "Ana met Ana at", "Ana", "", subject_start=8)
    assert prompt_facts("Ana is", "Ana", "x").digest != prompt_facts("Ana is", "Ana").digest
    with pytest.raises(KtraceError, match=r"^dataset\.prompt: subject 'Bo' is not in the prompt"):
        prompt_facts("Ana is", "Bo")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 not", "{path}: malformed Parquet: "),
        ("a.parquet", as_parquet([{"known_id": 1}]), "{path}, row 1: no prompt, subject, attrib"),
        ("a.jsonl", "", "dataset.path={path} holds no facts"),
        ("a.jsonl", "\n \n", "dataset.path={path} holds no facts"),
        ("a.json", "", "dataset.path={path} holds no facts"),
        ("a.json", "[]", "dataset.path={path} holds no facts"),
        ("a.csv", "", "dataset.path={path} holds no facts"),
        ("a.csv", "known_id,prompt,subject,attribute\n", "dataset.path={path} holds no facts"),
        ("a.jsonl", as_jsonl(RECORDS) + "\n{oops", "{path}, line 4: malformed JSON"),
        ("a.json", '[{"known_id": 1},\n{"known_id" 2}]', "{path}, line 2: malformed JSON"),
        ("a.json", '{"known_id": 1}', "{path}, line 1: no prompt, subject, attribute; a fact has"),
        ("a.json", '{"a": 1}', "{path}: a list of facts was expected, not dict with the keys 'a'"),
        ("a.json", "5", "{path}: a list of facts was expected, not int"),
        ("a.json", '[{"known_id": 1}, 5]', "{path}, record 2: a fact must be an object, not int"),
        ("a.jsonl", "[1, 2]\n", "{path}, record 1: a fact must be an object, not int"),
        ("a.jsonl", "[1]\n[2]\n", "{path}, line 1: a fact must be an object, not list"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "{path}, line 1: malformed JSON: Extra data"),
        ("a.jsonl", '\n{"a": 1, "b": {}, "a": 2}', "{path}, line 2: an object has the key 'a' twi"),
        ("a.csv", "known_id,prompt\n1,a,b\n", "{path}, line 2: the row has more cells"),
        ("a.csv", "known_id,prompt\n1,a\n2\n", "{path}, line 3: the row has fewer cells"),
        ("a.csv", 'known_id,prompt\n1,"a', "{path}, line 2: malformed CSV"),
        ("a.csv", "id,text\n1,a\n", "{path}, line 2: no known_id, prompt, subject, attribute"),
        ("a.csv", b"known_id,prompt\n1,caf\xe9\n", "{path}, line 2, byte 6: 0xE9 is not UTF-8"),
        # Python reads 4,300 digits, and lists within lists some thousand deep.
        ("a.json", f'[{{"known_id": {"9" * 5000}}}]', "{path}: malformed JSON: a number with more"),
        ("a.jsonl", f'\n{{"known_id": {"9" * 5000}}}', "{path}, line 2: malformed JSON: a number"),
        ("a.json", "[" * 100_000, "{path}: malformed JSON: it is nested too deeply"),
        ("a.jsonl", '{"a":' * 100_000, "{path}: malformed JSON: it is nested too deeply"),
        (
            "a.jsonl",
            '{"a": "b\tc"}',
            "{path}, line 1: malformed JSON: Invalid control character, col",
        ),
        ("a.csv", "7,Paris is in,Paris,France\n", "{path}, line 1 looks like a record: a header"),
        ("a.rds", "x", "dataset.path={path} has no known format: .json, .jsonl, .ndjson, .csv"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(KtraceError) as raised:
        load_facts(path)
    assert str(raised.value).startswith(message.format(path=path))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (changed(known_id=7), "known_id=7 is already at {path}, line 1"),
        (changed(known_id=None), "no known_id;"),
        (changed(prompt=None, template=None, attribute=None), "no prompt, attribute;"),
        (changed(known_id="eight"), "known_id='eight' is not a whole number"),
        (changed(known_id=8.5), "known_id=8.5 is not a whole number"),
        (changed(known_id="9" * 5000), f"known_id='{'9' * 99}... is not a whole number"),
        (changed(known_id=True), "known_id=True is not a whole number"),
        (changed(known_id=2**63), "known_id=9223372036854775808 is not a whole number"),
        (changed(prompt=5), "prompt=5 is not text"),
        (changed(relation_id=["P1"]), "relation_id=['P1'] is not text"),
        (changed(attribute=[]), "attribute=[] holds an empty answer, or none"),
        (changed(attribute=["a", " "]), "attribute=['a', ' '] holds an empty answer, or none"),
        (changed(attribute=["a", 5]), "attribute=5 is not text"),
        (changed(attribute={"a": "b"}), "attribute={{'a': 'b'}} is not text"),
        (changed(subject=" "), "subject is empty"),
        (changed(attribute=" "), "attribute is empty"),
        (changed(subject="Big Ben"), "subject 'Big Ben' is not in the prompt 'The Eiffel Tower,"),
        (changed(subject="eiffel tower"), "subject 'eiffel tower' is not in the prompt"),
        (changed(subject="e"), "subject 'e' is more than once in the prompt"),
        (changed(prompt="anana is", subject="ana"), "subject 'ana' is more than once in"),
        # Half an emoji and NUL pass through JSON; no tokenizer and no store takes them.
        (changed(attribute="\ud83d"), "attribute='\\ud83d' holds a character that is not text"),
        (changed(template="\0"), "template='\\x00' holds a character that is not text"),
    ],
)
def test_records_that_are_refused(tmp_path: Path, records: Records, message: str) -> None:
    path = tmp_path / "facts.jsonl"
    write(path, "\n".join(json.dumps(record) for record in records))
    with pytest.raises(KtraceError) as raised:
        load_facts(path)
    assert str(raised.value).startswith(f"{path}, line 2: {message.format(path=path)}")


@pytest.mark.parametrize("missing", ["none.jsonl", "no/folder/none.json", "folder.json"])
def test_a_missing_file(tmp_path: Path, missing: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(KtraceError, match=r"dataset\.path=.* is (not a file|a folder: .*)$"):
        load_facts(tmp_path / missing)


def test_sha256_is_of_the_records_not_of_the_bytes(tmp_path: Path) -> None:
    expected = canonical_sha256(RECORDS)
    for name in ("facts.json", "facts.jsonl"):
        path = write(tmp_path / name, FORMATS[name](RECORDS))
        assert load_facts(path, sha256=expected).facts == FACTS


def test_a_wrong_sha256_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.json", as_json(changed(prediction="other")))
    found = canonical_sha256(changed(prediction="other"))
    with pytest.raises(KtraceError) as raised:
        load_facts(path, sha256=canonical_sha256(RECORDS))
    for part in (str(path), found, canonical_sha256(RECORDS), "is not the published dataset"):
        assert part in str(raised.value)


@contextmanager
def serving(
    body: bytes,
    *,
    status: int = 200,
    announced: int | None = None,
    headers: Mapping[str, str] | None = None,
    seen: list[str | None] | None = None,
) -> Iterator[str]:
    """A web server on this machine that answers every request alike; gives its address.

    Who asks is added to `seen`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            length = len(body) if announced is None else announced
            self.send_header("Content-Length", str(length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if seen is not None:
                seen.append(self.headers["Authorization"])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/known.json"
        finally:
            server.shutdown()
            thread.join()


BODY = as_json(RECORDS).encode()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_missing_file_is_downloaded_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "facts.json"
    with serving(BODY) as url:
        assert load_facts(path, url=url, sha256=canonical_sha256(RECORDS)).facts == FACTS
    assert path.read_bytes() == BODY
    assert [file.name for file in path.parent.iterdir()] == ["facts.json"]
    # The server is gone: what is there is not asked for again.
    assert load_facts(path, url=url, sha256=canonical_sha256(RECORDS)).facts == FACTS


def test_counterfact_is_downloaded_and_checked_as_published(tmp_path: Path) -> None:
    """The digest is of the publisher's records, not of what the columns make of them."""
    path, digest = tmp_path / "counterfact.json", canonical_sha256(COUNTERFACT)
    columns = counterfact_columns()
    with serving(as_json(COUNTERFACT).encode()) as url:
        # What the preset advises where no digest is known: any value, and the message names it.
        with pytest.raises(KtraceError, match=f"SHA-256 {digest}, expected 0"):
            load_facts(path, url=url, sha256="0", columns=columns)
        facts = load_facts(path, url=url, sha256=digest, columns=columns)
    assert [fact.known_id for fact in facts.facts] == [5, 9]
    assert path.is_file()


def test_a_download_that_nothing_vouches_for_is_told_with_its_digest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = canonical_sha256(RECORDS)
    with serving(BODY) as url:
        load_facts(tmp_path / "pinned.json", url=url, sha256=digest)
        assert not caplog.messages
        load_facts(tmp_path / "facts.json", url=url)
    [message] = caplog.messages
    assert message == f"nothing vouches for what {url} gave: pin it with dataset.sha256={digest}"


def test_a_download_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "facts.json"
    # Of a process with the same number, in another container.
    other = write(path.with_name(f".facts.json.{os.getpid()}.tmp"), b"another's")
    synced = []

    def sync(descriptor: int) -> None:
        if not path.exists():  # afterwards the folder is synced, too
            synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    with serving(BODY) as url:
        load_facts(path, url=url)
    assert synced == [len(BODY)]
    assert path.read_bytes() == BODY
    assert other.read_bytes() == b"another's"


@pytest.mark.parametrize("scheme", ["file", "ftp", "data", "gopher", ""])
def test_only_the_web_is_downloaded_from(tmp_path: Path, scheme: str) -> None:
    source = write(tmp_path / "source.json", BODY)
    url = source.as_uri().replace("file", scheme) if scheme else str(source)
    with pytest.raises(KtraceError) as raised:
        load_facts(tmp_path / "new" / "facts.json", url=url)
    allowed = f"dataset.url begins with {scheme!r}: http and https can be downloaded"
    assert str(raised.value) == allowed
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_no_redirection_leads_away_from_the_web(tmp_path: Path, scheme: str) -> None:
    source = write(tmp_path / "source.json", BODY)
    away = source.as_uri().replace("file://", f"{scheme}://127.0.0.1")
    with (
        serving(b"", status=302, headers={"Location": away}) as url,
        pytest.raises(
            KtraceError, match=r"cannot be downloaded \(.*(not allowed|unknown url type)"
        ),
    ):
        load_facts(tmp_path / "new" / "facts.json", url=url)
    assert not (tmp_path / "new").exists()


def test_a_download_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "facts.json"
    monkeypatch.setattr(load, "_MOST_BYTES", len(BODY) - 1)
    with serving(BODY) as url, pytest.raises(KtraceError, match=r"gives more than .* are no facts"):
        load_facts(path, url=url)
    assert not path.parent.exists()
    monkeypatch.setattr(load, "_MOST_BYTES", len(BODY))
    with serving(BODY) as url:
        assert load_facts(path, url=url).facts == FACTS


def test_a_user_in_a_url_is_told_to_its_server_alone(tmp_path: Path) -> None:
    """What it redirects to does not get it."""
    seen: list[str | None] = []
    with (
        serving(BODY, seen=seen) as end,
        serving(b"", status=302, headers={"Location": end}, seen=seen) as url,
    ):
        load_facts(tmp_path / "a.json", url=url.replace("//", "//me:s%3Acret@"))
    assert seen == ["Basic bWU6czpjcmV0", None]


@pytest.mark.parametrize(
    ("answer", "sha256", "message"),
    [
        ({"body": BODY}, "0" * 64, r"{url} is not the published dataset: SHA-256 .*, expected 0"),
        # The page of a login or a proxy, in place of the file: it is not the file that is bad.
        ({"body": b"<html>"}, None, r"{url}, line 1: malformed JSON"),
        ({"body": b"[]"}, None, r"dataset.path={url} holds no facts"),
        # Nothing is kept that could not be read the next time.
        (
            {"body": as_json(changed(subject="Big Ben")).encode()},
            None,
            r"{url}, record 2: subject 'Big Ben' is not in the prompt",
        ),
        ({"body": BODY, "status": 404}, None, r"dataset.path={path} is not a file, and {url} cann"),
        ({"body": BODY, "announced": len(BODY) + 9}, None, r".* {url} cannot be downloaded .*9 mo"),
    ],
    ids=["other-content", "html", "empty", "bad-record", "not-found", "cut-off"],
)
def test_a_bad_download_leaves_nothing(
    tmp_path: Path, answer: dict[str, Any], sha256: str | None, message: str
) -> None:
    path = tmp_path / "new" / "facts.json"
    with serving(**answer) as url, pytest.raises(KtraceError) as raised:
        load_facts(path, url=url, sha256=sha256)
    expected = message.format(url=re.escape(url), path=re.escape(str(path)))
    assert re.match(expected, str(raised.value))
    assert not list(tmp_path.iterdir())


def test_a_download_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "source.json", BODY)
    cannot = pytest.raises(KtraceError, match=r"dataset\.path: .* cannot be written: ")
    with serving(BODY) as url, cannot:
        load_facts(source / "facts.json", url=url)
    # A folder of that name is found only when the whole file has been written beside it.
    (tmp_path / "facts.json").mkdir()
    with serving(BODY) as url, cannot:
        load_facts(tmp_path / "facts.json", url=url)
    assert {file.name for file in tmp_path.iterdir()} == {"source.json", "facts.json"}
    assert not list((tmp_path / "facts.json").iterdir())


def test_no_address_answers(tmp_path: Path) -> None:
    with serving(b"") as url:
        pass
    with pytest.raises(KtraceError, match=r"cannot be downloaded .*give a copy with dataset\.path"):
        load_facts(tmp_path / "facts.json", url=url)
