"""The gallery's code runs as it stands, makes its figures, and gives the numbers of its text.

Write the figures again after the code or a figure has changed: `python tests/test_gallery.py`.
"""

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.places import ROOT
from tests.support.proof import skip_proof

PAGE = (ROOT / "docs" / "gallery.md").read_text("utf-8")
SECTIONS: dict[str, str] = dict(
    re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
)
BLOCK = re.compile(r"^```(python|sh)\n(.+?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"!\[[^\]]+\]\(figures/([\w-]+\.png)\)")
NUMBER = re.compile(r"\d+(?:\.(\d+))?( %)?")


def run_page(folder: Path) -> dict[str, Any]:
    """Run every block of the page, one after another, in a folder.

    Returns:
        The names that they leave.
    """
    (folder / "data").symlink_to(ROOT / "data")
    names: dict[str, Any] = {}
    for language, code in BLOCK.findall(PAGE):
        if language == "python":
            exec(compile(code, "docs/gallery.md", "exec"), names)
        else:
            python, module, package, *overrides = shlex.split(code)
            assert (python, module, package) == ("python", "-m", "ktrace")
            run(composed(overrides))
    plt.close("all")
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gallery")


@pytest.fixture(scope="module")
def names(folder: Path) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch, mpl.rc_context():
        pytest.importorskip("sklearn", reason="the probe needs scikit-learn (the extra `dev`)")
        skip_proof(patch.setattr)
        patch.chdir(folder)
        plt.switch_backend("Agg")
        yield run_page(folder)


def claims(names: Mapping[str, Any]) -> dict[str, list[float]]:
    """What the numbers in the text of each section must be, in the order in which they stand."""

    def cell(table: pd.DataFrame, *columns: str, **where: object) -> list[float]:
        for column, value in where.items():
            table = table[table[column] == value]
        [row] = table[list(columns)].to_numpy(float)
        return [float(value) for value in row]

    read, heads, shared = (names[name] for name in ("averages", "heads", "shared"))
    interval = ("aie", "ci_low", "ci_high")
    subject, last = {"role": "last subject"}, {"role": "last"}
    carried = read[(read["mediator"] == "attn-w1") & (read["role"] == "last")]
    carrier = int(carried["layer"].iloc[carried["aie"].argmax()])
    at_subject = cell(read, *interval, mediator="hidden", layer=0, **subject)
    at_last = cell(read, *interval, mediator="hidden", layer=2, **last)

    [n_of_two] = names["two"]["relation_id"].value_counts().unique()
    whole, noised = names["necessary"]["mediator"].unique()
    lost = names["necessary"][names["necessary"]["mediator"] == noised]
    aie, high, low = (-value for value in cell(lost, *interval, layer=0, **subject))
    best = heads.iloc[heads["aie"].argmax()]
    strong = shared > 0.05
    apart = names["apart"].to_frame()
    apart = apart[apart["metric"] == "probability"]

    corrupted = names["corrupted"]
    ends, shares, handed = [], [], []
    for noise in ("token_replacement", "gaussian"):
        own = corrupted[corrupted["noise"] == noise]
        ends += cell(own, "aie", layer=5, **last)
        shares += [100 * cell(own, "aie", layer=0, **subject)[0] / ends[-1]]
        handed += cell(own, "aie", layer=2, **subject)
    probed, known = names["probed"], names["known"]
    n_relations, [n_known] = (
        known["relation_id"].nunique(),
        known["relation_id"].value_counts().unique(),
    )
    grid, traced = names["grid"], names["frame"].groupby("relation_id")["known_id"].nunique()
    return {
        "Where is the fact read?": [
            *(len(names["some"]), names["some"]["relation_id"].nunique()),
            *(0, *at_subject, *at_last, 2),
            *(carrier, *cell(read, *interval, mediator="attn-w1", layer=carrier, **last)),
        ],
        "Is it necessary, too?": [
            *(
                0,
                aie,
                low,
                high,
                *cell(names["necessary"], "aie", mediator=whole, layer=0, **subject),
            ),
            *(2, -cell(lost, "aie", layer=2, **last)[0]),
            *cell(names["necessary"], "aie", mediator=whole, layer=2, **last),
            *(4, -cell(lost, "aie", layer=4, **last)[0]),
        ],
        "Which heads?": [
            *(len(shared), (heads["aie"] > 0.05).sum(), 0.05, best["head"], best["layer"]),
            *(*best[list(interval)], -heads["aie"].min()),
        ],
        "What do two relations share?": [
            *(0.05, strong.any(axis=1).sum(), strong.all(axis=1).sum()),
            *(shared["capital_city"].corr(shared["currency"]), 0, 2),
            *cell(names["by_head"], *interval, relation_id="currency", layer=2, head=0),
            *cell(names["by_head"], *interval, relation_id="capital_city", layer=2, head=0),
            n_of_two,
        ],
        "What changes with another corruption?": [
            *(names["replaced"]["known_id"].nunique(), *ends, 0, *shares, 2, *handed),
        ],
        "A linear probe": [
            *(len(known), 100 / n_relations, n_relations, n_known),
            *(100 * probed["last"][0], 0, 100 * names["accuracy"], 2, 100 * probed["last"][5]),
            100 * probed["last_subject"].max(),
        ],
        "Effects by relation": [
            grid.loc["capital_city"].max(),
            grid.loc[["river_mouth", "university_city"]].to_numpy().max(),
            traced.max(),
        ],
        "Two prompts": [
            *(0, 1, apart[apart["layer"] <= 1]["difference"].abs().max()),
            *(2, *cell(apart, "left", "right", layer=2, **subject)),
            *cell(apart, "left", "right", layer=2, **last),
            n_of_two,
        ],
    }


