"""Looking after every seed: the likelihood ratio by quadrature, and the errors by simulation."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from thinned.studies.comparison import paired_differences
from thinned.studies.looks import any_time_critical, any_time_interval, any_time_p, t_interval


@pytest.mark.parametrize("values", [[0.3, 0.5], [1.0, 2.0, 0.5, 1.4], [0.2, -0.1, 0.4] * 5])
def test_the_p_value_is_one_over_the_ratio_of_likelihoods_of_the_t_statistic(values):
    count, statistic = len(values), float(stats.ttest_1samp(values, 0.0).statistic)
    shifts = stats.norm(0, 2)

    def likelihood(effect):
        shifted = stats.nct.pdf(statistic, count - 1, effect * math.sqrt(count))
        return shifted * shifts.pdf(effect)

    mixed = integrate.quad(likelihood, -12, 12, limit=200, epsabs=1e-12)[0]
    ratio = mixed / stats.t.pdf(statistic, count - 1)
    assert any_time_p(np.asarray(values)) == pytest.approx(min(1, 1 / ratio), rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 30, 1000])
@pytest.mark.parametrize("level", [0.05, 0.025, 0.001])
def test_interval_and_p_value_agree(count, level):
    values = np.random.default_rng(count).normal(size=count)
    low, high = any_time_interval(values, level)
    if math.isinf(any_time_critical(count, level)):
        assert (low, high) == (-math.inf, math.inf)
        assert all(any_time_p(values - shift) > level for shift in (-1e9, 1e9))
        return
    assert any_time_p(values - low) == pytest.approx(level)
    assert any_time_p(values - high) == pytest.approx(level)
    # Never narrower than what one look alone may say.
    once = t_interval(values, level)
    assert low <= once[0] <= once[1] <= high


def critical_values(planned, last, level=0.05):
    """t statistics from which on a look at n seeds tells a difference, as the module promises."""
    later = [any_time_critical(seeds, level / 2) for seeds in range(planned, last + 1)]
    return np.asarray([stats.t.ppf(1 - level / 4, planned - 1), *later[1:]])


def test_a_look_after_every_seed_errs_in_no_more_studies_than_promised():
    planned, last, studies = 3, 30, 20_000
    draws = np.random.default_rng(5).normal(size=(studies, last))
    counts = np.arange(planned, last + 1)
    sums, squares = (np.cumsum(each, 1)[:, planned - 1 :] for each in (draws, draws**2))
    variance = (squares - sums**2 / counts) / (counts - 1)
    found = np.abs(sums / counts) / np.sqrt(variance / counts)
    wrong = np.mean((found > critical_values(planned, last)).any(1))
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    # What it is for: plain t-tests at the same looks.
    plain = np.mean((found > stats.t.ppf(0.975, counts - 1)).any(1))
    assert plain == pytest.approx(0.27, abs=0.02)


def test_a_study_tells_at_the_critical_values():
    random = np.random.default_rng(6)
    for _ in range(30):
        values = random.normal(1.0, 1.0, 12).tolist()
        for seeds in (4, 7, 12):
            arms = {"a": dict.fromkeys(range(seeds), 0.0), "b": dict(enumerate(values[:seeds]))}
            found = paired_differences(arms, "a", range(4))["b"]
            statistics = [
                abs(float(stats.ttest_1samp(values[:n], 0.0).statistic)) for n in (4, seeds)
            ]
            critical = critical_values(4, 12)[[0, seeds - 4]]
            assert (found.p_value < 0.05) == bool((np.asarray(statistics) > critical).any())
            assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
