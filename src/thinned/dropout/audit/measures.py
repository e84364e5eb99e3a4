"""The gates of a site, draw by draw, reduced to what the audit asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PREFIX = 4096


@dataclass
class Measured:
    """What `draws` steps gave at one site.

    Attributes:
        statistics: f64 [draw], fraction dropped, or variance where nothing is exactly zero.
        of_variance: whether `statistics` are variances.
        means: f64 [draw], mean gate; NaN where everything was dropped.
        expected: what the mean should be.
        prefixes: f32 [draw, element], the first gates.
        active: whether anything was changed at all.
        one_mask: whether all examples always had the same gates.
    """

    statistics: np.ndarray
    of_variance: bool
    means: np.ndarray
    expected: float
    prefixes: np.ndarray
    active: bool
    one_mask: bool

    @property
    def effective(self) -> tuple[float, float]:
        """Measured rate and its standard error."""
        mean = float(self.statistics.mean())
        error = float(self.statistics.std(ddof=1) / np.sqrt(len(self.statistics)))
        if self.of_variance:
            return mean / (1 + mean), error / (1 + mean) ** 2
        return mean, error


@dataclass(frozen=True)
class Draw:
    """One step's gates at one site, reduced to what the questions need."""

    statistic: float
    of_variance: bool
    mean: float
    expected: float
    prefix: np.ndarray
    active: bool
    one_mask: bool

    @classmethod
    def of(cls, kind: str, gates: np.ndarray) -> Draw:
        """Of f32 [example, ...] gates: what a layer of `kind` made of its probe."""
        flat = gates.reshape(len(gates), -1) if gates.ndim else gates.reshape(1, 1)
        expected = 0.0 if kind in ("alpha", "connect") else 1.0
        mean, dropped = float(flat.mean(dtype=np.float64)), flat == 0
        if kind == "alpha":
            values, counts = np.unique(flat, return_counts=True)
            repeated = counts.max() > 1
            dropped = flat == values[counts.argmax()] if repeated else np.zeros_like(dropped)
            flat = dropped.astype(np.float32)
        elif kind == "concrete":
            dropped = flat < 0.5 * flat.max()
        elif kind == "block":
            # Examples of which nothing is kept cannot be scaled up again.
            alive = flat[flat.any(1)]
            mean = float(alive.mean(dtype=np.float64)) if alive.size else float("nan")
        of_variance = bool(
            kind in ("gaussian", "connect") or (not dropped.any() and flat.std() > 0)
        )
        variance = flat.var(0, ddof=1).mean() if kind == "connect" else flat.var(dtype=np.float64)
        return cls(
            statistic=float(variance if of_variance else dropped.mean()),
            of_variance=of_variance,
            mean=mean,
            expected=expected,
            prefix=flat.ravel()[:_PREFIX].astype(np.float32),
            active=bool(dropped.any() or flat.std() > 0),
            one_mask=bool(np.all(flat == flat[:1])),
        )


def gathered(draws: Sequence[Draw]) -> Measured:
    """All draws of one site together."""
    # A site that ever dropped exactly is judged by what it drops, in every draw.
    of_variance = all(draw.of_variance for draw in draws)
    statistics = [draw.statistic if draw.of_variance == of_variance else 0.0 for draw in draws]
    return Measured(
        statistics=np.asarray(statistics, np.float64),
        of_variance=of_variance,
        means=np.asarray([draw.mean for draw in draws], np.float64),
        expected=draws[0].expected,
        prefixes=np.stack([draw.prefix for draw in draws]),
        active=any(draw.active for draw in draws),
        one_mask=all(draw.one_mask for draw in draws),
    )
