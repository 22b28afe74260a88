"""The report in a real Chromium: its numbers, its silence, hostile texts, keyboard, dark mode."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from tests.support import stores
from tests.support.hostile import LEFT_OUT, MODEL, SUBJECT, TEXTS, TOKENS, write_hostile_run
from tests.support.stores import (
    CANDIDATES,
    FACTS,
    N_LAYERS,
    N_SAMPLES,
    NOISE,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)

pytest.importorskip("selenium", reason="driving a browser needs selenium (the extra `dev`)")

from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.chromium import chromium, console, missing_programs, open_report, requests
from ktrace.analysis.analyze import analyze
from ktrace.analysis.tokens import visible
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


def box_of(browser: Chrome, selector: str) -> dict[str, float]:
    """Where the first such element stands, in pixels."""
    script = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
    found: dict[str, float] = browser.execute_script(script, selector)
    return found


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


def point_at(browser: Chrome, layer: int, position: int) -> None:
    """Move the pointer onto a cell of the first heatmap."""
    place = browser.execute_script(
        "const svg = document.querySelector('#heatmap svg'); svg.scrollIntoView();"
        f"const box = svg.getBoundingClientRect(), [x, y] = svg.placeOf({layer}, {position});"
        "return [x - box.width / 2, y - box.height / 2]"
    )
    svg = find(browser, "#heatmap svg")
    ActionChains(browser).move_to_element_with_offset(svg, *map(int, place)).perform()


def test_hovering_a_cell_names_it_and_its_value(report: Chrome, cells: pd.DataFrame) -> None:
    known_id = cells.index.unique("known_id")[0]
    choose_fact(report, known_id)
    Select(find(report, "#mediator")).select_by_value("1")
    wait_for(report, known_id, "mlp-w3", "probability", "effect")
    layer, position = 2, 3
    point_at(report, layer, position)
    label = WebDriverWait(report, 5).until(lambda b: find(b, "#tip").text).replace("\n", "")
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
    ticks = texts(report, "#heatmap .token")
    assert [tick for tick in ticks if tick.endswith("*")] == tokens
    n_tokens = len(ticks)
    # The frame of the subject is the lowest part of the whole.
    boxes = [box_of(report, f"#heatmap .{name}") for name in ("subject", "whole")]
    assert boxes[0]["bottom"] == pytest.approx(boxes[1]["bottom"], abs=1)
    share = boxes[0]["height"] / boxes[1]["height"]
    assert share == pytest.approx(len(tokens) / n_tokens, abs=0.02)
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
    ticks = [text.rstrip("*") for text in texts(browser, "#heatmap .token")]
    shown = [visible(token) for token in TOKENS[:8]]
    assert ticks == shown
    open_values(browser)
    heads = [text.rstrip("*") for text in texts(browser, "#values tbody th")]
    assert heads == shown
    for position, token in enumerate(shown):
        point_at(browser, 1, position)
        wait_for_label(browser, f"{token}\nlayer 1\n")
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
        lambda b: find(b, "#tip").text.startswith(start),
        f"the label does not start with {start!r}: {find(browser, '#tip').text!r}",
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
    order = ["search", "filter", "tr", "compare", "mediator", "metric", "quantity", "heatmap"]
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
        emulate_scheme(report, name)
    is_dark = scheme == "dark"
    colours = {
        "page": "getComputedStyle(document.body).backgroundColor",
        "plot": "getComputedStyle(document.querySelector('#heatmap svg > rect')).fill",
        "text": "getComputedStyle(document.body).color",
        "ticks": "getComputedStyle(document.querySelector('#heatmap .token')).fill",
    }
    for name, script in colours.items():
        expects_dark = is_dark == (name in ("page", "plot"))
        WebDriverWait(report, 5).until(
            lambda b, s=script, e=expects_dark: (
                (brightness(b, s) < 0.25) if e else (brightness(b, s) > 0.75)
            )
        )


@contextmanager
def window(browser: Chrome, width: int, height: int = 900) -> Iterator[None]:
    """A page so wide, in pixels; what is drawn follows a moment later."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_narrow_window_does_not_scroll_sideways(report: Chrome) -> None:
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    with window(report, 390):
        WebDriverWait(report, 5).until(lambda b: len({*b.execute_script(widths)}) == 1)
        assert report.execute_script(widths)[0] <= 390


