"""One image file to one array of a stated size: the rules, and what is refused.

Sizes, modes and orientations are brought to one form as follows. EXIF orientation is applied; of
animations the first frame is taken; palettes are looked up; transparency is laid on white; CMYK and
other colour spaces become RGB; 16-bit values keep their upper 8 bits; grey is ITU-R 601 luma. Then
the image is resized with antialiasing (bicubic) so that it covers the target and its centre is
cropped, or so that it fits in and is padded with black.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin

from thinned.errors import ThinnedError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif")
) | {".tiff"}
# Named, because Pillow loads these two plugins only when it is asked for every format at once.
_PLUGINS = (TiffImagePlugin, WebPImagePlugin)
# What Pillow logs of a damaged file, it also raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
LARGEST_PIXELS = 100_000_000
"""Images of more pixels are refused before they are unpacked, whatever the file's own size."""

Fit = Literal["crop", "pad"]
Size = tuple[int, int]
T = TypeVar("T")


class Unreadable(ThinnedError):
    """An image that cannot be used; its text is the reason."""


def or_reason(read: Callable[..., T], *given: Any) -> T | str:
    """What `read` makes of `given`, or why it is unreadable: one bad file stops no others."""
    try:
        return read(*given)
    except Unreadable as error:
        return str(error)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself, before anything is unpacked.

    Attributes:
        size: (height, width) after orientation.
        mode: Pillow's name of the mode, e.g. ``RGB`` or ``I;16``.
        format: of the file, e.g. ``JPEG``.
    """

    size: Size
    mode: str
    format: str

    @property
    def is_grey(self) -> bool:
        """Whether the image has one channel, apart from transparency."""
        return self.mode in ("1", "L", "LA", "La", "I", "F") or self.mode.startswith("I;")


def read_header(file: Path | bytes) -> Header:
    """The header of an image file.

    Raises:
        Unreadable: it is no image of a format that is read, or too large.
    """
    with _opened(file) as image:
        height, width = image.height, image.width
        try:
            # PNG keeps EXIF behind its pixels: asking for it would unpack the image.
            turned = image.format != "PNG" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise Unreadable(_reason(error)) from error
        size = (width, height) if turned else (height, width)
        return Header(size, image.mode, str(image.format))


def decode(file: Path | bytes, size: Size, channels: int, fit: Fit = "crop") -> np.ndarray:
    """An image file as an array.

    Args:
        file: its path, or its content.
        size: (height, width) of the result.
        channels: 1 for grey, 3 for RGB.
        fit: whether to crop what sticks out, or to pad what is missing.

    Returns:
        u8 [height, width, channel].

    Raises:
        Unreadable: with the reason.
    """
    with _opened(file) as image:
        return decode_image(image, size, channels, fit)


def decode_image(image: Image.Image, size: Size, channels: int, fit: Fit = "crop") -> np.ndarray:
    """An open image of Pillow as an array, see `decode`.

    Raises:
        Unreadable: with the reason.
    """
    try:
        if image.format in ("JPEG", "MPO"):
            # Decoded at an eighth to a half of the size where that is still large enough.
            image.draft(None, (2 * size[1], 2 * size[0]))
        turned = ImageOps.exif_transpose(image)
        return _fitted(_plain(turned, channels), size, fit)
    except Exception as error:
        raise Unreadable(_reason(error)) from error


def from_array(array: np.ndarray, size: Size, channels: int, fit: Fit = "crop") -> np.ndarray:
    """An image u8 [height, width, channel of 1 or 3] brought to another size or channel count."""
    mode = "L" if array.shape[2] == 1 else "RGB"
    image = Image.fromarray(array[..., 0] if mode == "L" else array, mode)
    return _fitted(_plain(image, channels), size, fit)


def _opened(file: Path | bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except Exception as error:
        raise Unreadable(_reason(error)) from error
    pixels = image.width * image.height
    if pixels > LARGEST_PIXELS or pixels == 0:
        image.close()
        why = "no pixels" if pixels == 0 else f"more than {LARGEST_PIXELS:,} pixels"
        raise Unreadable(f"{image.width} x {image.height}: {why}")
    return image


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") and channels == 1 else "RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        if not np.all(np.isfinite(values)):
            raise Unreadable("pixels are NaN or infinite")
        values = values * 255 if values.max() <= 1 else values
    elif values.max() > 255:
        values = values >> 8
    if values.min() < 0 or values.max() > 255:
        raise Unreadable(f"pixels from {values.min():g} to {values.max():g} cannot be scaled")
    return Image.fromarray(values.astype(np.uint8), "L")


def _fitted(image: Image.Image, size: Size, fit: Fit) -> np.ndarray:
    height, width = size
    if (image.height, image.width) != size:
        bicubic = Image.Resampling.BICUBIC
        method: Any = ImageOps.fit if fit == "crop" else ImageOps.pad
        image = cast(Image.Image, method(image, (width, height), method=bicubic))
    array = np.asarray(image, np.uint8)
    return array.reshape(height, width, -1)


def _reason(error: BaseException) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels for its size: a decompression bomb"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image of a format that is read (JPEG, PNG, WebP, BMP, GIF, TIFF)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:120] or type(error).__name__
