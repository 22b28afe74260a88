"""Files as spreadsheets, pandas and R write them: read right, or refused with what settles it.

What a program writes is here byte by byte, with its encoding, delimiter, quotes and line ends.
"""

import io
import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from ktrace.config import DatasetConfig, Delimiter, NoiseKind
from ktrace.errors import KtraceError
from ktrace.facts import Fact, load_facts, prompt_facts
from ktrace.facts.dataset import facts_of, noise_facts_of
from ktrace.facts.reading import Form
from tests.support.command import Ktrace, refused
from tests.support.configs import configured, refusal

MALAGA = Fact(1, "Málaga, the city, lies in", "Málaga", "Spain")
BONN = Fact(2, "Bonn; once a capital, lies in", "Bonn", "Germany")
FACTS = (MALAGA, BONN)
NAMES = ["known_id", "prompt", "subject", "attribute"]
ROWS = [[fact.known_id, fact.prompt, fact.subject, fact.attribute] for fact in FACTS]
FRAME = pd.DataFrame(ROWS, columns=NAMES)
# One with a gap in each column that may have one, as a join leaves it.
GAPS = pd.DataFrame(
    [
        [1.0, "Ana met Ana at", "Ana", "noon", 8.0],
        [None, None, None, None, None],
        [2.0, "Bonn lies in", "Bonn", None, None],
    ],
    columns=[*NAMES, "subject_start"],
)
OF_GAPS = (
    Fact(1, "Ana met Ana at", "Ana", "noon", subject_start=8),
    Fact(2, "Bonn lies in", "Bonn", ""),
)


def excel(sign: str, end: str = "\r\n") -> str:
    """As Excel saves text: quotes where a cell holds the sign, a quote or a line end."""

    def cell(value: object) -> str:
        text = str(value)
        return f'"{text}"' if sign in text else text

    rows = [sign.join(map(cell, row)) for row in [NAMES, *ROWS]]
    return end.join(rows) + end


def write_csv(sign: str = ",", rows: list[list[object]] = ROWS) -> str:
    """As R's write.csv and write.csv2: row names, and every text in quotes."""
    lines = [sign.join(['""', *(f'"{name}"' for name in NAMES)])]
    for n, (known_id, *texts) in enumerate(rows, start=1):
        quoted = [f'"{text}"' if text is not None else "NA" for text in texts]
        lines.append(sign.join([f'"{n}"', str(known_id), *quoted]))
    return "\n".join(lines) + "\n"


def parquet(table: pyarrow.Table) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream)
    return stream.getvalue()


READ: dict[str, tuple[str, bytes, str]] = {
    # Who writes it: the file's name, its bytes, and what is said.
    "Excel, CSV UTF-8": ("a.csv", excel(",").encode("utf-8-sig"), ""),
    "Excel in German, CSV UTF-8": (
        "a.csv",
        excel(";").encode("utf-8-sig"),
        "read as table: semicolon between cells",
    ),
    "Excel, Unicode text": (
        "a.txt",
        excel("\t").encode("utf-16"),
        "read as table: utf-16 by its mark; tab between cells",
    ),
    "Excel, with its own first line": (
        "a.csv",
        f"sep=;\r\n{excel(';')}".encode("utf-8-sig"),
        "read as table: semicolon between cells; its first line, sep=;, is Excel's",
    ),
    "Excel, with rows and columns that were cleared": (
        "a.csv",
        excel(",").replace("\r\n", ",,\r\n").replace("2,", ",,,,,\r\n2,", 1).encode(),
        "columns without a name are ignored (2); blank rows are skipped (1; the first is line 3)",
    ),
    "Excel, with fewer delimiters in later rows": (
        "a.csv",
        excel(",").replace("\r\n", ",,\r\n", 2).encode(),
        "columns without a name are ignored (2)",
    ),
    "LibreOffice, text": ("a.csv", excel(",", "\n").encode(), ""),
    "LibreOffice, tabs, quoted": ("a.tsv", write_csv("\t").encode(), "without a name are ign"),
    "Numbers, old line ends": ("a.csv", excel(",", "\r").encode(), ""),
    "pandas, to_csv with its index": ("a.csv", FRAME.to_csv().encode(), "columns without a name"),
    "pandas, read and written again": (
        "a.csv",
        pd.read_csv(io.StringIO(FRAME.to_csv())).to_csv(index=False).encode(),
        "",
    ),
    "pandas, to_csv with pipes": ("a.csv", FRAME.to_csv(sep="|", index=False).encode(), "pipe b"),
    "pandas, to_json as records": ("a.json", FRAME.to_json(orient="records").encode(), ""),
    "pandas, JSON Lines under .json": (
        "a.json",
        FRAME.to_json(orient="records", lines=True).encode(),
        "read as JSON Lines: by its content",
    ),
    "json.dump of a list under .jsonl": (
        "a.jsonl",
        json.dumps(FRAME.to_dict("records")).encode(),
        "read as JSON: by its content",
    ),
    "jq, objects over several lines": (
        "a.jsonl",
        "\n".join(json.dumps(r, indent=2) for r in FRAME.to_dict("records")).encode(),
        "",
    ),
    "PowerShell, JSON": (
        "a.json",
        json.dumps(FRAME.to_dict("records")).replace(", {", ",\r\n{").encode("utf-16"),
        "read as JSON: utf-16 by its mark",
    ),
    "pandas, Parquet under another name": (
        "a.csv",
        FRAME.to_parquet(),
        "read as Parquet: by its content",
    ),
    "R, write.csv": ("a.csv", write_csv().encode(), "columns without a name are ignored (1)"),
    "R, write.csv2": ("a.csv", write_csv(";").encode(), "semicolon between cells; columns with"),
    "by hand, blanks around names": (
        "a.csv",
        excel(",").replace("prompt,subject", " prompt ,\u00a0subject").encode(),
        "blank ends of column names are stripped",
    ),
}