def test_whatever_the_width_the_heatmap_covers_no_text(report: Chrome) -> None:
    """As when a window is made larger or a phone is turned, one after the other."""
    for width, height in ((1250, 900), (1400, 900), (390, 844), (844, 390), (1400, 900)):
        with window(report, width, height):
            WebDriverWait(report, 5).until(
                lambda b: (
                    abs(box_of(b, "#heatmap")["width"] - box_of(b, "#heatmap svg")["width"]) < 2
                )
            )
            around, svg, below = (
                box_of(report, name) for name in ("#heatmap", "#heatmap svg", "#cell")
            )
            assert svg["bottom"] <= around["bottom"] + 1 <= below["top"] + 1, width
            assert svg["right"] <= around["right"] + 1, width
            letters = "return getComputedStyle(document.querySelector('#heatmap svg')).fontSize"
            assert report.execute_script(letters) == "12px", "drawn anew, not made smaller"


def choose(browser: Chrome, select: str, value: str) -> None:
    Select(find(browser, select)).select_by_value(value)


def of_panels(browser: Chrome, expression: str) -> list[Any]:
    """A JavaScript expression of each `svg` that is shown."""
    panels = "return [...document.querySelectorAll('#heatmap svg')]"
    return list(browser.execute_script(f"{panels}.map((svg) => {expression})"))


def test_all_mediators_of_a_fact_stand_side_by_side(report: Chrome, cells: pd.DataFrame) -> None:
    choose_fact(report, 1007)
    choose(report, "#mediator", "all")
    wait_for(report, 1007, "all", "probability", "effect")
    boxes = of_panels(report, "svg.getBoundingClientRect()")
    assert len(boxes) == len(KEYS)
    assert len({box["top"] for box in boxes}) == 1
    assert boxes[0]["right"] <= boxes[1]["left"]
    titles = ["hidden states", "MLP outputs, window 3"]
    text = find(report, "#cell").text
    layer, position = (
        int(part.split(",")[0]) for part in (text.split("layer ")[1], text.split("position ")[1])
    )
    for key, title in zip(KEYS, titles, strict=True):
        assert title in texts(report, "#heatmap svg text")
        value = cells.loc[1007, key, "probability", position, layer]["effect"]
        assert number(text.split(f"{title} ")[1].split(" ±")[0]) == pytest.approx(value, abs=1e-4)


def test_two_facts_are_compared_on_one_scale(report: Chrome) -> None:
    choose_fact(report, 1007)
    find(report, "#compare").click()
    choose_fact(report, 1021)
    wait_for(report, "1007+1021", "hidden", "probability", "effect")
    panels = of_panels(report, "svg.panel.scale")
    assert len(panels) == 2
    assert panels[0] == panels[1]
    marked = of_panels(report, "svg.querySelectorAll('.cursor').length")
    assert marked == [0, 2], "the cell is one of the chosen fact"
    find(report, "#compare").click()
    wait_for(report, 1021, "hidden", "probability", "effect")


def test_a_link_names_what_is_shown(browser: Chrome, folders: RunFolders) -> None:
    path = folders.analysis / "report.html"
    open_report(browser, path)
    choose_fact(browser, 1021)
    assert browser.current_url.endswith("#fact=1021")
    choose(browser, "#mediator", "1")
    choose(browser, "#metric", "4")
    choose(browser, "#quantity", "restored")
    find(browser, "#compare").click()
    choose_fact(browser, 1035)
    wait_for(browser, "1021+1035", "mlp-w3", "kl", "restored")
    link = browser.current_url
    browser.get("about:blank")
    browser.get(link)
    wait_for(browser, "1021+1035", "mlp-w3", "kl", "restored")
    assert find(browser, "#table tr[aria-selected=true] td").text == "1035"
    assert Select(find(browser, "#metric")).first_selected_option.text == "kl"
    # What is not on the page is passed over.
    browser.execute_script("location.hash = '#fact=1007&mediator=none&metric=<b>&with=5'")
    wait_for(browser, 1007, "hidden", "kl", "effect")
    browser.execute_script("location.hash = '#fact=99'")
    assert find(browser, "#table tr[aria-selected=true] td").text == "1007"
    console(browser)
    requests(browser)


