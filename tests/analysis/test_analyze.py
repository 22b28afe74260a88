"""The analysis stage on made-up stores: tables, summary, figures, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from benchmarks.analysis_scale import write_store
from ktrace.analysis import analyze as analyze_module
from ktrace.analysis.analyze import Analysis, analyze
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.style import Saved
from ktrace.analysis.rows import Averaging
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from ktrace.terms import METRICS
from tests.support.figures import KINDS, NO_FIGURES, NOT_SAVED
from tests.support.places import ROOT
from tests.support.stores import (
    CANDIDATES,
    CLEAN_PRINT,
    FACTS,
    NOISE,
    NOISE_PRINT,
    ROLES,
    known_id,
    p_clean,
    p_corrupted,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)

COLUMNS = (  # the contract
    "model,dataset,noise,mediator,metric,role,layer,aie,ci_low,ci_high,n_facts,n_clusters"
)
KEYS = ["hidden", "mlp-w3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> RunFolders:
    """A complete run, analysed in `analysis`."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def analysis(folders: RunFolders) -> Analysis:
    """The default analysis of the run."""
    return analyze(folders.run)


def cells(group: h5py.Group) -> list[Any]:
    """One array for each fact of a part."""
    values, offsets = group["values"][:], group["offsets"][:]
    shapes = group["shapes"][:]
    return [values[offsets[i] : offsets[i + 1]].reshape(shape) for i, shape in enumerate(shapes)]


def derived_again(
    run: Path, groups: dict[str, str], metric: str, *, pool: str, both: bool
) -> pd.DataFrame:
    """AIE straight from the parts, with h5py and pandas alone."""
    roles: dict[int, list[str]] = {}
    spans: dict[int, list[int]] = {}
    corrupted: dict[int, Any] = {}
    rows = []
    for path in (run.parent / "clean").glob("part-*.h5"):
        with h5py.File(path) as file:
            texts = [[text.decode() for text in cell] for cell in cells(file["roles"])]
            roles |= dict(zip(file["index"][:].tolist(), texts, strict=True))
            spans |= dict(zip(file["index"][:].tolist(), cells(file["span"]), strict=True))
    for path in (run / "corrupted").glob("part-*.h5"):
        with h5py.File(path) as file:
            pairs = zip(file["index"][:].tolist(), cells(file[metric]), strict=True)
            corrupted |= dict(pairs)
    for path in (run / "restored").glob("*/part-*.h5"):
        with h5py.File(path) as file:
            indices, places = file["index"][:], cells(file["places"])
            for index, at, restored in zip(indices, places, cells(file[metric]), strict=True):
                for (sample, layer, _, place), value in np.ndenumerate(restored):
                    position = at[place]
                    stored = roles[index][position]
                    named = [groups[stored]] if stored in groups else []
                    only = spans[index].tolist() == [position, position + 1]
                    if both and only and stored == "last subject":
                        named.append("first subject")
                    effect = float(value) - float(corrupted[index][sample])
                    for role in named:
                        rows.append((path.parent.name, role, layer, index, position, effect))
    names = ["mediator", "role", "layer", "fact", "position", "effect"]
    frame = pd.DataFrame(rows, columns=names)
    by_cell = frame.groupby(names[:-1])["effect"].mean()
    by_fact = by_cell.groupby(names[:-2]).mean()
    averaged = by_cell if pool == "positions" else by_fact
    found = averaged.groupby(names[:-3]).mean().to_frame("mean")
    return found.join(by_fact.groupby(names[:-3]).size().rename("count")).sort_index()


