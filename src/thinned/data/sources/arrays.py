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
from thinned.data import LARGEST_BYTES, read_only
from thinned.data.decode import from_array
from thinned.data.files import MOST_CLASSES, class_name, dataset_of

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
        classes: names of the classes, of label 0 on; by default the labels themselves. Labels that
            are text are looked up in them.
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
        named, classes = _labels(
            {part: given[1] for part, given in self.parts.items()}, self.name, self.classes
        )
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
        families: dict[tuple[bool, int], str] = {}
        for part, choices in _NAMES.items():
            for family, (images, labels) in enumerate(choices):
                if images in held and labels in held:
                    parts[part] = (held[images], held[labels])
                    families.setdefault((part == "", family), images)
        if len(families) > 1:
            raise RequestError(
                f"{self.path} holds {' and '.join(families.values())}: which of them is meant "
                "cannot be told; keep one kind of names"
            )
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
    if array.dtype.kind not in "iuf":
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


def _labels(
    given: dict[str, Any], where: str, classes: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels i32 of each part, and the names of the classes."""
    arrays = {part: _plain_labels(labels, where) for part, labels in given.items()}
    if len({array.dtype.kind == "U" for array in arrays.values()}) > 1:
        raise RequestError(f"{where}: labels are text in one part and numbers in another")
    every = np.concatenate(list(arrays.values()))
    names = None if classes is None else tuple(map(class_name, classes))
    if every.dtype.kind == "U":
        values, places = np.unique(every, return_inverse=True)
        texts = [class_name(text) for text in values]
        names = names or tuple(sorted(set(texts)))
        codes = {name: label for label, name in enumerate(names)}
        unknown = [text for text in texts if text not in codes]
        if unknown:
            raise RequestError(f"{where}: label {unknown[0]} is none of the classes that are named")
        coded = np.asarray([codes[text] for text in texts], np.int32)[places]
        cuts = np.cumsum([len(array) for array in arrays.values()])[:-1]
        return dict(zip(arrays, np.split(coded, cuts), strict=True)), names
    if not every.size or every.min() < 0 or every.max() > MOST_CLASSES:
        span = f"{every.min()} to {every.max()}" if every.size else "missing"
        raise RequestError(f"{where}: labels are {span}; expected integers from 0")
    count = int(every.max()) + 1
    if names is not None and len(names) < count:
        raise RequestError(f"{where}: {len(names)} class names for labels up to {count - 1}")
    names = names or tuple(map(str, range(count)))
    return {part: array.astype(np.int32) for part, array in arrays.items()}, names


def _plain_labels(given: Any, where: str) -> np.ndarray:
    """Labels of one part as text or i64 [n], of whatever kind they came."""
    array = _array(given, f"{where}: labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise RequestError(f"{where}: labels have shape {array.shape}; expected one per image")
    held = {type(label) for label in array.tolist()} if array.dtype.kind in "OT" else set[type]()
    # So pandas gives text, and integers of a column that once held something else.
    if held and all(issubclass(kind, str) for kind in held):
        return np.asarray(array.tolist(), str)
    if held == {int}:
        array = np.asarray(array.tolist())
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    kinds = " and ".join(sorted(kind.__name__ for kind in held)) or str(array.dtype)
    raise RequestError(f"{where}: labels are {kinds}; expected integers or strings")
