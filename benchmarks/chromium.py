"""Drive a real Chromium by its DevTools protocol: for the report's tests and its benchmark."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing_programs() -> list[str]:
    """Programs that are not installed; none where a browser can be started."""
    return [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


@contextmanager
def chromium() -> Iterator[Chrome]:
    """A fresh browser, with a fresh profile, that keeps its console and its requests."""
    with TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # With both programs named, selenium looks for none and downloads none.
        browser = Chrome(options, Service(shutil.which("chromedriver")))
        try:
            yield browser
        finally:
            browser.quit()


def open_report(browser: Chrome, path: Path, seconds: float = 30) -> float:
    """Open a report and wait for its first heatmap.

    Returns:
        Seconds from the navigation to the drawn heatmap, by the page's own clock.
    """
    browser.get(path.resolve().as_uri())
    drawn = "return document.documentElement.dataset.drawn"
    return float(WebDriverWait(browser, seconds).until(lambda b: b.execute_script(drawn))) / 1000


def requests(browser: Chrome) -> list[str]:
    """Addresses of everything that was requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def console(browser: Chrome) -> list[dict[str, Any]]:
    """What was written to the console since the last call: errors, and what the policy refused."""
    log: list[dict[str, Any]] = browser.get_log("browser")
    return log
