"""Write tests/data/damage_reference.npz: damaged images by the programs of those who defined them.

Run: python scripts/damage_reference.py FOLDER     (with opencv-python-headless and scikit-image)

FOLDER holds make_cifar_c.py and make_imagenet_c.py of github.com/hendrycks/robustness,
corruptions.py of github.com/google-research/mnist-c as mnist_c.py, and the package
imagecorruptions, whose motion blur stands in for ImageMagick's. ImageNet-C's program is run for
images of 32 pixels. Every third pixel is kept.
"""

import ast
import functools
import io
import math
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import skimage
import skimage.color
import skimage.feature
import skimage.filters
import skimage.transform
import skimage.util
from PIL import Image
from scipy import ndimage

from thinned.data.damage import CIFAR_10_C, MNIST_C

TARGET = Path(__file__).parent.parent / "tests" / "data" / "damage_reference.npz"
SEED = 5


class Random:
    """NumPy's old functions by the generator that we use, so that both draw the same."""

    def __init__(self):
        self.generator = np.random.default_rng(SEED)

    def __getattr__(self, name):
        return getattr(self.generator, {"randint": "integers"}.get(name, name))


class Numpy:
    """NumPy as it was."""

    float_, int = np.float64, int
    fromstring = staticmethod(np.frombuffer)

    def __init__(self, random):
        self.random = random

    def __getattr__(self, name):
        return getattr(np, name)


class MotionImage:
    """What of Wand's image is used."""

    def __init__(self, blob, blur):
        self.pixels, self.blur = np.asarray(Image.open(io.BytesIO(blob))), blur

    def motion_blur(self, radius, sigma, angle):
        # The package stops where the line leaves the image; ImageMagick goes on with the edge.
        wide = np.pad(self.pixels, [(48, 48)] * 2 + [(0, 0)] * (self.pixels.ndim - 2), "edge")
        blurred = self.blur(wide, radius, sigma, angle)[48:-48, 48:-48]
        self.pixels = np.rint(blurred).astype(np.uint8)

    def make_blob(self):
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return file.getvalue()


def gaussian(image, sigma, multichannel=False, **how):
    return skimage.filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **how)


def affine(scale=(1, 1), rotation=0, shear=0, translation=(0, 0)):
    """scikit-image's map up to 0.20; its shear has been another one since."""
    matrix = np.eye(3)
    matrix[0, :2] = scale[0] * np.cos(rotation), -scale[1] * np.sin(rotation + shear)
    matrix[1, :2] = scale[0] * np.sin(rotation), scale[1] * np.cos(rotation + shear)
    matrix[:2, 2] = translation
    return skimage.transform.AffineTransform(matrix=matrix)


def functions(path, names, *replaced):
    """The functions of a program, which see these names besides; none of its other lines runs."""
    source = path.read_text()
    for old, new in replaced:
        source = source.replace(old, new)
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    exec(compile(tree, str(path), "exec"), names)
    return names


def names_for(blur):
    random = Random()

    def random_noise(image, mode, amount):
        return skimage.util.random_noise(image, mode, rng=random.generator, amount=amount)

    sk = types.SimpleNamespace(
        color=skimage.color, util=types.SimpleNamespace(random_noise=random_noise)
    )
    transform = types.SimpleNamespace(AffineTransform=affine, warp=skimage.transform.warp)
    return {
        **{"np": Numpy(random), "sk": sk, "gaussian": gaussian, "transform": transform},
        **{"cv2": cv2, "Image": Image, "PILImage": Image, "BytesIO": io.BytesIO},
        **{"scizoom": ndimage.zoom, "map_coordinates": ndimage.map_coordinates},
        **{"MotionImage": functools.partial(MotionImage, blur=blur), "feature": skimage.feature},
    }


def images():
    """A colour image of 32 and a grey one of 28 pixels: light, dark, smooth, with edges."""
    random = np.random.default_rng(0)
    soft = ndimage.gaussian_filter(random.normal(size=(32, 32, 3)), (3, 3, 0))
    soft = (soft - soft.min()) / np.ptp(soft)
    soft[8:20, 10:14] = (0.9, 0.2, 0.1)
    grey = np.zeros((28, 28))
    grey[5:23, 9:12], grey[5:8, 9:20] = 1, 0.8
    grey = ndimage.gaussian_filter(grey, 0.6)
    # Too faint for an edge.
    grey[19:25, 19:25] = 0.05
    return (255 * soft).astype(np.uint8), (255 * grey).astype(np.uint8)


def damaged(defined, name, image, *severity):
    defined["np"].random.__init__()
    found = defined[name](Image.fromarray(image), *severity)
    return np.uint8(found)[::3, ::3]


def main(folder):
    package = functions(folder / "imagecorruptions" / "corruptions.py", {"np": np, "math": math})
    blur = package["_motion_blur"]
    colour, grey = images()
    found = {"colour": colour, "grey": grey}
    small = functions(folder / "make_cifar_c.py", names_for(blur))
    # What is said in pixels of the image becomes so of 32; what is said of 244 in proportion.
    shrunk = [("244", repr(244 / 7)), ("224", "32"), ("mapsize=256", "mapsize=32")]
    large = functions(folder / "make_imagenet_c.py", names_for(blur), *shrunk)
    # Frost is made of photographs, which are not here when tests run.
    for name in [each for each in CIFAR_10_C.kinds if each != "frost"]:
        for title, defined in (("CIFAR-10-C", small), ("ImageNet-C", large)):
            found[f"{title}/{name}"] = np.stack(
                [damaged(defined, name, colour, severity) for severity in range(1, 6)]
            )
    digits = functions(folder / "mnist_c.py", names_for(blur))
    # Its glass blur draws for each pixel by turns, which no generator of ours does.
    for name in set(MNIST_C.kinds) - {"glass_blur"}:
        found[f"MNIST-C/{name}"] = damaged(digits, name, grey)[None]
    np.savez_compressed(TARGET, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
