import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config, DropoutConfig
from thinned.dropout.schedules import over_depth, schedule
from thinned.engine.plan import CHUNK_STEPS, Plan

STEPS = np.arange(0, 60)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.25)])
def test_linear_and_cosine_are_those_of_optax(start, end):
    linear = optax.linear_schedule(start, end, 40)
    np.testing.assert_allclose(
        schedule("linear", 40, start, end)(STEPS), linear(jnp.asarray(STEPS)), atol=1e-6
    )
    cosine = [optax.cosine_decay_schedule(1.0, 40)(step) for step in STEPS]
    expected = end + (start - end) * np.asarray(cosine)
    np.testing.assert_allclose(schedule("cosine", 40, start, end)(STEPS), expected, atol=1e-6)


def test_early_and_late_are_each_others_complement_and_constant_is_one():
    early, late = schedule("early", 25)(STEPS), schedule("late", 25)(STEPS)
    assert early.tolist() == [1.0] * 25 + [0.0] * 35
    assert np.array_equal(early + late, schedule("constant", 1)(STEPS))


@given(
    st.sampled_from(["constant", "linear", "cosine", "early", "late"]),
    st.integers(1, 10**6),
    st.integers(0, 2**31 - 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_factors_stay_between_0_and_1_for_one_step_as_for_many(shape, steps, step, start, end):
    run = schedule(shape, steps, start, end)
    one = float(run(step))
    assert -1e-6 <= one <= 1 + 1e-6
    assert float(run(np.asarray([0, step]))[1]) == pytest.approx(one, abs=1e-6)


def test_rates_over_depth_grow_to_the_full_rate():
    rates = over_depth({"a": 0.5, "b": 0.5, "c": 0.4, "d": 0.2}, ["a", "b", "c", "d"])
    assert rates == pytest.approx({"a": 0.125, "b": 0.25, "c": 0.3, "d": 0.2})


def plan(**options):
    sites = {"first": 0.5, "block/second": 0.5}
    return Plan(Config(batch_size=10, dropout=DropoutConfig(**options)), 400, sites)


def test_a_plan_gives_each_site_its_rate_at_each_step():
    late = plan(rate=0.5, sites={"first": 0.2}, schedule="late", schedule_epochs=1.5)
    seen = [late.chunk(step, 1)[0].rates for step in (59, 60)]
    assert float(seen[0]["first"]["rate"][0]) == float(seen[0]["block"]["second"]["rate"][0]) == 0
    assert float(seen[1]["first"]["rate"][0]) == pytest.approx(0.2)
    assert float(seen[1]["block"]["second"]["rate"][0]) == 0.5
    deep = plan(rate=0.5, depth="linear").full_rates
    assert deep == {"first": 0.25, "block/second": 0.5}


def test_a_chunk_holds_the_rates_of_its_own_steps():
    growing = plan(rate=1.0, schedule="linear", schedule_epochs=2.0)
    rates = growing.chunk(10, 20)[0].rates["first"]["rate"]
    assert rates.shape == (CHUNK_STEPS,)
    np.testing.assert_allclose(rates[:20], (10 + np.arange(20)) / 80, rtol=1e-6)


def test_a_schedule_does_not_depend_on_how_many_epochs_are_asked_for():
    jax.tree.map(
        np.testing.assert_array_equal,
        *(
            Plan(Config(epochs=epochs, dropout=warm), 320, {"a": 0.5}).chunk(9, 1)[0].rates
            for epochs in (2, 20)
            for warm in [DropoutConfig(schedule="cosine", schedule_epochs=2.0)]
        ),
    )
