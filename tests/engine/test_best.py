"""Which epoch is kept, when training stops, and what a person is told of the time it takes."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config
from thinned.engine.best import better, waited_enough
from thinned.engine.loop import Pace, Progress
from thinned.engine.metrics import Totals


def best_of(by, totals):
    """The best epoch after each of them."""
    best, found = None, []
    for epoch, total in enumerate(totals, 1):
        best = better(best, Config(keep_best=by), epoch, 10 * epoch, total)
        found.append(best)
    return found


# Few different values, so that there are ties.
COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(COUNTS)
def test_the_first_of_the_best_is_kept_at_every_moment(counts):
    by_accuracy = best_of("accuracy", [Totals(0.0, count, 4) for count in counts])
    by_nll = best_of("nll", [Totals(float(count), 0, 4) for count in counts])
    for end in range(1, len(counts) + 1):
        kept, least = by_accuracy[end - 1], by_nll[end - 1]
        assert kept.epoch == int(np.argmax(counts[:end])) + 1
        assert least.epoch == int(np.argmin(counts[:end])) + 1
        assert (kept.step, kept.value) == (10 * kept.epoch, max(counts[:end]) / 4)


def test_nothing_is_kept_unasked_and_what_is_not_finite_never():
    assert best_of("no", [Totals(1.0, 1, 1)]) == [None]
    losses = [math.nan, math.inf, 2.0, math.nan, -math.inf, 1.0]
    found = best_of("nll", [Totals(loss, 0, 1) for loss in losses])
    assert [best and best.epoch for best in found] == [None, None, 3, 3, 3, 6]


@given(COUNTS, st.integers(1, 5))
def test_training_stops_when_so_many_epochs_in_a_row_were_no_better(counts, patience):
    config = Config(keep_best="accuracy", patience=patience)
    found = best_of("accuracy", [Totals(0.0, count, 4) for count in counts])
    records = np.maximum.accumulate(counts)
    for end, best in enumerate(found, 1):
        before = records[end - 1 - patience] if end > patience else -1
        assert waited_enough(best, config, end) == (records[end - 1] == before)
    assert not waited_enough(found[-1], Config(keep_best="accuracy"), 10**6)
    assert waited_enough(None, config, patience)
    assert not waited_enough(None, config, patience - 1)


def test_progress_comes_back_with_its_best_and_without_one():
    best = best_of("nll", [Totals(0.1 + 0.2, 0, 1)])[0]
    for progress in (Progress(7, Totals(1.0, 2, 3), best), Progress(7)):
        assert Progress.from_json(dataclasses.asdict(progress)) == progress
    assert Progress.from_json({"step": 7, "totals": dataclasses.asdict(Totals())}).best is None


@pytest.mark.parametrize(
    ("step_s", "told"),
    [
        (0.01, None),
        (0.2, "about 3 min for 5 epochs (5 steps a second, evaluation apart); Ctrl-C saves"),
        (9.0, "about 2 h 30 min for 5 epochs (0.111 steps a second"),
    ],
)
def test_the_time_of_a_long_run_is_told_once_from_its_first_steps(step_s, told):
    pace, lines = Pace(), []
    pace.took(1, 40.0)
    assert pace.forecast(1000, 5) is None
    for _ in range(60):
        pace.took(pace.count, step_s * pace.count)
        line = pace.forecast(1000, 5)
        lines += [line] if line else []
        # The end of an epoch forgets nothing.
        pace.lap(200)
    assert len(lines) == (told is not None)
    assert told is None or lines[0].startswith(told)
