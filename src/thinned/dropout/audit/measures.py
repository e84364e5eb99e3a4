"""The gates of a place, draw by draw, reduced to what the audit asks of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinned.dropout.audit.places import Factor, Place, gates_of, is_far, number_of

_PREFIX = 4096


@dataclass
class Measured:
    """What `draws` steps gave at one place.

    Attributes:
        statistics: f64 [draw], fraction dropped, or variance where nothing is exactly zero.
        of_variance: whether `statistics` are variances.
        means: f64 [draw, way], mean gate by each way to count the numbers that scale the data near
            the place, which may belong to it; NaN where it is not to be judged.
        expected: what one of these should be.
        prefixes: f32 [draw, element], the first gates.
        active: whether anything was changed at all.
        one_mask: whether all examples always had the same gates; None where there is no axis of
            examples.
        one_round: the kinds of those loops around it whose rounds all had the same gates.
    """

    statistics: np.ndarray
    of_variance: bool
    means: np.ndarray
    expected: float
    prefixes: np.ndarray
    active: bool
    one_mask: bool | None
    one_round: frozenset[str]

    @property
    def effective(self) -> tuple[float, float]:
        """Measured rate and its standard error."""
        mean = float(self.statistics.mean())
        error = float(self.statistics.std(ddof=1) / np.sqrt(len(self.statistics)))
        if self.of_variance:
            return mean / (1 + mean), error / (1 + mean) ** 2
        return mean, error

    @property
    def frozen(self) -> bool:
        """Whether every draw was the same."""
        return bool(np.all(self.prefixes == self.prefixes[0]))

    @property
    def repeated(self) -> bool:
        """Whether two draws were the same that hardly can be by chance."""
        rows = {row.tobytes() for row in self.prefixes}
        if len(rows) == len(self.prefixes):
            return False
        share = float(np.clip(self.prefixes == 0, 0, 1).mean())
        # Copies along axes count once: only the columns that differ from one another do.
        columns = len(np.unique(self.prefixes, axis=1).T)
        equal = columns * math.log(share**2 + (1 - share) ** 2 or 1e-300)
        pairs = len(self.prefixes) * (len(self.prefixes) - 1) / 2
        return math.log(pairs) + equal < math.log(1e-6)


@dataclass(frozen=True)
class Draw:
    """One step's gates at one place, reduced to what the questions need."""

    statistic: float
    of_variance: bool
    means: tuple[float, ...]
    expected: float
    prefix: np.ndarray
    active: bool
    one_mask: bool | None
    one_round: frozenset[str]

    @classmethod
    def of(
        cls, place: Place, kind: str, axis: int | None, batch: int, seen: dict[str, Any]
    ) -> Draw | None:
        """Of what was recorded in one run; None where the place was not reached.

        Args:
            place: the place.
            kind: what is dropped there, see `thinned.dropout.sites.Kind`.
            axis: along which examples lie, if any.
            batch: number of examples.
            seen: what was recorded.
        """
        gates = gates_of(place, seen)
        if gates is None:
            return None
        dropped = gates < 0.5 * gates.max() if kind == "concrete" else gates == 0
        of_variance = bool(not dropped.any() and gates.std() > 0)
        statistic = gates.var(dtype=np.float64) if of_variance else dropped.mean()
        ways, expected = _means(place, kind, gates, seen)
        return cls(
            statistic=float(statistic),
            of_variance=of_variance,
            means=ways,
            expected=expected,
            prefix=gates.ravel()[:_PREFIX].astype(np.float32),
            active=bool(dropped.any() or gates.std() > 0),
            one_mask=_one_mask(gates, axis, batch),
            one_round=frozenset(_one_round(place, gates, seen)),
        )


def axis_of_examples(shape: Sequence[int], batch: int) -> int | None:
    """The axis along which the examples of a batch lie, found by its length; None without one."""
    if batch in shape:
        return list(shape).index(batch)
    return 0 if shape and shape[0] and shape[0] % batch == 0 else None


def _one_mask(gates: np.ndarray, axis: int | None, batch: int) -> bool | None:
    if axis is None:
        return None
    rows = np.moveaxis(gates, axis + 1, 0).reshape(batch, -1)
    return bool(np.all(rows == rows[:1]))


