"""The report's heatmap of one prompt, put into a page that others wrote, in a real Chromium."""

import html
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("selenium", reason="driving a browser needs selenium (the extra `dev`)")

from selenium.webdriver import Chrome
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.chromium import chromium, console, missing_programs, requests
from ktrace.analysis.case import TracedCase
from ktrace.analysis.figures.look import Look
from ktrace.analysis.report import embedded_heatmap
from ktrace.terms import METRICS
from tests.support.hostile import TEXTS, TOKENS
from tests.support.stores import FACTS, p_corrupted, p_restored, span, subject

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason="needs the Debian packages chromium and chromium-driver"
)

# Ids, styles and scripts of the frame's names, and a policy of dark paper.
AROUND = """<!doctype html><meta name="color-scheme" content="light dark">
<style>* { color: lime } #heatmap { width: 3px } select { display: none }</style>
<h1 id="shown">mine</h1><p id="heatmap">mine</p><script>var page = "mine", state = "mine";</script>
"""


def case_of(index: int, **changes: Any) -> TracedCase:
    """A prompt of the made-up stores."""
    fact = FACTS[index]
    restored, corrupted = p_restored(index, "hidden"), p_corrupted(index)
    case = TracedCase(
        model="toy",
        mediator="hidden",
        known_id=index,
        prompt="".join(fact.tokens),
        subject=subject(index),
        answers=("!",),
        tokens=fact.tokens,
        roles=[role or None for role in fact.roles],
        span=span(index),
        positions=range(len(fact.tokens)),
        clean={metric: np.ones(2, np.float32) for metric in METRICS},
        corrupted={metric: corrupted + n for n, metric in enumerate(METRICS)},
        restored={metric: restored + n for n, metric in enumerate(METRICS)},
    )
    return replace(case, **changes)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def shown(browser: Chrome, tmp_path: Path) -> Iterator[Chrome]:
    """A page with two prompts, and one whose every text tries to become part of it."""
    tokens = (*TOKENS, *TOKENS)[: len(FACTS[0].tokens)]
    texts = {name: TEXTS[name] for name in ("prompt", "subject")}
    hostile = case_of(0, tokens=tokens, answers=(TEXTS["attribute"],), model="<i>", **texts)
    pieces = [
        embedded_heatmap(case_of(0), Look("probability")),
        embedded_heatmap(case_of(4), Look("logit")),
        embedded_heatmap(hostile, Look("probability")),
    ]
    path = tmp_path / "page.html"
    path.write_text(AROUND + "".join(pieces))
    requests(browser)
    console(browser)
    browser.set_window_size(900, 2600)  # frames load when they are seen
    browser.get(path.as_uri())
    yield browser
    assert console(browser) == []
    # The page that a browser opens with is chrome's own.
    others = {url for url in requests(browser) if not url.startswith(("data:", "chrome:"))}
    assert others == {path.as_uri()}


def frames(browser: Chrome) -> Iterator[int]:
    """Step into each frame in turn, once it has drawn."""
    for number, frame in enumerate(browser.find_elements("css selector", "iframe")):
        browser.switch_to.frame(frame)
        WebDriverWait(browser, 20).until(
            lambda b: b.execute_script("return document.documentElement.dataset.drawn")
        )
        yield number
        browser.switch_to.default_content()


def run(browser: Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


VALUES = """[...document.querySelectorAll("#values tbody tr")].map((row) =>
  [...row.querySelectorAll("td")].map((cell) => cell.firstChild.textContent))"""


def test_several_on_one_page_show_their_own_numbers(shown: Chrome) -> None:
    metrics = ("probability", "logit", "probability")
    for number in frames(shown):
        index, metric = (0, 4, 0)[number], metrics[number]
        assert shown.find_element("id", "metric").is_displayed()
        run(shown, "byId('values').open = true")
        WebDriverWait(shown, 5).until(lambda b: run(b, VALUES))
        found = np.array(run(shown, VALUES))
        effect = (p_restored(index, "hidden") - p_corrupted(index)[:, None, None]).mean(axis=0)
        digits = 4 if metric == "probability" else 3
        values = [[float(text.replace("−", "-")) for text in row] for row in found]
        np.testing.assert_allclose(np.array(values).T, effect, atol=0.51 * 10.0**-digits)
        assert "Trace.to_frame() holds every sample" in shown.find_element("id", "precision").text
        assert not shown.find_element("id", "compare").is_displayed()
    assert [shown.find_element("id", name).text for name in ("shown", "heatmap")] == ["mine"] * 2
    assert run(shown, "page + state") == "minemine"


def test_the_subject_is_marked_where_the_tokens_have_it(shown: Chrome) -> None:
    # The second prompt says its subject before, too.
    mark = "document.querySelector('mark').textContent"
    before = "document.querySelector('#prompt').firstChild.textContent"
    expected = [(subject(0), "<s>The"), (subject(4), "<s>𝄞 Ada or"), (TEXTS["subject"], "Who is")]
    for number in frames(shown):
        told = (run(shown, mark), run(shown, before).strip())
        assert told == expected[number]


def test_what_data_say_stays_text(shown: Chrome) -> None:
    for number in frames(shown):
        if number == 2:
            tokens = run(
                shown, "[...document.querySelectorAll('.token')].map((t) => t.textContent)"
            )
            assert "<b>bold</b>" in {token.rstrip("*") for token in tokens}
            assert run(shown, "document.querySelectorAll('#prompt script, svg b, img').length") == 0
            # A stranger to the page around it.
            reach = "try { return parent.document.title; } catch { return 'no'; }"
            assert run(shown, f"(() => {{ {reach} }})()") == "no"
    assert shown.title != "taken"


def test_choices_and_keys_work_in_a_frame(shown: Chrome) -> None:
    for number in frames(shown):
        if number == 0:
            shown.find_element("css selector", "#quantity option[value=restored]").click()
            WebDriverWait(shown, 5).until(
                lambda b: "restored" in run(b, "byId('heatmap').dataset.shown")
            )
            run(shown, "byId('heatmap').focus()")
            cell = run(shown, "byId('cell').textContent")
            shown.switch_to.active_element.send_keys("\ue014" if "layer 0" in cell else "\ue012")
            assert run(shown, "byId('cell').textContent") != cell
            assert run(shown, "picture().width") > 300
            assert run(shown, "table()").startswith("known_id,mediator,metric,quantity")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_read_on_light_and_on_dark(shown: Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    colours = []
    for _ in frames(shown):
        for name in ("color", "backgroundColor"):
            text = run(shown, f"getComputedStyle(document.body).{name}")
            colours.append(sum(int(part) for part in text.strip("rgb()").split(",")[:3]) / 765)
        # All of it is seen: nothing scrolls within the frame.
        assert run(shown, "document.body.scrollHeight <= window.innerHeight")
    ink, paper = colours[:2]
    assert (ink < 0.2 and paper > 0.9) if scheme == "light" else (ink > 0.8 and paper < 0.2)
    assert colours == [ink, paper] * 3


def test_the_element_is_the_report_s_own_page() -> None:
    element = embedded_heatmap(case_of(0), Look("kl"))
    page = html.unescape(element)
    assert "default-src 'none'" in page
    assert '"metric":"kl"' in page
    assert len(element) < 150_000
