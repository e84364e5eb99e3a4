"""Paired comparisons against SciPy, R's published examples, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from thinned.studies.comparison import holm, interval, paired_differences, seeds_needed
from thinned.studies.looks import any_time_critical, any_time_p


def differences_of(values, planned=None):
    """Of one arm from a baseline of zeros."""
    arms = {"a": dict.fromkeys(range(len(values)), 0.0), "b": dict(enumerate(values))}
    return paired_differences(arms, "a", planned)


def test_differences_are_paired_by_seed_as_scipys():
    random = np.random.default_rng(0)
    base = dict(enumerate(random.normal(0.9, 0.01, 8).tolist()))
    other = {seed: value + 0.003 + random.normal(0, 0.002) for seed, value in base.items()}
    other[99] = 0.1  # A seed that the baseline did not finish counts for nothing.
    found = paired_differences({"a": base, "b": other}, "a")["b"]
    seeds = sorted(base)
    reference = stats.ttest_rel([other[s] for s in seeds], [base[s] for s in seeds])
    assert found.seeds == 8
    # Half of the 5 % is spent on the look that was planned, which all seeds are here.
    np.testing.assert_allclose(found.p_value, 2 * reference.pvalue, rtol=1e-10)
    ends = reference.confidence_interval(0.975)
    np.testing.assert_allclose((found.low, found.high), ends, rtol=1e-10)
    assert found.corrected == found.p_value


def test_holms_correction_is_rs():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([0.02, math.nan])
    assert found[0] == 0.02
    assert math.isnan(found[1])


def test_holm_errs_in_fewer_studies_than_it_promises():
    # Five arms without any effect: at most 5 % of studies may find one; three standard errors up.
    random, studies = np.random.default_rng(1), 1000
    p_values = random.uniform(size=(studies, 5))
    wrong = np.mean([min(holm(row.tolist())) < 0.05 for row in p_values])
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0)])
def test_the_seeds_needed_give_the_promised_power(mean, deviation):
    count = seeds_needed(mean, deviation)
    assert count is not None
    random, trials = np.random.default_rng(2), 400
    draws = random.normal(mean, deviation, (trials, count))

    def power(draws):
        tested = [differences_of(row, planned=())["b"].corrected < 0.05 for row in draws]
        return np.mean(tested)

    assert power(draws) >= 0.8 - 3 * math.sqrt(0.16 / trials)
    assert power(draws[:, :-1]) < 0.8 + 3 * math.sqrt(0.16 / trials)
    assert (seeds_needed(mean, deviation, tests=10) or 0) > count


def test_few_seeds_among_many_tests_are_not_enough_however_large_the_difference():
    # With six no statistic is large enough for one of 100 tests.
    assert math.isinf(any_time_critical(6, 0.025 / 100))
    assert seeds_needed(40.0, 1.0, tests=100) == 7
    limit = any_time_critical(7, 0.025 / 100)
    found = stats.ttest_1samp(np.random.default_rng(3).normal(40, 1, (4000, 7)), 0, axis=1)
    assert np.mean(np.asarray(found.statistic) > limit) > 0.8


def test_what_cannot_be_said_is_no_number():
    one = paired_differences({"a": {0: 0.5}, "b": {0: 0.6}}, "a")["b"]
    assert one.seeds == 1
    assert one.mean == pytest.approx(0.1)
    assert math.isnan(one.p_value)
    assert not one.is_told
    none = paired_differences({"a": {0: 0.5}, "b": {}}, "a")["b"]
    assert none.seeds == 0
    assert math.isnan(none.mean)
    same = paired_differences({"a": {0: 0.5, 1: 0.25}, "b": {0: 0.5, 1: 0.25}}, "a")["b"]
    assert same.p_value == 1.0
    # Two equal steps of a score that moves in steps are no certainty.
    shifted = paired_differences({"a": {0: 0.5, 1: 0.25}, "b": {0: 0.75, 1: 0.5}}, "a")["b"]
    assert math.isnan(shifted.p_value)
    # Nor does an interval of no width stand beside it.
    assert all(math.isnan(end) for end in (shifted.low, shifted.high, same.low, same.high))
    assert all(math.isnan(end) for end in interval([0.5, 0.5, 0.5]))
    # Neither are decimals that are equal but for the rounding of floats.
    decimals = paired_differences({"a": {0: 0.2, 1: 0.7}, "b": {0: 0.25, 1: 0.75}}, "a")["b"]
    assert math.isnan(decimals.p_value)
    assert not decimals.is_told
    noise = paired_differences({"a": {0: 0.3, 1: 0.3}, "b": {0: 0.1 + 0.2, 1: 0.3}}, "a")["b"]
    assert noise.p_value == 1.0
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 4


def test_an_interval_of_a_mean_is_students_and_needs_two_values():
    values = [0.1, 0.2, 0.4]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(values), expected, rtol=1e-10)
    assert all(math.isnan(end) for end in interval([0.3]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_holds_the_mean_in_95_of_100_studies(seeds):
    random, studies = np.random.default_rng(4), 3000
    found = np.asarray([interval(row) for row in random.normal(0.9, 0.01, (studies, seeds))])
    held = np.mean((found[:, 0] <= 0.9) & (found[:, 1] >= 0.9))
    assert abs(held - 0.95) <= 4 * math.sqrt(0.05 * 0.95 / studies)


def test_arms_that_were_not_tried_change_nothing_for_the_others():
    tried = {
        "base": {0: 0.90, 1: 0.91, 2: 0.905},
        "a": {0: 0.91, 1: 0.915, 2: 0.92},
        "b": {0: 0.90, 1: 0.93, 2: 0.91},
    }
    few = paired_differences(tried, "base")
    many = paired_differences(tried | {f"untried {number}": {} for number in range(28)}, "base")
    assert few["a"].needed is not None
    assert (many["a"], many["b"]) == (few["a"], few["b"])


def test_the_planned_look_stands_once_all_its_runs_are_over_and_stays():
    values = [0.010, 0.012, 0.011, 0.004, 0.018]
    first = 2 * stats.ttest_1samp(values[:3], 0.0).pvalue
    later = 2 * any_time_p(np.asarray(values))
    found = differences_of(values, planned=(0, 1, 2))["b"]
    assert first < later
    assert found.p_value == pytest.approx(first)
    assert differences_of(values, planned=())["b"].p_value == pytest.approx(later)
    # Two of three: that look is yet to come, and only once.
    early = differences_of(values[:2], planned=(0, 1, 2))["b"]
    assert early.p_value == pytest.approx(min(1, 2 * any_time_p(np.asarray(values[:2]))))
    # A run that diverged would do so again: the look stands without it.
    lost = differences_of([0.010, 0.012, math.nan, 0.011], planned=(0, 1, 2, 3))["b"]
    assert lost.p_value == pytest.approx(2 * stats.ttest_1samp([0.010, 0.012, 0.011], 0.0).pvalue)


def test_looks_that_contradict_one_another_tell_nothing():
    values = [0.010, 0.011, 0.0105, *[-0.02, -0.021] * 8]
    found = differences_of(values, planned=(0, 1, 2))["b"]
    assert found.corrected < 0.05
    assert found.low < 0 < found.high
    assert not found.is_told


def test_arms_may_have_baselines_of_their_own():
    arms = {
        name: {0: value, 1: value + 0.1} for name, value in zip("abcd", (1, 2, 5, 7), strict=True)
    }
    found = paired_differences(arms, {"b": "a", "d": "c"})
    assert list(found) == ["b", "d"]
    assert [each.mean for each in found.values()] == pytest.approx([1, 2])
