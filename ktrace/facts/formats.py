"""From the bytes of a file to its records, each with the place where it stands."""

import csv
import io
import json

from ktrace.errors import KtraceError

_TOO_MANY_DIGITS = "a number with more digits than Python reads"  # its one other ValueError

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
Records = list[tuple[str, dict[str, object]]]  # (where it stands, for messages; its fields)


def parse(source: str, suffix: str, raw: bytes) -> Records:
    """Read records.

    Args:
        source: where the bytes come from, for messages.
        suffix: one of `FORMATS`: a list of objects, an object a line, or a table with a header.
        raw: the file's content; text is UTF-8.

    Raises:
        KtraceError: the content is not in that format.
    """
    if suffix == ".parquet":
        return _parse_parquet(source, raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise KtraceError(f"{source}, line {line}: not UTF-8 text") from error
    try:
        if suffix == ".json":
            return _parse_json(source, text)
        if suffix == ".jsonl":
            return _parse_jsonl(source, text)
    except RecursionError as error:
        raise KtraceError(f"{source}: malformed JSON: it is nested too deeply") from error
    return _parse_csv(source, text)


def _parse_parquet(source: str, raw: bytes) -> Records:
    import pyarrow  # a second that other formats need not wait for
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(raw)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KtraceError(f"{source}: malformed Parquet: {reason}") from error
    return [(f"{source}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _parse_json(source: str, text: str) -> Records:
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


def _parse_jsonl(source: str, text: str) -> Records:
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


def _parse_csv(source: str, text: str) -> Records:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    records = []
    try:
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row or None in row.values():
                raise KtraceError(f"{where}: the row has more or fewer cells than the header")
            records.append((where, dict[str, object](row)))
    except csv.Error as error:
        line = reader.reader.line_num  # DictReader's own counts finished rows only
        raise KtraceError(f"{source}, line {line}: malformed CSV: {error}") from error
    return records


def _as_object(record: object, where: str) -> dict[str, object]:
    if not isinstance(record, dict):
        raise KtraceError(f"{where}: a fact must be an object, not {type(record).__name__}")
    return record
