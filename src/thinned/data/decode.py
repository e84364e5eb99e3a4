"""One image file to one array of a stated size: the rules, and what is refused.

Sizes, modes and orientations are brought to one form as follows. EXIF orientation is applied; of
animations the first frame is taken; palettes are looked up; transparency is laid on white; CMYK and
other colour spaces become RGB; 16-bit values keep their upper 8 bits, and wider integers are taken
for such; floats lie from 0 to 1, others are refused; grey is ITU-R 601 luma. What a value means
never depends on the others of its image. Then the image is resized with antialiasing (bicubic) so
that it covers the target and its centre is cropped, or so that it fits in and is padded with black.

Images of more than `LARGE_PIXELS` are unpacked one at a time, are brought to L or RGB in bands, and
are first reduced by averaging where they are many times larger than the target: the memory that
decoding takes is so bounded by a few large images' bytes, whatever a folder holds.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin

from thinned.core.errors import ThinnedError
from thinned.data import regular
from thinned.data.pack import Passing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
    )
) | {".tiff"}
# Named, because Pillow loads these two plugins only when it is asked for every format at once.
_PLUGINS = (TiffImagePlugin, WebPImagePlugin)
# What Pillow logs of a damaged file, it also raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
LARGEST_PIXELS = 100_000_000
"""Images of more pixels are refused before they are unpacked, whatever the file's own size."""

LONGEST_SIDE = 65_535
"""Likewise images of a longer side, which JPEG has as well: no photo is a line."""

LARGE_PIXELS = 10_000_000
"""Only one image of more pixels is unpacked at a time."""
_BAND_PIXELS = 1_000_000
# Bicubic filtering after averaging cannot be told from filtering alone if this much is left to it.
_LEFT_TO_FILTER = 4
_alone = threading.Lock()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Fit = Literal["crop", "pad"]
Size = tuple[int, int]
T = TypeVar("T")


class Unreadable(ThinnedError):
    """An image that cannot be used; its text is the reason."""


class Unavailable(Unreadable):
    """An image that may be readable the next time: no permission, no memory, or vanished."""


def or_reason(read: Callable[..., T], *given: Any) -> T | str:
    """What `read` makes of `given`, or why it is unreadable: one bad file stops no others."""
    try:
        return read(*given)
    except Unavailable as error:
        return Passing(error)
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
            # PNG keeps EXIF behind its pixels: asking for it would unpack the image. TIFF's size is
            # that after orientation already.
            turned = image.format not in ("PNG", "TIFF") and image.getexif().get(0x0112, 1) in (
                5,
                6,
                7,
                8,
            )
        except Exception as error:
            raise _unreadable(error) from error
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
    _refuse_size(image)
    large = image.width * image.height > LARGE_PIXELS
    try:
        with _alone if large else nullcontext():
            if image.format in ("JPEG", "MPO"):
                # Decoded at an eighth to a half of the size where that is still large enough.
                image.draft(None, (2 * size[1], 2 * size[0]))
            # PNG keeps EXIF behind its pixels, and is asked for it only now.
            image.load()
            turn = _TURNS.get(image.getexif().get(0x0112, 1))
            plain = _reduced(image, max(size), channels) if large else _plain(image, channels)
            return _fitted(plain if turn is None else plain.transpose(turn), size, fit)
    except Exception as error:
        raise _unreadable(error) from error


def from_array(array: np.ndarray, size: Size, channels: int, fit: Fit = "crop") -> np.ndarray:
    """An image u8 [height, width, channel of 1 or 3] brought to another size or channel count."""
    mode = "L" if array.shape[2] == 1 else "RGB"
    image = Image.fromarray(array[..., 0] if mode == "L" else array, mode)
    return _fitted(_plain(image, channels), size, fit)


class _Patient:
    """A file of which no more than 100,000 single bytes are asked.

    So Pillow looks for the next part of a JPEG, and through whatever lies in between.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._left = 100_000

    def read(self, count: int = -1) -> bytes:
        if count == 1:
            self._left -= 1
            if self._left < 0:
                raise Unreadable("too many bytes between its parts")
        return self._raw.read(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


@contextmanager
def _opened(file: Path | bytes) -> Generator[Image.Image]:
    try:
        raw = io.BytesIO(file) if isinstance(file, bytes) else regular(file).open("rb")
    except Exception as error:
        raise _unreadable(error) from error
    with raw:
        try:
            image = Image.open(cast(IO[bytes], _Patient(raw)), formats=FORMATS)
        except Exception as error:
            raise _unreadable(error) from error
        with image:
            _refuse_size(image)
            yield image


def _refuse_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > LARGEST_PIXELS or pixels == 0:
        why = "no pixels" if pixels == 0 else f"more than {LARGEST_PIXELS:,} pixels"
        raise Unreadable(f"{image.width} x {image.height}: {why}")
    if max(image.size) > LONGEST_SIDE:
        why = f"a side of more than {LONGEST_SIDE:,} pixels"
        raise Unreadable(f"{image.width} x {image.height}: {why}")


def _reduced(image: Image.Image, side: int, channels: int) -> Image.Image:
    """The image in mode L or RGB, averaged down to no less than a few times `side`."""
    factor = max(1, min(image.size) // (_LEFT_TO_FILTER * side))
    size = (-(-image.width // factor), -(-image.height // factor))
    reduced = Image.new("L" if channels == 1 else "RGB", size)
    rows = factor * max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        reduced.paste(_plain(band, channels).reduce(factor), (0, top // factor))
    return reduced


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """The image, or a part of one, in mode L or RGB."""
    if image.mode == "F":
        image = _of_floats(image)
    elif image.mode == "I" or image.mode.startswith("I;"):
        image = _of_integers(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") and channels == 1 else "RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _of_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise Unreadable(f"pixels from {low} to {high}: more than the 16 bits that are read")
    return Image.fromarray((values >> 8).astype(np.uint8), "L")


def _of_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.all(np.isfinite(values)):
        raise Unreadable("pixels are NaN or infinite")
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        # Scaled by its own maximum, a dark image would look like a bright one.
        raise Unreadable(
            f"pixels from {low:g} to {high:g}: floats must lie from 0 to 1; divide all images by "
            "the largest value that any can have"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8), "L")


def _fitted(image: Image.Image, size: Size, fit: Fit) -> np.ndarray:
    height, width = size
    if (image.height, image.width) != size:
        bicubic = Image.Resampling.BICUBIC
        method: Any = ImageOps.fit if fit == "crop" else ImageOps.pad
        image = cast(Image.Image, method(image, (width, height), method=bicubic))
    array = np.asarray(image, np.uint8)
    return array.reshape(height, width, -1)


def _unreadable(error: Exception) -> Unreadable:
    # What the system says of a file has a number; what Pillow says of its content has none.
    passing = isinstance(error, OSError) and error.errno is not None
    if isinstance(error, MemoryError):
        return Unavailable("too large for the memory")
    return (Unavailable if passing else Unreadable)(_reason(error))


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
