"""The benchmark programs run, and count what they say they count."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    analysis_scale,
    compat,
    coverage,
    gpt2_small,
    growth,
    llama_cuda,
    proof,
    report_scale,
)
from benchmarks.arithmetic import Shape, loop_operations, operations
from ktrace.facts import Span
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.mediators import make_mediator

SMALL = Shape(3, d_model=2, vocabulary=5, keys_values=8, queries=4, output=4, mlp=24)


def test_operations_of_a_case_worked_out_by_hand() -> None:
    """Three layers, three positions, noise from position 1, two samples, hidden states.

    Clean and corrupted once: 3 rows x (3 positions x 3 layers x 40 + head 10) = 1110.
    Rows: none in layer 0; one joins in layer 1 and goes on in layer 2 (the last), where another
    one joins; times two samples. A row that joins has output and MLP (28), one that goes on all
    (40); in the last layer keys and values (8) at each position, all else at the last.
    Position 1 (two positions): layer 1: 2 x 2 x 28 = 112; layer 2: 2 x (16 + 4 + 2 x (28 + 10)).
    Position 2 (one position):  layer 1: 2 x 1 x 28 = 56;  layer 2: 2 x (8 + 4 + 2 x (28 + 10)).
    """
    expected = 2 * (1110 + 112 + 192 + 56 + 176)
    assert operations(SMALL, [make_mediator("hidden", 1)], 3, Span(1, 2), 2) == expected


def test_operations_of_a_knockout_worked_out_by_hand() -> None:
    """One layer at a time: sources 0 and 1, which are groups of their own, and the query itself.

    The clean row once: 3 positions x 3 layers x 40 + head 10 = 370. At the query, one position,
    three rows begin in each layer, whose queries, keys and values are known: 3 x 28 in layer 0,
    3 x 40 + 3 x 28 in layer 1, 6 x 40 + 3 x 28 + 9 x 10 in the last.
    """
    expected = 2 * (370 + 84 + 204 + 414)
    assert operations(SMALL, [make_mediator("knockout", 1)], 3, Span(1, 2), 2) == expected


def test_operations_leave_out_what_is_put() -> None:
    """As above, for MLP outputs of single layers.

    A row joins at its own position alone, and its MLP's output (24) is put there: 4 in each layer.
    Position 1 (two positions): layer 0: 4; layer 1: 2 x 40 + 4; layer 2: two rows go on, their
    edits behind them: 2 x (2 x 8 + 4 + 28 + 10), and the third changes nothing that predicts.
    Position 2 (one position): layer 0: 4; layer 1: 40 + 4; layer 2: 2 x (8 + 4 + 28) + 4 + 3 x 10.
    """
    of_rows = 4 + 84 + 116 + 4 + 44 + 114
    expected = 2 * (1110 + 2 * of_rows)
    assert operations(SMALL, [make_mediator("mlp", 1)], 3, Span(1, 2), 2) == expected


def test_operations_leave_out_what_is_severed() -> None:
    """As for hidden states, but that the MLP's output (24) at the position is held in later layers.

    Position 1: layer 1: 24 less; layer 2: nobody looks at it. Position 2: 24 less, then 2 x 24.
    """
    hidden, severed = (
        operations(SMALL, [make_mediator(name, 1)], 3, Span(1, 2), 2)
        for name in ("hidden", "hidden_mlp_severed")
    )
    assert hidden - severed == 2 * 2 * (24 + 24 + 48)


def test_operations_on_the_published_shape() -> None:
    gpt2 = gpt2_small.gpt2_shape()
    hidden = make_mediator("hidden", 1)
    assert operations(gpt2, [hidden], 10, Span(0, 2), 10) / 1e12 == pytest.approx(0.54, abs=0.01)
    assert loop_operations(gpt2, 10, 10) / 1e12 == pytest.approx(3.3, abs=0.1)


def test_the_proof_is_timed_for_every_mediator() -> None:
    table = proof.main(["--layers=2", "--width=24", "--vocabulary=97", "--length=8", "--rounds=1"])
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        f"| {name}" for name in MEDIATOR_NAMES
    ]


def test_growth_benchmark_writes_its_table(tmp_path: Path) -> None:
    report = growth.main(["--sizes", "20", f"--write={tmp_path / 'growth.md'}"])
    assert (tmp_path / "growth.md").read_text() == report
    rows = [line.split(" | ")[0].removeprefix("| ") for line in report.splitlines()[-7:]]
    assert rows == list(growth._WORK)


def test_gpt2_benchmark_writes_its_report(tmp_path: Path) -> None:
    report = gpt2_small.main(
        [
            "--layers=2",
            "--width=64",
            "--vocabulary=97",
            "--n-facts=3",
            "--cells=2",
            "--rounds=1",
            "--largest=4",
            f"--write={tmp_path / 'report.md'}",
        ]
    )
    assert (tmp_path / "report.md").read_text() == report
    assert "| ktrace suffix |" in report
    for name in ("ktrace reference", "published loop"):  # the others are no packages of the tests
        [row] = [line for line in report.splitlines() if line.startswith(f"| {name} |")]
        assert float(row.split("|")[4]) < 1e-5, "or it did not run"


def test_llama_benchmark_runs_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "cuda.md"
    report = llama_cuda.main(
        ["--shape=micro", "--device=cpu", "--dtype=float32", "--samples=2", f"--write={path}"]
    )
    assert path.read_text() == report
    assert "seconds a fact" in report


def test_analysis_benchmark_measures_the_whole_stage() -> None:
    found = analysis_scale.main(["--facts=4", "--layers=3", "--samples=2"])
    assert found["the whole stage"]["seconds"] > 0
    assert 0.05 < found["the averages"]["peak_gib"] < 3


@pytest.mark.check
def test_coverage_benchmark_finds_too_narrow_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    table = coverage.main(["--repetitions=60"])
    assert len(table.splitlines()) > 60
    [row] = [line for line in table.splitlines() if line.startswith("| normal, 50 facts |")]
    assert float(row.split("|")[2]) > 0.85
    case = next(coverage.cases())
    monkeypatch.setattr(coverage, "averages", lambda *_: Narrow())
    assert coverage.coverage(case, 400).share == 0


class Narrow:
    """Intervals of no width, beside the mean."""

    value = np.linspace(0, 1, 400)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(400), np.zeros(400)


def test_report_benchmark_measures_a_page() -> None:
    report = report_scale.main(["--facts=3", "--layers=4", "--repeats=1"])
    assert "3 facts, 5 mediators, 4 layers" in report
    assert " MB" in report
    assert "first heatmap after" in report or "not opened" in report


def test_what_cannot_be_tried_is_said(tmp_path: Path) -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert compat.interpreter(here) is not None
    missing = compat.tried(compat.Case("9.9", "tested"), tmp_path)
    assert (missing.passed, list(tmp_path.iterdir())) == (None, [])
    found = {"torch": "1.2", "h5py": "3.4", "pandas": "5.6"}
    lowest = compat.Tried(compat.Case("3.10", "lowest"), found, "7 passed", True)
    text = compat.page([missing, lowest])
    assert "| 9.9 | `constraints.txt` |  |  |  |  | not tried: this Python was not found |" in text
    assert "| 3.10 | lower bounds | 1.2 |  |  | 5.6 | 7 passed |" in text
    assert "The lower bounds that were tried: h5py 3.4, huggingface-hub ?, hydra-core ?" in text
    assert compat.Case("3.10", "tested").constraints.name == "constraints-3.10.txt"


def test_every_tested_version_is_given_for_the_oldest_python() -> None:
    """But for the peers that `make bench` measures."""
    names = [
        {
            line.partition("==")[0]
            for line in (compat.ROOT / name).read_text("utf-8").splitlines()[1:]
        }
        for name in ("constraints.txt", "constraints-3.10.txt")
    ]
    assert names[1] <= names[0]
    assert names[0] - names[1] == {"nnsight", "pyvene", "transformer-lens"}


def test_every_test_of_compat_is_there() -> None:
    assert [name for name in compat.TESTS if not (compat.ROOT / name).is_file()] == []
