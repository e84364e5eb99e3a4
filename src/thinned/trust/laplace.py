"""Laplace's approximation on the last layer: uncertainty of its weights, in closed form.

Daxberger et al. (2021), "Laplace redux", section 2 and appendix B: the posterior of the last
layer's weights is taken for a Gaussian around the trained ones, whose precision is a Kronecker
product (KFAC, Martens & Grosse 2015) and the prior's; the prior is chosen by the marginal
likelihood, and predictions by the probit approximation (MacKay 1992).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from thinned.trust.ood import LastLayer, Seen

_PRIORS = (math.log(1e-4), math.log(1e6))
_TOGETHER = 4096


class Laplace(NamedTuple):
    """The posterior of a last layer, as eigenvectors and eigenvalues of its two factors.

    Attributes:
        prior: precision of the weights' prior, chosen by the marginal likelihood.
        inputs, input_values: f64 [feature + 1, feature + 1] and [feature + 1], of the mean outer
            product of what enters the layer, a 1 for the bias behind it.
        outputs, output_values: f64 [class, class] and [class], of the mean curvature of the loss.
        images: how many the network learned from.
    """

    prior: float
    inputs: np.ndarray
    input_values: np.ndarray
    outputs: np.ndarray
    output_values: np.ndarray
    images: int

    @classmethod
    def of(cls, seen: Seen, labels: np.ndarray, last: LastLayer, count: int) -> Laplace:
        """The posterior after training.

        Args:
            seen: some training images, or all.
            labels: theirs, i32 [image].
            last: the layer.
            count: of all training images.
        """
        entering = _with_one(seen.features)
        shares = softmax(seen.logits.astype(np.float64), 1)
        curvature = np.diag(shares.mean(0)) - shares.T @ shares / len(shares)
        input_values, inputs = _spectrum(entering.T @ entering / len(entering))
        output_values, outputs = _spectrum(curvature)
        likelihood = log_softmax(seen.logits.astype(np.float64), 1)
        fit = count * float(likelihood[np.arange(len(labels)), labels].mean())
        size = float(np.square(last.kernel).sum() + np.square(last.bias).sum())
        values = count * np.outer(input_values, output_values)

        def evidence(prior: float) -> float:
            delta = math.exp(prior)
            log_determinant = np.log1p(values / delta).sum()
            return float(-fit + 0.5 * (delta * size + log_determinant))

        found: Any = minimize_scalar(evidence, bounds=_PRIORS, method="bounded")
        held = (inputs, input_values, outputs, output_values)
        return cls(math.exp(found.x), *held, count)

    def variances(self, features: np.ndarray) -> np.ndarray:
        """Of every logit less the mean of all, over the posterior, f64 [image, class].

        What moves all logits alike changes no probability, and no image tells it from the prior: it
        would make every prediction less sure for nothing.
        """
        turned = np.square(_with_one(features) @ self.inputs)
        precision = self.images * np.outer(self.input_values, self.output_values) + self.prior
        moves = self.outputs - self.outputs.mean(0)
        return turned @ (1 / precision) @ np.square(moves).T

    def probabilities(self, seen: Seen) -> np.ndarray:
        """f64 [image, class], the posterior's mean by the probit approximation."""
        found = np.empty(seen.logits.shape)
        for start in range(0, len(found), _TOGETHER):
            rows = slice(start, start + _TOGETHER)
            spread = np.sqrt(1 + np.pi / 8 * self.variances(seen.features[rows]))
            found[rows] = softmax(seen.logits[rows] / spread, 1)
        return found


def _with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], 1)


def _spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, none below 0 by rounding, and eigenvectors of a symmetric matrix."""
    values, vectors = linalg.eigh(matrix)
    return np.maximum(values, 0.0), vectors
