"""What figures show: titles, scales, labels and marks. That they are drawn: test_analyze.py."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from colorsys import rgb_to_hsv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib import font_manager, get_data_path, rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import ktrace
from ktrace.analysis.analyze import analyze
from ktrace.analysis.compare import compare
from ktrace.analysis.figures import fonts
from ktrace.analysis.figures.curves import role_lines, severed_lines
from ktrace.analysis.figures.draw import RUN_FIGURES
from ktrace.analysis.figures.files import Saved
from ktrace.analysis.figures.heatmaps import (
    aie_heatmaps,
    difference_heatmap,
    fact_heatmap,
    named_heatmaps,
    scale_of,
)
from ktrace.analysis.figures.look import Limits, Look, Prompt
from ktrace.analysis.figures.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    effect_scale,
    limits_of,
    save,
)
from ktrace.analysis.palettes import PALETTES, ramp_of
from ktrace.analysis.tokens import shortened, visible
from ktrace.store import RunFolders
from ktrace.terms import MEDIATOR_NAMES, ROLES, mediator_title
from tests.support.figures import KINDS, NOT_SAVED
from tests.support.stores import (
    CANDIDATES,
    NOISE_PRINT,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)

KEYS = ["hidden", "hidden_mlp_severed", "mlp-w3"]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Figures by their names, which are not saved."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, stem: Path) -> Saved:
        found[stem.name] = figure
        return NOT_SAVED

    monkeypatch.setattr("ktrace.analysis.figures.style.save", keep)
    return found


@pytest.fixture
def drawn(tmp_path: Path, kept: dict[str, Figure]) -> dict[str, Figure]:
    """Every figure of a run of three mediators, by its name."""
    analyze(write_run(tmp_path, KEYS).run, facts=[1000])
    return kept


def averages(
    n_layers: int, keys: list[str], values: npt.NDArray[np.float64] | None = None
) -> pd.DataFrame:
    """A made-up table in the columns that figures read; `values` are by layer."""
    generator = np.random.default_rng(0)
    rows = []
    for key in keys:
        for role in ROLES:
            line = generator.random(n_layers) if values is None else values
            rows.append(
                pd.DataFrame({"layer": range(n_layers), "aie": line}).assign(
                    mediator=key, role=role, ci_low=line - 0.1, ci_high=line + 0.1
                )
            )
    table: pd.DataFrame = pd.concat(rows, ignore_index=True)
    return table


def strength(colour: Any) -> float:
    """How far from white."""
    return float(1 - np.mean(to_rgb(colour)))


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
        several = name in ("aie", "lines", "peaks", "severed")
        assert figure.get_figwidth() == (PAGE_WIDTH if several else COLUMN_WIDTH), name
        figure.draw_without_rendering()
        sizes = {
            label.get_fontsize()
            for axis in figure.axes
            for label in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.title)
            if label.get_text()
        }
        assert min(sizes) >= 7, name


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("key", MEDIATOR_NAMES)
def test_light_is_zero_and_each_sign_has_a_hue(palette: str, key: str) -> None:
    for low, high in ((-0.02, 0.9), (-0.5, 0.5), (-0.9, 0.02), (0.0, 0.9)):
        scale = effect_scale(limits_of(low, high), ramp_of(palette, key))
        assert (scale.norm.vmin, scale.norm.vmax) == (low, high)
        colour = lambda value, s=scale: s.colours(s.norm(value))[:3]  # noqa: E731
        assert strength(colour(0.0)) < 0.03
        for end in (low, high):
            shades = [strength(colour(end * part)) for part in (0.2, 0.4, 0.6, 0.8, 1.0)]
            assert shades == sorted(shades), "the stronger, the darker"
        if low < 0 < high:
            for part in (0.5, 1.0):
                weaker = part * min(-low, high)
                hues = [rgb_to_hsv(*colour(sign * weaker))[0] for sign in (-1, 1)]
                apart = abs(hues[0] - hues[1])
                assert min(apart, 1 - apart) > 0.15, "a sixth of the circle, or nearly"


def test_where_falling_helps_the_hues_change_sides() -> None:
    limits = Limits(-1.0, 0.5)
    ramp = ramp_of("shared", "hidden")
    rising, falling = (effect_scale(limits, ramp, lower_helps=one) for one in (False, True))
    helping = rising.colours(rising.norm(0.4)), falling.colours(falling.norm(-0.4))
    np.testing.assert_allclose(*helping, atol=0.02)
    assert scale_of(Look("kl"), "hidden", limits).colours(0.0) == falling.colours(0.0)
    assert scale_of(Look("logit"), "hidden", limits).colours(0.0) == rising.colours(0.0)


def test_colour_bars_say_what_and_in_which_unit() -> None:
    aie = averages(4, ["hidden"])
    labels = {
        metric: aie_heatmaps(aie, keys=["hidden"], roles=ROLES, title="", look=Look(metric))
        .axes[-1]
        .get_ylabel()
        .replace("\n", " ")
        for metric in ("probability", "log_probability", "logit", "kl")
    }
    assert labels == {
        "probability": "AIE (probability)",
        "log_probability": "AIE (log probability, nats)",
        "logit": "AIE (logit)",
        "kl": "AIE (KL divergence, nats; negative helps)",
    }


def test_the_palette_of_the_paper_has_its_hues_words_and_order() -> None:
    keys = ["hidden", "hidden_attn_severed", "hidden_mlp_severed"]
    roles = ["first subject", "last subject", "further", "last"]
    aie = averages(4, keys, np.linspace(0, 1, 4))
    look = Look("probability", "rome")
    figure = aie_heatmaps(aie, keys=keys, roles=roles, title="", look=look)
    panels, bars = figure.axes[:3], figure.axes[3:]
    titles = [axis.get_title() for axis in panels]
    assert titles == ["hidden states", "hidden, MLP severed", "hidden, attention severed"]
    # The strongest colour is mostly blue and red, green, red.
    strongest = [axis.collections[0].cmap(0.8)[:3] for axis in panels]
    assert strongest[0][2] > strongest[0][0] > strongest[0][1]
    assert [int(np.argmax(colour)) for colour in strongest[1:]] == [1, 0]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        *("First subject token", "Last subject token", "Further tokens", "Last token")
    ]
    assert [bar.get_ylabel() for bar in bars] == ["AIE"] * 3
    assert {(mesh.norm.vmin, mesh.norm.vmax) for a in panels for mesh in a.collections} == {(0, 1)}


@pytest.mark.parametrize("n_layers", [48, 80])
def test_lines_of_deep_models_are_lines_with_bands_on_a_page(n_layers: int) -> None:
    aie = averages(n_layers, ["hidden", "hidden_mlp_severed"])
    alone = role_lines(aie, keys=["hidden"], roles=ROLES, title="", metric="logit")
    apart = aie.assign(left="hidden", right=aie["mediator"], difference=0.1, beyond=True)
    apart = apart.assign(ci_low=0.0, ci_high=0.2, beyond_all=False)
    apart = apart[apart["mediator"] != "hidden"]
    keys = ["hidden", "hidden_mlp_severed"]
    severed = severed_lines(
        aie, apart, keys=keys, role="last subject", title="", metric="probability"
    )
    for figure in (alone, severed):
        assert figure.get_figwidth() == PAGE_WIDTH
        for axis in figure.axes:
            assert not axis.patches, "no bars"
            assert len(axis.get_xticks()) <= 9
    axis = alone.axes[0]
    bands, lines = axis.collections, [line for line in axis.lines if len(line.get_xdata()) > 2]
    assert len(bands) == len(lines) == len(ROLES)


def test_the_key_line_is_the_strongest() -> None:
    figure = role_lines(
        averages(6, ["hidden"]), keys=["hidden"], roles=ROLES, title="", metric="kl"
    )
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    key = lines["last subject"]
    for role in set(ROLES) - {"last subject"}:
        assert key.get_linewidth() >= 1.5 * lines[role].get_linewidth()
        assert strength(key.get_color()) > strength(lines[role].get_color())
        assert key.get_zorder() > lines[role].get_zorder()
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines.values()}) >= 6


def test_a_single_layer_is_a_marker_with_a_bar() -> None:
    keys = ["hidden", "hidden_mlp_severed"]
    aie = averages(1, keys)
    apart = aie.assign(left="hidden", right=aie["mediator"], difference=0.1)
    apart = apart.assign(beyond=True, beyond_all=True)[apart["mediator"] != "hidden"]
    lines = role_lines(aie, keys=["hidden"], roles=ROLES, title="", metric="logit")
    severed = severed_lines(aie, apart, keys=keys, role="last subject", title="", metric="logit")
    for figure in (lines, severed):
        axis = figure.axes[0]
        markers = [line for line in axis.lines if line.get_marker() == "o"]
        places = [float(line.get_xdata()[0]) for line in markers]
        assert len(markers) == len(axis.collections) == len(set(places)) > 1
        assert max(map(abs, places)) < 0.5


def test_the_severed_figure_has_the_difference_of_pairs_and_two_marks() -> None:
    keys = ["hidden", "hidden_mlp_severed"]
    aie = averages(5, keys)
    apart = pd.DataFrame(
        {
            "right": "hidden_mlp_severed",
            "role": "last subject",
            "layer": range(5),
            "difference": [0.3, 0.2, 0.1, 0.0, -0.1],
            "ci_low": [0.2, 0.1, 0.0, -0.1, np.nan],
            "ci_high": [0.4, 0.3, 0.2, 0.1, np.nan],
            "beyond": [True, True, False, False, False],
            "beyond_all": [True, False, False, False, False],
        }
    )
    figure = severed_lines(aie, apart, keys=keys, role="last subject", title="", metric="logit")
    averaged, paired = figure.axes
    assert averaged.get_title() == "at the last subject token"
    assert averaged.get_legend_handles_labels()[1] == ["hidden states", "hidden, MLP severed"]
    line = paired.lines[-1]
    assert list(line.get_ydata()) == list(apart["difference"])
    band, opened, filled = paired.collections
    corners = band.get_paths()[0].vertices
    assert {(0.0, 0.2), (0.0, 0.4)} <= {(x, round(y, 6)) for x, y in corners}
    assert opened.get_offsets().tolist() == [[0, 0.3], [1, 0.2]]
    assert filled.get_offsets().tolist() == [[0, 0.3]]
    assert strength(opened.get_facecolor()[0][:3]) == 0 < strength(filled.get_facecolor()[0][:3])


def test_tokens_label_a_fact_and_its_subject_is_marked() -> None:
    effects = np.arange(12.0).reshape(3, 4) / 12
    tokens = ["<s>", " A$", "b\n", " is"]
    figure = fact_heatmap(effects, Prompt(tokens, (1, 3)), key="mlp", title="", look=Look("logit"))
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["<s>", "A$*", "b↵*", "is"]
    # Tokens down, layers across.
    np.testing.assert_array_equal(axis.collections[0].get_array().reshape(4, 3), effects.T)
    assert figure.axes[1].get_ylabel() == "IE (logit)"


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" is", "is"),
        ("  two", "␣two"),
        ("end ", "end␣"),
        ("  ", "␣␣"),
        ("", "␣"),
        ("\n\t", "↵⇥"),
        ("a\x00\x1bb", "a\\x00\\x1bb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2066b\u200f", "a\\u2066b\\u200f"),
        ("\u2028\u00a0", "\\u2028\\xa0"),
        ("日本", "日本"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_a_token_is_shown_on_one_line_and_acts_on_nothing(token: str, label: str) -> None:
    assert visible(token) == label


def test_long_tokens_are_cut() -> None:
    assert shortened("a" * 22) == "a" * 22
    assert shortened("a" * 23) == "a" * 21 + "…"
    figure = fact_heatmap(
        np.ones((2, 1)), Prompt(["b" * 300], (0, 1)), key="mlp", title="", look=Look("kl")
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["b" * 21 + "…*"]


def test_two_marks_tell_cells_that_differ_from_those_that_differ_together() -> None:
    frame = pd.DataFrame(
        {
            "role": ["first", "first", "last", "last"],
            "depth": [0.0, 1.0, 0.0, 1.0],
            "difference": [0.5, 0.1, -0.4, 0.2],
            "beyond": [True, False, True, False],
            "beyond_all": [False, False, True, False],
        }
    )
    figure = difference_heatmap(
        {"b": frame}, roles=["first", "last"], key="mlp", title="", look=Look("logit")
    )
    mesh, opened, filled = figure.axes[0].collections
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-0.5, 0.5)
    assert opened.get_offsets().tolist() == [[0.5, 0.5], [0.5, 1.5]]
    assert filled.get_offsets().tolist() == [[0.5, 1.5]]
    assert figure.axes[0].get_xlabel() == "relative depth"


def write_named(
    root: Path,
    model: str,
    seed: int,
    keys: Sequence[str],
    relations: Mapping[int, str] = {},  # never changed
) -> Path:
    """A run of three layers, in the folder of its own names."""
    folders = RunFolders(root / model / "made-up" / f"gaussian-x3-n2-seed{seed}")
    noise = NOISE_PRINT | {"noise": NOISE_PRINT["noise"] | {"seed": seed}}
    if not folders.clean.folder.exists():
        write_clean(folders, relations=relations)
    write_corrupted(folders, CANDIDATES, noise)
    for key in keys:
        write_restored(folders, key, CANDIDATES, noise)
    return folders.run


def test_one_model_is_compared_by_layer_and_two_by_depth(
    tmp_path: Path, kept: dict[str, Figure]
) -> None:
    runs = [write_named(tmp_path / "one", "toy", seed, ["hidden"]) for seed in (1, 2)]
    compare([str(run) for run in runs], tmp_path / "comparison")
    for name in ("models-hidden", "difference-hidden"):
        axis = kept[name].axes[0]
        assert axis.get_xlabel() == "layer"
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1", "2"]
    grid = pd.DataFrame(np.zeros((2, 3)), index=["first", "last"])
    by_depth = named_heatmaps(
        {"a": grid, "b": grid}, key="mlp", title="", look=Look("logit"), by_depth=True
    )
    assert by_depth.axes[0].get_xlabel() == "relative depth"


def test_a_comparison_names_only_the_runs_that_it_draws(
    tmp_path: Path, kept: dict[str, Figure]
) -> None:
    both = ["hidden", "mlp-w3"]
    runs = [
        write_named(tmp_path, "first", 1, both),
        write_named(tmp_path, "other", 2, ["hidden"]),
        write_named(tmp_path, "third", 1, both),
    ]
    compare([str(run) for run in runs], tmp_path / "comparison")
    for kind in ("models", "difference"):
        assert "noise gaussian-x3-n2-seed1" in kept[f"{kind}-mlp-w3"].get_suptitle()
        assert "noise" not in kept[f"{kind}-hidden"].get_suptitle()


def test_relations_have_panels_the_largest_first(tmp_path: Path, kept: dict[str, Figure]) -> None:
    relations = {0: "river", 1: "tower", 3: "river", 4: "\u202etower"}
    run = write_named(tmp_path, "toy", 1, ["hidden", "mlp-w3"], relations)
    analysis = analyze(run, asked=["mlp-w3"])
    figure = kept["relations"]
    titles = [axis.get_title() for axis in figure.axes[:-1]]
    assert titles == ["river\nn = 2", "tower\nn = 1", "\\u202etower\nn = 1"]
    assert "AIE of MLP outputs, window 3 by relation" in figure.get_suptitle()
    table = analysis.run.by_relation("probability")
    of_river = table[(table["relation_id"] == "river") & (table["mediator"] == "mlp-w3")]
    last = of_river[of_river["role"] == "last"].sort_values("layer")["aie"]
    drawn_values = figure.axes[0].collections[0].get_array().reshape(len(ROLES), -1)
    np.testing.assert_allclose(drawn_values[ROLES.index("last")], last)


def test_every_mediator_shown_has_its_relations_where_asked_for(
    tmp_path: Path, kept: dict[str, Figure]
) -> None:
    run = write_named(tmp_path, "toy", 1, KEYS, {0: "river", 1: "tower", 3: "river"})
    analyze(run, relations="all", asked=["hidden", "mlp-w3"])
    assert {name for name in kept if name.startswith("relations")} == {
        "relations",
        "relations-mlp-w3",
    }
    assert "AIE of MLP outputs, window 3 by relation" in kept["relations-mlp-w3"].get_suptitle()
    for name in ("relations-mlp-w3", "relations-hidden-noise", "aie-mlp-w3-noise"):
        assert RUN_FIGURES.fullmatch(name), "it is removed when it is no longer drawn"


def test_facts_without_relations_have_no_such_figure(drawn: dict[str, Figure]) -> None:
    assert "relations" not in drawn


def test_averages_of_any_frame_are_drawn_as_lines() -> None:
    aie = averages(5, ["mlp-w3", "hidden"]).sample(frac=1, random_state=0)
    figure = ktrace.plot_lines(aie, "logit", title="of others")
    assert [axis.get_title() for axis in figure.axes] == ["hidden states", "MLP outputs, window 3"]
    assert figure.axes[0].get_ylabel() == "AIE (logit)"
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    own = aie[(aie["mediator"] == "hidden") & (aie["role"] == "last")].sort_values("layer")
    assert lines["last"].get_ydata().tolist() == own["aie"].tolist()
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ktrace.KtraceError, match="averages lacks layer, ci_low: give what"):
        ktrace.plot_lines(aie.drop(columns=["layer", "ci_low"]))
    grouped = pd.concat([aie.assign(group=name) for name in ("a", "b")])
    message = (
        r"^averages has 2 rows for \S+, .+, layer \d, which differ in group: take one, as "
        r"averages\[averages\['group'\] == 'a'\]$"
    )
    with pytest.raises(ktrace.KtraceError, match=message):
        ktrace.plot_lines(grouped)
    ktrace.plot_lines(grouped[grouped["group"] == "b"])
    with pytest.raises(ktrace.KtraceError, match=r"layer \d, and no column tells them apart"):
        ktrace.plot_lines(pd.concat([aie, aie]))
    with pytest.raises(ktrace.KtraceError, match="averages has no row"):
        ktrace.plot_lines(aie.head(0))
    with pytest.raises(
        ktrace.KtraceError, match=r"averages lacks mediator, role, .*: give what kt"
    ):
        ktrace.plot_lines("outputs/tiny/facts/gaussian-x3-n10-seed1")


@pytest.fixture
def only_latin(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No font is known but one of few letters; what is installed later stands in the list."""
    manager, later = font_manager.fontManager, []
    known = [entry for entry in manager.ttflist if entry.name == "cmr10"]
    monkeypatch.setattr(manager, "ttflist", known)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: later)
    for function in (fonts.fonts_for, fonts._know_all_installed):
        function.cache_clear()
    with rc_context({"font.family": ["cmr10"]}):
        yield later
    for function in (fonts.fonts_for, fonts._know_all_installed):
        function.cache_clear()


