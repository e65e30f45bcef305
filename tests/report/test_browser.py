"""The report page in a real browser: what one sees, presses and types, without a network."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pages
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from stores import Store

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium")

WAIT_SECONDS = 40
NONE = "\u2013"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
LONG = "a_name_without_any_blank_" * 12


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with groups that differ in method, rank and learning rate, and one that is hostile."""
    store = Store(tmp_path_factory.mktemp("browser") / "outputs")
    pages.group(store, "r1", (0.80, 0.81, 0.80), curve=4, lora__r=1)
    pages.group(store, "r2", (0.90, 0.92, 0.91), curve=4, lora__r=2, train__lr=2e-3)
    pages.group(store, "full", (0.85, 0.84, 0.86), curve=4, method="full", train__lr=1e-4)
    pages.group(store, "long", (0.5,), method="bitfit", task__name=LONG, model__name_or_path=LONG)
    hostile = pages.group(store, "hostile", (0.4,), method="bitfit", task__name=HOSTILE)[0]
    hostile.log.write_text(HOSTILE)
    pages.write_texts(hostile, HOSTILE, number=2)
    store.run("failed", {"reason": HOSTILE}, group="r1", lora__r=1, seed=9)
    return written(store)


def written(store: Store, *arguments: str) -> Path:
    file = store.outputs.parent / "report.html"
    command = [sys.executable, "-m", "lora_exp", "report", "--html", str(file)]
    command += ["--outputs", str(store.outputs), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return file


class Page:
    """What a test does with the page that a browser shows."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def open(self, address: str, *, width: int = 1440, dark: bool = False) -> None:
        """Anew, with nothing in the browser's logs."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get("about:blank")
        for kind in ("browser", "performance"):
            self.browser.get_log(kind)
        self.browser.get(address)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (found,) = self.all(selector)
        return found

    def run(self, script: str, *arguments: object):
        return self.browser.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def until(self, holds: Callable[[], object]) -> None:
        WebDriverWait(self.browser, WAIT_SECONDS, 0.05).until(lambda _: holds())

    @property
    def rows(self) -> list[list[str]]:
        """The texts of the table's cells."""
        script = (
            "return [...document.querySelectorAll('.groups tbody tr')]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return self.run(script)

    @property
    def header(self) -> list[str]:
        script = "return [...document.querySelectorAll('.groups th')].map(one => one.textContent)"
        return [re.sub(r"\W+$", "", text) for text in self.run(script)]

    def column(self, name: str) -> list[str]:
        return [row[self.header.index(name)] for row in self.rows]

    def sort(self, name: str) -> str:
        """Press a heading; returns the order that it tells."""
        place = self.header.index(name)
        self.all(".groups th")[place].find_element(By.TAG_NAME, "button").click()
        return self.all(".groups th")[place].get_attribute("aria-sort") or ""

    def filter(self, words: str, rows: int) -> None:
        """Type words, and wait for so many rows to be left."""
        field = self.one("#filter")
        field.clear()
        field.send_keys(words)
        self.until(lambda: len(self.rows) == rows)

    @property
    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    @property
    def requests(self) -> list[str]:
        events = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        asked = [one for one in events if one["method"] == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in asked]


@pytest.fixture
def page(browser: webdriver.Chrome, file: Path) -> Page:
    page = Page(browser)
    page.open(file.as_uri())
    return page


def test_the_page_is_drawn_without_a_complaint_or_a_request(page: Page, file: Path) -> None:
    assert "12 runs in 5 groups" in page.one("#standing").text.replace("\n", " ")
    assert "1 failed" in page.one("#standing").text
    assert len(page.rows) == 5
    drawn = [canvas.get_attribute("aria-label") or "" for canvas in page.all("canvas")]
    assert len(drawn) == 4
    assert "lora qv r=2" in drawn[0] or "r=2" in drawn[0]
    assert "against rank" in drawn[1]
    shown = [canvas for canvas in page.all("canvas") if canvas.is_displayed()]
    assert len(shown) == 3, "all have as many parameters: nothing to draw against them"
    for canvas in shown:
        colours = page.run(
            "const {data} = arguments[0].getContext('2d')"
            ".getImageData(0, 0, arguments[0].width, arguments[0].height);"
            "return new Set(new Uint32Array(data.buffer)).size",
            canvas,
        )
        assert colours > 20, "there is something on it"
    assert len(page.all(".parallel .line")) == 3
    assert [address for address in page.requests if address != file.as_uri()] == []
    assert page.complaints == []


def test_headings_sort(page: Page) -> None:
    assert page.sort("accuracy") == "descending"
    means = [float(text.split()[0].rstrip(",")) for text in page.column("accuracy")]
    assert means == sorted(means, reverse=True)
    assert len(means) == 5
    assert page.sort("accuracy") == "ascending"
    assert [float(text.split()[0].rstrip(",")) for text in page.column("accuracy")] == means[::-1]
    assert page.sort("lora.r") == "ascending"
    assert page.column("lora.r") == ["1", "2", NONE, NONE, NONE], "what has none comes last"
    assert page.sort("lora.r") == "descending"
    assert page.column("lora.r") == ["2", "1", NONE, NONE, NONE]
    assert len(page.all(".groups th[aria-sort=descending]")) == 1


def test_words_filter_all_that_is_drawn(page: Page) -> None:
    page.filter("lora", 2)
    assert page.column("method") == ["lora", "lora"]
    assert not page.one("#parallel figure").is_displayed(), "one key is left: no grid to show"
    assert "lora qv" in (page.all("#results canvas")[0].get_attribute("aria-label") or "")
    page.filter("lora.r=2", 1)
    assert page.one("#count").text == "1 of 5 rows"
    page.filter("lora.r=2 full", 0)
    page.filter("method=full rte", 1)
    assert "full" in page.column("method")


def test_a_box_toggles_a_curve(page: Page) -> None:
    def curves() -> list[str]:
        return [one.text for one in page.all("#curves .legend li")]

    assert len(curves()) == 5, "of few groups all are shown"
    page.all(".groups tbody .toggle")[2].click()
    assert len(curves()) == 4
    assert not any("r=2" in one for one in curves())
    page.one(".groups tbody tr:nth-child(3)").send_keys(Keys.SPACE)
    assert len(curves()) == 5
    Select(page.one("#curve")).select_by_visible_text("training loss")
    assert "training loss" in (page.one("#curves canvas").get_attribute("aria-label") or "")
    page.one("#curves summary").click()
    told = page.one("#curves .numbers table").text
    assert "training loss 1 1.00" in told


def test_a_row_opens_its_runs_and_a_run_its_details(page: Page) -> None:
    page.all(".groups tbody tr")[1].click()
    assert "4 runs" in page.one("dialog[open]").text
    assert [one.text for one in page.all("dialog .state")] == ["●done", "●done", "●done", "✕failed"]
    page.all("dialog tbody tr")[0].click()
    told = page.one("dialog[open]").text
    assert "80.00" in told
    assert "log of rte-tiny-lora-r1" in page.one("dialog pre").text
    for name in ("Config", "Origin"):
        page.one(f"dialog [data-name={name}] summary").click()
    told = page.one("dialog[open]").text
    assert re.search(r"rte-tiny-lora-r1-qv-seed1-\w+", told)
    assert re.search(r"lr\n0.001", told)
    assert re.search(r"folder\n/.*runs/rte-tiny", told)
    page.one("dialog .back").click()
    assert "4 runs" in page.one("dialog[open]").text
    page.one("dialog .close").click()
    assert page.all("dialog[open]") == []


def test_everything_is_reached_by_keys(page: Page) -> None:
    page.run("document.querySelector('.groups tbody tr').focus()")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    focused = page.run("return document.activeElement.rowIndex")
    assert focused == 2
    page.press(Keys.ENTER)
    assert "4 runs" in page.one("dialog[open]").text
    page.press(Keys.TAB)
    while page.run("return document.activeElement.className") != "link":
        page.press(Keys.TAB)
    page.press(Keys.ENTER)
    assert page.one("dialog .back")
    page.press(Keys.ESCAPE)
    assert page.all("dialog[open]") == []
    assert page.run("return document.activeElement.rowIndex") == 2, "back where one was"
    heading = page.all(".groups th button")[0]
    page.run("arguments[0].focus()", heading)
    page.press(Keys.ENTER)
    assert page.all(".groups th[aria-sort=ascending]")
    assert page.run("return document.activeElement.dataset.focus").startswith("sort")


def test_nothing_of_a_run_is_executed(page: Page) -> None:
    page.run("window.alert = () => { window.alerted = true; }")
    page.filter("script", 1)
    page.all(".groups tbody tr")[0].click()
    assert HOSTILE in page.one("dialog[open]").text
    page.all("dialog tbody tr")[0].click()
    page.until(lambda: page.all("dialog pre"))
    assert page.one("dialog pre").text == HOSTILE
    output, reference = [one.text for one in page.all("dialog .text > div > div > p")[:2]]
    assert output == reference == HOSTILE
    assert page.all("img") == []
    assert page.run("return window.alerted") is None
    assert page.complaints == []
    notes = page.one("#notes")
    assert HOSTILE in page.run("return arguments[0].textContent", notes)


@pytest.mark.parametrize("width", [1440, 900, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_width_lets_the_page_scroll_sideways(page: Page, file: Path, width: int, dark: bool):
    page.open(file.as_uri(), width=width, dark=dark)
    root = "document.documentElement"
    assert page.run(f"return {root}.scrollWidth") == page.run(f"return {root}.clientWidth")
    assert width - 20 < page.run(f"return {root}.clientWidth") <= width
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") != dark
    page.one("#theme").click()
    assert page.run("return getComputedStyle(document.body).backgroundColor") != background
    assert page.complaints == []


def test_a_phone_shows_results_and_details(page: Page, file: Path) -> None:
    page.open(file.as_uri(), width=400)
    assert page.header[1:3] == ["group", "accuracy"]
    row = page.all(".groups tbody tr")[0]
    mean = row.find_elements(By.TAG_NAME, "td")[2]
    assert mean.rect["x"] + mean.rect["width"] <= 400, "the result is seen without scrolling"
    row.click()
    dialog = page.one("dialog[open]")
    assert dialog.rect["width"] == 400
    assert page.run("return arguments[0].scrollWidth <= arguments[0].clientWidth", dialog)


def test_filtering_moves_no_column(page: Page) -> None:
    def edges() -> list[float]:
        return [one.rect["x"] for one in page.all(".groups th")]

    before = edges()
    page.filter("method=full", 1)
    assert edges() == before


def test_what_has_no_result_yet_is_there(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page, store = Page(browser), Store(tmp_path / "outputs")
    store.run("queued", lora__r=1)
    store.run("failed", {"reason": "nan"}, lora__r=2, task__metrics=["accuracy"])
    page.open(written(store).as_uri())
    assert page.column("unfinished") == ["○1 queued", "✕1 failed"]
    assert not any(one.is_displayed() for one in page.all("#results figure, #parallel figure"))
    page.filter("lora.r=2", 1)
    page.all(".groups tbody tr")[0].click()
    assert "failed" in page.one("dialog[open]").text
    assert page.complaints == []


def test_a_study_without_runs_shows_the_published_table(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    page = Page(browser)
    page.open(written(Store(tmp_path / "outputs"), "--study", "roberta_base_glue").as_uri())
    assert page.one("#title").text.startswith("Study roberta_base_glue")
    assert "87.5" in page.one("#tables").text
    assert page.complaints == []


def test_watch_shows_a_new_run_and_leaves_the_file(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    store = Store(tmp_path / "outputs")
    pages.group(store, "r1", (0.80, 0.81), lora__r=1)
    file = tmp_path / "report.html"
    command = [sys.executable, "-m", "lora_exp", "report", "--html", str(file), "--watch"]
    command += ["--outputs", str(store.outputs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            (address,) = re.findall(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
            page = Page(browser)
            page.open(address)
            assert len(page.rows) == 1
            page.all(".groups tbody tr")[0].click()
            pages.group(store, "r2", (0.90,), lora__r=2)
            page.until(lambda: "lora.r" in page.header and page.column("lora.r") == ["1", "2"])
            assert page.all("dialog[open]"), "what was open stays open"
            page.press(Keys.ESCAPE)
            page.until(lambda: page.run("return document.activeElement.rowIndex") == 1)
            assert page.complaints == []
            assert {re.sub(r"/[^/]*$", "", one) for one in page.requests} == {address}
            serving.send_signal(signal.SIGINT)
            assert serving.wait(WAIT_SECONDS) == 0
        finally:
            serving.kill()
    assert "r2" in file.read_text()
    page.until(lambda: "no longer follows" in page.one("#live").text)
