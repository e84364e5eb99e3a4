"""The page in a real browser: drawn digits are read, scribbles are doubted."""

import shutil
from importlib.resources import files

import pytest
from digits import SAMPLES, nearest
from PIL import Image, ImageDraw
from served import running

from thinned.deploy.server import Model

sync = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
# fmt: off
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run")
# fmt: on
SEVEN = ((80, 80), (250, 80), (150, 270))
SCRIBBLE = tuple((60 + 210 * (step % 2), 60 + 42 * step) for step in range(6))


@pytest.fixture(scope="module")
def port():
    artifact = nearest()
    with running(Model(artifact, artifact.ways[-1])) as (port, *_):
        yield port


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, port):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    # On a busy machine the usual half a minute is not enough.
    page.set_default_timeout(120_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.faults.append(said.text))
    page.addresses = set()
    page.on("request", lambda request: page.addresses.add(request.url))
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_text("Draw, and watch it think.").wait_for()
    yield page
    assert not page.faults
    own = (f"http://127.0.0.1:{port}/", "data:", "blob:")
    assert all(address.startswith(own) for address in page.addresses)
    context.close()


def draw(page, points):
    box = page.locator("#pad").bounding_box()
    places = [
        (box["x"] + x * box["width"] / 336, box["y"] + y * box["width"] / 336) for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_a_seven_is_read_and_a_scribble_is_doubted(page):
    draw(page, SEVEN)
    page.locator(".verdict.sure strong", has_text="7").wait_for()
    rows = page.locator("#rows li")
    assert rows.count() == 10
    assert page.locator("#rows li.in").inner_text().startswith("7")
    assert page.locator("#rows li:nth-child(8) .dots").count() == SAMPLES
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Draw, and watch it think.").wait_for()
    assert rows.count() == 0
    draw(page, SCRIBBLE)
    page.locator(".verdict.doubt strong", has_text="know").wait_for()


def test_the_keyboard_draws(page):
    pad = page.get_by_role("application", name="Drawing area")
    pad.focus()
    page.keyboard.press(" ")
    for _ in range(11):
        page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    page.locator("#verdict strong").wait_for()
    assert "pen up" in page.locator("#pad").get_attribute("aria-label")
    assert page.locator("#rows li").count() == 10
    page.keyboard.press("Escape")
    page.get_by_text("Draw, and watch it think.").wait_for()


def test_a_file_is_read_and_an_unreadable_one_is_said_to_be(page, tmp_path):
    image = Image.new("L", (28, 28))
    ImageDraw.Draw(image).line(((8, 6), (20, 6), (13, 23)), 255, 2)
    image.save(tmp_path / "seven.png")
    page.locator("#file").set_input_files(tmp_path / "seven.png")
    page.locator("#verdict", has_text="7").wait_for()
    (tmp_path / "none.png").write_bytes(b"no image")
    page.locator("#file").set_input_files(tmp_path / "none.png")
    page.get_by_text("No answer").wait_for()
    # That the service said no is what the browser's console tells.
    page.faults = [fault for fault in page.faults if "422" not in str(fault)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_or_hard_to_use(browser, port, scheme):
    axe = (files("axe_core_python") / "axe.min.js").read_text()
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_text("Draw, and watch it think.").wait_for()
    page.evaluate(axe)
    for points, answer in (SEVEN, "sure"), (SCRIBBLE, "doubt"):
        draw(page, points)
        page.locator(f"#verdict.{answer} strong").wait_for()
        for width in (320, 768, 1400):
            page.set_viewport_size({"width": width, "height": 700})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = page.evaluate("axe.run()")
            faults = [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]]
            assert not faults, (points, width)
            assert len(found["passes"]) > 10
        page.get_by_role("button", name="Clear").click()
    page.close()
