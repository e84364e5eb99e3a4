"""Sets of classes: as other libraries make them, and with the coverage that is promised."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from thinned.trust.conformal import (
    Conformal,
    Penalised,
    SetScores,
    Share,
    fewest_images,
    nonconformity,
    quantile,
)

KINDS = ["lac", "aps", "raps"]
SEEDS = st.integers(0, 2**31)
REFERENCE = json.loads((Path(__file__).parent / "conformal_reference.json").read_text())


def case(random, count, classes=6, sharp=1.5):
    """Probabilities too sure of themselves, and labels as they would be otherwise."""
    logits = random.normal(size=(count, classes)) + np.linspace(0, 1, classes)
    p = special.softmax(logits, 1)
    labels = (random.random((count, 1)) > np.cumsum(p, 1)).sum(1).clip(0, classes - 1)
    return special.softmax(sharp * logits, 1), labels


def reference():
    names = ("held", "labels", "new", "held_draws", "new_draws")
    return [np.asarray(REFERENCE[name]) for name in names]


@pytest.mark.parametrize(
    ("name", "kind", "per_class"), [("lac", "lac", False), ("per_class", "lac", True)]
)
def test_the_smallest_sets_are_those_of_mapie_and_by_class_of_crepes(name, kind, per_class):
    held, labels, new, _, _ = reference()
    made = Conformal.of(kind, REFERENCE["coverage"], held, labels, per_class)
    assert made.sets(new).astype(int).tolist() == REFERENCE[name]


def test_adaptive_sets_that_are_drawn_are_those_of_mapie():
    held, labels, new, held_draws, new_draws = reference()
    # Its draw is of what is taken away of a class, ours of what is counted.
    own = nonconformity("aps", held, 1 - held_draws)[np.arange(len(labels)), labels]
    threshold = quantile(own, 1 - REFERENCE["coverage"])
    found = nonconformity("aps", new, 1 - new_draws) <= threshold
    assert found.astype(int).tolist() == REFERENCE["aps"]


@given(SEEDS, st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 4))
def test_nonconformity_is_that_of_a_loop(seed, draw, penalty, free):
    p, _ = case(np.random.default_rng(seed), 3)
    aps = nonconformity("aps", p, draw)
    raps = nonconformity("raps", p, draw, penalty, free)
    np.testing.assert_array_equal(nonconformity("lac", p), 1 - p)
    for row, label in np.ndindex(p.shape):
        above = [other for other in p[row] if other > p[row, label]]
        expected = sum(above) + draw * p[row, label]
        assert aps[row, label] == pytest.approx(expected, abs=1e-12)
        expected += penalty * max(0, len(above) + 1 - free)
        assert raps[row, label] == pytest.approx(expected, abs=1e-12)


@given(SEEDS, st.integers(1, 60), st.integers(1, 99))
def test_the_threshold_is_the_rank_that_the_promise_takes(seed, count, hundredth):
    scores = np.random.default_rng(seed).random(count)
    rate = hundredth / 100
    rank = -(-(count + 1) * (100 - hundredth) // 100)
    expected = np.inf if rank > count else np.sort(scores)[rank - 1]
    assert quantile(scores, rate) == expected
    assert np.isinf(quantile(scores, rate)) == (count < fewest_images(rate))


@pytest.mark.parametrize(
    ("kind", "per_class"), [("lac", False), ("aps", False), ("raps", False), ("lac", True)]
)
def test_the_promise_is_kept_over_many_draws_of_what_is_held_out(kind, per_class):
    """Coverage of one new image each, over 500 draws: a binomial; five deviations."""
    times, coverage, classes = 500, 0.8, 6
    p, labels = case(np.random.default_rng(0), times * 121)
    p, labels = p.reshape(times, 121, classes), labels.reshape(times, 121)
    new, hits = labels[:, -1], np.empty(times, bool)
    for turn in range(times):
        made = Conformal.of(kind, coverage, p[turn, :-1], labels[turn, :-1], per_class)
        hits[turn] = made.sets(p[turn, -1:])[0, new[turn]]
    for each in [np.ones(times, bool)] + [new == y for y in range(classes) if per_class]:
        deviation = np.sqrt(coverage * (1 - coverage) / each.sum())
        assert hits[each].mean() >= coverage - 5 * deviation
        if kind == "lac" and not per_class:
            assert hits.mean() <= coverage + 1 / 121 + 5 * deviation


def test_coverage_given_what_was_held_out_is_of_the_beta_distribution():
    """Of scores drawn evenly, it is the threshold itself (Vovk 2012, proposition 2a)."""
    random = np.random.default_rng(1)
    found = [quantile(random.random(60), 0.1) for _ in range(500)]
    assert stats.kstest(found, stats.beta(55, 6).cdf).pvalue > 1e-4


def test_the_most_probable_class_is_in_every_adaptive_set_and_sets_are_nested():
    random = np.random.default_rng(2)
    (p, labels), (new, _) = case(random, 200), case(random, 50)
    for kind in ("aps", "raps"):
        sets = Conformal.of(kind, 0.9, p, labels).sets(new)
        assert sets[np.arange(50), new.argmax(1)].all()
        # Those of raps count ranks otherwise for another coverage.
        assert kind == "raps" or np.all(Conformal.of(kind, 0.6, p, labels).sets(new) <= sets)


@given(SEEDS)
def test_ranks_are_penalised_as_the_authors_loop_chooses_it(seed):
    """`pick_kreg` and `pick_lamda_size` of their program, with quantiles that count a new image."""
    p, labels = case(np.random.default_rng(seed), 60, 12, 0.7)
    order = np.argsort(-p, 1)
    places = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    free = sorted(places)[-(-61 * 9 // 10) - 1] + 1
    sizes = []
    for penalty in (0.001, 0.01, 0.1, 0.2, 0.5):
        fits = np.zeros((60, 12))
        for row, classes in enumerate(order):
            for place, label in enumerate(classes):
                above = p[row, classes[:place]].sum()
                fits[row, label] = above + penalty * max(0, place + 1 - free)
        threshold = sorted(fits[np.arange(60), labels])[-(-61 * 9 // 10) - 1]
        sizes.append(np.sum(fits <= threshold + 1e-12))
    found = Penalised.for_small_sets(0.1, p, labels)
    assert (found.free, found.images) == (free, 60)
    assert found.penalty == (0.001, 0.01, 0.1, 0.2, 0.5)[np.argmin(sizes)]


def test_images_that_choose_penalties_choose_no_threshold():
    p, labels = case(np.random.default_rng(4), 100, 12)
    made = Conformal.of("raps", 0.9, p, labels)
    assert (made.images, made.tuned) == (70, 30)
    order = np.random.default_rng(0).permutation(100)
    how = Penalised.for_small_sets(1 - 0.9, p[order[:30]], labels[order[:30]])
    assert (made.penalty, made.free) == how[:2]
    fits = nonconformity("raps", p, 0.0, *how[:2])[np.arange(100), labels]
    assert made.thresholds[0] == np.sort(fits[order[30:]])[63]
    assert f"{how.penalty:g} for each rank beyond {how.free}, chosen by 30 others" in str(made)


@pytest.mark.parametrize(("count", "per_class"), [(25, False), (100, True)])
def test_too_few_images_choose_the_threshold_alone(count, per_class):
    """25 would leave 8 for penalties, and 9 take part in a promise of 90 %; so in a class."""
    p, labels = case(np.random.default_rng(5), count, 6)
    if per_class:
        labels = np.where(labels == 5, 4, labels)
        labels[:9] = 5
    made = Conformal.of("raps", 0.9, p, labels, per_class)
    assert (made.images, made.tuned, made.penalty, made.free) == (count, 0, 0.01, 5)
    assert np.isfinite(made.thresholds[5])


def test_a_class_with_too_few_images_is_in_every_set():
    p, labels = case(np.random.default_rng(3), 300)
    labels = np.where(labels == 2, 1, labels)
    made = Conformal.of("lac", 0.9, p, labels, per_class=True)
    assert made.sets(p)[:, 2].all()
    assert "too few of 1 classes, which are in every set" in str(made)


@given(SEEDS, st.sampled_from(KINDS), st.booleans())
def test_scores_of_sets_are_those_of_a_loop(seed, kind, per_class):
    random = np.random.default_rng(seed)
    (held, known), (p, labels) = case(random, 150, 13, 1.0), case(random, 70, 13, 1.0)
    names = [f"c{row}" for row in range(13)]
    made = Conformal.of(kind, 0.8, held, known, per_class)
    found = SetScores.of(made, p, labels, names)
    sets = [set(np.flatnonzero(row)) for row in made.sets(p)]
    hits = [label in each for label, each in zip(labels, sets, strict=True)]
    assert found.coverage.part == pytest.approx(np.mean(hits))
    low, high = stats.binomtest(sum(hits), 70).proportion_ci(0.95, method="wilson")
    assert (found.coverage.low, found.coverage.high) == pytest.approx((low, high))
    assert found.size[0] == pytest.approx(np.mean([len(each) for each in sets]))
    assert found.size[1] <= found.size[0] <= found.size[2]
    for row, name in enumerate(names):
        own = [hit for hit, label in zip(hits, labels, strict=True) if label == row]
        assert found.by_class[name].images == len(own)
        assert not own or found.by_class[name].part == pytest.approx(np.mean(own))
    ranges = {"0": [0], "1": [1], "2": [2], "3": [3], "4 to 10": range(4, 11)}
    ranges["11 to 100"] = range(11, 101)
    for name, sizes in ranges.items():
        own = [hit for hit, each in zip(hits, sets, strict=True) if len(each) in sizes]
        assert (name in found.by_size) == bool(own)
        assert not own or found.by_size[name].part == pytest.approx(np.mean(own))
    assert sum(share.images for share in found.by_size.values()) == 70
    assert json.loads(json.dumps(found.as_values(), allow_nan=False))["coverage"]["images"] == 70
    assert f"coverage    {found.coverage}" in str(found)


def test_the_share_of_nothing_is_a_dash():
    assert str(Share.of(np.zeros(0, bool))) == "      - (0.00% to 100.00%)"
