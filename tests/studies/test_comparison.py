"""Paired comparisons against SciPy, R's published examples, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from thinned.studies.comparison import holm, interval, paired_differences, seeds_needed


def test_differences_are_paired_by_seed_as_scipys():
    random = np.random.default_rng(0)
    base = dict(enumerate(random.normal(0.9, 0.01, 8).tolist()))
    other = {seed: value + 0.003 + random.normal(0, 0.002) for seed, value in base.items()}
    other[99] = 0.1  # A seed that the baseline did not finish counts for nothing.
    found = paired_differences({"a": base, "b": other}, "a")["b"]
    seeds = sorted(base)
    reference = stats.ttest_rel([other[s] for s in seeds], [base[s] for s in seeds])
    assert found.seeds == 8
    np.testing.assert_allclose(found.p_value, reference.pvalue, rtol=1e-10)
    np.testing.assert_allclose((found.low, found.high), reference.confidence_interval(), rtol=1e-10)
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
    random, trials = np.random.default_rng(2), 4000
    draws = random.normal(mean, deviation, (trials, count))
    power = np.mean(np.asarray(stats.ttest_1samp(draws, 0, axis=1).pvalue) < 0.05)
    assert power >= 0.8 - 3 * math.sqrt(0.16 / trials)
    if count > 2:
        fewer = np.asarray(stats.ttest_1samp(draws[:, : count - 1], 0, axis=1).pvalue) < 0.05
        assert np.mean(fewer) < 0.8 + 3 * math.sqrt(0.16 / trials)
    assert (seeds_needed(mean, deviation, tests=10) or 0) > count


def test_few_seeds_among_many_tests_are_not_enough_however_large_the_difference():
    # With two seeds the critical value, 1,273, is far beyond a shift of 57.
    assert seeds_needed(40.0, 1.0, tests=100) == 3
    random, critical = np.random.default_rng(3), stats.t.ppf(1 - 0.05 / 200, [1, 2])
    for count, limit, enough in ((2, critical[0], False), (3, critical[1], True)):
        found = stats.ttest_1samp(random.normal(40, 1, (4000, count)), 0, axis=1)
        assert (np.mean(np.asarray(found.statistic) > limit) > 0.8) == enough


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
    # Neither are decimals that are equal but for the rounding of floats.
    decimals = paired_differences({"a": {0: 0.2, 1: 0.7}, "b": {0: 0.25, 1: 0.75}}, "a")["b"]
    assert math.isnan(decimals.p_value)
    assert not decimals.is_told
    noise = paired_differences({"a": {0: 0.3, 1: 0.3}, "b": {0: 0.1 + 0.2, 1: 0.3}}, "a")["b"]
    assert noise.p_value == 1.0
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2


def test_an_interval_holds_the_mean_and_needs_two_values():
    low, high = interval([0.1, 0.2, 0.4])
    assert 0.1 - 1e-9 <= low <= 0.7 / 3 <= high <= 0.4 + 1e-9
    assert all(math.isnan(end) for end in interval([0.3]))


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