def _one_round(place: Place, gates: np.ndarray, seen: dict[str, Any]) -> Iterable[str]:
    noise = seen[f"v{place.sites[0].operation.inputs[place.sites[0].noise].number}"]
    lead = noise.shape[: len(place.loops)]
    if math.prod(lead) != len(gates):
        return
    rounds = gates.reshape(*lead, -1)
    for number, loop in enumerate(place.loops):
        rows = np.moveaxis(rounds, number, 0)
        if len(rows) > 1 and np.all(rows == rows[:1]):
            yield loop


def _means(
    place: Place, kind: str, gates: np.ndarray, seen: dict[str, Any]
) -> tuple[tuple[float, ...], float]:
    """The mean gate, once for each way to count the numbers nearby; and what one should be."""
    flat = gates.reshape(len(gates), -1).astype(np.float64)
    judged = place.action in ("keep", "scale") and place.sites[0].operation.name not in (
        "and",
        "or",
    )
    if not judged:
        return (), 1.0
    if place.instead is not None:
        return _means_instead(place, 1 - flat.mean(1), seen), 0.0
    if place.action == "scale" and (flat.min() < 0) and abs(flat.mean()) < 0.5:
        return (), 1.0  # Noise around 0, which is to be added to something.
    if kind == "block":
        # Examples of which nothing is kept cannot be scaled up again.
        rows = gates.reshape(-1, *place.shape[:1], math.prod(place.shape[1:])).astype(np.float64)
        alive = rows.any(-1)
        counts = alive.sum(1)
        flat = ((rows.mean(-1) * alive).sum(1) / np.where(counts, counts, np.nan))[:, None]
    mean = np.nanmean(flat, 1)
    before = [_scales(place, list(place.before[:n]), seen) for n in range(len(place.before) + 1)]
    after = [_scales(place, list(place.after[:n]), seen) for n in range(len(place.after) + 1)]
    return tuple(
        float(np.mean(mean * one * two))
        for one, two in itertools.product(before, after)
        if one is not None and two is not None
    ), 1.0


def _scales(place: Place, factors: Sequence[Factor], seen: dict[str, Any]) -> np.ndarray | None:
    """The product of some numbers, f64 [round] or [1]; None where one is a shift."""
    product = np.ones(1)
    for factor in factors:
        if factor.name in ("add", "sub"):
            return None
        number = _over(number_of(factor.value, seen, len(place.loops)), product)
        product = _over(product, number) * (number if factor.name == "mul" else 1 / number)
    return product


def _over(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Numbers of outer rounds for each of the inner ones."""
    return np.repeat(one, len(two) // len(one)) if 1 < len(one) < len(two) else one


def _means_instead(place: Place, dropped: np.ndarray, seen: dict[str, Any]) -> tuple[float, ...]:
    """Means of results, of data of mean 0, whose dropped elements become another number."""
    assert place.instead is not None
    instead = number_of(place.instead, seen, len(place.loops))
    if is_far(float(np.max(np.abs(instead)))):
        return ()
    mean = dropped * instead
    found = [float(np.mean(mean))]
    for factor in place.after:
        number = number_of(factor.value, seen, len(place.loops))
        sign = {"add": number, "sub": -number}.get(factor.name)
        scale = number if factor.name == "mul" else 1 / number
        mean = mean * scale if sign is None else mean + sign
        found.append(float(np.mean(mean)))
    return tuple(found)


def gathered(draws: Sequence[Draw]) -> Measured:
    """All draws of one place together."""
    # A place that ever dropped exactly is judged by what it drops, in every draw.
    of_variance = all(draw.of_variance for draw in draws)
    statistics = [draw.statistic if draw.of_variance == of_variance else 0.0 for draw in draws]
    ways = min(len(draw.means) for draw in draws)
    size = min(draw.prefix.size for draw in draws)
    shared = [draw.one_mask for draw in draws]
    return Measured(
        statistics=np.asarray(statistics, np.float64),
        of_variance=of_variance,
        means=np.asarray([draw.means[:ways] for draw in draws], np.float64),
        expected=draws[0].expected,
        prefixes=np.stack([draw.prefix[:size] for draw in draws]),
        active=any(draw.active for draw in draws),
        one_mask=None if None in shared else all(shared),
        one_round=frozenset[str].intersection(*(draw.one_round for draw in draws)),
    )