SEED = {
    "first subject": "first subject",
    "last subject": "last subject",
    "first subsequent": "further",
    "further": "further",
    "last": "last",
}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("single_token", ["last", "both"])
@pytest.mark.parametrize("pool", ["facts", "positions"])
@pytest.mark.parametrize(
    ("scheme", "groups"), [("rome", {role: role for role in ROLES}), ("seed", SEED)]
)
def test_aie_equals_what_the_parts_give_by_hand(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    groups: dict[str, str],
    pool: str,
    single_token: str,
) -> None:
    monkeypatch.setattr("ktrace.analysis.intervals.FEWEST_FACTS", 2.01)
    run = write_run(tmp_path).run
    analyze(run, averaging=Averaging(scheme, single_token, pool))
    text = (run / "analysis" / "aie.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    table = pd.read_csv(run / "analysis" / "aie.csv")
    assert {name: set(table[name]) for name in ("model", "dataset", "noise", "metric")} == {
        "model": {"toy"},
        "dataset": {"made-up"},
        "noise": {"gaussian-x3-n2-seed1"},
        "metric": set(METRICS),
    }
    for metric in METRICS:
        chosen = table[table["metric"] == metric]
        found = chosen.set_index(["mediator", "role", "layer"]).sort_index()
        both = single_token == "both"
        expected = derived_again(run, groups, metric, pool=pool, both=both)
        compare_with_parts(found, expected, groups)


def compare_with_parts(found: pd.DataFrame, expected: pd.DataFrame, groups: dict[str, str]) -> None:
    assert set(expected.index.get_level_values("role")) == set(groups.values())
    assert list(found.index) == list(expected.index)
    np.testing.assert_allclose(found["aie"], expected["mean"], rtol=0, atol=1e-12)
    assert found["n_facts"].tolist() == expected["count"].tolist()
    assert found["n_clusters"].tolist() == expected["count"].tolist(), "they have no relation"
    inside = (found["ci_low"] <= found["aie"]) & (found["aie"] <= found["ci_high"])
    told = found["n_facts"] > 2
    assert inside[told].all()
    assert told.any()
    assert found.loc[~told, ["ci_low", "ci_high"]].isna().all(axis=None)


def test_the_summary_has_the_keys_of_the_contract(folders: RunFolders, analysis: Analysis) -> None:
    summary = json.loads((folders.analysis / "summary.json").read_text())
    assert summary == json.loads(json.dumps(analysis.summary))
    wanted = {"n_facts", "n_candidates", "p_clean", "p_corrupted", "ate", "ate_ci", "peaks"}
    assert wanted <= summary.keys()
    clean = np.array([p_clean(index) for index in CANDIDATES])
    corrupted = np.array([p_corrupted(index).mean(dtype=float) for index in CANDIDATES])
    assert summary["n_facts"] == 6
    assert summary["n_candidates"] == 5
    assert summary["left_out"] == {"another answer is predicted": 1}
    assert summary["p_clean"] == pytest.approx(clean.mean(), abs=1e-12)
    assert summary["p_corrupted"] == pytest.approx(corrupted.mean(), abs=1e-12)
    assert summary["ate"] == pytest.approx((clean - corrupted).mean(), abs=1e-12)
    assert summary["ate_ci"] == [None, None]
    assert summary["metrics"]["probability"]["ate_ci_note"] == "fewer than 8 effective facts"
    assert (summary["n_clusters"], summary["icc"]) == (5, None)
    assert list(summary["peaks"]) == KEYS


def test_peaks_are_the_largest_cells(folders: RunFolders, analysis: Analysis) -> None:
    table = pd.read_csv(folders.analysis / "aie.csv")
    for key, peaks in analysis.summary["peaks"].items():
        chosen = table[(table["mediator"] == key) & (table["metric"] == "probability")]
        assert set(peaks) == set(ROLES)
        for role, peak in peaks.items():
            rows = chosen[chosen["role"] == role].sort_values("aie")
            assert peak["layer"] == rows["layer"].iloc[-1]
            assert peak["aie"] == pytest.approx(rows["aie"].iloc[-1])


def test_every_mediator_has_its_figures(folders: RunFolders, analysis: Analysis) -> None:
    stems = ["aie-hidden", "aie-mlp-w3", "aie", "lines", "peaks"]
    expected = {folders.analysis / f"{stem}.{kind}" for stem in stems for kind in KINDS}
    names = (
        *("aie.csv", "intervals.csv", "contrasts.csv", "peaks.csv", "aie_by_relation.csv"),
        *("samples.csv", "facts.csv", "candidates.csv", "summary.json", "layers.json"),
        "effects.parquet",
    )
    tables = {folders.analysis / name for name in (*names, "report.html")}
    assert set(analysis.figures) == expected
    assert set(analysis.files) == expected | tables
    assert set(folders.analysis.iterdir()) == expected | tables, "nothing else is left there"
    for path in expected:
        if path.suffix != ".png":
            assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"<?xml")
            continue
        image = imread(path)[..., :3]
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.02, "an empty page"
    both, one = imread(folders.analysis / "aie.png"), imread(folders.analysis / "aie-hidden.png")
    assert both.shape[1] > 1.5 * one.shape[1], "panels stand side by side"


