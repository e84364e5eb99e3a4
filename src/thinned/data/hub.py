"""Public data sets by name: TensorFlow Datasets and Hugging Face ``datasets``, both optional."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thinned.config import DataConfig
from thinned.data.files import dataset_of, form_for
from thinned.data.folder import SPLITS
from thinned.data.images import decode_image, or_reason
from thinned.data.pack import cache_folder, write_pack
from thinned.errors import RequestError
from thinned.types import Dataset, LeftOut

_SAMPLE = 256


@dataclass(frozen=True)
class Tfds:
    """A prepared TFDS data set, read without TensorFlow: ``mnist``, or its version's folder.

    Attributes:
        target: name as TFDS knows it, e.g. ``mnist`` or ``cifar10:3.0.2``, or the folder of one
            prepared version (…/mnist/3.0.1), in the format array_record.
    """

    target: str
    options: DataConfig
    seed: int

    @property
    def name(self) -> str:
        """The data set's name."""
        path = Path(self.target)
        return path.resolve().parent.name if path.is_dir() else self.target.split(":")[0]

    def load(self) -> Dataset:
        """Read every example once and pack it.

        Raises:
            RequestError: TFDS is not installed, or has no such prepared data set of images.
        """
        tfds = _import("tensorflow_datasets", "tfds")
        where = f"tfds:{self.target}"
        try:
            if Path(self.target).is_dir():
                builder = tfds.builder_from_directory(self.target)
            else:
                builder = tfds.builder(self.target, file_format="array_record")
            features = builder.info.features
            sources = {
                SPLITS[split]: builder.as_data_source(split)
                for split in builder.info.splits
                if split in SPLITS
            }
        except Exception as error:
            raise RequestError(f"{where} cannot be read: {_line(error)}") from error
        if not sources:
            raise RequestError(
                f"{where} is not prepared in {builder.data_dir}: run tfds build {builder.name} "
                "--file_format=array_record"
            )
        if not {"image", "label"} <= set(features):
            raise RequestError(f"{where} has no image and label: it has {', '.join(features)}")
        classes = tuple(features["label"].names)
        rows = (
            (split, Image.fromarray(_squeezed(example["image"])), int(example["label"]))
            for split, source in sources.items()
            for example in source
        )
        return _joined(self.name, where, rows, classes, self.options, self.seed)


@dataclass(frozen=True)
class HuggingFace:
    """A data set of the Hugging Face hub, or a local folder or Parquet file in its formats.

    Attributes:
        target: name on the hub, e.g. ``ylecun/mnist``, or a path.
    """

    target: str
    options: DataConfig
    seed: int

    @property
    def name(self) -> str:
        """The last part of the name."""
        return Path(self.target).stem

    def load(self) -> Dataset:
        """Read every example once and pack it.

        Raises:
            RequestError: ``datasets`` is not installed, or there is no such data set of images.
        """
        library = _import("datasets", "hf")
        where, path = f"hf:{self.target}", Path(self.target)
        library.disable_progress_bars()
        try:
            if path.is_file():
                found = library.load_dataset("parquet", data_files=str(path))
            else:
                found = library.load_dataset(self.target)
            features: dict[str, Any] = next(iter(found.values())).features
        except Exception as error:
            raise RequestError(f"{where} cannot be read: {_line(error)}") from error
        image = _first(features, "Image", where)
        label = _first(features, "ClassLabel", where)
        classes = tuple(features[label].names)
        rows = (
            (SPLITS[split], example[image], int(example[label]))
            for split, part in found.items()
            if split in SPLITS
            for example in part
        )
        return _joined(self.name, where, rows, classes, self.options, self.seed)


def _joined(
    name: str,
    where: str,
    rows: Iterator[tuple[str, Any, int]],
    classes: tuple[str, ...],
    options: DataConfig,
    seed: int,
) -> Dataset:
    """Pack examples as they come, at the size of the first few hundred where none is asked for."""
    labels: list[int] = []
    splits: list[str] = []
    try:
        first = [row for _, row in zip(range(_SAMPLE), rows, strict=False)]
        size, channels = _form([row[1] for row in first], options)

        def images() -> Iterator[tuple[int, np.ndarray | str]]:
            for index, (split, image, label) in enumerate(itertools.chain(first, rows)):
                labels.append(label)
                splits.append(split)
                yield index, or_reason(decode_image, image, size, channels, options.fit)

        folder = cache_folder() / f"{name.replace('/', '-')}-{size[0]}x{size[1]}x{channels}"
        pack = write_pack(folder, (*size, channels), images())
    except RequestError:
        raise
    except OSError as error:
        raise RequestError(f"{where} cannot be read: {_line(error)}") from error
    left_out = tuple(LeftOut(f"{where}[{i}]", why) for i, why in pack.reasons.items())
    kept = pack.kept
    return dataset_of(
        name,
        where,
        pack.images,
        np.asarray(labels, np.int32)[kept],
        np.asarray(splits)[kept],
        classes,
        options,
        seed,
        left_out,
    )


def _form(images: list[Any], options: DataConfig) -> tuple[tuple[int, int], int]:
    if not images:
        raise RequestError("the data set has no examples in a split for training or testing")
    grey = all(image.mode in ("1", "L", "LA") for image in images)
    return form_for({(image.height, image.width) for image in images}, grey, options)


def _squeezed(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image


def _first(features: dict[str, Any], kind: str, where: str) -> str:
    for name, feature in features.items():
        if type(feature).__name__ == kind:
            return name
    held = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    raise RequestError(f"{where} has no column of kind {kind}: it has {held}")


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f"{extra}: needs {module}: install it with pip install 'thinned[{extra}]' "
            f"({_line(error)})"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