def read(folder: Path, name: str, content: bytes, **form: Any) -> tuple[Fact, ...]:
    path = folder / name
    path.write_bytes(content)
    columns = form.pop("columns", None)
    return load_facts(path, columns=columns, form=Form(**form)).facts


@pytest.mark.parametrize("who", READ)
def test_a_file_is_read_right(tmp_path: Path, caplog: pytest.LogCaptureFixture, who: str) -> None:
    """Nothing is said of what is usual, and one line of all else."""
    name, content, said = READ[who]
    assert read(tmp_path, name, content) == FACTS
    if not said:
        assert not caplog.messages
        return
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path / name}: read as ")
    assert said in message


REFUSED: dict[str, tuple[str, bytes, list[str]]] = {
    "Excel in the West, CSV": (
        "a.csv",
        excel(",").encode("cp1252"),
        ["line 2, byte 5: 0xE1 is not UTF-8", "dataset.encoding=...", "cp1252 reads 'Málaga'"],
    ),
    "Excel on a Mac, JSON Lines": (
        "a.jsonl",
        b'{"known_id": 1}\r{"prompt": "M\x87laga"}',
        ["line 2, byte 14: 0x87 is not UTF-8", "mac_roman reads 'Málaga'"],
    ),
    "UTF-16 without its mark": (
        "a.csv",
        excel(",").encode("utf-16-le"),
        ["line 1, byte 2: NUL is not text", "dataset.encoding=utf-16-le"],
    ),
    "Excel, its own format": (
        "a.xlsx",
        b"PK\x03\x04",
        ["dataset.path=", "(.xlsx): save its sheet as CSV (UTF-8)"],
    ),
    "Excel, its own format under another name": (
        "a.csv",
        b"PK\x03\x04\x14\0",
        ["a.csv is a workbook or another ZIP archive: save its sheet as CSV"],
    ),
    "gzip": ("a.csv.gz", b"\x1f\x8b", ["(.gz): unpack it first"]),
    "gzip under another name": ("a.jsonl", b"\x1f\x8b\x08", ["is compressed by gzip: unpack it"]),
    "pandas, to_json by columns": (
        "a.json",
        FRAME.to_json().encode(),
        ["not dict with the keys 'known_id', 'prompt'", "to_json(orient='records')"],
    ),
    "an export with data inside": (
        "a.json",
        json.dumps({"version": 2, "data": FRAME.to_dict("records")}).encode(),
        ["not dict with the keys 'version', 'data': give what 'data' holds a file of its own"],
    ),
    "R, write.table": (
        "a.tsv",
        write_csv("\t").replace('""\t', "").encode(),
        ["line 2: the row has more cells", "(5, not 4; R's write.table", "row.names=FALS"],
    ),
    "R, write.table with blanks": (
        "a.txt",
        b'"known_id" "prompt" "subject"\n1 "a" "b"\n',
        ["line 1: nothing divides the header", "comma, semicolon, tab, pipe is needed"],
    ),
    "one name twice": (
        "a.csv",
        excel(",").replace("subject", "prompt ").encode(),
        ["line 1: two columns are called 'prompt': rename one of them"],
    ),
    "two signs in the header": (
        "a.csv",
        b"known_id,x;prompt\n1,a;b\n",
        [
            "line 1: more than one sign may divide the header 'known_id,x;prompt'",
            "dataset.delimiter=comma or dataset.delimiter=semicolon says which one does",
        ],
    ),
    "names in capitals": (
        "a.csv",
        excel(",").replace("prompt,subject", "Prompt,Subject Name").encode(),
        [
            "line 2: no prompt, subject;",
            "here are known_id, Prompt, Subject Name, attribute",
            "did you mean dataset.columns.prompt=Prompt dataset.columns.subject='Subject Name'?",
        ],
    ),
    "names of their own": (
        "a.csv",
        b"ID;Prompt;Subject;Answer\n3;Rome is in;Rome;Italy\n",
        [
            "line 2: no known_id, prompt, subject, attribute;",
            "Answer: did you mean dataset.columns.known_id=ID dataset.columns.prompt=Prompt "
            "dataset.columns.subject=Subject dataset.columns.attribute=Answer?",
        ],
    ),
    "an empty id": (
        "a.csv",
        excel(",").replace("\r\n1,", "\r\n,").encode(),
        ["line 2: known_id is empty: fill it, or dataset.columns.known_id=_row numbers the record"],
    ),
    "no ids": (
        "a.csv",
        excel(",").replace("known_id", "n").encode(),
        ["line 2: no known_id;", "dataset.columns.known_id=_row numbers the records"],
    ),
    "ids of Wikidata": (
        "a.csv",
        excel(",").replace("\r\n1,", "\r\nQ1,").encode(),
        ["line 2: known_id='Q1' is not a whole number", "dataset.columns.known_id=_row numbers"],
    ),
    "ids that a spreadsheet has shortened": (
        "a.csv",
        excel(",").replace("\r\n1,", "\r\n1E+05,").encode(),
        ["line 2: known_id='1E+05' is not a whole number"],
    ),
    "Parquet, one name twice": (
        "a.parquet",
        parquet(pyarrow.table([[1], [2]], names=["known_id", "known_id"])),
        ["a.parquet: two columns are called 'known_id'"],
    ),
}


