"""The threshold above which an image is none of the classes, and its promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import betabinom

from thinned.core.errors import RequestError
from thinned.trust.ood import ood_scores, threshold_at
from thinned.trust.sampling import Predictions


@given(
    scores=st.lists(st.integers(-3, 3), min_size=2, max_size=30),
    fpr=st.sampled_from([0.01, 0.05, 0.1, 1 / 3, 0.5, 0.9]),
)
def test_of_exchangeable_images_at_most_that_part_is_marked(scores, fpr):
    """Each of n + 1 is the new one in turn, which is what exchangeable means: exact, with ties."""
    marked = [
        new > threshold_at(np.asarray(scores[:place] + scores[place + 1 :], float), fpr)
        for place, new in enumerate(scores)
    ]
    assert np.mean(marked) <= fpr + 1e-9
    if len(set(scores)) == len(scores):
        assert np.mean(marked) > fpr - 1 / len(scores) - 1e-9


@pytest.mark.parametrize(("count", "fpr"), [(60, 0.05), (199, 0.1)])
def test_simulated_photos_are_marked_as_often_as_theory_says(count, fpr):
    """Over 500 draws: marked images follow a beta-binomial law (Angelopoulos & Bates, 3.2)."""
    random, new, draws = np.random.default_rng(0), 200, 500
    marked = [
        int(np.sum(random.gumbel(size=new) > threshold_at(random.gumbel(size=count), fpr)))
        for _ in range(draws)
    ]
    above = math.floor((count + 1) * fpr)
    law = betabinom(new, above, count + 1 - above)
    assert abs(np.mean(marked) - law.mean()) < 4 * law.std() / math.sqrt(draws)
    assert np.mean(marked) / new <= fpr + 4 * law.std() / math.sqrt(draws) / new


def test_the_threshold_is_that_order_statistic_and_too_few_mark_nothing():
    scores = np.random.default_rng(0).permutation(99).astype(float)
    for fpr in (0.01, 0.05, 0.3, 0.29, 0.999999999999):
        rank = min(math.ceil(round(100 * (1 - fpr), 6)), 99)
        assert threshold_at(scores, fpr) == np.sort(scores)[max(rank, 1) - 1]
    assert threshold_at(scores[:98], 0.01) == math.inf
    for fpr in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(RequestError, match="must be a number above 0 and below 1"):
            threshold_at(scores, fpr)


def test_scores_have_names():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    energy = -logsumexp(logits, 1)
    found = Predictions(np.exp(logits), energy, energy, energy, 1)
    np.testing.assert_array_equal(ood_scores("energy", found), energy)
    with pytest.raises(RequestError, match="unknown --ood-score energie; did you mean 'energy'"):
        ood_scores("energie", found)