@pytest.mark.parametrize("installed", [False, True])
def test_letters_come_from_a_font_that_is_installed(
    tmp_path: Path, only_latin: list[str], installed: bool
) -> None:
    if installed:
        font = tmp_path / "later.ttf"
        shutil.copyfile(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", font)
        only_latin.append(str(font))
    figure = Figure()
    text = figure.text(0, 0, "Ж and ש\ufe0f", fontweight="bold")
    plain = figure.text(0, 0, "plain")
    lacking = fonts.use_installed_fonts(figure)
    assert lacking == (frozenset() if installed else frozenset("Жש"))
    assert text.get_fontfamily() == (["cmr10", "DejaVu Sans"] if installed else ["cmr10"])
    assert plain.get_fontfamily() == ["cmr10"]
    # There is no bold file of it, of which matplotlib would complain for each figure.
    assert text.get_fontweight() == ("normal" if installed else "bold")


@pytest.mark.usefixtures("only_latin")
def test_letters_that_no_font_has_are_named_once(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    analysis = analyze(write_named(tmp_path, "Ж", 1, ["hidden"]), facts=[1000])
    [note] = [note for note in analysis.notes if "font" in note]
    assert note == (
        "figures show boxes for 2 letters that no installed font has: 'σ' (U+03C3), 'Ж' (U+0416)"
    )
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_on_the_page_each_figure_stands_once(tmp_path: Path) -> None:
    analysis = analyze(write_run(tmp_path, KEYS).run, asked=KEYS[:2], facts=[1000])
    page = (tmp_path / "outputs" / "toy" / "made-up").rglob("report.html")
    text = next(page).read_text("utf-8")
    shown = list(re.findall(r"<figcaption>.*? \((.*?)\.png\)", text))
    # What `aie` shows in its panels is not shown again, nor what the explorer shows of each fact.
    assert shown == ["aie", "aie-mlp-w3", "lines", "severed", "peaks"]
    assert {"aie-hidden", "fact-1000-hidden"} < {path.stem for path in analysis.figures}


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    aie = averages(5, ["hidden"])
    files = []
    for name in ("first", "second"):
        figure = role_lines(aie, keys=["hidden"], roles=ROLES, title="", metric="logit")
        files.append(save(figure, tmp_path / name).paths)
    assert [path.suffix for path in files[0]] == [f".{kind}" for kind in KINDS]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.suffix
    pdf = next(path for path in files[0] if path.suffix == ".pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/Type0" in pdf
    assert b"/Type3" not in pdf, "journals refuse it"
