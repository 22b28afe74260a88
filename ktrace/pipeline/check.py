"""stage=check: how facts are read, in the tokens of a model whose weights are not loaded.

Nothing is written, and a fact that a run would leave out before it asks the model is named with the
reason. Whether the model predicts the answers, only a run tells.
"""

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ktrace.config import DatasetConfig, RunConfig
from ktrace.errors import KtraceError, NoFactsError
from ktrace.facts import Fact, FactSet
from ktrace.facts.columns import FIELDS
from ktrace.facts.dataset import facts_of, noise_facts_of, require_fit
from ktrace.pipeline.upkeep import Upkeep
from ktrace.redaction import redacted

if TYPE_CHECKING:
    from ktrace.lm.reader import Reader
    from ktrace.tracing.encoded import EncodedFact

_ROWS = 20  # of the table
_NAMED = 8  # facts that a line names
_PREDICTED = "what the model predicts"


class Checked(NamedTuple):
    """What was found.

    Attributes:
        before: lines above the table: how the facts were read.
        table: the first facts, with subject, answer, and why they would be left out; None where
            some are no facts.
        after: lines below it: how many would be traced, and the others by reason.
        problem: why a run would be refused; empty where it would not.
    """

    before: Sequence[str]
    table: Upkeep | None
    after: Sequence[str]
    problem: str = ""


class _Row(NamedTuple):
    """What is told of a fact; of one whose tokens are not known, in characters."""

    subject: str
    place: str
    scored: str
    left_out: str


def check_facts(config: RunConfig) -> Checked:
    """Read the facts of a config, and put them into tokens if there is a tokenizer.

    Raises:
        KtraceError: the file cannot be read, or the one record that is no fact.
    """
    dataset = config.dataset
    try:
        facts = facts_of(dataset)
    except NoFactsError as error:
        return _refused(error)
    before = [*_how_read(facts, dataset)]
    shown = facts.facts[: dataset.limit]
    try:
        noise_facts_of(dataset, config.noise.kind)
        require_fit(facts, config.noise, config.metric)
        rows, unread = _rows(config, facts, len(shown))
    except KtraceError as error:
        rows, unread = [_in_characters(fact) for fact in shown], ""
        return Checked(before, _table(shown, rows), [], str(error))
    before.append(
        f"tokens were not checked: {unread}"
        if unread
        else f"tokens of model.path={config.model.path}"
    )
    return Checked(before, _table(shown, rows), [*_summed(shown, rows, bool(unread))])


def _refused(error: NoFactsError) -> Checked:
    """Every record that is no fact; of many that lack the same, as of a wrong header, the first."""
    n_bad = len(error.complaints)
    kinds = {one.partition(": ")[2].partition(";")[0] for one in error.complaints}
    if n_bad == 1 or (n_bad == error.n_records and len(kinds) == 1):
        raise error
    more = [f"and {n_bad - _ROWS} more"] if n_bad > _ROWS else []
    problem = f"{n_bad} of {error.n_records} records are no facts"
    return Checked([*error.complaints[:_ROWS], *more], None, [], problem)


def _how_read(facts: FactSet, dataset: DatasetConfig) -> Iterator[str]:
    if facts.read_as is None:
        yield f"{facts.origin}: {len(facts)} fact"
        return
    yield f"{facts.origin}: {facts.read_as.form}; {len(facts)} facts"
    given = dataset.columns.given
    used, there = {}, facts.read_as.columns
    for name in FIELDS:
        column = given.get(name, name)
        if column and (name in given or column in there):
            used[name] = column
    yield "columns: " + ", ".join(n if n == c else f"{n} from {c}" for n, c in used.items())
    first = {column.split(".")[0] for column in used.values()} | {*used.values()}
    ignored = [column for column in there if column not in first]
    if ignored:
        yield f"columns that are not read: {_some(ignored)}"


