"""The notebook's cells run as they stand, show what is stored with them, and what the text says.

Write the outputs again after a cell or a figure has changed: `python tests/test_notebook.py`.
"""

import ast
import contextlib
import io
import json
import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from tests.support.places import ROOT

PATH = ROOT / "docs" / "trace.ipynb"
NOTEBOOK: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
NUMBER = re.compile(r"-?\d+(?:\.(\d+))?")


def shown(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run a cell; gives what it prints and the value of a last expression, which Jupyter shows."""
    *before, last = ast.parse(code).body
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(before, []), "<cell>", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        else:
            exec(compile(code, "<cell>", "exec"), names)
    return printed.getvalue(), value


def outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    """A cell's outputs in the format of notebooks."""
    found: list[dict[str, Any]] = []
    if printed:
        lines = printed.splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        # Both may give None, as a figure of matplotlib does for HTML.
        if html := getattr(value, "_repr_html_", lambda: None)():
            data["text/html"] = html.splitlines(keepends=True)
        if png := getattr(value, "_repr_png_", lambda: None)():
            data["image/png"] = b64encode(png).decode()
        found.append(
            {
                "data": data,
                "execution_count": number,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return found


@pytest.fixture(scope="module")
def ran() -> list[tuple[str, Any]]:
    """What each code cell prints and shows, run one after another."""
    names: dict[str, Any] = {}
    return [shown("".join(cell["source"]), names) for cell in CODE]


def same_text(stored: str, fresh: str) -> None:
    """Equal, but for blanks and the last decimal of numbers: another CPU rounds differently."""
    assert NUMBER.sub("#", stored).split() == NUMBER.sub("#", fresh).split()
    for one, other in zip(NUMBER.finditer(stored), NUMBER.finditer(fresh), strict=True):
        unit = 10.0 ** -len(one[1]) if one[1] else 0.0
        assert float(other[0]) == pytest.approx(float(one[0]), abs=1.01 * unit, rel=0), stored


def pixels(stored: str) -> Any:
    return matplotlib.image.imread(io.BytesIO(b64decode(stored)), format="png")


def test_the_stored_outputs_are_those_of_the_cells(ran: list[tuple[str, Any]]) -> None:
    for number, (cell, (printed, value)) in enumerate(zip(CODE, ran, strict=True), 1):
        assert cell["execution_count"] == number
        fresh = outputs(printed, value, number)
        assert [one["output_type"] for one in cell["outputs"]] == [
            one["output_type"] for one in fresh
        ]
        for one, other in zip(cell["outputs"], fresh, strict=True):
            if one["output_type"] == "stream":
                same_text("".join(one["text"]), "".join(other["text"]))
                continue
            assert one["data"].keys() == other["data"].keys()
            for kind, stored in one["data"].items():
                if kind != "image/png":
                    same_text("".join(stored), "".join(other["data"][kind]))
                    continue
                drawn = pixels(stored)
                assert drawn.shape == pixels(other["data"][kind]).shape
                assert np.ptp(drawn[..., :3]) > 0.5  # not blank


def test_what_is_shown_is_what_the_text_says(ran: list[tuple[str, Any]]) -> None:
    values = [value for _, value in ran if value is not None]
    figure, by_role, at_last, severed, other_figure, many, probed = values
    for drawn in (figure, severed, other_figure):
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
    # "On average, too, the last subject token stands out at the first layers."
    assert list(many.columns) == list(range(6))
    assert many[0].idxmax() == "last subject"
    assert many[5].idxmax() == "last"
    # "The last token knows the question from the first layer on, and gives it up in the last one."
    assert (probed.loc["last", :4] > 0.9).all()
    assert probed.loc["last", 5] < 0.85
    # "The subject's last token comes to know it layer by layer."
    assert (probed.loc["last_subject"].diff().iloc[1:] > -0.02).all()
    assert probed.loc["last_subject", 5] > probed.loc["last_subject", 0] + 0.1


def test_the_file_is_small_and_a_notebook() -> None:
    assert NOTEBOOK["nbformat"] == 4
    assert PATH.stat().st_size < 300_000


def write(path: Path) -> None:
    """Run the cells and store their outputs."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(CODE, 1):
        cell["outputs"] = outputs(*shown("".join(cell["source"]), names), number)
        cell["execution_count"] = number
    path.write_text(json.dumps(NOTEBOOK, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    write(PATH)