def downloaded(browser: Chrome, button: str) -> tuple[str, bytes]:
    """The name and the bytes of what a button saves."""
    browser.execute_script(
        "window.saved = undefined;"
        "window.original ??= URL.createObjectURL;"
        "URL.createObjectURL = (blob) => {"
        "  blob.arrayBuffer().then((all) => (window.saved = [...new Uint8Array(all)]));"
        "  return window.original(blob); };"
        "HTMLAnchorElement.prototype.click = function () { window.named = this.download; };"
    )
    find(browser, button).click()
    content = WebDriverWait(browser, 5).until(lambda b: b.execute_script("return window.saved"))
    return browser.execute_script("return window.named"), bytes(content)


def test_the_heatmaps_are_saved_as_csv_and_as_png(
    browser: Chrome, folders: RunFolders, cells: pd.DataFrame
) -> None:
    open_report(browser, folders.analysis / "report.html")
    choose_fact(browser, 1021)
    choose(browser, "#mediator", "all")
    wait_for(browser, 1021, "all", "probability", "effect")
    name, content = downloaded(browser, "#save-csv")
    assert name == "fact-1021-all-probability-effect.csv"
    table = pd.read_csv(io.BytesIO(content)).set_index(["mediator", "position", "layer"])
    for key in KEYS:
        expected = cells.loc[1021, key, "probability"]
        found = table.loc[key].sort_index()
        np.testing.assert_allclose(found["value"], expected["effect"].sort_index(), atol=6e-5)
        np.testing.assert_allclose(
            found["half_width"], expected["effect ±"].sort_index(), atol=6e-5
        )
    assert set(table["role"]) == set(FACTS[3].roles)
    name, content = downloaded(browser, "#save-png")
    assert name == "fact-1021-all-probability-effect.png"
    image = imread(io.BytesIO(content))
    shown = box_of(browser, "#heatmap")
    assert image.shape[1] == 2 * np.ceil(shown["width"])
    assert image.shape[0] > 2 * shown["height"]
    assert image[..., :3].std() > 0.05, "an empty picture"


@pytest.mark.usefixtures("no_figures")
def test_a_spreadsheet_runs_nothing_of_what_is_saved(browser: Chrome, tmp_path: Path) -> None:
    folders = write_run(tmp_path, ["hidden"])
    analyze(folders.run)
    path = folders.analysis / "report.html"
    text = path.read_text("utf-8")
    assert text.count('"tokens":["<s>"'.replace("<", "\\u003c")) > 0
    path.write_text(text.replace('"tokens":["\\u003cs>"', '"tokens":["=1+1,\\"x"', 1), "utf-8")
    open_report(browser, path)
    _, content = downloaded(browser, "#save-csv")
    table = pd.read_csv(io.BytesIO(content))
    assert table["token"][0] == "'=1+1,\"x"


@pytest.mark.usefixtures("no_figures")
def test_marks_of_direction_turn_nothing_around(browser: Chrome, tmp_path: Path) -> None:
    folders = write_run(tmp_path, ["hidden"])
    analyze(folders.run)
    path = folders.analysis / "report.html"
    text = path.read_text("utf-8")
    for old, new in (('"Paris"', '"Pa\\u202eris\\u0007"'), ("s> Paris in", "s> Pa\\u202eris\\n")):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    open_report(browser, path)
    choose_fact(browser, 1007)
    assert "Pa\\u202eris\\u0007" in texts(browser, "#table td.text")
    assert find(browser, "#prompt").text == "<s> Pa\\u202eris↵"


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_cursor_is_seen_on_every_colour(report: Chrome, scheme: str) -> None:
    emulate_scheme(report, scheme)
    lines = report.execute_script(
        "const lines = [...document.querySelectorAll('#heatmap .cursor')];"
        "return lines.map((line) => getComputedStyle(line).stroke)"
    )
    colours = report.execute_script(
        "const shade = colouring(0, 1);"
        "return Array.from({ length: 41 }, (_, step) => shade(step / 20 - 1))"
    )
    assert len(set(colours)) > 30
    for colour in colours:
        pairs = [sorted((luminance(colour), luminance(line))) for line in lines]
        assert max((high + 0.05) / (low + 0.05) for low, high in pairs) >= 3, colour


