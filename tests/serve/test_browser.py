"""The chat page in a browser: Chromium without a window.

One page is of a model that never stops talking by itself. The other has a password, and asks a server of these tests
that says what it was asked: the first sample of every recording, and the words. Screenshots of every test lie in
pytest's temporary folder.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.paper import Paper
from data.readers import write_wfdb
from data.synthetic import SyntheticCohort
from elm.saved.folder import save
from helpers.chat_server import Server

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
TRAINING = {"language_model": "tiny", "dataset_name": "none", "notes": [], "train_condition": "real"}
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PASSWORD = "sinus rhythm"
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
    with chat_page(scratch, "--model", folder, "--max_new_tokens", "400") as url:
        yield url


@pytest.fixture(scope="module")
def model_server(listening):
    with listening(Server()) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(model_server, tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed")
    scratch = tmp_path_factory.mktemp("scratch")
    with chat_page(scratch, "--server", model_server.url, "--password", PASSWORD) as url:
        yield url


@contextmanager
def chat_page(scratch, *arguments):
    """The address of a page while it runs; it leaves no files behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, "-m", "serve.app", *arguments, "--port", str(port)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch), "no_proxy": "127.0.0.1"},
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


OVERFLOWS = """
const box = document.querySelector(arguments[0]);
const end = box.scrollHeight - box.clientHeight;
return [end > 0 && getComputedStyle(box).overflowY === "auto", end - box.scrollTop < 30];
"""  # whether there is more than fits, which scrolls; and whether its end is in sight

