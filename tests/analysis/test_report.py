"""What the report's page holds, without a browser: cells, size, escaping, policy, provenance."""

import base64
import hashlib
import json
import re
import shutil
import tracemalloc
import zlib
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from ktrace.analysis.averaged_run import average_run
from ktrace.analysis.intervals import t_quantile
from ktrace.analysis.palettes import PALETTES, ramp_of
from ktrace.analysis.report import CellCollector, write_report
from ktrace.analysis.report import cells as cells_module
from ktrace.analysis.report import page as page_module
from ktrace.analysis.report.cells import (
    CHUNK_FACTS,
    MISSING,
    PackedCells,
    half_width,
    pack_cells,
    units,
)
from ktrace.analysis.rows import Averaging
from ktrace.analysis.stored import batches, survey
from ktrace.analysis.tables import fact_table
from ktrace.analysis.tokens import visible
from ktrace.store import CLEAN, RunFolders
from ktrace.terms import METRICS
from tests.support.hostile import LEFT_OUT, MODEL, TEXTS, TOKENS, write_hostile_run
from tests.support.stores import (
    CANDIDATES,
    FACTS,
    N_LAYERS,
    known_id,
    p_corrupted,
    p_restored,
    span,
    write_run,
)

KEYS = ("hidden", "mlp-w3")
SUMMARY: dict[str, Any] = {
    "n_facts": 6,
    "n_candidates": 5,
    "n_traced": 5,
    "n_samples": 2,
    "left_out": {"another answer is predicted": 1},
    "missing": [],
    "metric": "probability",
    "metrics": {"probability": {"clean": 0.6, "corrupted": 0.2, "ate": 0.4, "ate_ci": [0.3, 0.5]}},
    "layers": {
        "mediators": {
            "hidden": {
                "last subject": {"peak": 2, "aie": 0.25, "ci": [0.2, 0.3], "may_peak_in": "1-2"},
                "last": {"peak": 1, "aie": -0.125, "ci": [None, None], "may_peak_in": ""},
            },
            "mlp-w3": {"last": {"peak": 0, "aie": 0.5, "ci": [0.4, 0.6], "may_peak_in": "0"}},
        }
    },
    "model": "toy",
    "dataset": "made-up",
    "noise": "gaussian-x3-n2-seed1",
    "answer": "The layers are <0 to 2>.",
}


def written(folders: RunFolders, **changes: Any) -> str:
    figures = changes.pop("figures", [])
    settings = {name: changes.pop(name) for name in ("palette",) if name in changes}
    cells, limit = CellCollector(), changes.pop("limit", None)
    run = average_run(
        folders.run, Averaging(), limit=limit, partial=True, watch=nullcontext(cells.add)
    )
    path = write_report(
        *(run.survey, run.keys, cells.of(run.keys)),
        summary=SUMMARY | changes,  # type: ignore[arg-type]
        figures=lambda: figures,
        **settings,
    )
    assert path == folders.analysis / "report.html"
    return path.read_text("utf-8")


