"""The notebook's cells run as they stand, and what they show is what the text says."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.places import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "trace.ipynb").read_text("utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def shown(code: str, names: dict[str, Any]) -> Any:
    """Run a cell; gives the value of a last expression, which Jupyter would show."""
    *before, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        exec(code, names)
        return None
    exec(compile(ast.Module(before, []), "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


@pytest.fixture
def stored_run(in_folder: Path) -> None:
    """What `make run ARGS=dataset.limit=2` leaves in this folder."""
    run(composed(["dataset.limit=2", "stage=restore"]))


def test_every_cell_runs(stored_run: None) -> None:
    names: dict[str, Any] = {}
    _, figure, by_role, at_last, other_figure, many = [shown(code, names) for code in CODE]
    for drawn in (figure, other_figure):
        assert drawn._repr_png_().startswith(b"\x89PNG")
    assert list(by_role.columns) == list(range(6))
    # "The subject's tokens matter in the first layers, the last token in the later ones."
    subject = by_role.loc[["first subject", "middle subject", "last subject"]]
    assert subject[0].max() > 0.2 > subject[5].max()
    assert by_role.loc["last", 0] < 0.2 < 0.8 < by_role.loc["last", 5]
    assert list(at_last.index) == ["hidden", "hidden_mlp_severed", "mlp-w3", "attn-w3"]
    # The last token needs its later MLPs, until there are none.
    assert at_last.loc["hidden_mlp_severed", 3] < at_last.loc["hidden", 3] / 2
    assert at_last.loc["hidden_mlp_severed", 5] == at_last.loc["hidden", 5]
    assert list(many.columns) == list(range(6))
    assert names["effects"]["known_id"].nunique() == 2


def test_it_is_stored_without_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
