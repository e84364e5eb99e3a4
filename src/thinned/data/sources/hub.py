"""Public data sets by name: TensorFlow Datasets and Hugging Face ``datasets``, both optional."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thinned.core.config import DataConfig
from thinned.core.disk import cache_folder
from thinned.core.errors import RequestError
from thinned.core.types import Dataset, LeftOut
from thinned.data.decode import Header, decode, or_reason, read_header
from thinned.data.files import (
    SplitName,
    class_name,
    class_order,
    dataset_of,
    form_for,
    in_parallel,
    manner,
    refuse_lost_test,
    state_of,
)
from thinned.data.pack import open_pack, write_pack
from thinned.data.sources.folder import SPLITS
from thinned.data.sources.table import LABELS

_SAMPLE = 256
Parts = dict[SplitName, Any]
"""Split -> what a library gives for it."""


class _Row(NamedTuple):
    """One example: an image file's content or path, or in words why there is none."""

    split: SplitName
    content: bytes | Path | str
    label: int


@dataclass(frozen=True)
class _Found:
    """What a library has under a name.

    Attributes:
        version: changes with the data.
        classes: names of the classes.
        rows: begins to read all examples, always in the same order.
    """

    version: str
    classes: tuple[str, ...]
    rows: Callable[[], Iterator[_Row]]


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
            # Images stay the files that they were, so that all are decoded by one set of rules.
            raw = {"image": tfds.decode.SkipDecoding()}
            wanted = _kinds(features, where)
            sources: Parts = {
                SPLITS[split]: builder.as_data_source(split, decoders=raw)
                for split in builder.info.splits
                if split in SPLITS and wanted
            }
        except RequestError:
            raise
        except Exception as error:
            raise RequestError(f"{where} cannot be read: {_line(error)}") from error
        if not sources:
            raise RequestError(
                f"{where} is not prepared in {builder.data_dir}: run tfds build {builder.name} "
                "--file_format=array_record"
            )
        classes = tuple(map(str, features["label"].names))
        examples = _Found(
            _state(Path(builder.data_dir)), classes, lambda: _records(sources, classes)
        )
        return _joined(self.name, where, examples, self.options, self.seed)


def _kinds(features: Any, where: str) -> bool:
    held = _held(features)
    for name, kind in (("image", "Image"), ("label", "ClassLabel")):
        if name not in features or type(features[name]).__name__ != kind:
            raise RequestError(f"{where} has no {name} of kind {kind}: it has {held}")
    return True


def _state(folder: Path) -> str:
    """Changes with the files of a prepared data set."""
    return repr([(file.name, state_of(file)) for file in sorted(folder.glob("*"))])


def _records(sources: Parts, classes: tuple[str, ...]) -> Iterator[_Row]:
    known = {label: label for label in range(len(classes))}
    for split, source in sources.items():
        for index in range(len(source)):
            try:
                example = source[index]
            except Exception as error:
                # One record by its number: a damaged one does not end the reading of the others.
                yield _Row(split, f"damaged record: {_line(error)}", -1)
                continue
            yield _row(split, example["image"], int(example["label"]), known)