CONTRASTS = """
const numbers = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
const over = (above, below) => [0, 1, 2].map((i) => above[i] * above[3] + below[i] * (1 - above[3]));
const light = (colour) => colour.map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (one, other) => {
  const [less, more] = [light(one), light(other)].sort((a, b) => a - b);
  return (more + 0.05) / (less + 0.05);
};
const found = [];
const measure = (element, style, words) => {
  let behind = [255, 255, 255], opacity = 1;
  const chain = [];
  for (let each = element; each; each = each.parentElement) chain.unshift(getComputedStyle(each));
  for (const each of chain) {
    behind = over(numbers(each.backgroundColor), behind);
    opacity *= each.opacity;
  }
  const colour = numbers(element.closest("svg") ? style.fill : style.color);
  colour[3] *= opacity;
  found.push([ratio(over(colour, behind), behind), words]);
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let text; text = texts.nextNode();) {
  const element = text.parentElement;
  if (text.data.trim() && element.checkVisibility({visibilityProperty: true}) && !element.closest(":disabled"))
    measure(element, getComputedStyle(element), text.data.trim());
}
for (const field of document.querySelectorAll("input[placeholder], textarea[placeholder]"))
  if (field.checkVisibility()) measure(field, getComputedStyle(field, "::placeholder"), field.placeholder);
return found;
"""  # WCAG 2.2, 1.4.3


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

    def prefer(self, mode):
        """A light page or a dark one."""
        preferred = {"features": [{"name": "prefers-color-scheme", "value": mode}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)

    def shot(self, name):
        self.driver.save_screenshot(str(self.shots / f"{name}.png"))

    def upload(self, *files, place=1):
        from selenium.webdriver.common.by import By

        chosen = self.driver.find_element(By.CSS_SELECTOR, f"#place-{place} input[type=file]")
        self.run("arguments[0].value = ''", chosen)  # as a click on the button does
        chosen.send_keys("\n".join(map(str, files)))

    def type(self, css, words):
        """Put words in place of those in a field."""
        from selenium.webdriver.common.keys import Keys

        self.one(css).send_keys(Keys.CONTROL, "a", Keys.NULL, words)

    def choose(self, label, option):
        """Choose in a list, with the keyboard."""
        from selenium.webdriver.common.keys import Keys

        css = f"input[aria-label='{label}']"
        self.click(css)
        self.wait(lambda: any(each.text.endswith(option) for each in self.all("[role=option]")), option)
        for _ in range(20):
            if self.all("[role=option].active") and self.all("[role=option].active")[0].text.endswith(option):
                break
            self.one(css).send_keys(Keys.ARROW_DOWN)
        self.one(css).send_keys(Keys.ENTER)
        self.wait(lambda: self.one(css).get_attribute("value") == option, option)

    def ask(self, question):
        from selenium.webdriver.common.by import By

        self.one("#question textarea").find_element(By.XPATH, ".").send_keys(question)
        self.click("#ask")

    def finished(self):
        return self.wait(lambda: self.all("#without")[0].is_enabled() and not self.all(".ecg-cursor"), "an answer")

    def words(self, css=".ecg-answer"):
        return self.wait(lambda: self.all(css)[-1].text, css)

    def kept_to(self, url):
        """Everything the browser asked for since the page was opened is of this address."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
        return asked and all(each.startswith((f"{url}/", "data:", "blob:")) for each in asked)

    def legible(self):
        """All text on the page has a contrast of 4.5 to what is behind it; what is switched off may have less."""
        faint = [(ratio, words) for ratio, words in self.run(CONTRASTS) if ratio < 4.5]
        assert faint == []

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
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found["chromedriver"]))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


@contextmanager
def opened(driver, shots, url):
    """A visitor of a page, who finds no error in the browser's console when he leaves."""
    visitor = Visitor(driver, shots)
    visitor.size("desk")
    visitor.prefer("light")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(url)
    yield visitor
    visitor.shot("last")
    assert [said["message"] for said in driver.get_log("browser") if said["level"] == "SEVERE"] == []


@pytest.fixture
def visitor(driver, url, tmp_path):
    with opened(driver, tmp_path, url) as visitor:
        visitor.one("#place-1 .example")
        yield visitor


@pytest.fixture
def guest(driver, guarded, model_server, tmp_path):
    """Who knows the password, if he is asked: a cookie lets him in after the first time."""
    model_server.requests.clear()
    with opened(driver, tmp_path, guarded) as guest:
        guest.wait(lambda: guest.all("#place-1 .example") or guest.all("input[type=password]"), "the page")
        if guest.all("input[type=password]"):
            guest.type("input[type=text]", "ecg")
            guest.type("input[type=password]", PASSWORD)
            guest.click("button")
            guest.one("#place-1 .example")
        yield guest


def test_an_example_is_shown_measured_and_asked_about(visitor):
    assert "Not a medical device" in visitor.one("#warning").text
    visitor.click("#place-1 .example")
    paper = visitor.one("#place-1 svg.ecg-paper")
    before = paper.size["width"]
    visitor.wait(lambda: "/min" in visitor.all("#place-1 .ecg-facts")[0].text, "the heart rate")
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
    files = [tmp_path / "<img src=x onerror=document.title=1>.hea", tmp_path / "x.dat"]
    files[0].write_text(
        "x 1 100 10\n../../../etc/passwd 16 200 16 0 0 0 0 <b>I</b>\n# <script>document.title=2</script>"
    )
    files[1].write_bytes(bytes(20))
    visitor.upload(*files)
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
    assert visitor.kept_to(url)
    kept = visitor.run("return JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie")
    assert not [words for words in ("remarkable", "s0000", "ecg-", "<svg") if words in kept], kept
    assert visitor.driver.execute_async_script(
        "const done = arguments[0]; indexedDB.databases().then(all => done(all.length))"
    ) == 0  # fmt: skip


# --- files of bare numbers --------------------------------------------------------------------------------------------


def test_bare_numbers_are_read_as_their_sender_says(guest, model_server, tmp_path):
    """The server is shown what was in the file, in mV."""
    signal = np.linspace(-0.9, 0.9, 12)[:, None] * np.sin(np.arange(1000) / 9 + 1) ** 2
    np.save(tmp_path / "a.npy", signal * 1000)
    np.savetxt(tmp_path / "b.csv", 2 * signal.T, delimiter=",", header=",".join(LEADS), comments="")
    form, problem = "#place-1 .words", "#place-1 .ecg-problem"

    def refused(words):
        guest.click(f"{form} .read")
        guest.wait(lambda: words in guest.all(problem)[0].text, words)
        assert not guest.all("#place-1 svg.ecg-paper")

    guest.upload(tmp_path / "a.npy")
    refused("sampling rate, units, names of the leads: not in a .npy file")
    guest.legible()
    guest.type(f"{form} .rate textarea", "5000")
    refused("a number from 50 to 2000 Hz")
    guest.type(f"{form} .rate textarea", "fast")
    refused("a number from 50 to 2000 Hz")
    guest.type(f"{form} .rate textarea", "100")
    guest.choose("Units", "mV")
    guest.type(f"{form} .leads textarea", "I, II")
    refused("does not fit 2 leads")
    guest.type(f"{form} .leads textarea", " ".join(LEADS))
    refused("mV")  # 900 of them
    guest.choose("Units", "uV")
    guest.click(f"{form} .read")
    assert "10 s, 100 Hz, 12 leads" in guest.words("#place-1 .ecg-title") and not guest.all(form)
    guest.click(".suggestion")
    guest.finished()
    assert guest.words().startswith(f"{np.float32(signal[0, 0]):g} ")

    guest.upload(tmp_path / "b.csv")
    assert guest.one(f"{form} .leads textarea").get_attribute("value") == ""
    guest.type(f"{form} .rate textarea", "200")
    guest.choose("Units", "mV")
    guest.click(f"{form} .read")
    guest.wait(lambda: "5 s, 200 Hz, 12 leads" in guest.all("#place-1 .ecg-title")[0].text, "the second file")
    guest.click(".suggestion")
    guest.finished()
    assert guest.words().startswith(f"{np.float32(2 * signal[0, 0]):g} ")


# --- the paper --------------------------------------------------------------------------------------------------------


def test_what_the_pointer_says_is_right(guest, tmp_path):
    """A block of 1 mV and 400 ms in V2, from 6 s on: its corners on the screen, by the rules of the paper."""
    from PIL import Image
    from selenium.webdriver import ActionChains

    signal = 0.3 * SyntheticCohort(1, fs=500)["s00000-1"].signal  # low: no lead runs into the block
    signal[LEADS.index("V2")] = 0
    signal[LEADS.index("V2"), 3000:3200] = 1
    write_wfdb(Ecg(signal, 500, LEADS, record_id="block"), tmp_path)
    guest.upload(tmp_path / "block.hea", tmp_path / "block.dat")
    guest.one("#place-1 svg.ecg-paper")
    ecg = Ecg(signal, 500, LEADS)

    def move(x, y):
        actions = ActionChains(guest.driver)
        actions.w3c_actions.pointer_action.move_to_location(x, y)
        return actions

    def measured(paper):
        """Hover over the corners of the block, and drag from one to the other."""
        drawing = paper.draw(ecg)
        [v2] = [segment for segment in drawing.segments if segment.lead == "V2"]
        guest.run("document.querySelector('[data-lead=V2]').scrollIntoView({block: 'center', inline: 'center'})")
        time.sleep(0.5)
        guest.run("document.activeElement.blur()")
        box = guest.run("return document.querySelector('#place-1 svg.ecg-paper').getBoundingClientRect()")
        scale = box["width"] / drawing.width  # pixels per mm
        assert scale == pytest.approx(box["height"] / drawing.height, rel=2e-3)
        corners = []
        for seconds, level in ((6.0, 0.0), (6.4, 1.0)):
            x = box["left"] + scale * (v2.x + (seconds - v2.start) * paper.speed)
            corners.append((round(x), round(box["top"] + scale * (v2.baseline - level * paper.gain))))
        guest.shot("block")
        screen = np.asarray(Image.open(guest.shots / "block.png").convert("L"))
        (x0, y0), (x1, y1) = corners
        assert screen[(y0 + y1) // 2, x0 - 1 : x0 + 2].min() < 170 > screen[y1 - 1 : y1 + 2, (x0 + x1) // 2].min()

        told = []
        for (x, y), seconds, level in ((corners[0], 6.0, 0.0), (corners[1], 6.4, 1.0)):
            move(x, y).perform()
            lead, ms, unit, mv, last = guest.words("#ecg-tip").split()
            assert (lead, unit, last) == ("V2", "ms", "mV")
            assert abs(int(ms) / 1000 - seconds) <= 0.51 / scale / paper.speed + 0.0006
            assert abs(float(mv) - level) <= 0.51 / scale / paper.gain + 0.006
            told.append((int(ms), float(mv)))
        move(x0, y0).click_and_hold().perform()
        move(x1, y1).perform()
        _, ms, _, rate, _, mv, _ = guest.words("#ecg-tip").split()
        assert guest.all("#ecg-box")[0].size == {"width": x1 - x0, "height": y0 - y1}
        assert abs(int(ms) - (told[1][0] - told[0][0])) <= 1
        assert abs(float(mv) - (told[1][1] - told[0][1])) <= 0.011
        assert abs(int(rate.removesuffix("/min")) - 60_000 / int(ms)) < 1
        ActionChains(guest.driver).release().perform()
        assert not guest.all("#ecg-box")
        return scale

    before = measured(Paper())
    for _ in range(2):
        guest.click("#place-1 [data-zoom='1']")
    assert measured(Paper()) == pytest.approx(before * 1.25**2, rel=0.01) and guest.fits()
    guest.click("#place-1 [data-zoom='0']")
    guest.choose("Speed (mm/s)", "50")
    guest.choose("Gain (mm/mV)", "20")
    guest.wait(lambda: guest.all("[data-mm-per-second='50'][data-mm-per-mv='20']"), "the other paper")
    measured(Paper(speed=50, gain=20))


# --- looks, keyboard and screen readers -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_everything_is_legible(guest, mode):
    guest.prefer(mode)
    guest.driver.refresh()
    guest.one("#place-1 .example")
    assert guest.run("return document.body.classList.contains('dark')") == (mode == "dark")
    guest.legible()
    guest.click("#place-1 .example")
    guest.wait(lambda: "/min" in guest.all("#place-1 .ecg-facts")[0].text, "the heart rate")
    guest.click(".suggestion")
    guest.finished()
    for button, column in (("#without", ".ecg-none"), ("#another", ".ecg-swap")):
        guest.click(button)
        guest.one(f".ecg-column{column}")
        guest.finished()
    guest.legible()
    guest.shot("answers")
    guest.click("#compare input")
    guest.one("#place-2 .example")
    assert [each.text for each in guest.all("#places h2")] == ["First ECG", "Second ECG"]
    guest.legible()


def test_keyboard_and_names_of_the_controls(guest):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(guest.driver).send_keys(*keys).perform()

    def here():
        return guest.run(
            "const e = document.activeElement; return e.ariaLabel || e.labels?.[0]?.innerText || e.innerText"
        ).strip()

    guest.one("#place-1 .example")
    guest.run("document.activeElement.blur()")
    press(Keys.TAB)
    assert here() == "Example 1"
    press(Keys.ENTER)
    guest.one("#place-1 svg.ecg-paper")
    seen = [here()]
    while seen[-1] != "Ask":
        assert len(seen) < 30, seen
        press(Keys.TAB)
        seen.append(here())
        if seen[-1] == "Question":
            press("Is it normal?", Keys.ENTER)
            guest.finished()
            assert guest.words(".ecg-question") == "Is it normal?" and here() == "Question"
    order = ["Example 1", "Upload", "zoom in", "Compare two ECGs", "Layout", "Gain (mm/mV)", "Question", "Ask"]
    assert [name for name in seen if name in order] == order

    guest.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = guest.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and any(each["name"] == "focusable" for each in node.get("properties", []))
        and node["role"]["value"] != "RootWebArea"
    ]  # fmt: skip
    assert len(controls) > 18 and [role for role, name in controls if not name.strip()] == []


# --- a password, and a server -----------------------------------------------------------------------------------------


def test_nothing_without_the_password(driver, guarded, tmp_path):
    def status(path, body=None):
        request = urllib.request.Request(guarded + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    for path in (
        "config",
        "gradio_api/info",
        "gradio_api/queue/data?session_hash=a",
        "gradio_api/file=serve/page/page.css",
    ):
        assert status(f"/{path}")[0] == 401, path
    asked = json.dumps({"fn_index": 0, "data": [], "session_hash": "a"}).encode()
    for path in ("queue/join", "upload", "run/predict", "api/predict", "call/predict", "component_server"):
        assert status(f"/gradio_api/{path}", asked)[0] == 401, path
    code, page = status("/")
    assert code == 200 and "Compare two" not in page and "Example 1" not in page and PASSWORD not in page

    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    with opened(driver, tmp_path, guarded) as stranger:
        stranger.type("input[type=text]", "ecg")
        stranger.type("input[type=password]", "sinus")
        assert "user name is ecg" in stranger.one("body").text and stranger.fits()
        stranger.click("button")
        stranger.wait(lambda: "ncorrect" in stranger.one("body").text, "a word about the password")
        assert not stranger.all("#place-1")
        driver.get_log("browser")  # the refusal
        stranger.type("input[type=text]", "ecg")
        stranger.type("input[type=password]", PASSWORD)
        stranger.click("button")
        stranger.click("#place-1 .example")
        stranger.one("#place-1 svg.ecg-paper")
        assert stranger.kept_to(guarded)
        cookies = driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"]
        assert cookies and all(cookie["httpOnly"] for cookie in cookies if "token" in cookie["name"])


def test_a_server_answers_is_stopped_and_fails(guest, model_server):
    guest.click("#place-1 .example")
    guest.one("#place-1 svg.ecg-paper")
    model_server.gone.clear()
    model_server.endless = True
    guest.ask("Describe it.")
    first = guest.words()
    guest.wait(lambda: len(guest.words()) > len(first), "more of the answer")
    guest.wait(lambda: guest.run(OVERFLOWS, "#chat")[0], "more of it than its box holds")
    guest.click("#stop")
    assert model_server.gone.wait(PATIENCE), "the connection is still open"
    model_server.endless = False
    sent = model_server.sent
    guest.shot("stopped")
    guest.wait(lambda: "(stopped)" in guest.all(".ecg-answer")[-1].text, "the end of the answer")
    chat, below = guest.one("#chat").rect, guest.one("#without").rect
    assert chat["y"] + chat["height"] <= below["y"]
    guest.wait(lambda: guest.run(OVERFLOWS, "#chat") == [True, True], "its end, in sight")

    guest.ask("And now?")
    guest.finished()
    assert guest.words().endswith("user:And now?") and sent < model_server.sent
    model_server.failure = 503
    guest.ask("Still there?")
    guest.wait(lambda: "because of 503" in guest.all(".ecg-problem")[-1].text, "why not")
    model_server.failure = None
    model_server.socket.close()  # nobody listens any more
    guest.ask("Are you there?")
    said = guest.wait(lambda: [each.text for each in guest.all(".ecg-problem") if "no answer" in each.text], "why not")
    assert "Is the server running?" in said[0] and "Traceback" not in said[0]
