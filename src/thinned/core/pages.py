"""Pages for people: one HTML file with nothing outside itself, figures by matplotlib."""

from __future__ import annotations

import html
import io
import math
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
COLOURS = ("#1a7fc1", "#d55e00", "#00936b", "#b0559c", "#8a7400", "#e0457b", "#7563c9", "#7a7f87")
"""Of lines and bars: each stands out from white and from the dark page."""
_FIGURE = 4.6, 3.1
PRINTED = 6.4, 4.0
"""Inches of a figure with much in it, and of one in a file of its own."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --quiet: #565c65; --paper: #f4f5f7;
  --card: #fff; --line: #d6d9de; --link: #0b57d0; --shade: #1a7fc1; --warn: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --quiet: #a9afb8; --paper: #101214; --card: #1a1d21; --line: #363b42;
    --link: #8ab4f8; --shade: #4a9bd4; --warn: #ff8a80 }
}
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif }
main { max-width: 76rem; margin: 0 auto; padding: 1rem }
h1, h2, h3, p { margin: 0 0 .5rem; overflow-wrap: anywhere }
h1 { font-size: 1.15rem } h2 { font-size: 1.15rem } h3 { font-size: 1rem }
main > h2 { margin: 2rem 0 0; font-size: 1.4rem }
a { color: var(--link) }
.quiet, figcaption, caption { color: var(--quiet); font-size: .875rem }
.warn { color: var(--warn); font-weight: 600 }
.lead, .card { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1.25rem }
.lead { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
.lead .headline { font-size: 1.15rem } .headline strong { display: block; font-size: 2.6rem;
  line-height: 1.15; font-variant-numeric: tabular-nums }
.lead .verdict { font-size: 1.1rem }
.next { margin: 0; padding-left: 1.2rem } .next li { margin-bottom: .5rem }
.next code { display: block }
code { font-size: .85rem; overflow-wrap: anywhere }
.cards { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)) }
.card { min-width: 0 } .card.wide { grid-column: 1 / -1 }
.beside { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)) }
.flow { display: flex; flex-wrap: wrap; gap: 1rem 2rem } .flow > * { min-width: 0 }
figure { margin: 0; max-width: 34rem } figure svg { display: block; width: 100%; height: auto }
.scroll { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th { font-weight: 600 }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
.matrix table { font-size: .8rem; border-collapse: separate; border-spacing: 1px }
.matrix th, .matrix td { border: 0; padding: .15rem .3rem }
.matrix td { text-align: center; min-width: 1.6rem }
.few table { font-size: 1rem } .few td { min-width: 4rem; padding: .6rem }
.matrix th[scope=row] { position: sticky; left: 0; background: var(--card); white-space: nowrap }
.matrix thead th { vertical-align: bottom } .matrix thead th span { writing-mode: vertical-rl;
  transform: rotate(180deg); white-space: nowrap }
.matrix td[style] { background: color-mix(in srgb, var(--shade) var(--part), transparent) }
.matrix td.right { font-weight: 600 }
.matrix td[style], .bar { print-color-adjust: exact }
.tiles { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 45%), 1fr)) }
.tile { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere }
.tile img { display: block; width: 100%; image-rendering: pixelated; border-radius: .4rem;
  border: 1px solid var(--line); margin-bottom: .35rem }
.tile img.photo { image-rendering: auto; aspect-ratio: 1; object-fit: contain }
.tile p { margin: 0 }
.bar { display: flex; justify-content: space-between; gap: .3rem;
  padding: 0 .3rem; border-radius: .2rem; background: linear-gradient(to right,
  color-mix(in srgb, var(--shade) 40%, transparent) var(--part), transparent 0) }
.small { grid-template-columns: repeat(auto-fill, minmax(3rem, 1fr)); gap: .5rem }
summary { cursor: pointer; font-weight: 600; margin: .5rem 0 }
pre { overflow-x: auto; padding: .75rem; border: 1px solid var(--line); border-radius: .4rem;
  font-size: .8rem }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
@media print { :root { color-scheme: light; --ink: #000; --quiet: #333; --paper: #fff;
    --card: #fff; --line: #999; --shade: #bbb; --warn: #000 }
  main { max-width: none; padding: 0 } .scroll { overflow: visible }
  pre { white-space: pre-wrap; overflow-wrap: anywhere }
  figure, .tile, tr, .lead { break-inside: avoid } h2, h3 { break-after: avoid }
  .many { display: none }
  details::details-content { content-visibility: visible; block-size: auto } }
"""
"""Of every page of ours: light and dark, from a phone to a wide screen, and in print."""


def percent(part: float, digits: int = 0) -> str:
    """A part of one in per cent, which no line's end tears from its sign; "-" for NaN."""
    return "-" if math.isnan(part) else f"{100 * part:.{digits}f}\N{NO-BREAK SPACE}%"


def write_page(out: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page, whole or not at all.

    Args:
        out: the HTML file.
        title: plain text, for the window.
        parts: pieces of HTML, one below the other, with one ``h1`` among them.

    Raises:
        ThinnedError: the file cannot be written.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>" + "\n".join(parts) + "</main></body></html>\n"
    )
    write_whole(out, page)


