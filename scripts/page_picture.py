"""Draw docs/page.gif: python scripts/page_picture.py http://127.0.0.1:8000 (of thinned serve RUN).

Needs Chromium and pip install playwright.
"""

from __future__ import annotations

import io
import itertools
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent.parent / "docs" / "page.gif"
SIZE = {"width": 720, "height": 600}
SEVEN = [(80, 80), (250, 80), (150, 270)]
ONE_OR_SEVEN = [(120, 120), (190, 75), (190, 270)]
SCRIBBLE = [(60 + 210 * (step % 2), 60 + 42 * step) for step in range(6)]
COLOURS = 48
SHORT_MS, LONG_MS = 120, 1800


def frame(page: Page) -> Image.Image:
    page.locator("#output[aria-busy=false]").wait_for()
    # The bars glide for an eighth of a second.
    page.wait_for_timeout(200)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def drawn(page: Page, points: list[tuple[int, int]], parts: int) -> list[Image.Image]:
    box = page.locator("#pad").bounding_box()
    assert box is not None
    scale = box["width"] / 336
    places = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in points]
    page.get_by_role("button", name="Clear").click()
    page.mouse.move(*places[0])
    page.mouse.down()
    frames = []
    for (x, y), (to_x, to_y) in itertools.pairwise(places):
        for part in range(1, parts + 1):
            page.mouse.move(x + (to_x - x) * part / parts, y + (to_y - y) * part / parts, steps=3)
            frames.append(frame(page))
    page.mouse.up()
    page.mouse.move(0, 0)
    return [*frames, frame(page)]


def main(address: str) -> None:
    frames, times = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.get_by_text("Draw, and watch it think.").wait_for()
        for points, parts in ((SEVEN, 4), (ONE_OR_SEVEN, 3), (SCRIBBLE, 1)):
            part = drawn(page, points, parts)
            frames += part
            times += [SHORT_MS] * (len(part) - 1) + [LONG_MS]
        browser.close()
    palette = [image.quantize(COLOURS, dither=Image.Dither.NONE) for image in frames]
    palette[0].save(
        OUT, save_all=True, append_images=palette[1:], duration=times, loop=0, optimize=True
    )
    print(f"{OUT}: {len(frames)} pictures, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
