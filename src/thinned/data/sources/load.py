"""Sources of data: one small protocol, one file each."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from thinned.core.config import Config, DataConfig
from thinned.core.errors import RequestError, printable
from thinned.core.types import Dataset
from thinned.data import enterable, regular
from thinned.data.decode import Header
from thinned.data.files import Unlearnable, headers
from thinned.data.sources.arrays import Npz
from thinned.data.sources.cifar import CifarFolder
from thinned.data.sources.folder import ImageFolder
from thinned.data.sources.hub import HuggingFace, Tfds
from thinned.data.sources.idx import IdxFolder
from thinned.data.sources.mnist import EmbeddedMnist
from thinned.data.sources.table import Table
from thinned.data.split import hold_out, limit


class Source(Protocol):
    """Something that can be loaded as a dataset.

    A further source is one file with one such class, and one line in `open_source`.
    """

    @property
    def name(self) -> str:
        """A short name for people and for run folders."""
        ...

    def load(self) -> Dataset:
        """Read everything.

        Raises:
            RequestError: the data cannot be read or do not fit together.
        """
        ...


def open_source(data: DataConfig | Path | str | None = None, seed: int = 0) -> Source:
    """The source that ``--data.path`` names.

    Args:
        data: the path, or None for the MNIST inside the package; with options how to read it.
        seed: chooses test images where the data name none, and ``data.split_seed`` is None.

    Raises:
        RequestError: there is no such file or folder, or it is of no kind that is read.
    """
    if not isinstance(data, DataConfig):
        data = DataConfig(path=None if data is None else str(data))
    seed = seed if data.split_seed is None else data.split_seed
    if data.path is None:
        return EmbeddedMnist()
    if printable(data.path) != data.path:
        raise RequestError(
            f"data {printable(data.path)} cannot be saved in a run: rename it, without control "
            "characters and in UTF-8"
        )
    for prefix, opened in (("tfds:", Tfds), ("hf:", HuggingFace)):
        if data.path.startswith(prefix):
            return opened(data.path.removeprefix(prefix), data, seed)
    path = Path(data.path)
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError as error:
        raise RequestError(f"data {path} does not exist (neither file nor folder)") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot open data {path}: {reason}") from error
    return _open_folder(path, data, seed) if folder else _open_file(path, data, seed)


def decodes_files(source: Source) -> bool:
    """Whether a source decodes image files, so that any size can be asked of it without loss."""
    return isinstance(source, ImageFolder | Table | Tfds | HuggingFace)


def median_side(source: Source) -> float | None:
    """Median shorter side of a source's colour images, in pixels, by their headers.

    None where they are grey, or are no files to be decoded, or none can be read.

    Raises:
        RequestError: the source cannot be listed.
    """
    if not isinstance(source, ImageFolder | Table):
        return None
    looked_at = headers([entry.path for entry in source.entries()[0]])
    read = [header for header in looked_at if isinstance(header, Header)]
    if not read or all(header.is_grey for header in read):
        return None
    return float(np.median([min(header.size) for header in read]))


def _open_folder(path: Path, data: DataConfig, seed: int) -> Source:
    try:
        names = [entry.name for entry in enterable(path).iterdir()]
    except OSError as error:
        raise RequestError(f"cannot read folder {path}: {error.strerror or error}") from error
    if not names:
        raise RequestError(f"data folder {path} is empty")
    if any("-ubyte" in name for name in names):
        # No seed: the files say which images are tested on, so that runs of several share them.
        return IdxFolder(path, data)
    if CifarFolder.fits(names):
        return CifarFolder(path, data, seed)
    if "data_batch_1" in names or ("meta" in names and "train" in names):
        raise RequestError(
            f"{path} holds CIFAR as Python pickles, which are never opened: take the binary version"
        )
    return ImageFolder(path, data, seed)


def _open_file(path: Path, data: DataConfig, seed: int) -> Source:
    kinds: dict[str, Any] = {".npz": Npz, ".csv": Table, ".parquet": Table}
    if path.suffix.lower() in (".pkl", ".pickle", ".npy", ".pt", ".pth"):
        raise RequestError(
            f"{path}: {path.suffix} files are not read; save an .npz of plain arrays"
        )
    if path.suffix.lower() not in kinds:
        raise RequestError(f"{path} is a file, but no {', '.join(kinds)}: nothing else is read")
    try:
        return kinds[path.suffix.lower()](regular(path), data, seed)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error


def load_to_look_at(source: Source) -> Dataset:
    """What a source holds, even where nothing could be learned from it: as images of one class.

    Raises:
        RequestError: the data cannot be read or do not fit together.
    """
    try:
        return source.load()
    except Unlearnable as error:
        return error.dataset


def load_data(config: Config) -> Dataset:
    """The dataset that a config names, validation images held out.

    Raises:
        RequestError: the data cannot be read or do not fit together.
    """
    dataset = open_source(config.data, config.seed).load()
    if config.data.validation:
        dataset = hold_out(dataset, config.data.validation, config.split_seed)
    if config.data.limit is not None:
        dataset = limit(dataset, config.data.limit, config.split_seed)
    return dataset
