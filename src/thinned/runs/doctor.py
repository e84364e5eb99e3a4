"""The doctor: audits the dropout of a run or a config, and measures what it costs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.config import Config, load, validate
from thinned.core.errors import RequestError
from thinned.core.types import Bits, Dataset
from thinned.data.batch import Batch, as_float
from thinned.data.facts import Facts
from thinned.data.sources.load import load_data
from thinned.dropout.audit.checks import audit
from thinned.dropout.audit.findings import Audit, Check
from thinned.dropout.bits import random_bits
from thinned.dropout.masks import block_sizes, mask_shape, seed_shape
from thinned.dropout.sites import DropoutSpec, Site, rates_collection
from thinned.engine.build import (
    apply_of,
    build_model,
    example,
    initial_state,
    make_augment,
    make_plan,
    params_key,
    refuse_unfit,
    sites_of,
)
from thinned.engine.losses import cross_entropy
from thinned.engine.optim import adam
from thinned.engine.plan import Plan
from thinned.engine.step import Chunk, TrainState, create_state, train_steps
from thinned.runs.run import Run, on_device

AUDIT_EXAMPLES = 16
_ROUNDS = 31
_EXAMPLES = 4096
_ROUND_S = 0.1
_LEAST_STEPS, _MOST_STEPS = 20, 60
_WORSE = 2.0


def diagnose(target: Path | str, draws: int = 64) -> Audit:
    """Audit the network of a run, or of a config that was never run, with the keys of its steps.

    Args:
        target: a run folder, whose newest checkpoint is used, or a file of options.
        draws: how many training steps to measure, at least 8.

    Returns:
        The audit at the largest rates that the run's schedule reaches.

    Raises:
        RequestError: `target` is neither, or its options or data do not allow a run.
    """
    case = _Case.open(target)
    plan, variables = case.plan, dict(case.state.variables)
    if plan.peak_rates:
        variables["rates"] = rates_collection(plan.peak_rates)
    found = audit(
        build_model(case.config, case.facts),
        example(case.facts, AUDIT_EXAMPLES),
        variables=variables,
        rngs=lambda step: {"dropout": plan.dropout_key(step)},
        init_rngs=params_key(case.config),
        draws=draws,
    )
    own = (*_schedule_checks(plan), _order_check(plan), _learning_rate_check(case))
    return replace(found, checks=(*found.checks, *own))


def _schedule_checks(plan: Plan) -> list[Check]:
    return [
        Check(
            "the schedule turns dropout on at some step",
            site,
            None if full == 0 else plan.peak_rates[site] > 0,
            "the rate is 0"
            if full == 0
            else f"it keeps the rate at 0 in all {plan.total_steps:,} steps",
        )
        for site, full in plan.full_rates.items()
    ]


def _order_check(plan: Plan) -> Check:
    first, second = (plan.chunk(epoch * plan.steps_per_epoch, 1)[0].order[0] for epoch in (0, 1))
    return Check(
        "images come in a new order in each epoch",
        "",
        not np.array_equal(first, second),
        "the same order in every epoch: derive its key from the epoch",
    )


def _learning_rate_check(case: _Case) -> Check:
    """Whether a tenth of the learning rate learns much more in the very first steps."""
    question, steps = "the learning rate is not too large", min(_MOST_STEPS, case.plan.total_steps)
    if steps < _LEAST_STEPS:
        return Check(question, "", None, f"{steps} steps tell nothing")
    usual, tenth = (_first_loss(case, factor, steps) for factor in (1.0, 0.1))
    return Check(
        question,
        "",
        math.isfinite(usual) and usual <= _WORSE * tenth,
        f"in the first {steps} steps the loss is {usual:.2f}, with a tenth of the rate "
        f"{tenth:.2f}: see thinned find-lr",
    )


def _first_loss(case: _Case, factor: float, steps: int) -> float:
    """Mean training loss, in nats, over the second half of a fresh network's first steps."""
    state, losses = initial_state(case.config, case.facts), []
    data = case.few_images
    augment = make_augment(case.config, case.facts)
    while len(losses) < steps:
        chunk, count = case.plan.chunk(len(losses), steps - len(losses))
        numbers = dict(chunk.numbers or {})
        numbers["learning_rate"] = factor * numbers["learning_rate"]
        chunk = chunk._replace(order=chunk.order % len(data.labels), numbers=numbers)
        state, sums = train_steps(state, data, chunk, jnp.int32(count), augment)
        losses += (np.asarray(sums.loss) / np.maximum(sums.count, 1))[:count].tolist()
    found = float(np.mean(losses[steps // 2 :]))
    return found if math.isfinite(found) else math.inf


@dataclass(frozen=True)
class Cost:
    """What dropout costs in a training step.

    Attributes:
        ratios: step time with dropout over step time without, one for each round.
        share: time to draw the bits alone, over the step with dropout.
        bytes_with, bytes_without: what JAX keeps for the backward pass.
    """

    ratios: tuple[float, ...]
    share: float
    bytes_with: int
    bytes_without: int

    def __str__(self) -> str:
        """Three lines for people."""
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        extra = self.bytes_with - self.bytes_without
        return "\n".join(
            (
                f"step with dropout / step without   {middle:.3f} "
                f"(quartiles {low:.3f} to {high:.3f}, {len(self.ratios)} rounds, interleaved)",
                f"drawing the bits alone             {self.share:.1%} of a step",
                f"kept for the backward pass         {extra:+,} bytes "
                f"({self.bytes_with:,} with, {self.bytes_without:,} without)",
            )
        )


def cost(target: Path | str) -> Cost:
    """Measure what dropout costs in the training step of a run or a config.

    Args:
        target: a run folder, or a file of options.

    Returns:
        A `Cost`. Both steps run in turns, in one process, compiled before the first is timed.

    Raises:
        RequestError: as `diagnose`.
    """
    case = _Case.open(target)
    chunk, steps = case.plan.chunk(0, 10**6)
    bare = _without_dropout(case)
    data = case.few_images
    chunk = chunk._replace(order=chunk.order % len(data.labels))
    augment = make_augment(case.config, case.facts)

    def run(state: TrainState, given: Chunk) -> Callable[[int], float]:
        def timed(count: int) -> float:
            own = jax.block_until_ready(jax.tree.map(jnp.copy, state))
            started = time.perf_counter()
            jax.block_until_ready(train_steps(own, data, given, jnp.int32(count), augment))
            return time.perf_counter() - started

        return timed

    thinned, plain = run(case.state, chunk), run(bare, chunk._replace(rates={}))
    bits = _bits_timer(case, chunk)
    for timed in (thinned, plain, bits):
        timed(1)
    count = max(1, min(steps, math.ceil(_ROUND_S * 4 / thinned(min(4, steps)))))
    rounds = [(thinned(count), plain(count), bits(count)) for _ in range(_ROUNDS)]
    return Cost(
        ratios=tuple(with_ / without for with_, without, _ in rounds),
        share=statistics.median(drawn / with_ for with_, _, drawn in rounds),
        bytes_with=_bytes_kept(case, case.state),
        bytes_without=_bytes_kept(case, bare),
    )


@dataclass(frozen=True)
class _Case:
    config: Config
    dataset: Dataset
    facts: Facts
    state: TrainState
    plan: Plan

    @classmethod
    def open(cls, target: Path | str) -> _Case:
        target, run = Path(target), None
        if target.is_dir() or not target.exists():
            run = Run.open(target)
            config = run.config
        else:
            config = load(target)
            validate(config)
        dataset = load_data(config) if run is None else run.dataset
        facts = Facts.of(dataset, config)
        refuse_unfit(config, facts)
        trained = run is not None and bool(run.checkpoints.steps())
        state = run.state if run is not None and trained else initial_state(config, facts)
        return cls(config, dataset, facts, state, make_plan(config, facts, dataset.train.labels))

    @cached_property
    def few_images(self) -> Batch:
        """So many training images that they fit on any device."""
        return on_device(
            self.dataset.train.take(np.arange(min(len(self.dataset.train), _EXAMPLES)))
        )

    @property
    def batch(self) -> jax.ShapeDtypeStruct:
        shape = (self.config.batch_size, *self.facts.image_shape)
        return jax.ShapeDtypeStruct(shape, jnp.uint8)


def _without_dropout(case: _Case) -> TrainState:
    """The state of the same network with plain layers where something was dropped."""
    model: Any = build_model(case.config, case.facts)
    if not hasattr(model, "dropout"):
        raise RequestError(
            f"--cost compares with the same network without dropout: {case.config.model} of your "
            "own cannot be had without"
        )
    bare = model.clone(dropout=DropoutSpec(rate=0.0))
    state = create_state(bare, example(case.facts), params_key(case.config), adam())
    return state.replace(apply_fn=apply_of(bare, case.facts))


def _bits_timer(case: _Case, chunk: Chunk) -> Callable[[int], float]:
    sites = sites_of(case.config, case.facts, case.config.batch_size)
    shapes = tuple(_words_shape(site, case.config) for site in sites.values())
    bits: Bits = case.config.dropout.bits

    @jax.jit
    def draw(keys: Any, count: jax.Array) -> jax.Array:
        def body(index: jax.Array, total: jax.Array) -> jax.Array:
            for number, shape in enumerate(shapes):
                words = random_bits(jax.random.fold_in(keys[index], number), shape, bits)
                total = total ^ jax.lax.reduce(
                    words, np.uint32(0), jax.lax.bitwise_xor, tuple(range(words.ndim))
                )
            return total

        return jax.lax.fori_loop(0, count, body, jnp.uint32(0))

    def timed(count: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(draw(chunk.keys, jnp.int32(count)))
        return time.perf_counter() - started

    return timed


def _words_shape(site: Site, config: Config) -> tuple[int, ...]:
    """How many words a site draws in a step, as a shape."""
    shape, inner = site.shape, range(1, len(site.shape))
    if site.kind == "channel":
        return mask_shape(shape, tuple(inner)[:-1])
    if site.kind == "path":
        return mask_shape(shape, tuple(inner))
    if site.kind == "block":
        return seed_shape(shape, block_sizes(shape, config.dropout.block_size))
    return (*shape, site.features) if site.features else shape


def _bytes_kept(case: _Case, state: TrainState) -> int:
    def residuals(params: Any, images: jax.Array, key: Any) -> Any:
        def loss(chosen: Any) -> jax.Array:
            variables = {"params": chosen, **state.model_state}
            logits, _ = state.apply_fn(
                variables,
                as_float(images),
                train=True,
                rngs={"dropout": key},
                mutable=list(state.model_state),
            )
            return cross_entropy(logits, jnp.zeros(len(images), jnp.int32)).mean()

        return jax.vjp(loss, params)[1]

    kept = jax.eval_shape(residuals, state.params, case.batch, jax.random.key(0))
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(kept))


def _bytes(leaf: Any) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8 * leaf.size
    return leaf.size * leaf.dtype.itemsize
