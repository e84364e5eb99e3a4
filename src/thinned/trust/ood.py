"""Images that are none of the known classes: scores of how strange, and where to draw the line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from thinned.core.errors import RequestError, nearest
from thinned.trust.conformal import quantile
from thinned.trust.sampling import Predictions

OOD_SCORES: Mapping[str, Callable[[Predictions], np.ndarray]] = {
    "energy": lambda found: found.energy,
}
"""Score -> f64 [image] of predictions; higher is less like the training data.

``energy``: the free energy -log sum exp of the logits (Liu et al. 2020, section 3), at temperature
1; of samples and of several networks, the mean of each one's own.
"""


def ood_scores(score: str, predictions: Predictions) -> np.ndarray:
    """A score of every image, f64 [image].

    Raises:
        RequestError: no score has that name.
    """
    if score not in OOD_SCORES:
        raise RequestError(f"unknown --ood-score {score}{nearest(score, OOD_SCORES)}")
    return OOD_SCORES[score](predictions)


def threshold_at(scores: np.ndarray, fpr: float) -> float:
    """The threshold above which at most a part `fpr` of new images of the same kind score.

    See `thinned.trust.conformal.quantile` for what that promises.

    Args:
        scores: f64 [image], of images that nothing learned from.
        fpr: above 0 and below 1.

    Returns:
        One of the scores; infinite, so that nothing is marked, where there are fewer than
        1 / fpr - 1.

    Raises:
        RequestError: `fpr` does not lie between 0 and 1.
    """
    if not 0 < fpr < 1:
        raise RequestError(f"--ood-fpr is {fpr:g}: must be a number above 0 and below 1")
    return quantile(scores, fpr)
