"""Intervals of scores: against others' formulas, and as often right as they say."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from thinned.trust import intervals, scores

TRIALS = 150
# Below the mean by four standard errors, of so many trials.
SLACK = 4 * math.sqrt(0.95 * 0.05 / TRIALS)


def delong(inside, outside):
    """The variance by its definition, from every pair (DeLong et al. 1988, eq. 5)."""
    wins = (outside[:, None] > inside) + 0.5 * (outside[:, None] == inside)
    return wins.mean(1).var(ddof=1) / len(outside) + wins.mean(0).var(ddof=1) / len(inside)


@pytest.mark.parametrize("seed", range(5))
def test_the_auroc_interval_is_delongs_on_the_scale_of_the_logit(seed):
    random = np.random.default_rng(seed)
    inside, outside = random.integers(0, 9, 80).astype(float), random.integers(3, 12, 30) * 1.0
    area = roc_auc_score(np.repeat([0, 1], [80, 30]), np.r_[inside, outside])
    half = stats.norm.ppf(0.975) * math.sqrt(delong(inside, outside)) / (area * (1 - area))
    wanted = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + way * half))) for way in (-1, 1)]
    np.testing.assert_allclose(intervals.auroc_interval(inside, outside), wanted)


def test_groups_that_are_told_apart_wholly_leave_room():
    low, high = intervals.auroc_interval(np.arange(30.0), np.arange(40.0, 50.0))
    assert (low, high) == scores.accuracy_interval(10, 10)
    assert intervals.auroc_interval(np.ones(5), np.ones(1)) != (0.5, 0.5)


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_intervals_of_auroc_and_fpr_hold_the_truth_as_often_as_they_say(shift):
    random, area, rate = np.random.default_rng(0), 0, 0
    true_area = stats.norm.cdf(shift / math.sqrt(2))
    true_rate = stats.norm.cdf(stats.norm.ppf(0.95) - shift)
    for _ in range(TRIALS):
        inside, outside = random.normal(size=300), random.normal(shift, size=200)
        low, high = intervals.auroc_interval(inside, outside)
        area += low <= true_area <= high
        low, high = intervals.fpr_interval(inside, outside, repeats=100)
        rate += low <= true_rate <= high
    assert area / TRIALS >= 0.95 - SLACK
    # Percentiles of a hundred resamplings are narrower by a point or two.
    assert rate / TRIALS >= 0.93 - SLACK


def test_the_fpr_interval_is_the_bootstraps_by_drawing_images():
    random = np.random.default_rng(0)
    inside, outside = random.integers(0, 40, 90) * 1.0, random.integers(20, 60, 50) * 1.0
    rates = [
        scores.fpr_at_95(random.choice(inside, 90), random.choice(outside, 50)) for _ in range(4000)
    ]
    found = intervals.fpr_interval(inside, outside, repeats=4000)
    # A step of the rates is 0.02; ends of 4,000 draws differ by one or two.
    np.testing.assert_allclose(found, np.quantile(rates, [0.025, 0.975]), atol=0.041)


def drawn(random, count, fault):
    confidence = 1 - 0.7 * random.beta(1, 6, count)
    return confidence, random.random(count) < np.clip(confidence - fault, 0, 1)


def ece(confidence, right):
    return scores.bins_of(confidence, right).error


def test_the_interval_of_an_ece_holds_it_where_there_is_a_fault():
    random = np.random.default_rng(0)
    truth = ece(*drawn(random, 300_000, 0.08))
    held = 0
    for _ in range(TRIALS):
        low, high = intervals.over_images(
            ece, drawn(random, 1000, 0.08), above_zero=True, repeats=100
        )
        held += low <= truth <= high
    assert held / TRIALS >= 0.93 - SLACK


def test_calibrated_predictions_stay_below_the_bound_and_others_do_not():
    random, right, wrong = np.random.default_rng(0), 0, 0
    for _ in range(TRIALS):
        confidence, truth = drawn(random, 500, 0.0)
        bound = scores.error_by_chance(confidence)
        right += ece(confidence, truth) <= bound
        wrong += ece(*drawn(random, 500, 0.2)) <= bound
    assert right / TRIALS >= 0.95 - SLACK
    assert wrong / TRIALS < 0.05


def test_a_plain_pass_has_the_interval_over_images_and_a_mean_has_satterthwaites():
    assert intervals.crossed(0.3, 0.1, 0.2, ()) == pytest.approx(
        (0.3 - 1.959964 * 0.1, 0.3 + 1.959964 * 0.2)
    )
    draws = np.random.default_rng(0).normal(2, 1, 8)
    low, high = intervals.crossed(2.0, 0.0, 0.0, draws)
    half = stats.t.ppf(0.975, 7) * stats.sem(draws)
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    # Two means' difference, as Welch has it.
    other = np.random.default_rng(1).normal(0, 3, 12)
    welch = stats.ttest_ind(draws, other, equal_var=False).confidence_interval(0.95)
    error, difference = stats.sem(other), draws.mean() - other.mean()
    found = intervals.crossed(difference, error, error, draws, 11)
    assert found == pytest.approx((welch.low, welch.high))


def test_values_of_a_mean_without_its_parts_are_the_parts():
    draws = np.random.default_rng(0).normal(size=5)
    others = [np.delete(draws, part).mean() for part in range(5)]
    np.testing.assert_allclose(intervals.pseudo_values(draws.mean(), others), draws)


def looked(random, count, shift, masks):
    """Probabilities [sample, image] of a first class of two, and whether it is the right one."""
    place = random.normal(shift, 1, count)
    right = random.random(count) < 1 / (1 + np.exp(-place))
    slopes, bends = masks
    return 1 / (1 + np.exp(-np.outer(slopes, place) - bends[:, None])), right


def told(samples, first):
    p = samples.mean(0)
    return np.maximum(p, 1 - p), (p > 0.5) == first


def trial(random, count, samples=12):
    masks = random.normal(1.5, 1, samples), random.normal(0, 1, samples)
    inside, first = looked(random, count, 1.5, masks)
    outside, _ = looked(random, count // 2, 0, masks)
    kept = [np.arange(samples) % 6 != part for part in range(6)]
    seen = [told(inside[rows], first) for rows in (slice(None), *kept)]
    pairs = [
        (1 - own[0], 1 - told(outside[rows], True)[0])
        for own, rows in zip(seen, (slice(None), *kept), strict=True)
    ]
    return seen, pairs


def area(confidence, right):
    return scores.risk_coverage(confidence, right).area


def test_intervals_over_images_and_masks_hold_the_mean_over_both():
    ways = {
        "ece": lambda seen, _: intervals.over_images(
            ece, seen[0], seen[1:], above_zero=True, repeats=50
        ),
        "aurc": lambda seen, _: intervals.over_images(area, seen[0], seen[1:], repeats=50),
        "accuracy": lambda seen, _: intervals.accuracy_interval(
            seen[0][1], [right for _, right in seen[1:]]
        ),
        "auroc": lambda _, pairs: intervals.auroc_interval(*pairs[0], pairs[1:]),
        "fpr": lambda _, pairs: intervals.fpr_interval(*pairs[0], pairs[1:], repeats=50),
    }
    random = np.random.default_rng(0)
    many = [trial(random, 5000) for _ in range(60)]
    truth = {
        "ece": np.mean([ece(*seen[0]) for seen, _ in many]),
        "aurc": np.mean([area(*seen[0]) for seen, _ in many]),
        "accuracy": np.mean([seen[0][1].mean() for seen, _ in many]),
        "auroc": np.mean([scores.auroc(*pairs[0]) for _, pairs in many]),
        "fpr": np.mean([scores.fpr_at_95(*pairs[0]) for _, pairs in many]),
    }
    held = dict.fromkeys(ways, 0)
    fixed = dict.fromkeys(ways, 0)
    for _ in range(TRIALS):
        seen, pairs = trial(random, 300)
        for name, way in ways.items():
            low, high = way(seen, pairs)
            held[name] += low <= truth[name] <= high
            low, high = way(seen[:1], pairs[:1])
            fixed[name] += low <= truth[name] <= high
    # Fifty resamplings are narrower by a point or two.
    assert min(held.values()) / TRIALS >= 0.93 - SLACK
    # With the masks as they are, they are far from it.
    assert fixed["auroc"] / TRIALS < 0.6
