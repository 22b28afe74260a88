"""The report in a real Chromium: its numbers, its silence, hostile texts, keyboard, dark mode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.hostile import LEFT_OUT, MODEL, SUBJECT, TEXTS, TOKENS, write_hostile_run
from tests.support.stores import N_LAYERS, N_SAMPLES, write_run

pytest.importorskip("selenium", reason="driving a browser needs selenium (the extra `dev`)")

from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.chromium import chromium, console, missing_programs, open_report, requests
from ktrace.analysis.analyze import analyze
from ktrace.store import RunFolders
from ktrace.terms import METRICS

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason="needs the Debian packages chromium and chromium-driver"
)

KEYS = ("hidden", "mlp-w3")
T_ONE_DEGREE = 12.7062  # Student's t, two samples, 95%: from the printed tables


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> RunFolders:
    """An analysed run."""
    folders = write_run(tmp_path_factory.mktemp("run"), KEYS)
    analyze(folders.run)
    return folders


@pytest.fixture(scope="module")
def cells(folders: RunFolders) -> pd.DataFrame:
    """Means and half-widths of every cell, straight from `effects.parquet`."""
    effects = pd.read_parquet(folders.analysis / "effects.parquet")
    effects["effect"] = effects["restored"].astype("float64") - effects["corrupted"]
    keys = ["known_id", "mediator", "metric", "position", "layer"]
    grouped = effects.groupby(keys, observed=True)[["effect", "restored"]]
    spread = grouped.std() * T_ONE_DEGREE / N_SAMPLES**0.5
    return grouped.mean().join(spread, suffixes=("", " ±"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def report(browser: Chrome, folders: RunFolders) -> Iterator[Chrome]:
    """The report, freshly opened; afterwards it must have been silent."""
    yield from opened(browser, folders)


def opened(browser: Chrome, folders: RunFolders) -> Iterator[Chrome]:
    requests(browser)
    console(browser)
    path = folders.analysis / "report.html"
    open_report(browser, path)
    yield browser
    assert console(browser) == []
    others = {url for url in requests(browser) if not url.startswith("data:")}
    assert others == {path.as_uri()}


def find(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def texts(browser: Chrome, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
    return list(browser.execute_script(script, selector))


def wait_for(browser: Chrome, *view: Any) -> None:
    """Until the heatmap shows this fact, mediator, metric and quantity."""
    wanted = " ".join(map(str, view))
    WebDriverWait(browser, 10).until(
        lambda b: find(b, "#heatmap").get_attribute("data-shown") == wanted
    )


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def open_values(browser: Chrome) -> None:
    find(browser, "#values summary").click()
    WebDriverWait(browser, 5).until(lambda b: texts(b, "#values td"))


def choose_fact(browser: Chrome, known_id: int) -> None:
    rows = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    next(row for row in rows if row.find_element(By.TAG_NAME, "td").text == str(known_id)).click()


def test_every_shown_value_is_that_of_effects_parquet(report: Chrome, cells: pd.DataFrame) -> None:
    facts = cells.index.unique("known_id")
    compared = 0
    open_values(report)
    for known_id in facts:
        choose_fact(report, known_id)
        for key, title in zip(KEYS, ("hidden states", "MLP outputs, window 3"), strict=True):
            Select(find(report, "#mediator")).select_by_visible_text(title)
            for metric in METRICS:
                Select(find(report, "#metric")).select_by_visible_text(metric.replace("_", " "))
                for quantity in ("effect", "restored"):
                    Select(find(report, "#quantity")).select_by_value(quantity)
                    wait_for(report, known_id, key, metric, quantity)
                    shown = [text.split("± ") for text in texts(report, "#values td")]
                    expected = cells.loc[known_id, key, metric].sort_index()
                    for place, column in enumerate((quantity, f"{quantity} ±")):
                        found = np.array([number(pair[place]) for pair in shown])
                        digits = {len(pair[place].partition(".")[2]) for pair in shown}
                        assert digits == {4 if metric == "probability" else 3}
                        half_a_digit = 0.5 * 10.0 ** -digits.pop()
                        wanted = expected[column].to_numpy()
                        assert np.abs(found - wanted).max() <= half_a_digit + 1e-6
                        compared += len(found)
    assert compared == 4 * len(cells)


def test_hovering_a_cell_names_it_and_its_value(report: Chrome, cells: pd.DataFrame) -> None:
    known_id = cells.index.unique("known_id")[0]
    choose_fact(report, known_id)
    Select(find(report, "#mediator")).select_by_value("1")
    wait_for(report, known_id, "mlp-w3", "probability", "effect")
    layer, position = 2, 3
    place = report.execute_script(
        "const gd = document.getElementById('heatmap'), box = gd.getBoundingClientRect();"
        "const l = gd._fullLayout;"
        "gd.scrollIntoView();"
        f"return [l.xaxis._offset + l.xaxis.l2p({layer}) - box.width / 2,"
        f" l.yaxis._offset + l.yaxis.l2p({position}) - box.height / 2]"
    )
    ActionChains(report).move_to_element_with_offset(
        find(report, "#heatmap"), *map(int, place)
    ).perform()
    label = WebDriverWait(report, 5).until(lambda b: texts(b, "#heatmap .hovertext"))[0]
    value = cells.loc[known_id, "mlp-w3", "probability", position, layer]
    low, high = (value["effect"] + sign * value["effect ±"] for sign in (-1, 1))
    assert label.startswith("Needlayer 2"), label
    shown = [
        number(text)
        for text in label.partition("layer 2")[2]
        .replace("95% interval", " ")
        .replace("to", " ")
        .split()
    ]
    assert shown == pytest.approx([value["effect"], low, high], abs=1.1e-4)


@pytest.mark.parametrize(
    ("known_id", "subject", "before", "tokens"),
    [(1028, "Ada", "<s>𝄞 Ada or ", ["Ada*"]), (1035, "New York", "<s>From ", ["New*", "York*"])],
)
def test_a_prompt_may_end_with_its_subject(
    report: Chrome,
    folders: RunFolders,
    known_id: int,
    subject: str,
    before: str,
    tokens: list[str],
) -> None:
    choose_fact(report, known_id)
    wait_for(report, known_id, "hidden", "probability", "effect")
    assert find(report, "#prompt mark").text == subject
    parts = "return [...document.getElementById('prompt').childNodes].map((one) => one.textContent)"
    assert report.execute_script(parts) == [before, subject, ""]
    ticks = texts(report, "#heatmap .ytick text")
    assert [tick for tick in ticks if tick.endswith("*")] == tokens
    # The frame around the subject, then the one around the cell.
    shapes = report.execute_script("return document.getElementById('heatmap').layout.shapes")
    n_tokens = len(ticks)
    assert (shapes[0]["y0"], shapes[0]["y1"]) == (n_tokens - len(tokens) - 0.5, n_tokens - 0.5)
    # It starts from the peak that the table beside the report has.
    table = pd.read_csv(folders.analysis / "facts.csv").set_index("known_id").loc[known_id]
    layer, position = table["hidden_peak_layer"], table["hidden_peak_position"]
    token = tokens[position - n_tokens].rstrip("*")
    assert f"layer {layer}, position {position}, token “{token}”" in find(report, "#cell").text


def test_the_console_and_the_requests_are_seen_at_all(browser: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>throw new Error('loud')</script>")
    requests(browser)
    browser.get(page.as_uri())
    assert "http://127.0.0.1:9/x.png" in requests(browser)
    assert "loud" in str(console(browser))


def test_the_policy_stops_scripts_and_requests_of_others(
    browser: Chrome, folders: RunFolders
) -> None:
    open_report(browser, folders.analysis / "report.html")
    console(browser)
    browser.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.taken = 1';"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png';"
        "document.body.append(script, image)"
    )
    assert browser.execute_script("return window.taken") is None
    WebDriverWait(browser, 5).until(lambda b: str(console(b)).count("Content Security Policy") >= 1)


@pytest.mark.usefixtures("no_figures")
def test_hostile_texts_are_shown_as_they_are(browser: Chrome, tmp_path: Path) -> None:
    folders = write_hostile_run(tmp_path)
    analyze(folders.run)
    for _ in opened(browser, folders):
        check_hostile_page(browser)


def check_hostile_page(browser: Chrome) -> None:
    title = browser.title
    assert find(browser, "h1").text == f"{MODEL} on made'\"up"
    assert find(browser, "#prompt").text == TEXTS["prompt"].strip()
    assert find(browser, "#prompt mark").text == SUBJECT
    assert TEXTS["attribute"] in find(browser, "#outcome").text
    assert SUBJECT in texts(browser, "#table td.text")
    ticks = [text.rstrip("*") for text in texts(browser, "#heatmap .ytick text")]
    visible = [token.strip() for token in (*TOKENS[:7], "↵")]
    assert ticks == visible
    open_values(browser)
    heads = [text.rstrip("*") for text in texts(browser, "#values tbody th")]
    assert heads == visible
    for position, token in enumerate(visible):
        browser.execute_script(f"Plotly.Fx.hover('heatmap', [{{xval: 1, yval: {position}}}])")
        wait_for_label(browser, f"{token}layer 1")
    Select(find(browser, "#filter")).select_by_value("left out")
    choose_fact(browser, 1014)
    WebDriverWait(browser, 5).until(lambda b: LEFT_OUT in find(b, "#outcome").text)
    assert TEXTS["predicted"].strip() in find(browser, "#outcome").text
    assert not find(browser, "#traced").is_displayed()
    assert browser.title == title
    assert (
        browser.execute_script("return document.querySelectorAll('img[src=x], h1 i').length") == 0
    )


def wait_for_label(browser: Chrome, start: str) -> None:
    WebDriverWait(browser, 5).until(
        lambda b: any(text.startswith(start) for text in texts(b, "#heatmap .hovertext")),
        f"no label starts with {start!r}: {texts(browser, '#heatmap .hovertext')}",
    )


@pytest.mark.usefixtures("no_figures")
def test_an_unfinished_run_is_seen_to_be_one(browser: Chrome, tmp_path: Path) -> None:
    folders = write_run(tmp_path, KEYS)
    analyze(folders.run, asked=["attn-w3"], partial=True)
    for _ in opened(browser, folders):
        note = find(browser, ".unfinished")
        assert note.is_displayed()
        assert "This run is unfinished." in note.text
        assert "attn-w3: 0 of 5 candidates are restored" in note.text


def active(browser: Chrome) -> WebElement:
    return browser.switch_to.active_element


def press(browser: Chrome, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def test_the_keyboard_reaches_and_moves_everything(report: Chrome) -> None:
    reached = []
    for _ in range(60):
        press(report, Keys.TAB)
        element = active(report)
        reached.append(element.get_attribute("id") or element.tag_name)
        if reached[-1] == "heatmap":
            break
    order = ["search", "filter", "tr", "mediator", "metric", "quantity", "heatmap"]
    assert [name for name in reached if name in order] == order
    before = find(report, "#cell").text
    assert "layer 0, position 5" not in before
    press(report, *[Keys.ARROW_LEFT] * N_LAYERS, Keys.ARROW_UP)
    WebDriverWait(report, 5).until(lambda b: "layer 0, position 3" in find(b, "#cell").text)
    report.execute_script("document.querySelector('#table tbody tr').focus()")
    press(report, Keys.ARROW_DOWN)
    wait_for(report, 1007, "hidden", "probability", "effect")
    assert active(report).get_attribute("aria-selected") == "true"
    assert active(report).find_element(By.TAG_NAME, "td").text == "1007"
    press(report, Keys.END)
    wait_for(report, 1035, "hidden", "probability", "effect")


def test_facts_are_searched_and_sorted(report: Chrome) -> None:
    def ids() -> list[str]:
        return texts(report, "#table tbody td:first-child")

    assert ids() == ["1000", "1007", "1021", "1028", "1035"]
    find(report, "#table th[data-column=clean] button").click()
    assert ids() == ["1035", "1028", "1021", "1007", "1000"]  # p_clean rises with the fact
    find(report, "#table th[data-column=clean] button").click()
    assert ids() == ["1000", "1007", "1021", "1028", "1035"]
    head = find(report, "#table th[data-column=clean]")
    assert head.get_attribute("aria-sort") == "ascending"
    find(report, "#search").send_keys("PARIS")
    assert ids() == ["1007"]
    assert find(report, "#range").text == "1 to 1 of 1"
    find(report, "#search").send_keys(" nowhere")
    assert find(report, "#range").text == "No fact is found"


def test_every_control_has_a_name(report: Chrome) -> None:
    tree = report.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"combobox", "searchbox", "button", "application", "grid", "image", "link", "img"}
    heard = [node for node in tree if not node["ignored"]]
    found = [node for node in heard if node["role"]["value"] in roles]
    assert len(found) > 15
    assert [node["role"]["value"] for node in found if not node["name"]["value"]] == []


def brightness(report: Chrome, script: str) -> float:
    colour = report.execute_script(f"return {script}")
    return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 765


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_and_plot_follow_the_colour_scheme(report: Chrome, scheme: str) -> None:
    other = {"light": "dark", "dark": "light"}[scheme]
    # From the other scheme, as when the evening comes while the report is open.
    for name in (other, scheme):
        feature = {"name": "prefers-color-scheme", "value": name}
        report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    is_dark = scheme == "dark"
    colours = {
        "page": "getComputedStyle(document.body).backgroundColor",
        "plot": "getComputedStyle(document.querySelector('#heatmap .main-svg')).backgroundColor",
        "text": "getComputedStyle(document.body).color",
        "ticks": "getComputedStyle(document.querySelector('#heatmap .ytick text')).fill",
    }
    for name, script in colours.items():
        expects_dark = is_dark == (name in ("page", "plot"))
        WebDriverWait(report, 5).until(
            lambda b, s=script, e=expects_dark: (
                (brightness(b, s) < 0.25) if e else (brightness(b, s) > 0.75)
            )
        )


def test_a_narrow_window_does_not_scroll_sideways(report: Chrome) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    report.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    try:
        # The plot follows the window a moment later.
        WebDriverWait(report, 5).until(lambda b: len({*b.execute_script(widths)}) == 1)
        assert report.execute_script(widths)[0] <= 400
    finally:
        report.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