@pytest.mark.parametrize("who", REFUSED)
def test_a_file_is_refused_with_what_settles_it(tmp_path: Path, who: str) -> None:
    name, content, parts = REFUSED[who]
    with pytest.raises(KtraceError) as raised:
        read(tmp_path, name, content)
    line = str(raised.value)
    assert str(tmp_path / name) in line
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_what_settles_it_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The keys that messages name make facts of the files that they name them for."""
    assert read(tmp_path, "a.csv", excel(",").encode("cp1252"), encoding="cp1252") == FACTS
    assert read(tmp_path, "b.csv", excel(",").encode("utf-16-le"), encoding="utf-16-le") == FACTS
    two = b"x,y;prompt;subject;attribute,known_id\na;Bonn, once a capital, is in;Bonn;Germany\n"
    columns = {"known_id": "_row", "attribute": "attribute,known_id"}
    with pytest.raises(KtraceError, match=r"delimiter=comma or dataset\.delimiter=semicolon says"):
        read(tmp_path, "c.csv", two)
    facts = read(tmp_path, "c.csv", two, columns=columns, delimiter=Delimiter.semicolon)
    assert facts == (Fact(0, "Bonn, once a capital, is in", "Bonn", "Germany"),)
    ids = excel(",").replace("\r\n1,", "\r\nQ1,").encode()
    facts = read(tmp_path, "d.csv", ids, columns={"known_id": "_row"})
    assert [fact.known_id for fact in facts] == [0, 1]
    assert not [message for message in caplog.messages if "encoding" in message]


def test_numbers_with_points_and_gaps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas writes whole numbers beside gaps, in every format."""
    records = GAPS.dropna(how="all").to_dict("records")
    written: dict[str, bytes] = {
        "a.csv": GAPS.to_csv(index=False).encode(),
        "a.parquet": GAPS.to_parquet(),
        "a.json": GAPS.dropna(how="all").to_json(orient="records").encode(),
        "nan.jsonl": b"\n".join(json.dumps(r).encode() for r in records),
    }
    for name, content in written.items():
        caplog.clear()
        assert read(tmp_path, name, content) == OF_GAPS, name
        assert [m for m in caplog.messages if "written with a point, as 40.0, are read wit" in m]
        blank = [m for m in caplog.messages if "blank rows are skipped (1; the first is" in m]
        assert len(blank) == (name in ("a.csv", "a.parquet"))