class Page(HTMLParser):
    """Elements, and the text in scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.rows: list[list[str]] = []  # an empty head of facts, then the table of peaks
        self._script: str | None = None
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            self._in_cell = True
        if tag == "script":
            self._script = dict(attrs).get("id") or "main"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None
        elif tag in ("th", "td"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] += data
        elif self._in_cell:
            self.rows[-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.scripts["data"])
        return data


def decoded(chunk: str) -> npt.NDArray[np.int64]:
    """`(4, n_cells)`: effect, carry and half-widths, by what `cells.py` says of the format."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(chunk), -15), dtype=np.uint8)
    planes = raw.reshape(4, 4, -1).astype(np.int64)  # number, byte, cell
    folded = sum(planes[:, byte] << (8 * byte) for byte in range(4))
    return np.where(folded % 2, -(folded // 2) - 1, folded // 2)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(written(write_run(tmp_path_factory.mktemp("run"), KEYS)))


def test_the_cells_are_those_of_the_stores_rounded_once(page: Page) -> None:
    for offset, metric in enumerate(METRICS):
        decimals = next(m["decimals"] for m in page.data["metrics"] if m["name"] == metric)
        assert decimals == (4 if metric == "probability" else 3)
        effect, carry, effect_width, restored_width = decoded(page.scripts[f"cells-{metric}-0"])
        start = 0
        for place, index in enumerate(CANDIDATES):
            corrupted = page.data["scores"][metric]["corrupted"][place]
            for key in KEYS:
                # As in the stores: metrics differ by whole numbers, in float32.
                restored = (p_restored(index, key) + offset).astype(np.float64)
                effects = restored - (p_corrupted(index) + offset)[:, None, None]
                cells = slice(start, start + restored[0].size)
                start += restored[0].size
                for found, wanted in (
                    (effect[cells], effects.mean(axis=0)),
                    (effect[cells] + carry[cells] + corrupted, restored.mean(axis=0)),
                    (effect_width[cells], 12.7062 * np.abs(effects[0] - effects[1]) / 2),
                    (restored_width[cells], 12.7062 * np.abs(restored[0] - restored[1]) / 2),
                ):
                    error = np.abs(found - wanted.ravel() * 10**decimals)
                    assert error.max() <= 0.5 + 0.02  # and the rounding of the tabulated 12.7062
        assert start == effect.size


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (120, 1.980)]
)
def test_students_t_is_that_of_the_printed_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_one_sample_has_no_interval() -> None:
    assert half_width(np.ones((1, 2, 3))).tolist() == np.zeros((2, 3)).tolist()


def test_what_is_no_number_is_marked() -> None:
    found = units([0.5, np.nan, np.inf, 1e300, -0.00004], 4)
    assert found.tolist() == [5000, MISSING, MISSING, MISSING, 0]
    chunk = cells_module._encode([np.full((1, 4, 1, 1), np.nan)], [0.5], 4)
    assert decoded(chunk)[:2].ravel().tolist() == [MISSING, 0]


def test_a_mediator_that_lacks_a_fact_is_marked_there(tmp_path: Path) -> None:
    folders = write_run(tmp_path, KEYS)
    for part in folders.restored("mlp-w3").parts()[:1]:
        part.unlink()
    left = {record["index"] for record in folders.restored("mlp-w3").read()}
    assert 0 < len(left) < len(CANDIDATES)
    effect = decoded(Page(written(folders)).scripts["cells-logit-0"])[0]
    missing = sum(N_LAYERS * len(FACTS[i].tokens) for i in CANDIDATES if i not in left)
    assert (effect == MISSING).sum() == missing


def test_cells_wait_on_the_disk_and_leave_nothing_there(tmp_path: Path) -> None:
    folders = write_run(tmp_path, KEYS)
    found = survey(folders, whole_dataset=False)
    [record] = (one for batch in batches(found, "hidden") for one in batch if one.index == 0)
    wide = {metric: np.repeat(scores, 500, axis=1) for metric, scores in record.scores.items()}
    cells, many = CellCollector(), [replace(record, scores=wide)] * 10
    cells.add(found, "hidden", many)
    tracemalloc.start()
    try:
        for _ in range(5):
            cells.add(found, "hidden", many)
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    [one] = cells.of(["hidden"]).values()
    assert one.nbytes > 10**5
    assert left < one.nbytes
    assert list(folders.analysis.iterdir()) == []


def packed(budget: int, n_facts: int = 3 * CHUNK_FACTS) -> PackedCells:
    generator = np.random.default_rng(0)
    cells = [
        generator.random((len(METRICS), 1, 4, 4, 6)).astype(np.float32) for _ in range(n_facts)
    ]
    means = [dict.fromkeys(METRICS, 0.25)] * n_facts
    return pack_cells(cells, means, "logit", budget)


