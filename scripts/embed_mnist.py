"""Make the files of src/thinned/data/embedded from the four original files of MNIST.

    python scripts/embed_mnist.py ../shared/data/mnist

Prints the digest that `thinned.data.sources.mnist` checks.
"""

import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

from thinned.data.sources.idx import IdxFolder

TARGET = Path(__file__).parent.parent / "src" / "thinned" / "data" / "embedded"


def pack(name: str, content: bytes) -> None:
    # Pixels are bytes without alignment: position bits would only blur the statistics.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]
    packed = lzma.compress(content, filters=filters)
    (TARGET / name).write_bytes(packed)
    print(f"{name}: {len(content):,} -> {len(packed):,} bytes")


def main() -> None:
    mnist = IdxFolder(Path(sys.argv[1])).load()
    splits = (mnist.train, mnist.test)
    pixels = b"".join(split.images.tobytes() for split in splits)
    labels = b"".join(split.labels.astype(np.uint8).tobytes() for split in splits)
    TARGET.mkdir(exist_ok=True)
    pack("mnist-pixels.xz", pixels)
    pack("mnist-labels.xz", labels)
    print("digest", hashlib.sha256(pixels + labels).hexdigest())


if __name__ == "__main__":
    main()
