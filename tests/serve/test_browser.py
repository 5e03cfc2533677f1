"""The chat page in a browser: one page of a model that never stops talking by itself, in Chromium without a window.

Screenshots of every test lie in pytest's temporary folder.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.readers import write_wfdb
from data.synthetic import SyntheticCohort
from elm.folder import save

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
TRAINING = {"language_model": "tiny", "dataset_name": "none", "notes": [], "train_condition": "real"}
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PATIENCE = 120  # s, of a machine that does much else


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Where the page puts what it keeps for a while."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def url(make_pair, tokenizer, scratch, tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed")
    pair = make_pair(pool=2)
    never = [*pair.model.generation_config.suppress_tokens, tokenizer.eos_token_id]
    pair.model.generation_config.suppress_tokens = never
    folder = save(*pair, tmp_path_factory.mktemp("chat") / "model", training=TRAINING)
    cohort = SyntheticCohort(3, records_per_patient=1)
    for record in cohort.records:
        write_wfdb(cohort[record], folder / "examples")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve.app", "--model", folder, "--port", str(port), "--max_new_tokens", "400"]
    app = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        said = app.stdout.readline()
        assert f"http://127.0.0.1:{port}" in said, said
        yield f"http://127.0.0.1:{port}"
        assert app.poll() is None, "the page died"
    finally:
        app.terminate()
        app.wait(30)
    assert list(scratch.glob("ecg-*")) == []


class Visitor:
    """A browser, and how long it waits."""

    def __init__(self, driver, shots):
        self.driver, self.shots = driver, shots

    def all(self, css):
        from selenium.webdriver.common.by import By

        return [each for each in self.driver.find_elements(By.CSS_SELECTOR, css) if each.is_displayed()]

    def wait(self, condition, what):
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except (WebDriverException, IndexError):
                pass  # not there yet, or Gradio was drawing it anew
            time.sleep(0.1)
        self.shot("timeout")
        raise AssertionError(f"{what}: not within {PATIENCE} s")

    def one(self, css):
        return self.wait(lambda: self.all(css), css)[0]

    def click(self, css, which=0):
        def clicked():
            button = self.all(css)[which]
            if not button.is_enabled():
                return False
            self.run("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            return True

        self.wait(clicked, f"click on {css}")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def size(self, name):
        width, height = SIZES[name]
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"},
        )
        time.sleep(0.5)

    def shot(self, name):
        self.driver.save_screenshot(str(self.shots / f"{name}.png"))

    def ask(self, question):
        from selenium.webdriver.common.by import By

        self.one("#question textarea").find_element(By.XPATH, ".").send_keys(question)
        self.click("#ask")

    def finished(self):
        return self.wait(lambda: self.all("#without")[0].is_enabled() and not self.all(".ecg-cursor"), "an answer")

    def words(self, css=".ecg-answer"):
        return self.wait(lambda: self.all(css)[-1].text, css)

    def fits(self):
        """The page is as wide as the window."""
        return self.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"{missing[0]} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.add_argument("--disable-dev-shm-usage")
    driver = webdriver.Chrome(options, webdriver.ChromeService(found["chromedriver"]))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def visitor(driver, url, tmp_path):
    visitor = Visitor(driver, tmp_path)
    visitor.size("desk")
    driver.get(url)
    visitor.one("#place-1 .example")
    yield visitor
    visitor.shot("last")


def test_an_example_is_shown_measured_and_asked_about(visitor):
    assert "Not a medical device" in visitor.one("#warning").text
    visitor.click("#place-1 .example")
    paper = visitor.one("#place-1 svg.ecg-paper")
    before = paper.size["width"]
    visitor.wait(lambda: "/min" in visitor.all("#place-1 .ecg-facts")[0].text, "the heart rate")

    from selenium.webdriver import ActionChains

    segment = visitor.one("#place-1 .ecg-segment[data-lead=V2]")
    ActionChains(visitor.driver).move_to_element(segment).perform()
    lead, _, unit, _, mv = visitor.words("#ecg-tip").split()
    assert (lead, unit, mv) == ("V2", "ms", "mV")
    ActionChains(visitor.driver).move_to_element(segment).click_and_hold().move_by_offset(40, 10).perform()
    assert "/min" in visitor.words("#ecg-tip") and visitor.all("#ecg-box")
    ActionChains(visitor.driver).release().perform()
    visitor.click("#place-1 [data-zoom='1']")
    assert visitor.one("#place-1 svg.ecg-paper").size["width"] > before and visitor.fits()

    visitor.ask("What is the rhythm?")
    first = visitor.words()
    visitor.finished()
    assert len(visitor.words()) > len(first), "the answer came at once: it was not streamed"
    assert visitor.all(".ecg-question")[-1].text == "What is the rhythm?"
    visitor.run("scrollTo(0, document.body.scrollHeight)")
    assert visitor.one("#warning").location_once_scrolled_into_view["y"] >= 0


def test_stop_ends_the_answer(visitor):
    visitor.click("#place-1 .example")
    visitor.one("#place-1 svg.ecg-paper")
    visitor.ask("Describe it.")
    visitor.words()
    visitor.click("#stop")
    visitor.wait(lambda: "(stopped)" in visitor.all(".ecg-answer")[-1].text, "the end of the answer")
    said = visitor.words()
    time.sleep(1)
    assert visitor.words() == said and not visitor.all("#stop")[0].is_enabled()
    visitor.click(".suggestion")
    visitor.finished()
    assert len(visitor.words()) > len(said)


def test_answers_stand_side_by_side(visitor):
    visitor.click("#place-1 .example")
    visitor.one("#place-1 svg.ecg-paper")
    visitor.click(".suggestion", 1)
    visitor.finished()
    for button, column in (("#without", ".ecg-column.ecg-none"), ("#another", ".ecg-column.ecg-swap")):
        visitor.click(button)
        visitor.one(column)
        visitor.finished()
    columns = [column.rect for column in visitor.all(".ecg-column")]
    assert len(columns) == 3 and len({column["y"] for column in columns}) == 1
    assert len(visitor.all(".ecg-means li")) == 2 and "The other ECG: record s0000" in visitor.one(".ecg-talk").text
    visitor.size("phone")
    assert len({column.rect["x"] for column in visitor.all(".ecg-column")}) == 1
    assert visitor.fits()


def test_two_ecgs_are_compared(visitor):
    visitor.click("#compare input")
    for place in (1, 2):
        visitor.one(f"#place-{place} .example")
        visitor.click(f"#place-{place} .example", place)
        visitor.one(f"#place-{place} svg.ecg-paper")
    first, second = (paper.rect for paper in visitor.all("svg.ecg-paper"))
    assert first["y"] == second["y"] and first["x"] + first["width"] <= second["x"] + 1
    assert visitor.fits()
    visitor.click(".suggestion")
    assert "second ECG" in visitor.words(".ecg-question")
    visitor.finished()
    visitor.shot("compared")
    visitor.size("phone")
    first, second = (frame.rect for frame in visitor.all(".ecg-frame"))
    assert first["x"] == second["x"] and first["y"] + first["height"] <= second["y"]
    assert visitor.fits()


def test_a_hostile_file_is_a_sentence(visitor, scratch, tmp_path):
    from selenium.webdriver.common.by import By

    files = [tmp_path / "<img src=x onerror=document.title=1>.hea", tmp_path / "x.dat"]
    files[0].write_text(
        "x 1 100 10\n../../../etc/passwd 16 200 16 0 0 0 0 <b>I</b>\n# <script>document.title=2</script>"
    )
    files[1].write_bytes(bytes(20))
    place = visitor.driver.find_element(By.CSS_SELECTOR, "#place-1 input[type=file]")
    place.send_keys("\n".join(map(str, files)))
    said = visitor.words("#place-1 .ecg-problem")
    assert "plain name of a file" in said and "Traceback" not in said and str(scratch) not in said
    assert visitor.driver.title == "Ask an ECG"
    assert list(scratch.rglob("*.hea")) == list(scratch.rglob("*.dat")) == []
    visitor.click("#place-1 .example")
    visitor.one("#place-1 svg.ecg-paper")
    visitor.click(".suggestion")
    assert visitor.finished()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_comes_from_elsewhere_and_nothing_stays(visitor, url, size):
    visitor.size(size)
    visitor.click("#place-1 .example")
    visitor.one("#place-1 svg.ecg-paper")
    visitor.ask("Is this a remarkable ECG?")
    visitor.finished()
    assert visitor.fits()
    loaded = visitor.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert loaded and all(each.startswith((f"{url}/", "data:", "blob:")) for each in loaded)
    kept = visitor.run("return JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie")
    assert "remarkable" not in kept
    assert visitor.driver.execute_async_script(
        "const done = arguments[0]; indexedDB.databases().then(all => done(all.length))"
    ) == 0  # fmt: skip
