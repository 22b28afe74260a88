"""The benchmark programs run, and count what they say they count."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    analysis_scale,
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

SMALL = Shape(n_layers=3, d_model=2, vocabulary=5, keys_values=8, rest=32)


def test_operations_of_a_case_worked_out_by_hand() -> None:
    """Three layers, three positions, noise from position 1, two samples, hidden states.

    Clean and corrupted once: 3 rows x (3 positions x 3 layers x 40 + head 10) = 1110.
    Rows: none in layer 0, one in layer 1, two in layer 2 (the last), times two samples.
    Position 1 (two positions): layer 1: 2 x 2 x 40 = 160; layer 2: 4 x (2 x 8 + 32 + 10) = 232.
    Position 2 (one position):  layer 1: 2 x 1 x 40 = 80;  layer 2: 4 x (1 x 8 + 32 + 10) = 200.
    """
    expected = 2 * (1110 + 160 + 232 + 80 + 200)
    assert operations(SMALL, [make_mediator("hidden", 1)], 3, Span(1, 2), 2) == expected


def test_operations_of_a_knockout_worked_out_by_hand() -> None:
    """One layer at a time: sources 0 and 1, which are groups of their own, and the query itself.

    The clean row once: 3 positions x 3 layers x 40 + head 10 = 370. At the query, one position,
    three rows begin in each layer: 3 x 40 in layer 0, 6 x 40 in layer 1, 9 x (8 + 32 + 10) in the
    last.
    """
    expected = 2 * (370 + 120 + 240 + 450)
    assert operations(SMALL, [make_mediator("knockout", 1)], 3, Span(1, 2), 2) == expected


def test_operations_on_the_published_shape() -> None:
    gpt2 = gpt2_small.gpt2_shape()
    hidden = make_mediator("hidden", 1)
    assert operations(gpt2, [hidden], 10, Span(0, 2), 10) / 1e12 == pytest.approx(0.56, abs=0.01)
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
