"""Pages for people: one HTML file with nothing outside itself, figures by matplotlib."""

from __future__ import annotations

import html
import io
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from thinned.core.disk import whole, write_whole
from thinned.core.errors import ThinnedError, need

INK = "#010203"
"""A colour that becomes the page's own, light or dark."""
_FIGURE_WIDTH = 6.4
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #6663; --link: #0b57d0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --soft: #9996; --link: #8ab4f8 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
figure { margin: 0 } figure svg { width: 100%; height: auto }
figcaption { font-size: .875rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--soft) }
th:first-child, td:first-child { text-align: left }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem }
.tile { width: 6.5rem; font-size: .75rem; line-height: 1.25 }
.tile img { width: 100%; image-rendering: pixelated; border: 1px solid var(--soft) }
pre { overflow-x: auto; padding: .75rem; border: 1px solid var(--soft); font-size: .8rem }
@media print { body { max-width: none } figure, .tile, tr { break-inside: avoid }
  details::details-content { content-visibility: visible; block-size: auto } }
"""


def write_page(out: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page, whole or not at all.

    Args:
        out: the HTML file.
        title: plain text.
        parts: pieces of HTML, one below the other.

    Raises:
        ThinnedError: the file cannot be written.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    write_whole(out, page)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; all cells are plain text."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def plain(text: str) -> str:
    """A name as text in a figure: matplotlib reads formulas between $, and hides a leading _."""
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")


def _matplotlib() -> tuple[Any, Any]:
    """Matplotlib and its figures; no window or notebook of pyplot's plays a part."""
    need("matplotlib", "a figure", "report")
    fresh = "matplotlib" not in sys.modules
    # A backend that it does not know would be an error, though nothing here asks for any.
    backend = os.environ.pop("MPLBACKEND", "")
    try:
        import matplotlib as mpl
        from matplotlib import figure
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend
    if fresh and backend:
        # For the notebook that set it.
        with suppress(ValueError):
            mpl.rcParams["backend"] = backend
    return mpl, figure


class Plots:
    """Figures by matplotlib, as SVG that takes the page's own colour.

    Args:
        folder: where to write each as SVG and PNG, too; None for nowhere.
        later: whether to write them only when `write_files` is called.

    Raises:
        RequestError: matplotlib is missing.
        ThinnedError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, later: bool = False) -> None:
        self._mpl, self._figure = _matplotlib()
        self._folder = folder
        self._later = later
        self._files: dict[Path, bytes] = {}
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ThinnedError(f"cannot make folder {folder}: {error.strerror}") from error

    def draw(
        self, name: str, caption: str, paint: Callable[[Any], None], height: float = 4.0
    ) -> str:
        """A figure element; `paint` gets the axes."""
        with self._sheet(paint, height) as sheet:
            buffer = io.StringIO()
            sheet.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            if self._folder is not None:
                for kind in ("svg", "png"):
                    self._files[self._folder / f"{name}.{kind}"] = _bytes_of(sheet, kind)
        if not self._later:
            self.write_files()
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        # Ids are the same in every figure of matplotlib, but have to differ within a page.
        svg = svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
        svg = svg.replace('href="#', f'href="#{name}-')
        label = html.escape(caption)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        return f"<figure>{svg}<figcaption>{label}</figcaption></figure>"

    def save(self, path: Path, kind: str, paint: Callable[[Any], None]) -> None:
        """Write a figure to a file of that kind, ``svg`` or ``png``."""
        with self._sheet(paint, 4.0) as sheet:
            sheet.savefig(path, format=kind, facecolor="white", dpi=150)

    def write_files(self) -> None:
        """Write the files of what was drawn, each whole or not at all.

        Raises:
            ThinnedError: one cannot be written.
        """
        for path, content in self._files.items():
            with whole(path) as draft:
                draft.write_bytes(content)
        self._files.clear()

    @contextmanager
    def _sheet(self, paint: Callable[[Any], None], height: float) -> Generator[Any]:
        inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        options = {
            "svg.fonttype": "none",
            "svg.hashsalt": "thinned",
            "font.family": "sans-serif",
            "font.size": 11,
            **dict.fromkeys(inks, INK),
        }
        with self._mpl.rc_context(options):
            sheet = self._figure.Figure((_FIGURE_WIDTH, height), layout="constrained")
            axes = sheet.add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
            paint(axes)
            yield sheet


def _bytes_of(sheet: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    sheet.savefig(buffer, format=kind, facecolor="white", dpi=150)
    return buffer.getvalue()