def test_a_page_gives_up_decimals_then_metrics_then_facts() -> None:
    sizes = {}
    for budget in (10_000_000, 80_000, 40_000, 20_000, 8_000, 5_000):
        found = packed(budget)
        assert found.size <= budget
        sizes[budget] = found
    whole = sizes[10_000_000]
    assert whole.decimals == {name: 4 if name == "probability" else 3 for name in METRICS}
    steps = [sum(one.decimals.values()) for one in sizes.values()]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) > 3
    tight = sizes[8_000]
    assert list(tight.decimals) == ["logit"], "what the run shows is kept"
    assert tight.decimals["logit"] == 1
    assert tight.n_facts("logit") == whole.n_facts("logit")
    assert sizes[5_000].n_facts("logit") < whole.n_facts("logit")
    # The metric of the run is the last to lose a digit, and none loses its second before.
    mixed = [one.decimals for one in sizes.values() if len({*one.decimals.values()}) > 1]
    assert any(one["logit"] > min(one.values()) for one in mixed)


def test_the_file_stays_under_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_run(tmp_path / "plain", KEYS)
    folders = RunFolders(tmp_path / "outputs" / "toy" / "made-up" / plain.run.name)
    for record in plain.clean.read(*CLEAN):
        # Texts of more than half a megabyte, most of it escaped.
        longer = {"prompt": record["prompt"] + 20_000 * "<é"}
        with folders.clean.writer(plain.clean.fingerprint() or {}) as writer:
            writer.add(record | longer)
    shutil.copytree(plain.run, folders.run)
    whole = written(folders)

    def n_cell_characters(text: str) -> int:
        scripts = Page(text).scripts
        return sum(len(script) for name, script in scripts.items() if name.startswith("cells-"))

    monkeypatch.setattr(page_module, "_LEAST_CELL_BYTES", 0)
    for share in (0.8, 0.5):
        most = len(whole.encode()) - int((1 - share) * n_cell_characters(whole))
        monkeypatch.setattr(page_module, "_MOST_BYTES", most)
        tight = written(folders)
        assert len(tight.encode()) <= most
        assert 0 < n_cell_characters(tight) < n_cell_characters(whole), "it uses the room"
    monkeypatch.setattr(page_module, "_LEAST_CELL_BYTES", 1_000_000)
    assert written(folders) == whole, "texts leave room for cells"


def test_what_is_left_off_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "_affordable", lambda *_: {"probability": 2, "logit": 1})
    data = Page(written(write_run(tmp_path, KEYS))).data
    assert [metric["name"] for metric in data["metrics"]] == ["probability", "logit"]
    assert data["left_off"] == ["log_probability", "logit_difference", "kl"]


def test_the_table_of_facts_holds_every_examined_fact(page: Page) -> None:
    facts = page.data["facts"]
    assert [fact["id"] for fact in facts] == [known_id(index) for index in (*CANDIDATES, 2)]
    assert facts[-1]["left_out"] == "another answer is predicted"
    scores = page.data["scores"]["probability"]
    assert scores["clean"] == [5000, 5625, 6875, 7500, 8125]
    assert scores["corrupted"] == units([p_corrupted(i).mean() for i in CANDIDATES], 4).tolist()
    for place, index in enumerate(CANDIDATES):
        effects = p_restored(index, "mlp-w3").mean(axis=0) - p_corrupted(index).mean()
        start, stop = span(index)
        at_subject = effects[:, start:stop]
        value, layer, position = scores["peaks"][place][3:]
        assert effects[layer, position] == at_subject.max()
        assert start <= position < stop
        assert value == pytest.approx(at_subject.max() * 10**4, abs=0.51)


