"""Laplace's approximation against dense linear algebra, where both are exact."""

import numpy as np
import pytest
from scipy.special import softmax

from thinned.trust.laplace import Laplace
from thinned.trust.ood import LastLayer, Seen

IMAGES, WIDTH, CLASSES = 200, 5, 3


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(IMAGES, WIDTH))


def test_where_all_images_are_predicted_alike_it_is_the_exact_posterior(features):
    """Then the curvature is one Kronecker product: compared with the inverse of all of it."""
    bias = np.array([0.3, -0.2, 0.9])
    last = LastLayer(np.zeros((WIDTH, CLASSES)), bias)
    seen = Seen(features, np.tile(bias, (IMAGES, 1)))
    labels = np.random.default_rng(1).integers(0, CLASSES, IMAGES)
    found = Laplace.of(seen, labels, last, IMAGES)
    p = softmax(bias)
    entering = np.concatenate([features, np.ones((IMAGES, 1))], 1)
    curvature = np.kron(entering.T @ entering, np.diag(p) - np.outer(p, p))
    covariance = np.linalg.inv(curvature + found.prior * np.eye(len(curvature)))
    for row, variances in zip(entering[:9], found.variances(features[:9]), strict=True):
        jacobian = np.kron(row, np.eye(CLASSES) - 1 / CLASSES)
        np.testing.assert_allclose(variances, np.diag(jacobian @ covariance @ jacobian.T))


def trained(features, seed=2):
    """A layer trained to the end on labels that another drew, with a prior of precision 1."""
    from scipy.optimize import minimize

    random = np.random.default_rng(seed)
    true = random.normal(size=(WIDTH, CLASSES))
    logits = features @ true
    labels = np.array([random.choice(CLASSES, p=softmax(row)) for row in logits])

    def loss(flat):
        logits = features @ flat.reshape(WIDTH, CLASSES)
        own = logits[np.arange(IMAGES), labels] - np.log(np.exp(logits).sum(1))
        return -own.sum() + 0.5 * np.square(flat).sum()

    kernel = minimize(loss, np.zeros(WIDTH * CLASSES)).x.reshape(WIDTH, CLASSES)
    return LastLayer(kernel, np.zeros(CLASSES)), labels


def test_the_prior_is_about_the_one_that_drew_the_weights(features):
    """Drawn with precision 1: the evidence of 15 weights leaves a factor of a few open."""
    last, labels = trained(features)
    found = Laplace.of(Seen(features, features @ last.kernel), labels, last, IMAGES)
    assert 0.2 < found.prior < 5


def test_far_from_the_training_images_it_is_less_sure_and_never_more(features):
    last, labels = trained(features)
    seen = Seen(features, features @ last.kernel)
    found = Laplace.of(seen, labels, last, IMAGES)
    plain = softmax(seen.logits, 1).max(1)
    assert (found.probabilities(seen).max(1) < plain).all()
    far = Seen(100 * features, 100 * seen.logits)
    # Logits grow as fast as their deviations: what is left is below 1, however far off.
    assert np.median(softmax(far.logits, 1).max(1)) == 1
    assert np.median(found.probabilities(far).max(1)) < 0.9999
    many = Laplace.of(seen, labels, last, 10**9)
    np.testing.assert_allclose(many.probabilities(seen).max(1), plain, rtol=1e-4)
