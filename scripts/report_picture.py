"""A picture of a report or a study's page: python scripts/report_picture.py PAGE OUT.webp [CARD].

Its first screen, and below it the card with that heading, cut off after two rows of pictures.
docs/my-photos.webp: of `thinned report runs/photos`, "The worst mistakes"; docs/study.webp: of a
study's report.html. Needs Chromium and pip install playwright.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, MARGIN, ROWS = 1100, 16, 2
ALONE = """([heading, rows]) => {
  const cards = [...document.querySelectorAll('.card')];
  const kept = cards.find(card => card.querySelector('h2').textContent === heading);
  for (const card of cards) if (card !== kept) card.remove();
  for (const title of document.querySelectorAll('main > h2')) title.remove();
  const last = kept ?? document.querySelector('.lead');
  const tiles = [...last.querySelectorAll('.tile')];
  const tops = [...new Set(tiles.map(tile => tile.offsetTop))];
  for (const tile of tiles) if (tops.indexOf(tile.offsetTop) >= rows) tile.remove();
  return last.getBoundingClientRect().bottom;
}"""


def main(report: Path, out: Path, heading: str) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        bottom = page.evaluate(ALONE, [heading, ROWS])
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": round(bottom) + MARGIN}
        shot = page.screenshot(full_page=True, clip=clip)
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").save(out, quality=80, method=6)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
