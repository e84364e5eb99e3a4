"""The fitted head against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from thinned.engine.head import fitted_head


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_equals_scikit_learn(strength: float) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 120).astype(np.int32)
    centres = rng.normal(size=(4, 12))
    features = (centres[labels] + rng.normal(size=(120, 12))).astype(np.float32)
    kernel, bias = fitted_head(features, labels, 4, strength)
    known = LogisticRegression(C=strength, tol=1e-8, max_iter=2000).fit(features, labels)
    np.testing.assert_allclose(kernel.T, known.coef_, atol=2e-2)
    ours = features @ np.asarray(kernel) + np.asarray(bias)
    theirs = known.decision_function(features)
    # Logits count but for a constant.
    ours, theirs = (each - each.mean(1, keepdims=True) for each in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=5e-2)


def test_a_class_without_examples_becomes_the_least_likely() -> None:
    features = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]]
    kernel, bias = fitted_head(features, np.asarray([0, 1, 0, 1], np.int32), 3)
    logits = features @ np.asarray(kernel) + np.asarray(bias)
    assert np.all(np.argmin(logits, 1) == 2)
