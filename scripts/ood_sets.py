"""Images that a classifier of digits does not know, and digits without one class, as .npz files.

    python scripts/ood_sets.py OUT [--fonts /usr/share/fonts] [--left-out 9]

Writes, to be named with `thinned evaluate RUN --ood` and `thinned train --data`:

  letters.npz     the letters A to J, drawn in every font of FONTS whose name has "Sans", "Serif" or
                  "Mono" in it, 28 x 28, white on black, scaled and centred as MNIST's digits are
  without.npz     MNIST without the digit that is left out, split as it is
  left-out.npz    that digit's test images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thinned.data.sources.load import open_source

LETTERS = "ABCDEFGHIJ"
SIDE, INNER = 28, 20


def drawn(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """A letter scaled into 20 x 20 and put so that its centre of mass is the middle of 28 x 28."""
    large = Image.new("L", (200, 200))
    ImageDraw.Draw(large).text((40, 20), letter, 255, font)
    box = large.getbbox()
    if box is None:
        raise ValueError(f"{font.path} draws nothing for {letter}")
    part = large.crop(box)
    scale = INNER / max(part.size)
    size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
    small = np.asarray(part.resize(size, Image.Resampling.BOX), float)
    rows, columns = np.indices(small.shape)
    middle = [(axis * small).sum() / small.sum() for axis in (rows, columns)]
    out = np.zeros((SIDE, SIDE), np.uint8)
    corner = [
        int(np.clip(round((SIDE - 1) / 2 - at), 0, SIDE - length))
        for at, length in zip(middle, small.shape, strict=True)
    ]
    out[corner[0] : corner[0] + size[1], corner[1] : corner[1] + size[0]] = small
    return out


def letters(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    names = ("Sans", "Serif", "Mono")
    files = sorted(
        path
        for path in folder.rglob("*.ttf")
        if any(word in path.name for word in names) and not path.name.startswith("NotoSans")
    )
    if not files:
        raise SystemExit(f"{folder} holds no such font: install fonts-dejavu, fonts-liberation")
    fonts = [ImageFont.truetype(str(path), 120) for path in files]
    images = [drawn(letter, font) for letter in LETTERS for font in fonts]
    print(f"{len(LETTERS)} letters in {len(fonts)} fonts")
    return np.stack(images), np.repeat(np.arange(len(LETTERS)), len(fonts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    parser.add_argument("--left-out", type=int, default=9)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images, labels = letters(arguments.fonts)
    np.savez_compressed(arguments.out / "letters.npz", images=images, labels=labels)
    mnist, split = open_source().load(), {}
    for name, part in (("train", mnist.train), ("test", mnist.test)):
        kept = np.asarray(part.labels) != arguments.left_out
        split[f"{name}_images"] = np.asarray(part.images)[kept]
        split[f"{name}_labels"] = np.asarray(part.labels)[kept]
    np.savez_compressed(arguments.out / "without.npz", **split)
    rows = np.asarray(mnist.test.labels) == arguments.left_out
    held = {"images": np.asarray(mnist.test.images)[rows], "labels": mnist.test.labels[rows]}
    np.savez_compressed(arguments.out / "left-out.npz", **held)


if __name__ == "__main__":
    main()
