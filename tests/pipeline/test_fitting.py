"""Tables within any width: no line is longer, and nothing of a cell is lost."""

import io
import re

import pytest

from ktrace.pipeline.fitting import Cells, Redacting, print_table

PEAKS = Cells(
    ("mediator", "first subject", "middle subject", "last subject", "first subsequent", "last"),
    [
        ("hidden_attn_severed", "0.211 (0)", "0.307 (1)", "0.579 (0)", "0.031 (2)", "0.915 (5)"),
        ("mlp-w3", "-0.011 (3)", "0.101 (0)", "0.402 (0)", "-", "0.310 (5)"),
    ],
    frozenset({"mediator"}),
    ("mediator",),
)
JOBS = Cells(
    ("job", "overrides", "what became of it", "p_clean"),
    [
        ("0", "model=tiny mediator=hidden", "done", "0.997"),
        (
            "11",
            "model=中国的模型 mediator=mlp,attn noise.samples=3",
            "failed: no candidate\nis left",
            "",
        ),
    ],
    frozenset({"overrides", "what became of it"}),
    ("job",),
)


def printed(cells: Cells, width: int) -> list[str]:
    into = io.StringIO()
    console = Redacting(width=width, markup=False, emoji=False, highlight=False, file=into)
    print_table(console, "Title", cells)
    return into.getvalue().splitlines()


@pytest.mark.parametrize("cells", [PEAKS, JOBS], ids=["peaks", "jobs"])
@pytest.mark.parametrize("width", range(50, 161))
def test_nothing_is_cut_at_any_width(cells: Cells, width: int) -> None:
    lines = printed(cells, width)
    rows = [line for line in lines if line[:1] in "┃│"]
    assert all(row[-1] in "┃│" for row in rows), "\n".join(lines)
    letters = re.sub(r"[\s┃│]", "", "".join(rows))
    for row in (cells.columns, *cells.rows):
        for cell in row:
            # Of a folded cell other columns stand between its lines: each of its letters is there.
            assert set(re.sub(r"\s", "", cell)) <= set(letters)
    numbers = [
        c
        for row in cells.rows
        for c, n in zip(row, cells.columns, strict=True)
        if n not in cells.texts
    ]
    assert all(any(number in row for row in rows) for number in numbers)
