"""What a network has to know of its data, kept with the run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np

from thinned.core.config import Config, DataConfig
from thinned.core.types import Dataset, Split


@dataclass(frozen=True)
class Facts:
    """What a network has to know of its data; saved with the run, so that it predicts without them.

    Attributes:
        name: of the data set.
        classes: names of the classes, in the order of the labels.
        image_shape: (height, width, channel).
        train_size: number of training images.
        mean: of the training images in [0, 1], by channel; None where nothing is normalised.
        deviation: their standard deviation, by channel; None likewise.
        plain: see `thinned.core.types.Dataset`.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    train_size: int
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    plain: bool = False

    @classmethod
    def of(cls, dataset: Dataset, config: Config) -> Facts:
        """The facts of a loaded data set, its statistics among them where `config` wants them."""
        facts = cls(
            dataset.name,
            dataset.classes,
            tuple(dataset.train.images.shape[1:]),
            len(dataset.train),
            plain=dataset.plain,
        )
        wanted = config.data.normalise
        if wanted == "no" or (wanted == "auto" and dataset.plain):
            return facts
        mean, deviation = statistics_of(dataset.train)
        return replace(facts, mean=mean, deviation=deviation)

    def form_of(self, data: DataConfig) -> DataConfig:
        """Options that bring other, square images to the size and channels of these."""
        height, _, channels = self.image_shape
        return replace(data, size=height, channels=1 if channels == 1 else 3)

    def to_json(self) -> str:
        """As the text of ``data.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: the text is damaged.
        """
        values = json.loads(text)
        pair = (values["mean"], values["deviation"])
        mean, deviation = (
            None if statistic is None else tuple(map(float, statistic)) for statistic in pair
        )
        return cls(
            str(values["name"]),
            tuple(map(str, values["classes"])),
            tuple(map(int, values["image_shape"])),
            int(values["train_size"]),
            mean,
            deviation,
            bool(values["plain"]),
        )


def statistics_of(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images in [0, 1] by channel, read part by part.

    A deviation below 1/255 (a channel of one value) is taken as 1/255.
    """
    total = squares = np.zeros(split.images.shape[3])
    count = 0
    for part, _ in split.parts():
        pixels = part.reshape(-1, part.shape[3]).astype(np.float64) / 255
        total, squares = total + pixels.sum(0), squares + np.square(pixels).sum(0)
        count += len(pixels)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.maximum(deviation, 1 / 255).tolist())
