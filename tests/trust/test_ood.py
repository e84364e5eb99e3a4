"""The threshold above which an image is none of the classes, and its promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import betabinom
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from thinned.core.errors import RequestError
from thinned.trust.ood import (
    OOD_SCORES,
    LastLayer,
    Seen,
    score_named,
    shrunk_covariance,
    threshold_at,
)


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


CLASSES, WIDTH = 4, 10


@pytest.fixture(scope="module")
def training():
    """Features around four centres, and logits of a dense layer on them."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 120)
    mixing = random.normal(size=(WIDTH, WIDTH))
    centres = 4 * random.normal(size=(CLASSES, WIDTH))
    features = centres[labels] + random.normal(size=(len(labels), WIDTH)) @ mixing
    last = LastLayer(random.normal(size=(WIDTH, CLASSES)), random.normal(size=CLASSES))
    return Seen(features, features @ last.kernel + last.bias), labels, last


@pytest.fixture(scope="module")
def new(training):
    features = np.random.default_rng(1).normal(size=(30, WIDTH), scale=5)
    return Seen(features, features @ training[2].kernel + training[2].bias)


def scored(name, training, new):
    score = OOD_SCORES[name]
    return score.score(score.fit(*training), new)


def test_energy_and_largest_logit(training, new):
    np.testing.assert_allclose(scored("energy", training, new), -logsumexp(new.logits, 1))
    np.testing.assert_array_equal(scored("max-logit", training, new), -new.logits.max(1))


def test_mahalanobis_is_that_of_scikit_learn(training, new):
    seen, labels, _ = training
    means = np.stack([seen.features[labels == each].mean(0) for each in range(CLASSES)])
    within = LedoitWolf(assume_centered=True).fit(seen.features - means[labels])
    to_class = np.min([within.mahalanobis(new.features - mean) for mean in means], 0)
    np.testing.assert_allclose(scored("mahalanobis", training, new), to_class)
    # All covariance is that within classes and that between them.
    all_ = np.cov(seen.features.T, ddof=0) - np.cov((seen.features - means[labels]).T, ddof=0)
    inverse = np.linalg.inv(within.covariance_ + all_)
    to_all = [row @ inverse @ row for row in new.features - seen.features.mean(0)]
    np.testing.assert_allclose(scored("relative-mahalanobis", training, new), to_class - to_all)


@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(1, 12))
def test_covariances_are_shrunk_as_in_scikit_learn(seed, count, width):
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    wanted = LedoitWolf(assume_centered=True).fit(drawn).covariance_
    np.testing.assert_allclose(shrunk_covariance(drawn), wanted, rtol=1e-9, atol=1e-12)


def test_the_nearest_neighbours_are_those_of_scikit_learn(training, new):
    known = normalize(training[0].features)
    wanted = NearestNeighbors(n_neighbors=4).fit(known).kneighbors(normalize(new.features))[0]
    np.testing.assert_allclose(scored("knn", training, new), wanted[:, 3])


def test_the_virtual_logit_is_that_of_the_paper(training, new):
    """Step by step as in section 4 of Wang et al. (2022), by scikit-learn's covariance."""
    (features, logits), _, (kernel, bias) = training
    origin = -np.matmul(np.linalg.pinv(kernel.T), bias)
    found = EmpiricalCovariance(assume_centered=True).fit(features - origin)
    values, vectors = np.linalg.eig(found.covariance_)
    rest = vectors.T[np.argsort(values * -1)[WIDTH // 2 :]].T
    norms = np.linalg.norm(np.matmul(features - origin, rest), axis=-1)
    alpha = logits.max(axis=-1).mean() / norms.mean()
    virtual = np.linalg.norm(np.matmul(new.features - origin, rest), axis=-1) * alpha
    wanted = virtual - logsumexp(new.logits, axis=-1)
    np.testing.assert_allclose(scored("vim", training, new), wanted)


@pytest.mark.parametrize("name", OOD_SCORES)
def test_what_lies_far_off_is_stranger_by_every_score_of_features(name, training):
    """But by logits alone: of a linear layer they are larger far off in some directions."""
    seen, _, last = training
    far = np.linalg.svd(last.kernel.T)[2][-1] * 100
    moved = seen.features + far
    strange = Seen(moved, moved @ last.kernel + last.bias)
    apart = np.median(scored(name, training, strange)) - np.median(scored(name, training, seen))
    assert apart > 0 if name not in ("energy", "max-logit") else abs(apart) < 1e-6


def test_few_images_and_features_that_never_vary_make_no_nan(training):
    seen, labels, last = training
    features = np.concatenate([seen.features[:, :6], np.zeros((len(labels), 4))], 1)[::60]
    few = Seen(features, features @ last.kernel + last.bias)
    for name in OOD_SCORES:
        assert np.isfinite(scored(name, (few, labels[::60], last), few)).all()


def test_scores_have_names():
    with pytest.raises(RequestError, match="unknown --ood-score energie; did you mean 'energy'"):
        score_named("energie")