@pytest.mark.parametrize("metric", ["probability", "kl"])
def test_peaks_are_those_of_the_table_beside_it(tmp_path: Path, metric: str) -> None:
    folders = write_run(tmp_path, KEYS)
    run = average_run(folders.run, Averaging())
    table = fact_table(run, metric)
    summary = SUMMARY | {"metric": metric, "metrics": {metric: SUMMARY["metrics"]["probability"]}}
    data = Page(written(folders, **summary)).data
    decimals = next(one["decimals"] for one in data["metrics"] if one["name"] == metric)
    peaks = np.array(data["scores"][metric]["peaks"]).reshape(-1, len(KEYS), 3)
    for number, key in enumerate(KEYS):
        assert peaks[:, number, 0].tolist() == units(table[f"{key}_peak"], decimals).tolist()
        assert peaks[:, number, 1].tolist() == table[f"{key}_peak_layer"].tolist()
        assert peaks[:, number, 2].tolist() == table[f"{key}_peak_position"].tolist()


def test_the_subject_is_marked_where_its_tokens_stand(page: Page) -> None:
    facts = {fact["id"]: fact for fact in page.data["facts"]}
    for index in range(len(FACTS)):
        fact = facts[known_id(index)]
        start, stop = fact["marked"]
        assert fact["prompt"][start:stop] == fact["subject"]
        assert fact.get("span", list(span(index))) == list(span(index))
    # It stands there twice, and the second is meant.
    assert facts[known_id(4)]["prompt"] == "<s>𝄞 Ada or Ada"
    assert facts[known_id(4)]["marked"] == [12, 15]


def test_a_limit_leaves_later_facts_out(tmp_path: Path) -> None:
    text = written(write_run(tmp_path, KEYS), limit=2)
    assert [fact["id"] for fact in Page(text).data["facts"]] == [1000, 1007]


def test_hostile_texts_add_no_element(page: Page, tmp_path: Path) -> None:
    folders = write_hostile_run(tmp_path)
    hostile = Page(written(folders, model=MODEL, left_out={LEFT_OUT: 1}, noise="<b>"))
    # A paragraph more than in the tame page could only come from a text.
    names = [tag for tag, _ in hostile.elements]
    assert names == [tag for tag, _ in page.elements]
    first, *_, last = hostile.data["facts"]
    assert first["prompt"] == TEXTS["prompt"]
    assert first["tokens"] == [visible(token) for token in TOKENS[:8]]
    assert last["left_out"] == LEFT_OUT


def test_only_one_script_may_run_and_nothing_is_fetched(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv")) or ""
    digest = base64.b64encode(hashlib.sha256(page.scripts["main"].encode()).digest()).decode()
    assert re.findall(r"'sha256-(.+?)'", policy) == [digest]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
        "base-uri",
        "form-action",
    }
    assert "unsafe" not in rules["script-src"]
    fetched = [a.get("src") for tag, a in page.elements if tag in ("script", "img", "iframe")]
    assert {source for source in fetched if source} == set()
    assert "link" not in {tag for tag, _ in page.elements}


def picture(path: Path, width: int) -> Path:
    """A file that begins like a PNG so wide."""
    path.write_bytes(b"\x89PNG".ljust(16) + width.to_bytes(4, "big") + path.name.encode())
    return path


def test_figures_and_settings_are_on_the_page(tmp_path: Path) -> None:
    folders = write_run(tmp_path, KEYS)
    folders.run_yaml.write_text(yaml.safe_dump({"config": {"noise": {"seed": 1, "std": None}}}))
    wide, narrow = picture(tmp_path / "aie.png", 2070), picture(tmp_path / "aie-mlp-w3.png", 1020)
    text = written(folders, figures=[wide, narrow])
    elements = Page(text).elements
    images = [attributes for tag, attributes in elements if tag == "img"]
    for image, path in zip(images, (wide, narrow), strict=True):
        assert base64.b64decode((image["src"] or "").partition(",")[2]) == path.read_bytes()
    assert images[1]["alt"] == "Average indirect effect: MLP outputs, window 3"
    # What is too wide for a narrow screen scrolls, and is reached by the keyboard.
    around = {tag: attributes for tag, attributes in elements if tag == "figure"}
    assert around == {"figure": {}}
    scrolling = [a for _, a in elements if a.get("aria-label") == images[0]["alt"]]
    assert [one["tabindex"] for one in scrolling] == ["0"]
    assert "<dt>noise.seed</dt><dd>1</dd>" in text
    assert "<dt>noise.std</dt><dd>null</dd>" in text
    for claim in ("0.400", "0.300 to 0.500", "another answer is predicted", "Hase et al. 2023"):
        assert claim in text


