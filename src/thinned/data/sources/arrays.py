"""Images and labels as arrays: from Python, and from ``.npz`` files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.core.types import Dataset
from thinned.data import read_only
from thinned.data.decode import from_array
from thinned.data.files import dataset_of
from thinned.data.sources.idx import LARGEST_BYTES

_NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "validation": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
    "": (("images", "labels"), ("x", "y")),
}


@dataclass(frozen=True)
class Arrays:
    """Arrays that are in memory already.

    Attributes:
        parts: split (train, validation, test; or empty: set apart by the seed) -> images, labels.
            Images [n, height, width] or [n, height, width, 1 or 3]: u8; integers 0 to 255;
            booleans; or floats in [0, 1], rounded to u8. Labels [n]: integers from 0, or strings.
        options: size, channels and the like; `DataConfig()` leaves images as they are.
        seed: chooses test images where none are named.
        classes: names of the classes; by default the labels themselves.
        name: of the dataset.
    """

    parts: dict[str, tuple[Any, Any]]
    options: DataConfig
    seed: int = 0
    classes: tuple[str, ...] | None = None
    name: str = "arrays"

    def load(self) -> Dataset:
        """Check and join them.

        Raises:
            RequestError: arrays of another kind, or that do not fit together.
        """
        unknown = [part for part in self.parts if part not in _NAMES]
        if unknown or not self.parts:
            raise RequestError(
                f"{self.name}: parts are {', '.join(map(repr, unknown)) or 'missing'}; expected "
                "train and perhaps validation and test, or '' for one part to be split"
            )
        images = {part: as_images(given[0], self._at(part)) for part, given in self.parts.items()}
        named, classes = _labels({part: given[1] for part, given in self.parts.items()}, self.name)
        for part, array in images.items():
            if len(array) != len(named[part]):
                raise RequestError(
                    f"{self._at(part)} has {len(array)} images but {len(named[part])} labels"
                )
        shapes = {array.shape[1:] for array in images.values()}
        if len(shapes) > 1 and self.options.size is None:
            raise RequestError(
                f"{self.name}: splits have images of {' and '.join(map(str, sorted(shapes)))} "
                "(height, width, channel): give --data.size"
            )
        if self.classes is not None:
            if len(self.classes) < len(classes):
                raise RequestError(
                    f"{self.name}: {len(self.classes)} class names for labels up to "
                    f"{len(classes) - 1}"
                )
            classes = self.classes
        formed = [fit_arrays(array, self.options) for array in images.values()]
        splits = np.concatenate([np.full(len(named[part]), part) for part in images])
        joined = formed[0] if len(formed) == 1 else np.concatenate(formed)
        labels = np.concatenate([named[part] for part in images])
        return dataset_of(
            self.name, self.name, joined, labels, splits, classes, self.options, self.seed
        )

    def _at(self, part: str) -> str:
        return f"{self.name}: {part or 'images'}"


@dataclass(frozen=True)
class Npz:
    """A ``.npz`` file: ``images`` and ``labels``, or those of each split, as Keras or MedMNIST do.

    Names read: x_train, y_train, x_val, y_val, x_test, y_test; train_images, train_labels,
    val_images, ...; images, labels; x, y; and classes. Pickles inside are never opened.
    """

    path: Path
    options: DataConfig
    seed: int

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def load(self) -> Dataset:
        """Read the arrays.

        Raises:
            RequestError: the file is damaged, holds pickles, or lacks arrays of known names.
        """
        held = read_npz(self.path)
        parts: dict[str, tuple[Any, Any]] = {}
        for part, choices in _NAMES.items():
            for images, labels in choices:
                if images in held and labels in held:
                    parts[part] = (held[images], held[labels])
        if not parts:
            raise RequestError(
                f"{self.path} holds {', '.join(held) or 'nothing'}: expected images and labels, or "
                "x_train, y_train, x_test, y_test"
            )
        classes = tuple(map(str, held["classes"].ravel())) if "classes" in held else None
        named = Arrays(parts, self.options, self.seed, classes, str(self.path)).load()
        return replace(named, name=self.name)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file.

    Raises:
        RequestError: it cannot be read, is damaged, too large, or holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            promised = sum(member.file_size for member in archive.infolist())
        if promised > LARGEST_BYTES:
            raise RequestError(f"{path} promises {promised:,} bytes: more than can be held")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        if "pickle" in str(error):
            raise RequestError(
                f"{path} holds Python objects, which are never opened: save plain arrays"
            ) from error
        raise RequestError(f"{path} is damaged: {' '.join(str(error).split())[:100]}") from error
    except RequestError:
        raise
    except Exception as error:
        # Damaged archives fail in as many ways as zipfile, zlib and NumPy know.
        raise RequestError(f"{path} is no whole .npz file: {error}") from error


def as_images(given: Any, where: str) -> np.ndarray:
    """Anything like images as u8 [n, height, width, 1 or 3], read-only.

    Raises:
        RequestError: says what is wrong and what is expected.
    """
    array = _array(given, f"{where}: images")
    if array.dtype == object:
        raise RequestError(f"{where}: images are Python objects; all need one shape and a number")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise RequestError(
            f"{where}: images have shape {array.shape}; expected [n, height, width] or "
            "[n, height, width, 1 or 3]"
        )
    if 0 in array.shape:
        raise RequestError(f"{where}: no images, or images without pixels: shape {array.shape}")
    if array.shape[3] not in (1, 3):
        hint = ": channels come last" if array.shape[1] in (1, 3) else ""
        raise RequestError(f"{where}: images have {array.shape[3]} channels, not 1 or 3{hint}")
    return read_only(np.ascontiguousarray(_bytes(array, where)).view())


def fit_arrays(images: np.ndarray, options: DataConfig) -> np.ndarray:
    """Images brought to the size and the channels that are asked for, if any."""
    height, width, channels = images.shape[1:]
    size = (height, width) if options.size is None else (options.size, options.size)
    wanted = options.channels or channels
    if size == (height, width) and wanted == channels:
        return images
    return np.stack([from_array(image, size, wanted, options.fit) for image in images])


def _bytes(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise RequestError(f"{where}: images are {array.dtype}, not numbers from 0 to 255")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer):
        if low < 0 or high > 255:
            raise RequestError(f"{where}: pixels go from {low} to {high}; expected 0 to 255")
        return array.astype(np.uint8)
    if np.isnan(low):
        raise RequestError(f"{where}: some pixels are NaN; expected floats from 0 to 1 (or u8)")
    if not (low >= 0 and high <= 1):
        raise RequestError(
            f"{where}: floats go from {low:g} to {high:g}; expected 0 to 1 (or u8 from 0 to 255)"
        )
    return np.rint(array * 255).astype(np.uint8)


def _array(given: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RequestError(f"{what} are no array of one shape: {reason}") from error


def _labels(given: dict[str, Any], where: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels i32 of each part, and the names of the classes."""
    arrays = {part: _array(labels, f"{where}: labels") for part, labels in given.items()}
    for part, array in arrays.items():
        if array.ndim == 2 and array.shape[1] == 1:
            arrays[part] = array[:, 0]
        elif array.ndim != 1:
            raise RequestError(f"{where}: labels have shape {array.shape}; expected one per image")
    if len({array.dtype.kind == "U" for array in arrays.values()}) > 1:
        raise RequestError(f"{where}: labels are text in one part and numbers in another")
    every = np.concatenate(list(arrays.values()))
    if every.dtype.kind == "U":
        classes, codes = np.unique(every, return_inverse=True)
        cuts = np.cumsum([len(array) for array in arrays.values()])[:-1]
        pieces = np.split(codes.astype(np.int32), cuts)
        return dict(zip(arrays, pieces, strict=True)), tuple(map(str, classes))
    if not np.issubdtype(every.dtype, np.integer):
        raise RequestError(f"{where}: labels are {every.dtype}; expected integers or strings")
    if not every.size or every.min() < 0 or every.max() > 100_000:
        span = f"{every.min()} to {every.max()}" if every.size else "missing"
        raise RequestError(f"{where}: labels are {span}; expected integers from 0")
    names = tuple(str(label) for label in range(int(every.max()) + 1))
    return {part: array.astype(np.int32) for part, array in arrays.items()}, names