def lead(
    title: str,
    headline: tuple[str, str],
    verdict: Sequence[str],
    steps: Sequence[tuple[str, str]],
    picture: str,
) -> str:
    """The first screen: the answer, a sentence or two of verdict, what to do next, a picture.

    Args:
        title: what this is about; plain text, as all but the picture.
        headline: the answer, large, and what stands below it.
        verdict: sentences.
        steps: what to do next, and the command for it; the command may be empty.
        picture: HTML.
    """
    large, below = map(html.escape, headline)
    items = "".join(
        f"<li>{html.escape(why)}"
        + (f" <code>{html.escape(command)}</code>" if command else "")
        + "</li>"
        for why, command in steps
    )
    following = f'<h2>Next</h2><ul class="next">{items}</ul>' if items else ""
    return (
        f'<header class="lead"><div><h1>{html.escape(title)}</h1>'
        f'<p class="headline"><strong>{large}</strong> {below}</p>'
        f'<p class="verdict">{html.escape(" ".join(verdict))}</p>{following}</div>'
        f"<div>{picture}</div></header>"
    )


def card(title: str, *parts: str, wide: bool = False) -> str:
    """A section with a heading (plain text); empty where all parts are."""
    if not any(parts):
        return ""
    kind = "card wide" if wide else "card"
    return f'<section class="{kind}"><h2>{html.escape(title)}</h2>{"".join(parts)}</section>'


def cards(*found: str) -> str:
    """Cards beside one another, as many as there is room for."""
    return f'<div class="cards">{"".join(found)}</div>'


def folded(title: str, *parts: str) -> str:
    """What is shown only when it is asked for, and in print."""
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; all cells are plain text, the first of each row its heading."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return scrolled(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", header[0]
    )


def scrolled(content: str, name: str, kind: str = "") -> str:
    """What may be wider than the page, in a place that a keyboard can scroll as well."""
    return (
        f'<div class="scroll {kind}" tabindex="0" role="group" aria-label="{html.escape(name)}">'
        f"{content}</div>"
    )


def text(content: str) -> str:
    """Plain text in lines, as it is."""
    return f'<pre tabindex="0">{html.escape(content)}</pre>'


def points(parts: Sequence[float], half: float) -> list[str]:
    """Parts of 1 as numbers of points, with as many decimals as their uncertainty leaves meaning.

    Args:
        parts: to be shown, as multiples of 1/100.
        half: half of the width of their interval; 0 or NaN where nothing is known of it.

    >>> points([0.92213, 0.9168, 0.9272], 0.0053)
    ['92.2', '91.7', '92.7']
    """
    known = half > 0
    digits = min(max(-math.floor(math.log10(100 * half)), 0), 4) if known else 2
    return [f"{100 * part:.{digits}f}" for part in parts]


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
        self,
        name: str,
        caption: str,
        paint: Callable[[Any], None],
        size: tuple[float, float] = _FIGURE,
    ) -> str:
        """A figure element; `paint` gets the axes, `size` is in inches."""
        with self._sheet(paint, size) as sheet:
            buffer = io.StringIO()
            sheet.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            self._keep(name, sheet)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        # Ids are the same in every figure of matplotlib, but have to differ within a page.
        svg = svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
        svg = svg.replace('href="#', f'href="#{name}-')
        label = html.escape(caption)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        return f"<figure>{svg}<figcaption>{label}</figcaption></figure>"

    def keep(self, name: str, paint: Callable[[Any], None], size: tuple[float, float]) -> None:
        """Write a figure that no page shows to the folder, if there is one."""
        if self._folder is not None:
            with self._sheet(paint, size) as sheet:
                self._keep(name, sheet)

    def _keep(self, name: str, sheet: Any) -> None:
        if self._folder is not None:
            for kind in ("svg", "png"):
                self._files[self._folder / f"{name}.{kind}"] = _bytes_of(sheet, kind)
        if not self._later:
            self.write_files()

    def save(self, path: Path, kind: str, paint: Callable[[Any], None]) -> None:
        """Write a figure to a file of that kind, ``svg`` or ``png``."""
        with self._sheet(paint, PRINTED) as sheet:
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
    def _sheet(self, paint: Callable[[Any], None], size: tuple[float, float]) -> Generator[Any]:
        inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        options = {
            "svg.fonttype": "none",
            "svg.hashsalt": "thinned",
            "font.family": "sans-serif",
            "font.size": 11,
            "axes.prop_cycle": self._mpl.cycler(color=COLOURS),
            **dict.fromkeys(inks, INK),
        }
        with self._mpl.rc_context(options):
            sheet = self._figure.Figure(size, layout="constrained")
            axes = sheet.add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
            paint(axes)
            yield sheet


def _bytes_of(sheet: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    sheet.savefig(buffer, format=kind, facecolor="white", dpi=150)
    return buffer.getvalue()
