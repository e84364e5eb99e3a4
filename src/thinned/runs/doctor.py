"""The doctor: audits the dropout of a run or a config, with the keys of its own steps."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from thinned.core.config import load
from thinned.core.rng import a_few
from thinned.core.types import Dataset, Split
from thinned.core.validation import validate
from thinned.data.batch import Batch
from thinned.dropout.audit.findings import Audit, Check
from thinned.dropout.audit.front import audit
from thinned.dropout.sites import rates_collection
from thinned.engine.build import Built, example, params_key
from thinned.engine.devices import on_device
from thinned.engine.plan import Plan
from thinned.engine.step import TrainState, train_steps
from thinned.models.apply import INPUT_STATISTICS, with_frozen
from thinned.runs.features import entering, shortened
from thinned.runs.prepare import Prepared
from thinned.runs.run import Run, note_best

AUDIT_EXAMPLES = 16
_ROUNDS = 31
_EXAMPLES = 4096
_ROUND_S = 0.1
_LEAST_STEPS, _MOST_STEPS = 20, 60
_WORSE = 2.0


def diagnose(target: Path | str, draws: int = 64) -> Audit:
    """Audit the network of a run, or of a config that was never run, with the keys of its steps.

    Args:
        target: a run folder, whose `Run.state` is used, or a file of options.
        draws: how many training steps to measure, at least 8.

    Returns:
        The audit at the largest rates that the run's schedule reaches.

    Raises:
        RequestError: `target` is neither, or its options or data do not allow a run.
    """
    case = _Case.open(target)
    own = (*_schedule_checks(case.built.plan), _order_check(case.built.plan))
    found = audited(case.built, case.state, draws)
    return replace(found, checks=(*found.checks, *own, _learning_rate_check(case)))


def audited(built: Built, state: TrainState, draws: int) -> Audit:
    """Audit a network alone, in a state of its training; errors as for `thinned.audit`.

    Of one whose first stages stand still, and so drop nothing, only the rest.
    """
    plan, images, modes = built.plan, example(built.facts, AUDIT_EXAMPLES), {}
    if built.cut:
        images = jnp.ones((AUDIT_EXAMPLES, *entering(built, built.cut)))
        modes = {
            name: {"train": name == "train", "begin": built.cut} for name in ("train", "evaluate")
        }
    held = {"params": state.params, **state.model_state, **state.constants}
    variables = {kind: part for kind, part in with_frozen(held).items() if kind != INPUT_STATISTICS}
    if plan.peak_rates:
        variables["rates"] = rates_collection(plan.peak_rates)
    return audit(
        built.model,
        images,
        **modes,
        variables=variables,
        rngs=lambda step: {"dropout": plan.dropout_key(step)},
        init_rngs=params_key(built.config),
        draws=draws,
    )


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
    question, steps = (
        "the learning rate is not too large",
        min(_MOST_STEPS, case.built.plan.total_steps),
    )
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
    built, state, dataset = shortened(
        case.built, case.built.initial_state(), replace(case.dataset, train=case.few)
    )
    data, losses = on_device(dataset.train), list[float]()
    while len(losses) < steps:
        chunk, count = built.plan.chunk(len(losses), steps - len(losses))
        numbers = dict(chunk.numbers or {})
        numbers["learning_rate"] = factor * numbers["learning_rate"]
        chunk = chunk._replace(order=chunk.order % len(data.labels), numbers=numbers)
        state, sums = train_steps(state, data, chunk, jnp.int32(count), built.augment)
        losses += (np.asarray(sums.loss) / np.maximum(sums.count, 1))[:count].tolist()
    loss = float(np.mean(losses[steps // 2 :]))
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class _Case:
    dataset: Dataset
    built: Built
    state: TrainState

    @classmethod
    def open(cls, target: Path | str) -> _Case:
        target, run = Path(target), None
        if os.path.isdir(target) or not os.path.exists(target):
            run = Run.open(target)
            config = run.config
        else:
            config = validate(load(target))
        if run is None:
            prepared = Prepared.of(config)
            return cls(prepared.dataset, prepared.built, prepared.built.initial_state())
        built = Built.of(config, run.facts, run.dataset.train.labels, run.start)
        trained = bool(run.checkpoints.steps())
        if trained:
            note_best(run)
        return cls(run.dataset, built, run.state if trained else built.initial_state())

    @cached_property
    def few_images(self) -> Batch:
        """So many training images, drawn from all, that they fit on any device."""
        return on_device(self.few)

    @property
    def few(self) -> Split:
        """The same, wherever they are."""
        train = self.dataset.train
        return train.take(a_few(len(train), _EXAMPLES, self.built.config.seed))