@dataclass(frozen=True)
class HuggingFace:
    """A data set of the Hugging Face hub, or a local folder or Parquet file in its formats.

    The image is the first column of kind Image; the label the first of kind ClassLabel, else a
    column of integers or of text that is named label, class, category or target.

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
                given = library.load_dataset("parquet", data_files=str(path))
            else:
                given = library.load_dataset(self.target)
            parts: Parts = {SPLITS[split]: part for split, part in given.items() if split in SPLITS}
            features: dict[str, Any] = next(iter(given.values())).features
            version = repr(sorted((split, part._fingerprint) for split, part in parts.items()))
        except Exception as error:
            raise RequestError(f"{where} cannot be read: {_line(error)}") from error
        image, label = _image_column(features, where), _label_column(features, where)
        known, classes = _coded(parts, label, features[label])
        raw = library.Image(decode=False)

        def rows() -> Iterator[_Row]:
            for split, part in parts.items():
                for example in part.select_columns([image, label]).cast_column(image, raw):
                    yield _row(split, _content(example[image]), example[label], known)

        examples = _Found(version, classes, rows)
        return _joined(self.name, where, examples, self.options, self.seed)


def _content(held: Mapping[str, Any] | None) -> bytes | Path | str:
    if held is None or (held["bytes"] is None and held["path"] is None):
        return "there is no image"
    return Path(held["path"]) if held["bytes"] is None else held["bytes"]


def _coded(parts: Parts, label: str, feature: Any) -> tuple[Mapping[Any, int], tuple[str, ...]]:
    """Label in the data -> index of its class, and the names of the classes."""
    if type(feature).__name__ == "ClassLabel":
        return {code: code for code in range(len(feature.names))}, tuple(feature.names)
    values = {value for part in parts.values() for value in part.unique(label)} - {None}
    names = {value: class_name(str(value)) for value in values}
    classes = tuple(sorted(set(names.values()), key=class_order))
    code = {name: index for index, name in enumerate(classes)}
    return {value: code[name] for value, name in names.items()}, classes


def _row(
    split: SplitName, content: bytes | Path | str, label: Any, known: Mapping[Any, int]
) -> _Row:
    if label in known:
        return _Row(split, content, known[label])
    lacks = "there is no label" if label is None else f"label {label} is none of the data set's"
    return _Row(split, content if isinstance(content, str) else lacks, -1)


def _joined(name: str, where: str, examples: _Found, options: DataConfig, seed: int) -> Dataset:
    """Pack all examples, at the size of the first few hundred where none is asked for."""

    def rows() -> Iterator[_Row]:
        try:
            yield from examples.rows()
        except Exception as error:
            raise RequestError(f"{where} cannot be read: {_line(error)}") from error

    size, channels = _form(itertools.islice(rows(), _SAMPLE), where, options)
    named = repr((where, examples.version, manner(size, channels, options.fit)))
    folder = cache_folder() / hashlib.sha256(named.encode()).hexdigest()[:32]
    labels: list[int] = []
    splits: list[str] = []

    def noted() -> Iterator[_Row]:
        for row in rows():
            labels.append(row.label)
            splits.append(row.split)
            yield row

    def one(row: _Row) -> np.ndarray | str:
        if isinstance(row.content, str):
            return row.content
        return or_reason(decode, row.content, size, channels, options.fit)

    pack = open_pack(folder) or write_pack(
        folder,
        (*size, channels),
        enumerate(in_parallel(one, noted())),
        {"labels": labels, "splits": splits},
    )
    kept_splits = np.asarray(pack.beside["splits"], str)[pack.kept]
    refuse_lost_test(where, pack.beside["splits"], set(kept_splits.tolist()))
    left_out = tuple(LeftOut(f"{where}[{i}]", why) for i, why in pack.reasons.items())
    return dataset_of(
        name,
        where,
        pack.images,
        np.asarray(pack.beside["labels"], np.int32)[pack.kept],
        kept_splits,
        examples.classes,
        options,
        seed,
        left_out,
    )


def _form(rows: Iterator[_Row], where: str, options: DataConfig) -> tuple[tuple[int, int], int]:
    if options.size is not None and options.channels is not None:
        return (options.size, options.size), options.channels
    contents = [row.content for row in rows if not isinstance(row.content, str)]
    headers = [or_reason(read_header, content) for content in contents]
    held = [header for header in headers if isinstance(header, Header)]
    if not held:
        raise RequestError(f"{where} has no readable image in a split for training or testing")
    return form_for(
        {header.size for header in held}, all(header.is_grey for header in held), options
    )


def _image_column(features: Mapping[str, Any], where: str) -> str:
    for name, feature in features.items():
        if type(feature).__name__ == "Image":
            return name
    raise RequestError(f"{where} has no column of kind Image: it has {_held(features)}")


def _label_column(features: Mapping[str, Any], where: str) -> str:
    for name, feature in features.items():
        if type(feature).__name__ == "ClassLabel":
            return name
    for name, feature in features.items():
        kind = str(getattr(feature, "dtype", ""))
        if name.lower() in LABELS and re.fullmatch(r"u?int\d+|(large_)?string|bool", kind):
            return name
    raise RequestError(
        f"{where} has no column of kind ClassLabel, nor one of integers or text that is named "
        f"{' or '.join(LABELS)}: it has {_held(features)}"
    )


def _held(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f"{extra}: needs {module}: install it with pip install 'thinned[{extra}]' "
            f"({_line(error)})"
        ) from error


def _line(error: BaseException) -> str:
    """The first sentence of what a library says, which may be a page."""
    text = " ".join(str(error).split())
    return re.split(r"(?<=\w[.!])\s", text, maxsplit=1)[0][:200] or type(error).__name__
