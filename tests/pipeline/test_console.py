"""Closing tables show names and overrides letter by letter."""

from pathlib import Path
from typing import Any

import pytest

from ktrace.pipeline.console import print_comparison, print_counts, print_summary
from ktrace.pipeline.jobs import Job

ODD = "x[/bold]:smile:[red]"


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "model": "toy",
        "dataset": "made-up",
        "noise": "gaussian",
        "n_facts": 5,
        "n_candidates": 4,
        "p_clean": 0.5,
        "p_corrupted": 0.25,
        "ate": 0.25,
        "ate_ci": [0.125, 0.375],
        "left_out": {},
        "answer": "At the last token, layer 3.",
        "peaks": {"hidden": {"last": {"aie": 0.5, "layer": 3}}},
        "heads": {},
        "layers": {"windows": {}},
    } | changes


def test_the_closing_table(capsys: pytest.CaptureFixture[str]) -> None:
    files = [Path.cwd() / ODD / name for name in ("aie.csv", "report.html", "aie.png")]
    print_summary(summary(left_out={ODD: 1}), files)
    printed = capsys.readouterr().out
    assert "ATE 0.250 [0.125, 0.375]" in printed
    assert f"left out: 1 × {ODD}" in printed
    assert f"wrote report.html and 2 more to {ODD}\n" in printed
    assert "0.500 (3)" in printed
    assert "\nAt the last token, layer 3.\n" in printed


def test_the_strongest_heads_and_the_smallest_window(capsys: pytest.CaptureFixture[str]) -> None:
    heads = {"last": [{"layer": 3, "head": 1, "aie": 0.25}, {"layer": 0, "head": 2, "aie": 0.125}]}
    windows = {
        "last": {"share": 0.5, "window": 3, "layer": 2, "ie_te": 0.75},
        "further": {"share": 0.5, "window": None, "layer": None, "ie_te": 0.25},
    }
    print_summary(summary(heads={"head": heads}, layers={"windows": {"mlp": windows}}), [])
    printed = capsys.readouterr().out
    assert "head, strongest at last (layer.head): 3.1 (0.250), 0.2 (0.125)\n" in printed
    assert "smallest window with 50% of the total effect: " in printed
    assert "last window 3 at layer 2 (75%), further none (25%)\n" in printed


def test_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    print_counts({f"left out: {ODD}": 2}, Path(ODD) / "noise", Path(ODD) / "candidates.csv")
    assert capsys.readouterr().out == (
        f"left out: {ODD}: 2\n"
        f"each fact, what was predicted, why left out: {ODD}/candidates.csv\n"
        f"stores in {ODD}\n"
    )


def test_a_sweep_of_every_kind_of_job(capsys: pytest.CaptureFixture[str]) -> None:
    done = {"status": "done", "message": "", "model": "toy", "mediators": ["hidden"]}
    shared = "dataset.limit=5"
    jobs = [
        done | {"job": "0", "overrides": [shared, "mediator.names=[hidden]"], "summary": summary()},
        done
        | {"job": "1", "overrides": [shared, "stage=filter"], "summary": None}
        | {"counts": {"facts": 77, "candidates": 66}},
        {"job": "2", "overrides": [shared, ODD], "model": "toy", "status": "failed"}
        | {"message": f"{ODD} is wrong"},
    ]
    print_comparison([Job(**job) for job in jobs])
    table, failed = capsys.readouterr().out.split("└")
    rows = {line.split("│")[1].strip(): line for line in table.splitlines() if "│" in line}
    assert rows.keys() == {"0", "1", "2"}
    assert "mediator.names=[hidden]" in rows["0"]
    assert "gaussian" in rows["0"]
    assert "77" in rows["1"]
    assert "66" in rows["1"]
    assert ODD in rows["2"]
    assert shared not in table
    assert failed.splitlines()[1:] == [f"job 2 ({ODD}) failed: {ODD} is wrong"]
