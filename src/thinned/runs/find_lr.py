"""The learning-rate range test: losses at rates that grow from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from thinned.core.config import Config
from thinned.core.disk import whole
from thinned.core.errors import RequestError
from thinned.core.pages import Plots
from thinned.core.validation import refuse_idle, validate
from thinned.engine.devices import use_compilation_cache
from thinned.engine.feed import feed_of
from thinned.engine.step import train_steps
from thinned.runs.features import shortened
from thinned.runs.prepare import Prepared

_SMOOTH = 0.9
_BLOWN = 4.0
_SETTLED = 10
"""Steps after which the moving average is one: before, it is the noise of the first losses."""


@dataclass(frozen=True)
class Curve:
    """Losses by learning rate.

    Attributes:
        rates: f64 [step], growing by the same factor at every step.
        losses: f64 [step], mean loss of each step's batch, in nats; cut where it blew up.
        smoothed: f64 [step], their exponential moving average, without the bias of its start.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest over the rate's logarithm."""
        # Behind the lowest loss it only rises, and the noise there could hide a last fall.
        start, lowest = self._start, self._lowest
        part = slice(start, max(lowest + 1, start + 3))
        slopes = np.gradient(self.smoothed[part], np.log(self.rates[part]))
        return float(self.rates[start + int(np.argmin(slopes))])

    @property
    def at_minimum(self) -> float:
        """The rate of the lowest smoothed loss, divided by 10: a common, bolder choice."""
        return float(self.rates[self._lowest] / 10)

    @property
    def _start(self) -> int:
        return max(min(_SETTLED, len(self.smoothed) - 3), 0)

    @property
    def _lowest(self) -> int:
        return self._start + int(np.argmin(self.smoothed[self._start :]))


def find_lr(config: Config, low: float = 1e-6, high: float = 10.0, steps: int = 200) -> Curve:
    """Train a fresh network for some steps, the learning rate growing geometrically.

    Smith (2017), "Cyclical learning rates for training neural networks", section 3.3; here the
    rate grows geometrically, as in fastai.

    Args:
        config: what would be trained; its own learning rate and schedule play no part.
        low, high: first and last rate, 0 < low < high.
        steps: how many rates are tried; it ends early where the smoothed loss is four times its
            lowest, or the loss is no number.

    Raises:
        RequestError: the rates are in no order, fewer than 20 steps, or the config allows no run.
    """
    if not 0 < low < high < float("inf"):
        raise RequestError(f"--low {low:g} and --high {high:g}: must be above 0 and in this order")
    if steps < 20:
        raise RequestError(f"--steps is {steps}: must be at least 20")
    config = validate(config)
    refuse_idle(config)
    use_compilation_cache()
    prepared = Prepared.of(config)
    built = prepared.built
    built, state, dataset = shortened(built, built.initial_state(), prepared.dataset)
    feed = feed_of(built.plan, dataset.train)
    rates = np.geomspace(low, high, steps)
    losses: list[float] = []
    while len(losses) < steps:
        done = len(losses)
        data, chunk, count = feed.fetch(done, min(steps - done, 16))
        own = np.full(len(chunk.order), high)
        own[:count] = rates[done : done + count]
        numbers = {**(chunk.numbers or {}), "learning_rate": jnp.asarray(own, jnp.float32)}
        chunk = chunk._replace(numbers=numbers)
        state, sums = train_steps(state, data, chunk, jnp.int32(count), built.augment)
        losses += (np.asarray(sums.loss) / np.maximum(sums.count, 1))[:count].tolist()
        if not np.all(np.isfinite(losses)) or _has_blown_up(losses):
            break
    bad = np.flatnonzero(~np.isfinite(losses))
    losses = losses[: bad[0]] if len(bad) else losses
    if len(losses) < 3:
        raise RequestError(f"the loss is no number at once: try a --low below {low:g}")
    return Curve(rates[: len(losses)], np.asarray(losses), _smoothed(losses))


def kind_of(path: Path) -> str:
    """``svg`` or ``png``, by the file's ending.

    Raises:
        RequestError: the ending is another.
    """
    kind = path.suffix.lower()[1:]
    if kind not in ("svg", "png"):
        raise RequestError(f"{path}: the picture must end in .svg or .png")
    return kind


def draw(curve: Curve, path: Path) -> None:
    """Write the curve as a picture, SVG or PNG by the file's ending.

    Raises:
        RequestError: matplotlib is missing, or the ending is another.
        ThinnedError: the file cannot be written.
    """
    kind = kind_of(path)

    def paint(axes: Any) -> None:
        axes.plot(curve.rates, curve.losses, color="C7", linewidth=0.7, label="loss of each batch")
        axes.plot(curve.rates, curve.smoothed, color="C0", label="smoothed")
        axes.axvline(curve.steepest, color="C1", label=f"steepest: {curve.steepest:.2g}")
        top = 1.2 * float(curve.smoothed[0])
        axes.set(xlabel="learning rate", ylabel="loss (nats)", xscale="log", ylim=(0, top))
        axes.legend(frameon=False)

    with whole(path) as draft:
        Plots(None).save(draft, kind, paint)


def _has_blown_up(losses: Any) -> bool:
    """Whether the loss is far above its lowest, both smoothed: single losses can be near 0."""
    settled = _smoothed(losses)[_SETTLED:]
    return len(settled) > 0 and bool(settled[-1] > _BLOWN * settled.min())


def _smoothed(losses: Any) -> np.ndarray:
    values, mean = np.asarray(losses, np.float64), 0.0
    out = np.empty(len(values))
    for index, value in enumerate(values):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        out[index] = mean / (1 - _SMOOTH ** (index + 1))
    return out