def _rows(config: RunConfig, facts: FactSet, n_shown: int) -> tuple[list[_Row], str]:
    """Rows of the first facts, and why their tokens are not known."""
    from ktrace.lm.reader import load_reader  # and torch
    from ktrace.tracing.pairs import encoded_for

    try:
        reader = load_reader(config.model)
    except KtraceError as error:
        return [_in_characters(fact) for fact in facts.facts[:n_shown]], str(error)
    encoded = encoded_for(config.noise.kind, reader, facts.facts, config.dataset)
    pairs = zip(facts.facts[:n_shown], encoded, strict=False)
    return [_in_tokens(reader, fact, own) for fact, own in pairs], ""


def _in_characters(fact: Fact) -> _Row:
    stop = fact.subject_start + len(fact.subject)
    place = f"characters {fact.subject_start}-{stop - 1}" if fact.subject else ""
    return _Row(fact.subject, place, " | ".join(fact.answers) or _PREDICTED, "")


def _in_tokens(reader: "Reader", fact: Fact, own: "EncodedFact") -> _Row:
    from ktrace.lm.tokens import decoded
    from ktrace.tracing.encode import too_long

    start, stop = own.span
    places = f"{start}-{stop - 1}" if stop > start + 1 else f"{start}"
    scored = " | ".join(repr(decoded(reader.tokenizer, ids)) for ids in own.answers)
    left_out = own.problem or (own.pair.problem or own.pair.foil_problem if own.pair else "")
    if too_long(reader, own.n_read):
        left_out = f"the prompt is longer than the model's {reader.max_positions} positions"
    return _Row(
        "·".join(own.prompt.tokens[start:stop]),
        f"{places} of {len(own.prompt.input_ids)}",
        scored or ("" if fact.attribute else _PREDICTED),
        left_out,
    )


def _table(facts: Sequence[Fact], rows: Sequence[_Row]) -> Upkeep:
    more = f" (the first {_ROWS} of {len(facts)})" if len(facts) > _ROWS else ""
    names: tuple[str, ...] = ("known_id", "subject", "at", "scored", "left out")
    if not any(row.left_out for row in rows[:_ROWS]):
        names = names[:-1]
    cells = [
        (str(fact.known_id), *(redacted(cell) for cell in row[: len(names) - 1]))
        for fact, row in zip(facts[:_ROWS], rows, strict=False)
    ]
    return Upkeep(f"Facts{more}", names, cells, texts=names[1:])


def _summed(facts: Sequence[Fact], rows: Sequence[_Row], unread: bool) -> Iterator[str]:
    reasons = Counter(row.left_out for row in rows if row.left_out)
    for reason, count in reasons.most_common():
        told = [
            str(f.known_id) for f, row in zip(facts, rows, strict=True) if row.left_out == reason
        ]
        yield f"left out: {count} × {reason} (known_id {_some(told)})"
    asked = Counter((fact.prompt, fact.subject) for fact in facts)
    twice = [str(fact.known_id) for fact in facts if asked[fact.prompt, fact.subject] > 1]
    if twice:
        yield f"prompt and subject of another: {len(twice)} facts (known_id {_some(twice)})"
    n_open = sum(not fact.attribute for fact in facts)
    if n_open:
        yield f"without an answer: {n_open} facts, of which {_PREDICTED} is scored"
    if unread:
        yield f"{len(facts)} facts can be read"
        return
    n_left = len(facts) - reasons.total()
    yield f"{n_left} of {len(facts)} facts can be traced, if the model predicts their answers"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def print_checked(checked: Checked) -> None:
    """What a person at the terminal sees of it.

    Raises:
        KtraceError: a run would be refused.
    """
    from ktrace.pipeline.console import print_upkeep

    _print_lines(checked.before)
    if checked.table is not None:
        print_upkeep(checked.table)
    _print_lines(checked.after)
    if checked.problem:
        raise KtraceError(checked.problem)


def _print_lines(lines: Sequence[str]) -> None:
    """Print lines: broken between words at a terminal, and nowhere in a file."""
    width = shutil.get_terminal_size().columns
    for line in map(redacted, lines):
        is_long = sys.stdout.isatty() and len(line) > width
        print(textwrap.fill(line, width, subsequent_indent="  ") if is_long else line)