def test_the_parquet_file_holds_the_effects(folders: RunFolders, analysis: Analysis) -> None:
    from ktrace.analysis.effects import load_effects

    assert analysis.notes == []
    stored = pd.read_parquet(folders.analysis / "effects.parquet")
    assert stored.pop("head").isna().all()
    effects = load_effects(folders.run)
    assert list(stored.columns) == list(effects.columns)
    pd.testing.assert_frame_equal(stored, effects, check_categorical=False, check_dtype=False)


def test_the_same_stores_give_the_same_files(folders: RunFolders, analysis: Analysis) -> None:
    before = {path: path.read_bytes() for path in analysis.files}
    analyze(folders.run)
    assert {path for path, content in before.items() if path.read_bytes() != content} == set()


def test_an_incomplete_mediator_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    write_restored(folders, "attn-w3", CANDIDATES[:2])
    analysis = analyze(folders.run)
    assert analysis.notes == ["attn-w3 is left out: 2 of 5 candidates are restored"]
    assert list(analysis.summary["peaks"]) == ["hidden"]
    assert set(analysis.aie["mediator"]) == {"hidden"}
    assert not (folders.analysis / "aie-attn-w3.png").exists()
    # It is complete for the first facts.
    monkeypatch.setattr(analyze_module, "draw_figures", lambda *_, **__: NO_FIGURES)
    limited = analyze(folders.run, limit=2)
    assert limited.notes == []
    assert list(limited.summary["peaks"]) == ["hidden", "attn-w3"]


