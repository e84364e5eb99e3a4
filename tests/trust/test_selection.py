"""Answers above a threshold of which at most a part is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from thinned.trust.conformal import fewest_images
from thinned.trust.selection import _starts, least_images, select

SEEDS = st.integers(0, 2**31)


def drawn(random, count):
    """Confidences, and whether answers are right, which is as probable as `truth` says."""
    confidence = random.random(count)
    return confidence, random.random(count) < truth(confidence)


def truth(confidence):
    return special.expit(12 * (confidence - 0.3))


def risk_above(threshold):
    """Of new answers above it, the part that is wrong; of all where it is -inf."""
    grid = np.linspace(max(threshold, 0), 1, 2001)
    return float(1 - truth(grid).mean())


def test_the_promise_is_kept_in_as_many_draws_as_it_says():
    """Broken in at most 20 % of 500 draws, a binomial, and five of its deviations."""
    random, broken, times = np.random.default_rng(0), [], 500
    for _ in range(times):
        found = select(*drawn(random, 400), risk=0.05, level=0.8)
        broken.append(bool(found.answered) and risk_above(found.threshold) > 0.05)
    assert np.mean(broken) <= 0.2 + 5 * np.sqrt(0.2 * 0.8 / times)


def bound(answers, price):
    """The exact one-sided bound on the risk (Clopper & Pearson 1934)."""
    wrong, fine = len(answers) - sum(answers), sum(answers)
    return stats.beta.ppf(1 - price, wrong + 1, fine) if fine else 1.0


@given(SEEDS, st.integers(1, 120), st.floats(0.05, 0.5), st.floats(0.5, 0.99), st.booleans())
def test_a_selection_is_that_of_a_loop(seed, count, risk, level, tied):
    random = np.random.default_rng(seed)
    confidence, right = drawn(random, count)
    confidence = np.round(confidence, 1 if tied else 9)
    found = select(confidence, right, risk, level)
    starts, price = _starts(count, risk, 1 - level)
    order = np.argsort(-confidence, kind="stable")
    sure, fine, best = confidence[order], right[order], 0
    for start in starts:
        rank = start
        while 0 < rank < count and sure[rank] == sure[rank - 1]:
            rank -= 1
        while 0 < rank <= count and bound(fine[:rank], price) <= risk:
            best = max(best, rank)
            rank += 1
            while rank < count and sure[rank] == sure[rank - 1]:
                rank += 1
    assert (found.answered, found.wrong) == (best, np.sum(~fine[:best]))
    assert np.sum(confidence > found.threshold) == found.answered


@pytest.mark.parametrize(
    ("count", "starts", "level"),
    [(298, [], 0.05), (299, [299], 0.05), (400, [368], 0.025), (900, [408, 450, 675], 0.05 / 3)],
)
def test_there_are_as_many_sequences_as_the_images_allow(count, starts, level):
    found, price = _starts(count, 0.01, 0.05)
    assert found == starts
    assert price == pytest.approx(level)


def test_parts_next_to_0_and_1_take_more_images_than_there_are():
    for risk, level in ((5e-324, 0.95), (1e-300, math.nextafter(1, 0)), (2.0**-53, 0.05)):
        assert least_images(risk, level) >= 1
    assert least_images(5e-324, 0.95) == least_images(2.0**-53, 0.95) > 10**16
    assert fewest_images(5e-324) == fewest_images(2.0**-53) > 10**15
    # So sure that a part of it cannot be told from 1.
    sure = math.nextafter(1, 0)
    found = select(np.arange(400), np.ones(400, bool), 0.5, sure)
    assert (found.answered, found.wrong) == (400, 0)


@given(st.floats(0.001, 0.9), st.floats(0.5, 0.999))
def test_the_fewest_images_are_those_that_could_show_it(risk, level):
    count = least_images(risk, level)
    assert (1 - risk) ** count <= (1 - level) * (1 + 1e-6)
    assert (1 - risk) ** (count - 1) > (1 - level) * (1 - 1e-6)
    sure, ones = np.linspace(0.5, 1, count), np.ones(count, bool)
    assert select(sure, ones, risk, level).answered == count
    assert select(sure[1:], ones[1:], risk, level).answered == 0
    assert least_images(0.01, 0.95) == 299


def test_what_is_promised_is_told():
    confidence, right = np.linspace(0.5, 1, 1000), np.ones(1000, bool)
    assert str(select(confidence, right, 0.01, 0.95)) == (
        "all answers are sure: at most 0.01 of them are wrong, with 0.95 confidence "
        "(0 of 1,000 were, of 1,000 validation images)"
    )
    right[:200] = False
    told = str(select(confidence, right, 0.01, 0.95))
    assert told.startswith("answers are sure above a probability of 0.")
    assert "all are unsure" in str(select(confidence, ~right, 0.01, 0.95))


@pytest.mark.parametrize("count", [0, 1])
def test_of_too_few_images_none_are_sure(count):
    found = select(np.ones(count), np.ones(count, bool), 0.1, 0.9)
    assert (found.answered, found.threshold) == (0, np.inf)
