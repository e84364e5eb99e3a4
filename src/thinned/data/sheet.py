"""Sheets of small pictures with a caption for each row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thinned.core.errors import ThinnedError, printable

_SIDE, _GAP, _CAPTION, _LETTERS = 64, 4, 16, 12


def write_sheet(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a PNG with a row of pictures under each caption.

    Args:
        rows: caption -> u8 [image, height, width, 1 or 3]; enlarged or shrunk to 64 pixels. Where
            the font lacks letters of a caption, codes stand there, after the number of its row.
        path: of the file.

    Raises:
        ThinnedError: the file cannot be written.
    """
    columns = max((len(images) for images in rows.values()), default=0)
    width = _GAP + max(columns, 4) * (_SIDE + _GAP)
    height = _GAP + len(rows) * (_CAPTION + _SIDE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, images) in enumerate(rows.items()):
        top = _GAP + index * (_CAPTION + _SIDE + _GAP)
        draw.text((_GAP, top), _legible(caption, index), fill="black", font_size=_LETTERS)
        for column, image in enumerate(images):
            sheet.paste(_tile(image), (_GAP + column * (_SIDE + _GAP), top + _CAPTION))
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise ThinnedError(f"cannot write {path}: {error.strerror or error}") from error


def _legible(caption: str, index: int) -> str:
    """The caption; or the row's number and its characters' codes where the font lacks some."""
    font: Any = ImageFont.load_default(_LETTERS)
    caption = printable(caption)
    missing = bytes(font.getmask("\U0010ffff"))
    if any(bytes(font.getmask(letter)) == missing for letter in caption):
        return f"{index}: {caption.encode('ascii', 'backslashreplace').decode()}"
    return caption


def _tile(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    # Small images are enlarged without smoothing: single pixels are worth seeing.
    method = Image.Resampling.NEAREST if max(picture.size) < _SIDE else Image.Resampling.BICUBIC
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, method).convert("RGB")