@pytest.mark.parametrize(
    "cell", [1.5, "1.5", "1,0", "1e3", "1_0", "", float("inf"), 2.0**53, "9007199254740992.0"]
)
def test_what_is_no_whole_number(tmp_path: Path, cell: object) -> None:
    record = dict(zip(NAMES, ROWS[0], strict=True)) | {"known_id": cell}
    message = "known_id is empty" if cell == "" else "known_id=.* is not a whole number below 2"
    with pytest.raises(KtraceError, match=message):
        read(tmp_path, "a.jsonl", json.dumps(record).encode())


def test_parquet_of_any_types(tmp_path: Path) -> None:
    """Of strings in dictionaries, wide strings, decimals and dates that Python does not have."""
    types: dict[str, Any] = {
        "known_id": pyarrow.array([Decimal("1.00"), Decimal("2.00")]),
        "prompt": pyarrow.array([fact.prompt for fact in FACTS], pyarrow.large_string()),
        "subject": pyarrow.array([fact.subject for fact in FACTS]).dictionary_encode(),
        "about": pyarrow.array([{"answer": fact.attribute} for fact in FACTS]),
        "when": pyarrow.array([1, 2], pyarrow.timestamp("ns", tz="Nowhere/None")),
        "day": pyarrow.array([2**30, 1], pyarrow.date32()),
    }
    columns = {"attribute": "about.answer"}
    assert read(tmp_path, "a.parquet", parquet(pyarrow.table(types)), columns=columns) == FACTS
    frame = FRAME.astype({"known_id": "float32", "subject": "category"})
    assert read(tmp_path, "b.parquet", frame.to_parquet()) == FACTS


def test_a_hub_table_is_read_as_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "gaps"
    folder.mkdir()
    frame = GAPS.astype({"subject": "category"}).assign(when=pd.Timestamp("2024-01-01"))
    frame.loc[1, "when"] = pd.NaT
    frame.to_parquet(folder / "train-0.parquet")
    config = configured(DatasetConfig, name="gaps", path=None, hub=str(folder), split="train")
    assert facts_of(config).facts == OF_GAPS


ROME = {
    "prompt": "{} plays the sport of",
    "subject": "LeBron James",
    "target_new": {"str": "football"},
    "target_true": {"str": "basketball"},
}
OF_ROME = {"known_id": "_row", "attribute": "target_true.str"}