def emulate_scheme(browser: Chrome, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_helps_has_one_hue_whatever_the_sign(report: Chrome, scheme: str) -> None:
    emulate_scheme(report, scheme)
    shade = "return [colouring(0, 1)(0.8), colouring(0, 1)(-0.8), colouring(0, 1)(0)]"
    choose(report, "#metric", "0")
    rising, falling, nothing = report.execute_script(shade)
    choose(report, "#metric", "4")
    assert report.execute_script(shade)[:2] == [falling, rising]
    channels = [int(part) for part in re.findall(r"\d+", rising)]
    assert channels.index(max(channels)) == 2, "purple"
    paper = report.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert nothing.replace(",", ", ") == paper


def test_paper_shows_what_the_heatmap_is_of(report: Chrome) -> None:
    choose(report, "#metric", "4")
    choose(report, "#mediator", "1")
    wait_for(report, 1000, "mlp-w3", "kl", "effect")
    emulate_scheme(report, "dark")
    # Browsers say so before the rules for paper hold.
    report.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    paper = "getComputedStyle(document.querySelector('#heatmap svg > rect')).fill"
    assert brightness(report, paper) == 1
    report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        said = find(report, "#shown")
        assert said.is_displayed()
        assert (
            said.text
            == "Indirect effect (KL divergence, nats; negative helps), MLP outputs, window 3"
        )
        assert not find(report, "#mediator").is_displayed()
        assert box_of(report, "#heatmap svg")["width"] <= 700, "a page's width"
        rules = "return getComputedStyle(document.querySelector('#heatmap svg')).breakInside"
        assert report.execute_script(rules) == "avoid"
        assert not report.find_elements(By.CSS_SELECTOR, ".cursor")
    finally:
        report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        report.execute_script("window.dispatchEvent(new Event('afterprint'))")


@pytest.mark.usefixtures("no_figures")
def test_relations_are_filtered_and_found(browser: Chrome, tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "outputs" / "toy" / "made-up" / NOISE)
    relations = {0: "P17", 1: "P36", 2: "P36", 3: "P17"}
    write_clean(folders, relations=relations)
    write_corrupted(folders, CANDIDATES)
    write_restored(folders, "hidden", CANDIDATES)
    analyze(folders.run)
    held = {stores.known_id(index): relations.get(index, "") for index in range(len(FACTS))}
    for _ in opened(browser, folders):
        choose(browser, "#filter", "all")
        for relation in ("P17", "P36", ""):
            choose(browser, "#relation", f"={relation}")
            wanted = {str(number) for number, one in held.items() if one == relation}
            assert set(texts(browser, "#table tbody td:first-child")) == wanted
        choose(browser, "#relation", "")
        find(browser, "#search").send_keys("p36")
        wanted = {str(number) for number, one in held.items() if one == "P36"}
        assert set(texts(browser, "#table tbody td:first-child")) == wanted


def test_facts_without_relations_offer_none(report: Chrome) -> None:
    assert not find(report, "#relation").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_no_violation(report: Chrome, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe (the extra `dev`)").Axe()
    emulate_scheme(report, scheme)
    with window(report, width):
        choose(report, "#mediator", "all")
        wait_for(report, 1000, "all", "probability", "effect")
        found = axe.run(report)
        names = [
            (one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]
        ]
        assert names == []
        # It would see one.
        report.execute_script("document.getElementById('search').parentElement.replaceWith('?')")
        report.execute_script("document.querySelector('main').append(new Image())")
        assert "image-alt" in {one["id"] for one in axe.run(report)["violations"]}
