"""From the bytes of a file to its records: what the content is, whatever its name ends in."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ktrace.errors import KtraceError
from ktrace.facts.encodings import text_of
from ktrace.facts.json_records import parse_json
from ktrace.facts.reading import Form, ReadAs, Reading, Records, columns_of, without_blank_rows
from ktrace.facts.tables import parse_table, require_own_names

if TYPE_CHECKING:
    import pyarrow

_JSON, _LINES, _TABLES = (".json",), (".jsonl", ".ndjson"), (".csv", ".tsv", ".txt")
_PARQUET = ".parquet"
FORMATS = (*_JSON, *_LINES, *_TABLES, _PARQUET)
# What the table of a name has between its cells, where nothing need be said of it.
_USUAL = {".csv": "comma", ".tsv": "tab"}
_WORKBOOK = "save its sheet as CSV (UTF-8), which can be read"
_PACKED = "unpack it first"
_OTHERS = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers"), _WORKBOOK),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".7z"), _PACKED),
}
# Of files under another name: how they begin, what they are, what to do.
_MAGIC = (
    (b"PK\x03\x04", "a workbook or another ZIP archive", f"{_WORKBOOK}; or {_PACKED}"),
    (b"\xd0\xcf\x11\xe0", "a workbook", _WORKBOOK),
    (b"\x1f\x8b", "compressed by gzip", _PACKED),
    (b"BZh", "compressed by bzip2", _PACKED),
    (b"\xfd7zXZ", "compressed by xz", _PACKED),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _PACKED),
)


def require_format(path: Path, key: str) -> None:
    """Refuse names that say what cannot be read.

    Raises:
        KtraceError: naming the key, and what to do.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHERS:
        raise KtraceError(f"{key}={path} is not read as it is ({suffix}): {_OTHERS[suffix]}")
    if suffix not in FORMATS:
        raise KtraceError(f"{key}={path} has no known format: {', '.join(FORMATS)} can be read")


def parse(source: str, suffix: str, raw: bytes, form: Form) -> Reading:
    """Read records.

    Parquet and JSON are known by how they begin; JSON is a list of objects, or objects one after
    another (JSON Lines). Other text is a table with a header.

    Args:
        source: where the bytes come from, for messages.
        suffix: one of `FORMATS`; what the content is not, is said.
        raw: the file's content.
        form: what is known of it beforehand.

    Raises:
        KtraceError: the content is none of these, or more than one thing.
    """
    for magic, what, then in _MAGIC:
        if raw.startswith(magic):
            raise KtraceError(f"{source} is {what}: {then}")
    if suffix == _PARQUET or raw.startswith(b"PAR1"):
        _refuse_text_keys(source, form, "encoding", "delimiter")
        records, assumed = _parse_parquet(source, raw)
        found = ReadAs("Parquet", columns_of(records), (*_by_content(suffix, _PARQUET), *assumed))
        return Reading(records, found)
    text, encoding = text_of(source, raw, form)
    plain = [] if encoding.startswith("utf-8") or form.encoding else [encoding]
    if suffix in (*_JSON, *_LINES) or text.lstrip()[:1] in ("[", "{"):
        _refuse_text_keys(source, form, "delimiter")
        is_named_lines = suffix in _LINES
        records, is_lines = parse_json(source, text, lines=is_named_lines, names=form.names)
        name = "JSON Lines" if is_lines else "JSON"
        usual = _by_content(suffix, *(_LINES if is_lines else _JSON)) if records else ()
        read_as = ReadAs(f"{name}, {encoding}", columns_of(records), (*usual, *plain))
        return Reading(records, read_as)
    table = parse_table(source, text, form)
    if table.delimiter != _USUAL.get(suffix) and form.delimiter.value != table.delimiter:
        plain.append(f"{table.delimiter} between cells")
    name = f"table, {table.delimiter} between cells, {encoding}"
    columns = columns_of(table.records)
    return Reading(table.records, ReadAs(name, columns, (*plain, *table.assumed)))


def _by_content(suffix: str, *usual: str) -> tuple[str, ...]:
    return () if suffix in usual else ("by its content",)


def _refuse_text_keys(source: str, form: Form, *keys: str) -> None:
    for key in keys:
        value = getattr(form, key)
        if value is not None and str(value) != "auto":
            raise KtraceError(f"dataset.{key}={value} has no meaning for {source}, which has none")


def _parse_parquet(source: str, raw: bytes) -> tuple[Records, list[str]]:
    import pyarrow  # a second that other formats need not wait for
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
        names = file.schema_arrow.names
        require_own_names(source, names)
        table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KtraceError(f"{source}: malformed Parquet: {reason}") from error
    columns = {name: _column(table.column(name)) for name in names}
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return without_blank_rows([(f"{source}, row {n}", row) for n, row in enumerate(rows, start=1)])


def _column(values: "pyarrow.ChunkedArray") -> list[object]:
    """Cells as Python has them; of dates that it has not, or in no zone that it knows, numbers."""
    import pyarrow

    try:
        cells: list[object] = values.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        width = pyarrow.int32() if pyarrow.types.is_date32(values.type) else pyarrow.int64()
        cells = values.cast(width).to_pylist()
    return cells
