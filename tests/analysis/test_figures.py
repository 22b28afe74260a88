"""What figures show: titles, scales, labels and marks. That they are drawn: test_analyze.py."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ktrace.analysis.analyze import analyze
from ktrace.analysis.figures.heatmaps import difference_heatmap, fact_heatmap, visible
from ktrace.analysis.figures.style import COLUMN_WIDTH, PAGE_WIDTH
from ktrace.terms import mediator_title
from tests.support.stores import write_run


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure of a run of three mediators, by its name."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, stem: Path) -> list[Path]:
        found[stem.name] = figure
        return []

    monkeypatch.setattr("ktrace.analysis.figures.draw.save", keep)
    folders = write_run(tmp_path, keys=["hidden", "hidden_mlp_severed", "mlp-w3"])
    analyze(folders.run, facts=[1000])
    return found


def test_titles_state_facts_noise_sigma_samples_and_window(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        title = figure.get_suptitle().replace("\n", " ")
        assert "noise gaussian-x3-n2-seed1, σ = 0.25 (5 facts, 12 tokens), 2 samples" in title, name
        assert "n = 5 facts" in title or name.startswith("fact-"), name
    panels = [axis.get_title() for axis in drawn["aie"].axes]
    assert panels[:3] == ["hidden states", "hidden, MLP severed", "MLP outputs, window 3"]
    assert mediator_title("attn-w10") == "attention outputs, window 10"


def test_panels_are_on_one_scale(drawn: dict[str, Figure]) -> None:
    heatmaps = [axis.collections[0] for axis in drawn["aie"].axes[:3]]
    scales = {(mesh.norm.vmin, mesh.norm.vmax) for mesh in heatmaps}
    [(low, high)] = scales
    assert low <= min(mesh.get_array().min() for mesh in heatmaps), "nothing is clipped"
    assert high >= max(mesh.get_array().max() for mesh in heatmaps)
    assert len({axis.get_ylim() for axis in drawn["lines"].axes}) == 1


def test_figures_fit_a_paper_unscaled(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        several = name in ("aie", "lines", "peaks")
        assert figure.get_figwidth() == (PAGE_WIDTH if several else COLUMN_WIDTH), name
        figure.draw_without_rendering()
        sizes = {
            label.get_fontsize()
            for axis in figure.axes
            for label in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.title)
            if label.get_text()
        }
        assert min(sizes) >= 7, name


def test_the_bars_stand_at_the_last_subject_token(drawn: dict[str, Figure]) -> None:
    [axis] = drawn["severed"].axes
    labels = axis.get_legend_handles_labels()[1]
    assert labels == ["hidden states", "hidden, MLP severed"]
    assert axis.get_title() == "at the last subject token"
    assert len(axis.patches) == 2 * 3


def test_tokens_label_a_fact_and_its_subject_is_marked() -> None:
    effects = np.arange(12.0).reshape(3, 4) / 12
    figure = fact_heatmap(
        effects, tokens=["<s>", " A$", "b\n", " is"], subject=(1, 3), title="", label="IE"
    )
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["<s>", "A$*", "b\\n*", "is"]
    # Tokens down, layers across.
    np.testing.assert_array_equal(axis.collections[0].get_array().reshape(4, 3), effects.T)
    assert visible("  ") == "␣␣"


def test_zero_is_in_the_middle_where_effects_have_both_signs() -> None:
    effects = np.array([[0.5, -0.25]])
    figure = fact_heatmap(effects, tokens=["a", "b"], subject=(0, 1), title="", label="IE")
    norm = figure.axes[0].collections[0].norm
    assert (norm.vmin, norm.vmax) == (-0.5, 0.5)


def test_cells_whose_interval_excludes_zero_are_marked() -> None:
    frame = pd.DataFrame(
        {
            "role": ["first", "first", "last", "last"],
            "depth": [0.0, 1.0, 0.0, 1.0],
            "difference": [0.5, 0.1, -0.4, 0.2],
            "ci_low": [0.1, -0.1, -0.6, np.nan],
            "ci_high": [0.9, 0.3, -0.2, np.nan],
        }
    )
    figure = difference_heatmap({"b": frame}, roles=["first", "last"], title="", metric="logit")
    mesh, dots = figure.axes[0].collections
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-0.5, 0.5)
    assert dots.get_offsets().tolist() == [[0.5, 0.5], [0.5, 1.5]]