@pytest.mark.usefixtures("no_figures")
def test_a_mediator_that_was_asked_for_must_be_complete(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    write_restored(folders, "attn-w3", CANDIDATES[:2])
    refused(
        folders,
        r"not complete: attn-w3: 2 of 5 candidates are restored: .*analysis\.partial=true",
        asked=["attn-w3"],
    )
    # What another run left behind is no reason to refuse.
    assert analyze(folders.run, asked=["hidden"]).notes == [
        "attn-w3 is left out: 2 of 5 candidates are restored"
    ]


def test_a_mediator_that_was_asked_for_and_never_stored_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_run(tmp_path)
    for asked in (["attn-w3"], ["hidden", "attn-w3"]):
        refused(
            folders,
            r"not complete: attn-w3: 0 of 5 candidates are restored: finish the run .*"
            r"what is stored \(hidden, mlp-w3\) .*analysis\.partial=true",
            asked=asked,
        )
    titles: list[str] = []

    def keep(figure: Figure, stem: Path) -> Saved:
        titles.append(figure.get_suptitle().replace("\n", " "))
        return NOT_SAVED

    monkeypatch.setattr("ktrace.analysis.figures.style.save", keep)
    for asked in (["attn-w3"], ["hidden", "attn-w3"]):
        analysis = analyze(folders.run, asked=asked, partial=True)
        assert analysis.summary["missing"] == ["attn-w3: 0 of 5 candidates are restored"]
        assert analysis.notes == ["missing: attn-w3: 0 of 5 candidates are restored"]
        assert set(analysis.aie["mediator"]) == set(KEYS)
    assert titles
    assert all("(unfinished)" in title for title in titles)
    # Mediators of separate commands lie side by side: each asks for its own.
    monkeypatch.setattr(analyze_module, "draw_figures", lambda *_, **__: NO_FIGURES)
    for asked in (["hidden"], ["mlp-w3"], KEYS, []):
        assert analyze(folders.run, asked=asked).summary["missing"] == []


@pytest.mark.usefixtures("no_figures")
def test_partial_takes_what_is_there_and_says_what_is_missing(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_clean(folders, [0, 2, 3])
    write_corrupted(folders, [0])
    write_restored(folders, "hidden", [0])
    refused(folders, r"holds 3 of 6 facts.*analysis\.partial=true")
    analysis = analyze(folders.run, partial=True)
    assert analysis.aie["n_facts"].max() == 1
    assert analysis.notes == [f"missing: {words}" for words in analysis.summary["missing"]]
    [clean, corrupted] = analysis.summary["missing"]
    assert clean.endswith("clean holds 3 of 6 facts")
    assert corrupted.endswith("corrupted holds 1 of 2 candidates")
    write_corrupted(folders, [3])
    write_restored(folders, "mlp-w3", [0, 3])
    analysis = analyze(folders.run, partial=True, asked=["hidden"])
    assert analysis.summary["missing"][-1] == "hidden: 1 of 2 candidates are restored"
    by_key = analysis.aie.groupby("mediator")["n_facts"].max()
    assert dict(by_key) == {"hidden": 1, "mlp-w3": 2}
    assert len(analysis.facts) == 2


@pytest.mark.usefixtures("no_figures")
def test_a_limit_below_the_stored_facts(tmp_path: Path) -> None:
    folders = write_run(tmp_path)
    analysis = analyze(folders.run, limit=3)
    assert analysis.summary["n_facts"] == 3
    assert analysis.summary["n_candidates"] == 2
    assert analysis.summary["p_clean"] == pytest.approx((p_clean(0) + p_clean(1)) / 2)
    assert analysis.aie["n_facts"].max() == 2
    stored = pd.read_parquet(folders.analysis / "effects.parquet")
    assert set(stored["known_id"]) == {known_id(0), known_id(1)}
    one = analyze(folders.run, limit=1)
    assert one.summary["ate_ci"] == [None, None]
    assert "NaN" not in (folders.analysis / "summary.json").read_text()
    assert analyze(folders.run, limit=99).summary["n_facts"] == 6


def refused(folders: RunFolders, message: str, **options: Any) -> None:
    """The analysis says why not, and writes nothing."""
    with pytest.raises(KtraceError, match=message):
        analyze(folders.run, **options)
    assert not folders.analysis.exists()


@pytest.mark.usefixtures("no_figures")
def test_incomplete_stores_are_refused(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    refused(folders, "holds no clean runs: run stage=all first")
    write_clean(folders, [0, 2, 3])
    refused(folders, r"clean holds 3 of 6 facts: finish the run .*dataset\.limit")
    refused(folders, "1 of 2 facts", limit=2)
    write_clean(folders, [1, 4, 5])
    write_corrupted(folders, [0, 1])
    refused(folders, "corrupted holds 2 of 5 candidates: finish the run")
    write_corrupted(folders, [3, 4, 5])
    refused(folders, "holds no complete mediator: finish the run")
    write_restored(folders, "hidden", [0])
    refused(folders, r"holds no complete mediator \(hidden is left out: 1 of 5 candidates")
    write_restored(folders, "hidden", [1, 3, 4, 5])
    assert list(analyze(folders.run).summary["peaks"]) == ["hidden"]


def test_no_candidate_at_all_is_refused(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    for index in range(3):
        write_clean(folders, [2], {**CLEAN_PRINT, "dataset": {"n_facts": 3}}, as_index=index)
    message = r"none of the 3 facts is a candidate; nothing was traced \(.*candidates\.csv says"
    with pytest.raises(KtraceError, match=message):
        analyze(folders.run)
    assert [path.name for path in folders.analysis.iterdir()] == ["candidates.csv"]


def test_stores_of_different_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    changed = {**NOISE_PRINT, "noise": {"multiple": 3.0, "seed": 2}}
    folders = write_run(tmp_path, keys=["hidden"])
    write_restored(folders, "mlp-w3", CANDIDATES, changed)
    refused(folders, r'mlp-w3 and .*corrupted .*different settings .*"seed": 2.* "seed": 1')


def test_effects_that_are_all_nothing_can_be_drawn(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=[])
    scores = {
        index: np.ones((2, 3, 8), np.float32) * p_corrupted(index)[:, None, None]
        for index in CANDIDATES
    }
    cut = {i: values[..., : len(FACTS[i].tokens)] for i, values in scores.items()}
    write_restored(folders, "hidden", CANDIDATES, scores=cut)
    analysis = analyze(folders.run)
    assert (analysis.aie["aie"] == 0).all()
    assert (folders.analysis / "aie-hidden.pdf").is_file()


def test_side_by_side_stands_what_was_asked_for(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def record(*args: Any, shown: list[str], **options: Any) -> Drawing:
        calls.append(shown)
        return NO_FIGURES

    monkeypatch.setattr(analyze_module, "draw_figures", record)
    for asked in (["mlp-w3"], [], ["attn-w3"]):
        found = analyze(folders.run, asked=asked, partial=True)
        assert set(found.aie["mediator"]) == set(KEYS), "the table holds all"
    assert calls == [["mlp-w3"], KEYS, KEYS]


def test_figures_of_earlier_settings_are_removed_and_no_other_file(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    folders.analysis.mkdir(parents=True)
    old = [
        folders.analysis / name
        for name in (
            "aie-attn-w3.png",
            "fact-1-hidden.pdf",
            "severed.png",
            "aie-hidden_mlp_severed.svg",
            "head-noise-at-last.png",
            "knockout-w9-from-last_subject.pdf",
        )
    ]
    own = ("mine.png", "aie-notes.txt", "fact-sheet.png", "aie-mine.pdf", "lines-2.png")
    own += ("aie-mlp-w3-old.png", "fact-hidden.png", "peaks-hidden.pdf", "fact-1.png")
    own += ("hidden.png", "head-mine.png", "knockout-old.svg")
    kept = [folders.analysis / name for name in ("report.html", *own)]
    for path in (*old, *kept):
        path.touch()
    analysis = analyze(folders.run)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in (*kept, *analysis.files))


def test_another_analysis_may_remove_the_same_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    vanished = folders.analysis / "aie-attn-w3.png"
    original = Path.glob

    def glob(self: Path, pattern: str) -> Any:
        return [*original(self, pattern), *([vanished] if pattern == "*.png" else [])]

    monkeypatch.setattr(Path, "glob", glob)
    monkeypatch.setattr(analyze_module, "draw_figures", lambda *_, **__: NO_FIGURES)
    analyze(folders.run)


@pytest.mark.usefixtures("no_figures")
def test_the_summary_says_what_made_the_numbers(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    averaging = Averaging("seed", "both", "positions")
    analyze(folders.run, averaging=averaging, limit=2, metric="logit")
    summary = json.loads((folders.analysis / "summary.json").read_text())
    assert summary["roles"] == {"scheme": "seed", "single_token": "both"}
    assert summary["pool"] == "positions"
    assert (summary["limit"], summary["metric"], summary["n_samples"]) == (2, "logit", 2)
    assert summary["missing"] == []


def test_chosen_facts_get_heatmaps_of_their_own(tmp_path: Path) -> None:
    folders = write_run(tmp_path)
    number = known_id(3)
    analysis = analyze(folders.run, asked=["hidden"], facts=[number])
    drawn = {path.name for path in analysis.figures if path.name.startswith("fact-")}
    assert drawn == {f"fact-{number}-hidden.{kind}" for kind in KINDS}
    with pytest.raises(KtraceError, match=r"analysis\.facts: known_id=1014 is not among the 5"):
        analyze(folders.run, facts=[known_id(2)])


# In a process of its own: what writing a store takes would hide what reading it takes. And not
# getrusage's peak, which begins with that of the process that started this one.
READING = """
import re, sys
from pathlib import Path
from ktrace.analysis import analyze as module
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.processes import Artists

module.draw_figures = lambda *args, **options: Drawing(Path(), Artists())
module.analyze(Path(sys.argv[1]))
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_hardly_grows_with_facts(tmp_path: Path) -> None:
    """Five mediators, ten samples: 0.6 and 3.6 million rows, some 50 bytes each."""
    peaks = []
    for n_facts in (20, 120):
        run = tmp_path / str(n_facts) / "outputs" / "made-up" / "facts" / "noise"
        write_store(run, facts=n_facts, layers=12, samples=10)
        result = subprocess.run(
            [sys.executable, "-c", READING, str(run)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 50_000, "kB: a third of what 3 million rows more take"
