"""Every score against an independent library, to 1e-6."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics

from thinned.trust import scores
from thinned.trust.appraisal import Appraisal
from thinned.trust.intervals import crossed_interval
from thinned.trust.sampling import Predictions


def case(seed, count=400, classes=5, sharp=2.0):
    random = np.random.default_rng(seed)
    logits = sharp * random.normal(size=(count, classes))
    labels = random.integers(0, classes, count)
    logits[np.arange(count), labels] += random.integers(0, 3, count)
    return special.softmax(logits, 1), labels


SEEDS = st.integers(0, 2**31)


@settings(max_examples=15)
@given(SEEDS, st.integers(5, 12))
def test_scores_of_probabilities_are_those_of_scikit_learn(seed, classes):
    p, y = case(seed, classes=classes)
    every = list(range(classes))
    assert scores.nll(p, y) == pytest.approx(metrics.log_loss(y, p, labels=every), abs=1e-9)
    one_hot = np.eye(classes)[y]
    assert scores.brier(p, y) == pytest.approx(np.mean(((p - one_hot) ** 2).sum(1)), abs=1e-9)
    brier = metrics.brier_score_loss(y, p, labels=every, scale_by_half=False)
    assert scores.brier(p, y) == pytest.approx(brier, abs=1e-9)
    top5 = metrics.top_k_accuracy_score(y, p, k=min(5, classes - 1), labels=every)
    assert scores.top_k(p, y, min(5, classes - 1)) == pytest.approx(top5)
    cells = scores.confusion(p.argmax(1), y, classes)
    assert np.array_equal(cells, metrics.confusion_matrix(y, p.argmax(1), labels=every))
    expected = metrics.precision_recall_fscore_support(
        y, p.argmax(1), labels=every, zero_division=np.nan
    )[:3]
    pairs = scores.confused(p.argmax(1), y, classes)
    assert pairs.tolist() == [[*cell, cells[cell]] for cell in zip(*np.nonzero(cells), strict=True)]
    found = scores.per_class(p.argmax(1), y, classes)
    for column in range(3):
        known = ~np.isnan(expected[column])
        np.testing.assert_allclose(found[known, column], expected[column][known], atol=1e-9)


def test_classes_that_never_occur_give_nan_not_an_error():
    labels, predicted = np.asarray([0, 0, 0, 1, 1, 1]), np.asarray([0, 0, 0, 0, 1, 1])
    found = scores.per_class(predicted, labels, 3)
    assert np.isnan(found[2]).all()
    assert not np.isnan(found[:2]).any()


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_wilsons_interval_is_that_of_scipy(correct, count):
    correct = min(correct, count)
    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    found = scores.accuracy_interval(correct, count)
    assert found == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_the_interval_of_nothing_is_everything():
    assert scores.accuracy_interval(0, 0) == (0.0, 1.0)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([1, 2, 15]), st.booleans())
def test_calibration_errors_are_those_of_a_loop(seed, bins, adaptive):
    p, y = case(seed, 83)
    confidence, right = p.max(1), p.argmax(1) == y
    error = 0.0
    if adaptive:
        groups = np.array_split(np.argsort(confidence, kind="stable"), bins)
    else:
        groups = []
        for index in range(bins):
            low, high = index / bins, (index + 1) / bins
            inside = (confidence > low) & (confidence <= high)
            groups.append(np.flatnonzero(inside | ((index == 0) & (confidence == 0))))
    for group in groups:
        if len(group):
            error += len(group) * abs(right[group].mean() - confidence[group].mean()) / len(y)
    found = scores.reliability(p, y, bins, adaptive)
    assert found.error == pytest.approx(error, abs=1e-9)
    assert found.count.sum() == 83


def test_bins_without_examples_are_empty_and_a_sure_network_is_in_the_last():
    p, y = np.asarray([[1.0, 0.0], [1.0, 0.0]]), np.asarray([0, 1])
    found = scores.reliability(p, y)
    assert found.count.tolist() == [0] * 14 + [2]
    assert np.isnan(found.accuracy[0])
    assert found.error == pytest.approx(0.5)


@settings(max_examples=20)
@given(SEEDS)
def test_outliers_are_told_apart_as_by_scikit_learn(seed):
    random = np.random.default_rng(seed)
    inside, outside = random.integers(0, 20, 70) / 20, random.integers(5, 30, 50) / 20
    target = np.repeat([0, 1], [70, 50])
    both = np.concatenate([inside, outside])
    assert scores.auroc(inside, outside) == pytest.approx(metrics.roc_auc_score(target, both))
    # Insiders are the positives: their certainty is to be high.
    fpr, tpr, _ = metrics.roc_curve(1 - target, -both, drop_intermediate=False)
    expected = fpr[np.flatnonzero(tpr >= 0.95)[0]]
    assert scores.fpr_at_95(inside, outside) == pytest.approx(expected)


@settings(max_examples=20)
@given(SEEDS)
def test_risk_and_coverage_are_those_of_a_loop(seed):
    p, y = case(seed, 61)
    confidence, right = p.max(1), p.argmax(1) == y
    curve = scores.risk_coverage(confidence, right)
    order = sorted(range(61), key=lambda index: -confidence[index])
    risks = [1 - np.mean(right[order[: n + 1]]) for n in range(61)]
    np.testing.assert_allclose(curve.risk, risks, atol=1e-12)
    assert curve.area == pytest.approx(np.mean(risks))
    assert curve.accuracy_at(1.0) == pytest.approx(right.mean())
    assert curve.accuracy_at(0.8) == pytest.approx(1 - risks[48])


def test_risk_within_ties_is_that_of_an_order_drawn_at_random():
    random = np.random.default_rng(0)
    confidence, right = random.integers(0, 6, 40) / 6, random.random(40) < 0.6
    found = scores.risk_coverage(confidence, right)
    drawn = []
    for _ in range(2000):
        order = random.permutation(40)
        order = order[np.argsort(-confidence[order], kind="stable")]
        drawn.append(np.cumsum(~right[order]) / np.arange(1, 41))
    # Five standard errors of a mean of values in [0, 1].
    np.testing.assert_allclose(found.risk, np.mean(drawn, 0), atol=5 * 0.5 / np.sqrt(2000))
    turned = random.permutation(40)
    again = scores.risk_coverage(confidence[turned], right[turned])
    assert again.area == found.area
    np.testing.assert_array_equal(again.risk, found.risk)
    ends = np.r_[found.threshold[1:] != found.threshold[:-1], True]
    exact = [np.mean(~right[confidence >= level]) for level in found.threshold[ends]]
    np.testing.assert_array_equal(found.risk[ends], exact)


@settings(max_examples=10)
@given(SEEDS, st.floats(0.3, 4))
def test_the_temperature_that_made_the_labels_is_found(seed, temperature):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(20_000, 4)) * 2
    p = special.softmax(logits / temperature, 1)
    labels = (random.random((20_000, 1)) > np.cumsum(p, 1)).sum(1).clip(0, 3)
    found = scores.fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.15)
    scaled = scores.with_temperature(special.softmax(logits, 1), found)
    np.testing.assert_allclose(scaled, special.softmax(logits / found, 1), atol=1e-9)
    assert scores.nll(scaled, labels) <= scores.nll(special.softmax(logits, 1), labels) + 1e-9


def test_a_temperature_is_for_the_least_of_the_very_loss_that_is_shown():
    """Where a few answers are surely wrong: the loss counts each of these as 34.5 nats at most."""
    random = np.random.default_rng(0)
    logits, labels = 400 * random.random((200, 2)), np.zeros(200, int)
    logits[np.arange(200), labels] += 300 * (random.random(200) < 0.9)
    p = special.softmax(logits, 1)
    logs = np.log(np.maximum(p, 1e-30))
    found = scores.fit_temperature(logs, labels)
    grid = np.geomspace(*scores.TEMPERATURES, 400)
    wanted = min(scores.nll(special.softmax(logs / each, 1), labels) for each in grid)
    assert scores.nll(special.softmax(logs / found, 1), labels) == pytest.approx(wanted, rel=1e-3)


def test_the_bootstrap_interval_covers_the_mean_as_that_of_scipy():
    values = np.random.default_rng(0).normal(1, 2, 500)
    low, high = scores.bootstrap(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_the_interval_of_one_draw_is_students_and_of_equal_ones_a_point():
    values = np.random.default_rng(0).normal(1, 2, (1, 50))
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(0.95)
    found = crossed_interval(values)
    assert found == pytest.approx((values.mean(), expected.low, expected.high))
    assert crossed_interval(np.full((3, 9), 0.5)) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.0), (0.2, 1.0), (0.05, 1.0), (0.0, 1.0)])
def test_intervals_over_draws_and_examples_hold_the_mean_over_both(between, within):
    """In 95 % of 1000 trials, less five deviations, whichever of the two varies more."""
    random, held = np.random.default_rng(0), 0
    for _ in range(1000):
        rows, columns = random.normal(size=(5, 1)), random.exponential(size=(1, 60)) - 1
        both = random.normal(size=(5, 60))
        _, low, high = crossed_interval(between * rows + within * (columns + both))
        held += low <= 0 <= high
    # Skewed values of 60 examples alone cost Student's interval up to 2 %.
    assert held / 1000 >= 0.93 - 5 * np.sqrt(0.95 * 0.05 / 1000)


def test_of_many_classes_nothing_is_made_for_each_pair_of_them():
    classes, count = 5000, 20
    p, y = case(0, count, classes)
    predictions = Predictions(p, np.zeros(count), np.zeros(count), np.zeros(count), 1)
    appraisal = Appraisal(predictions, y, tuple(map(str, range(classes))))
    tracemalloc.start()
    text, values = str(appraisal), appraisal.as_values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A whole matrix would take 200 MB.
    assert peak < 30e6
    assert text.count("\n") > classes
    assert values["confusion"] is None
    assert sum(row[2] for row in values["confused"]) == count


def test_calibration_in_bins_of_equal_count_is_the_expectation_over_the_order_of_ties():
    random = np.random.default_rng(0)
    confidence = random.choice([0.6, 0.7, 0.9], 40)
    p = np.stack([confidence, 1 - confidence], 1)
    y = random.integers(0, 2, 40)
    found = scores.reliability(p, y, 5, adaptive=True)
    drawn = []
    for _ in range(4000):
        order = random.permutation(40)
        again = scores.reliability(p[order], y[order], 5, adaptive=True)
        assert again.error == pytest.approx(found.error, abs=1e-12)
        # A loop over bins, ties in the order drawn.
        rows = order[np.argsort(confidence[order], kind="stable")]
        drawn.append([np.mean(y[part] == 0) for part in np.split(rows, 5)])
    spread = np.std(drawn, 0) / np.sqrt(len(drawn))
    assert (np.abs(np.mean(drawn, 0) - found.accuracy) <= 5 * spread + 1e-12).all()
