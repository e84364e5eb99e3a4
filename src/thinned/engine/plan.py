"""What happens at each step of a run: a pure function of the config and the step's number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.config import Config
from thinned.core.rng import key_for, keys_below, permutation, stream_root
from thinned.core.types import Key
from thinned.dropout.bits import random_bits
from thinned.dropout.schedules import over_depth, schedule
from thinned.dropout.sites import INPUT, rates_collection
from thinned.engine.optim import numbers_at
from thinned.engine.step import Chunk

CHUNK_STEPS = 128
"""Steps in a compiled chunk at most; the loop asks for fewer, so that it can stop promptly."""


@dataclass(frozen=True)
class Plan:
    """The course of a run.

    Attributes:
        config: the run's config.
        train_size: number of training images.
        sites: the model's dropout sites whose rates are not learned, in their order: name -> the
            layer's own rate, where the config names none.
        augments: whether steps need keys of the stream `augment`.
        labels: i32 [example] of the training images, for balanced sampling; else None.
        views: how many varied views of the training images lie one after another; epochs take them
            in turn.
    """

    config: Config
    train_size: int
    sites: Mapping[str, float]
    augments: bool = False
    labels: np.ndarray | None = field(default=None, compare=False)
    views: int = 1

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; which images are left over changes with every order."""
        return self.train_size // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that a step (from 0) belongs to."""
        return step // self.steps_per_epoch + 1

    def chunk(self, step: int, count: int) -> tuple[Chunk, int]:
        """Everything that up to `count` steps from `step` on use, never past the epoch's end.

        Returns:
            A `Chunk` padded to `CHUNK_STEPS`, and how many of its steps are real.
        """
        first = step % self.steps_per_epoch
        count = min(count, CHUNK_STEPS, self.steps_per_epoch - first)
        epoch = self.epoch_of(step)
        view = self.train_size * ((epoch - 1) % self.views)
        rows = self._order(epoch)[first : first + count] + view
        order = np.zeros((CHUNK_STEPS, self.config.batch_size), np.int32)
        order[:count] = rows
        steps = step + np.arange(CHUNK_STEPS, dtype=np.uint32)
        chunk = Chunk(
            jax.device_put(order),
            self._keys(steps),
            rates_collection(self.rates_at(steps)),
            keys_below(self._augment_root, steps) if self.augments else None,
            jax.device_put(self._numbers(steps)),
        )
        return chunk, count

    @cached_property
    def _numbers(self) -> Callable[[np.ndarray], dict[str, Any]]:
        return numbers_at(self.config, self.steps_per_epoch)

    @cached_property
    def full_rates(self) -> dict[str, float]:
        """The rate of each site where the schedule's factor is 1."""
        dropout = self.config.dropout
        rates: dict[str, float] = {}
        for site, own in self.sites.items():
            rate = own if dropout.rate is None else dropout.rate
            if site == INPUT:
                rate = min(rate, dropout.input_rate)
            rates[site] = dropout.sites.get(site, rate)
        return over_depth(rates, tuple(rates)) if dropout.depth == "linear" else rates

    @cached_property
    def _schedule(self) -> Callable[[np.ndarray], Any]:
        dropout = self.config.dropout
        if dropout.schedule == "constant":
            # Nothing to compile, as every run would have to.
            return lambda steps: np.ones(steps.shape, np.float32)
        steps = max(round((dropout.schedule_epochs or 0) * self.steps_per_epoch), 1)
        start, end = dropout.schedule_from, dropout.schedule_to
        return jax.jit(schedule(dropout.schedule, steps, start, end))

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def rates_at(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """The rate of each site at steps [n], integers from 0; each f32 [n]."""
        factors = np.asarray(self._schedule(steps))
        return {site: np.float32(rate) * factors for site, rate in self.full_rates.items()}

    @cached_property
    def peak_rates(self) -> dict[str, float]:
        """The largest rate that each site has at any step of the run."""
        peak = float(np.max(self._schedule(np.arange(max(self.total_steps, 1)))))
        return {site: rate * peak for site, rate in self.full_rates.items()}

    def dropout_key(self, step: int) -> Key:
        """The key of the stream `dropout` at a step."""
        return self._keys(np.asarray([step], np.uint32))[0]

    def _keys(self, steps: np.ndarray) -> Key:
        root = self._root
        if self.config.randomness.dropout == "frozen":
            return jax.random.wrap_key_data(
                jnp.broadcast_to(jax.random.key_data(root), (len(steps), 2)),
                impl="threefry2x32",
            )
        return keys_below(root, steps)

    # What is kept must be a key, not a value of whatever is being traced.
    @cached_property
    def _root(self) -> Key:
        with jax.ensure_compile_time_eval():
            return stream_root(self.config.seed, "dropout", self.config.randomness.derivation)

    @cached_property
    def _augment_root(self) -> Key:
        with jax.ensure_compile_time_eval():
            return stream_root(self.config.seed, "augment")

    def _order(self, epoch: int) -> np.ndarray:
        """Rows of the training set for each step of an epoch, i32 [step, batch]."""
        seed, randomness = self.config.seed, self.config.randomness
        if randomness.shuffle == "frozen":
            key = stream_root(seed, "shuffle", randomness.derivation)
        else:
            key = key_for(seed, "shuffle", epoch, randomness.derivation)
        words = tuple(int(word) for word in jax.random.key_data(key))
        if self.labels is not None:
            if epoch not in self._orders:
                batch = self.config.batch_size
                self._orders.clear()
                self._orders[epoch] = _balanced(words, self.labels, self.steps_per_epoch, batch)
            return self._orders[epoch]
        return _batches(words, self.train_size, self.config.batch_size)


@lru_cache(maxsize=2)
def _batches(words: tuple[int, ...], size: int, batch: int) -> np.ndarray:
    key = jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32), impl="threefry2x32")
    steps = size // batch
    return permutation(key, size)[: steps * batch].reshape(steps, batch)


def _balanced(words: tuple[int, ...], labels: np.ndarray, steps: int, batch: int) -> np.ndarray:
    """Rows [step, batch] in which every class comes equally often.

    Each class goes through its images in one random order after another, so that none is repeated
    before all were seen; the classes are then mixed.
    """
    key = jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32), impl="threefry2x32")
    classes, counts = np.unique(labels, return_counts=True)
    total = steps * batch
    shares = total // len(classes) + (np.arange(len(classes)) < total % len(classes))
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows: list[np.ndarray] = []
    for turn in range(int(np.max(-(-shares // counts)))):
        draws = np.asarray(random_bits(jax.random.fold_in(key, turn), (len(labels),)))
        order = np.lexsort((draws, labels))
        for index, (count, share) in enumerate(zip(counts, shares, strict=True)):
            left = min(count, share - turn * count)
            if left > 0:
                rows.append(order[starts[index] : starts[index] + left])
    mixed = permutation(jax.random.fold_in(key, 2**31), total)
    return np.concatenate(rows)[mixed].astype(np.int32).reshape(steps, batch)
