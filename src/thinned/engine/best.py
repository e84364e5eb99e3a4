"""Which epoch is the best by validation, and when to stop for want of a better: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thinned.core.config import Config
from thinned.core.errors import RequestError
from thinned.core.types import Dataset
from thinned.engine.metrics import Totals


@dataclass(frozen=True)
class Best:
    """The best epoch so far; its text is for people.

    Attributes:
        epoch: from 1.
        step: steps done at its end.
        by: what was compared, ``accuracy`` or ``nll`` (nats per image), of validation images.
        value: of that.
    """

    epoch: int
    step: int
    by: str
    value: float

    def __str__(self) -> str:
        """Which epoch, and why."""
        return f"epoch {self.epoch}, the best on validation ({self.by} {self.value:.4f})"


def better(best: Best | None, config: Config, epoch: int, step: int, found: Totals) -> Best | None:
    """The best epoch once another has ended; of equals the earlier.

    A value that is not finite is never the best.

    Args:
        best: the best of the epochs before.
        config: says by what they are compared; by nothing, and `best` stays.
        epoch, step: of the one that has ended.
        found: its sums over the validation images.
    """
    by = config.keep_best
    if by == "no":
        return best
    value = found.accuracy if by == "accuracy" else found.mean_loss
    rises = best is None or (value > best.value if by == "accuracy" else value < best.value)
    return Best(epoch, step, by, value) if rises and math.isfinite(value) else best


def waited_enough(best: Best | None, config: Config, epochs: int) -> bool:
    """Whether so many epochs have ended without a better one that training stops early.

    Args:
        best: the best epoch so far.
        config: says how many that are, if any (Prechelt 1998, the criterion UP).
        epochs: how many have ended.
    """
    since = epochs - (best.epoch if best else 0)
    return config.patience is not None and since >= config.patience


def refuse_blind(config: Config, dataset: Dataset) -> None:
    """Refuse to choose by validation images that there are not.

    Raises:
        RequestError: says how to have some.
    """
    if config.keep_best != "no" and not dataset.validation:
        raise RequestError(
            f"--keep-best {config.keep_best} chooses by validation images, and there are none: "
            "give --data.validation N"
        )
