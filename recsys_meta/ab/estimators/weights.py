"""Importance weights made smaller: less variance, some bias. w is target(a | x) / logging(a | x).

clipped        min(w, t)                Ionides, "Truncated Importance Sampling", JCGS 2008; Bottou et al., JMLR 2013
switch         w * 1[w <= t]            Wang, Agarwal & Dudik, "Optimal and Adaptive Off-policy Evaluation in Contextual
                                        Bandits", ICML 2017, eq. 7
shrunk         l * w / (w^2 + l)        Su, Dimakopoulou, Krishnamurthy & Dudik, "Doubly Robust Off-policy Evaluation with
                                        Shrinkage", ICML 2020, eq. 10 (optimistic)
sub_gaussian   w / (1 - l + l * w)      Metelli, Russo & Restelli, "Subgaussian and Differentiable Importance Sampling for
                                        Off-Policy Evaluation and Learning", NeurIPS 2021, eq. 6 (s = -1)
"""

from typing import NamedTuple, Protocol

import numpy as np

from recsys_meta.ab.estimators.sample import Numbers

_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_LAMBDAS = (
    0.001,
    0.003,
    0.01,
    0.03,
    0.1,
    0.3,
)  # of the sub-Gaussian weights; at 0 they are w, at 1 all are 1


class Shrinkage(Protocol):
    """A family of weights: the larger the bias, the smaller the variance."""

    def __call__(self, weights: Numbers, setting: float) -> Numbers:
        """The weights under one setting."""


class Candidates(NamedTuple):
    """Settings to choose from, the least biased first: it leaves the weights as they are, or nearly."""

    shrinkage: Shrinkage
    settings: tuple[float, ...]


def clipped(weights: Numbers, setting: float) -> Numbers:
    """No weight above the threshold."""
    return np.minimum(weights, setting)


def switched(weights: Numbers, setting: float) -> Numbers:
    """0 in the place of a weight above the threshold: there the model answers alone."""
    return np.where(weights <= setting, weights, 0.0)


def shrunk(weights: Numbers, setting: float) -> Numbers:
    """Near w where w is small against the root of the setting, near setting / w beyond."""
    return weights if np.isinf(setting) else setting * weights / (np.square(weights) + setting)


def sub_gaussian(weights: Numbers, setting: float) -> Numbers:
    """At most 1 / setting."""
    return weights / (1.0 - setting + setting * weights)


def thresholds(weights: Numbers) -> tuple[float, ...]:
    """Thresholds at quantiles of the weights that are not 0, infinity first."""
    positive = weights[weights > 0]
    cuts = np.unique(np.quantile(positive, _QUANTILES)) if len(positive) else np.empty(0)
    return (float("inf"), *cuts[::-1].tolist())


def clipping(weights: Numbers) -> Candidates:
    """For clipped IPS."""
    return Candidates(clipped, thresholds(weights))


def switching(weights: Numbers) -> Candidates:
    """For Switch-DR."""
    return Candidates(switched, thresholds(weights))


def shrinking(weights: Numbers) -> Candidates:
    """For DRos: the squares of the thresholds, for a weight w is halved at l = w^2."""
    return Candidates(shrunk, tuple(cut**2 for cut in thresholds(weights)))


def sub_gaussian_weights(weights: Numbers) -> Candidates:
    """For the sub-Gaussian estimator."""
    return Candidates(sub_gaussian, (0.0, *_LAMBDAS))