def test_a_request_of_rome(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [fact] = read(tmp_path, "a.json", json.dumps([ROME]).encode(), columns=OF_ROME)
    assert fact.prompt == "LeBron James plays the sport of"
    assert (fact.template, fact.subject_start) == (ROME["prompt"], 0)
    [message] = caplog.messages
    assert "{} in a prompt is filled with its subject (1; the first is" in message
    template = {"template": "prompt", "prompt": ""}
    assert read(tmp_path, "a.json", json.dumps([ROME]).encode(), columns=OF_ROME | template) == (
        fact,
    )


def test_one_prompt_with_a_slot() -> None:
    [fact] = prompt_facts("{} plays the sport of", "LeBron James").facts
    assert (fact.prompt, fact.subject_start) == ("LeBron James plays the sport of", 0)


def test_what_a_request_of_rome_lacks_is_offered(tmp_path: Path) -> None:
    with pytest.raises(KtraceError) as raised:
        read(tmp_path, "a.json", json.dumps([ROME]).encode())
    line = str(raised.value)
    assert "here are prompt, subject, target_new.str, target_true.str" in line
    assert "dataset.columns.known_id=_row" in line
    with pytest.raises(KtraceError, match=r"no record has an attribute.* target_true\.str"):
        read(tmp_path, "a.json", json.dumps([ROME]).encode(), columns={"known_id": "_row"})


def test_a_slot_beside_the_subject_is_settled(tmp_path: Path) -> None:
    record = {"known_id": 1, "prompt": "{} likes Ana and", "subject": "Ana", "attribute": "x"}

    def given(**fields: Any) -> bytes:
        return json.dumps([record | fields]).encode()

    with pytest.raises(KtraceError, match=r"holds both {} and the subject 'Ana': a subject_start"):
        read(tmp_path, "a.json", given())
    [fact] = read(tmp_path, "a.json", given(subject_start=9))
    assert fact.prompt == "{} likes Ana and"
    [fact] = read(tmp_path, "a.json", given(), columns={"template": "prompt", "prompt": ""})
    assert fact.prompt == "Ana likes Ana and"
    with pytest.raises(KtraceError, match=r"needs one {} for the subject"):
        read(tmp_path, "a.json", given(prompt="{} and {} are"))


def test_what_r_writes_for_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NA is nothing in a column of numbers; among texts it may be somebody's answer."""
    rows = [["known_id", "prompt", "subject", "attribute", "subject_start"]]
    rows += [["1", "Ana met Ana at", "Ana", "NA", "8"], ["2", "Na is", "Na", "x", "NA"]]
    first, second = read(tmp_path, "a.csv", "\n".join(map(",".join, rows)).encode())
    assert (first.attribute, second.subject_start) == ("NA", 0)
    told = [message.partition(": ")[2] for message in caplog.messages]
    assert [line.partition(" (")[0] for line in told] == [
        "NA is read as text; where nothing is meant, leave the cell empty",
        "NA in subject_start is read as not given",
    ]
    rows[1][0] = "NA"
    with pytest.raises(KtraceError, match="known_id='NA' is not a whole number"):
        read(tmp_path, "a.csv", "\n".join(map(",".join, rows)).encode())


def test_a_file_is_named_by_the_key_that_gave_it(tmp_path: Path) -> None:
    """Of noise_facts no other key says how they are read."""

    def noise_facts(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        config = configured(DatasetConfig, name="x", path="x", noise_facts=str(tmp_path / name))
        with pytest.raises(KtraceError) as raised:
            noise_facts_of(config, NoiseKind.gaussian)
        return str(raised.value)

    assert noise_facts("a.xlsx", b"").startswith("dataset.noise_facts=")
    assert noise_facts("a.csv", b"").startswith("dataset.noise_facts=")
    line = noise_facts("b.csv", excel(",").encode("cp1252"))
    assert "0xE1 is not UTF-8: save dataset.noise_facts as UTF-8" in line


@pytest.mark.parametrize(
    ("name", "content", "form", "message"),
    [
        ("a.csv", excel(",").encode("utf-8-sig"), {"encoding": "cp1252"}, "are the mark of utf-8"),
        ("a.csv", excel(",").encode("cp1252"), {"encoding": "ascii"}, "0xE1 is not ascii (data"),
        ("a.csv", excel(",").encode("utf-16")[:-1], {}, "is not utf-16, which its mark names"),
        ("a.csv", f"sep=;\n{excel(';')}".encode(), {"delimiter": Delimiter.tab}, "says sep=;, and"),
        ("a.json", b"[]", {"delimiter": Delimiter.tab}, "dataset.delimiter=tab has no meaning for"),
        ("a.parquet", FRAME.to_parquet(), {"encoding": "utf-8"}, "dataset.encoding=utf-8 has no m"),
    ],
)
def test_keys_that_contradict_the_file(
    tmp_path: Path, name: str, content: bytes, form: dict[str, Any], message: str
) -> None:
    with pytest.raises(KtraceError) as raised:
        read(tmp_path, name, content, **form)
    assert message in str(raised.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")])
@pytest.mark.parametrize("key", ["path", "noise_facts"])
def test_pipes_and_devices_are_not_waited_for(
    own: tuple[str, ...], in_folder: Path, make: Callable[[str], None], key: str
) -> None:
    make("facts.jsonl")
    message = refusal(*own, f"dataset.{key}=facts.jsonl")
    assert message.startswith(f"dataset.{key}=facts.jsonl is not a file: pipes and devices are n")


def test_the_command_takes_the_keys(ktrace: Ktrace, in_folder: Path) -> None:
    Path("a.csv").write_bytes(excel(";").encode("cp1252"))
    common = ("dataset=file", "dataset.path=a.csv", "stage=filter")
    refused(ktrace(*common), "a.csv, line 2, byte 4: 0xE1 is not UTF-8", "dataset.encoding=...")
    refused(ktrace(*common, "dataset.encoding=western"), "dataset.encoding='western' is no encod")
    refused(ktrace(*common, "dataset.delimiter=dash"), "dataset.delimiter", "semicolon, tab, pipe")
    ended = ktrace(*common, "dataset.encoding=cp1252", "dataset.delimiter=semicolon")
    assert "none of its first 2 facts is a candidate" in ended.stderr, "they were read"