def prose(body: str) -> str:
    """A section without code, figures, and where links lead to."""
    text = FIGURE.sub("", BLOCK.sub("", body))
    return re.sub(r"`[^`]+`", "", re.sub(r"\]\([^)]+\)", "]", text))


def test_the_numbers_of_the_text_are_those_of_the_code(names: dict[str, Any]) -> None:
    found = claims(names)
    assert list(found) == list(SECTIONS)
    for heading, body in SECTIONS.items():
        said = list(NUMBER.finditer(prose(body)))
        assert len(said) == len(found[heading]), (heading, [one[0] for one in said], found[heading])
        for one, value in zip(said, found[heading], strict=True):
            # Half of the last digit, and a little for another processor's rounding.
            digits = 10.0 ** -len(one[1]) if one[1] else 1.0 if one[2] else 0.0
            number = float(one[0].removesuffix(" %"))
            assert number == pytest.approx(value, abs=0.6 * digits, rel=0), (heading, one[0])


def test_what_the_text_says_without_numbers(names: dict[str, Any]) -> None:
    averages, shared = names["averages"], names["shared"]
    by_layer = averages.pivot(index=["mediator", "role"], columns="layer", values="aie")
    assert by_layer.loc[("hidden", "last subject")].is_monotonic_decreasing
    assert by_layer.loc[("hidden", "last")].is_monotonic_increasing
    assert by_layer.loc[("attn-w1", "last subject")].abs().max() < 0.01
    assert (shared["currency"] - shared["capital_city"]).abs().idxmax() == (2, 0)
    at_head = names["by_head"].query("layer == 2 and head == 0").set_index("relation_id")
    assert at_head.loc["currency", "ci_low"] < at_head.loc["capital_city", "ci_high"]
    weakest = names["grid"].max(axis=1).sort_values()
    assert set(weakest.index[:2]) == {"river_mouth", "university_city"}
    assert weakest.iloc[2] > 0.3
    assert names["probed"]["last"].idxmax() in (2, 3)


def test_every_figure_of_the_page_is_made_by_its_code(names: dict[str, Any], folder: Path) -> None:
    assert names
    shown = FIGURE.findall(PAGE)
    assert all(FIGURE.search(body) for body in SECTIONS.values())
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(shown)
    assert sorted(path.name for path in (ROOT / "docs/figures").glob("gallery-*")) == sorted(shown)
    for name in shown:
        stored, fresh = (
            matplotlib.image.imread(at / name) for at in (ROOT / "docs" / "figures", folder)
        )
        assert stored.shape == fresh.shape, name
        assert np.ptp(fresh[..., :3]) > 0.5, name  # not blank
        assert (ROOT / "docs" / "figures" / name).stat().st_size < 100_000


def test_what_is_promised_in_four_lines_has_four() -> None:
    promised = {name: body for name, body in SECTIONS.items() if "\nIn four lines" in body}
    assert list(promised) == ["A linear probe", "Effects by relation", "Two prompts"]
    for body in promised.values():
        code = [code for language, code in BLOCK.findall(body) if language == "python"]
        assert len(next(one for one in code if "import" not in one).splitlines()) <= 4


if __name__ == "__main__":
    mpl.use("Agg")
    skip_proof()
    with TemporaryDirectory() as made, pytest.MonkeyPatch.context() as moved:
        moved.chdir(made)
        run_page(Path(made))
        moved.undo()
        for figure in Path(made).glob("*.png"):
            shutil.copy(figure, ROOT / "docs" / "figures")