def test_the_table_of_peaks_says_where_else_they_may_lie(page: Page) -> None:
    assert page.rows[2:] == [
        ["hidden states", "0.250 0.200 to 0.300layer 2, or 1-2", "−0.125 layer 1"],
        ["MLP outputs, window 3", "–", "0.500 0.400 to 0.600layer 0"],
    ]


def test_the_answer_and_the_facts_come_first(tmp_path: Path) -> None:
    text = written(write_run(tmp_path, KEYS), figures=[picture(tmp_path / "aie.png", 2070)])
    assert "The layers are &lt;0 to 2&gt;." in text
    places = [text.index(part) for part in ("The layers are", 'id="browser"', "<figure", "cards")]
    assert places[:3] == sorted(places[:3])
    ids = [a["id"] for tag, a in Page(text).elements if tag == "section"]
    assert ids == ["answer", "facts", "averages", "settings"]


@pytest.mark.parametrize("palette", PALETTES)
def test_the_page_has_the_colours_and_signs_of_the_figures(tmp_path: Path, palette: str) -> None:
    data = Page(written(write_run(tmp_path, KEYS), palette=palette)).data
    for mediator in data["mediators"]:
        ramp = ramp_of(palette, mediator["key"])
        assert mediator["colours"] == {"helps": list(ramp.helps), "hurts": list(ramp.hurts)}
    falling = [metric["name"] for metric in data["metrics"] if metric["lower_helps"]]
    assert falling == ["kl"]
    assert data["metrics"][-1]["label"] == "KL divergence, nats"


@pytest.mark.parametrize("status", ["started", "failed"])
def test_the_settings_say_how_the_run_stands_now(tmp_path: Path, status: str) -> None:
    """While the report is written, the run has not yet said that it is done."""
    folders = write_run(tmp_path, KEYS)
    folders.run_yaml.write_text(yaml.safe_dump({"status": status, "host": "here"}))
    for missing, wanted in (([], "done"), (["attn-w3"], "unfinished")):
        text = written(folders, missing=missing)
        assert f"<dt>status</dt><dd>{wanted}</dd>" in text
        assert f"<dd>{status}</dd>" not in text


def test_an_unfinished_run_says_so(page: Page, tmp_path: Path) -> None:
    folders = write_run(tmp_path, KEYS)
    missing = ["clean holds <3> of 6 facts", "attn-w3: 0 of 5 candidates are restored"]
    text = written(folders, missing=missing)
    assert "<strong>This run is unfinished.</strong>" in text
    assert "<li>clean holds &lt;3&gt; of 6 facts</li><li>attn-w3: 0 of 5" in text
    notes = [a for _, a in Page(text).elements if a.get("role") == "note"]
    assert len(notes) == 1
    assert "<strong>Done</strong>" not in text
    assert not [a for _, a in page.elements if a.get("role") == "note"], "a finished run"
    assert "<strong>Done</strong>" in written(folders)


@pytest.mark.parametrize(
    "content",
    [
        *("", "- a\n- list\n", "word", "a: [", "\xff: 1", None),
        *("a: &x {b: *x}", "a: 2001-99-99"),
    ],
)
def test_a_run_yaml_without_settings_is_no_reason_to_fail(
    tmp_path: Path, content: str | None
) -> None:
    folders = write_run(tmp_path, KEYS)
    if content is not None:
        folders.run_yaml.write_bytes(content.encode("latin-1"))
    assert "There is no run.yaml with settings beside these stores." in written(folders)


def test_the_same_stores_give_the_same_file(tmp_path: Path) -> None:
    folders = write_run(tmp_path, KEYS)
    assert written(folders) == written(folders)
