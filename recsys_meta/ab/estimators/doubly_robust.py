"""Estimators with a model of the reward. q(x, a) predicts it, v(x) = sum_a target(a | x) q(x, a), w as in importance.py.

    DM          V = 1/n sum_i v(x_i)                                          Beygelzimer & Langford, KDD 2009
    DR          V = 1/n sum_i [v(x_i) + w_i (r_i - q(x_i, a_i))]              Dudik, Langford & Li, ICML 2011
    SNDR        V = 1/n sum_i v(x_i)                                          Thomas & Brunskill, ICML 2016, sec. 5
                    + sum_i w_i (r_i - q(x_i, a_i)) / sum_i w_i
    Switch-DR   DR with 0 for a weight above t                                Wang, Agarwal & Dudik, ICML 2017
    DRos        DR with l w / (w^2 + l) for w                                 Su et al., ICML 2020
    MRDR        DR with q fitted for the least variance of DR                 Farajtabar, Chow & Ghavamzadeh, ICML 2018

q never saw the user it is judged on (reward_models.py): cross-fitting by user. Among thresholds at quantiles of the weights, t is
chosen by least_error and l by SLOPE (selection.py). The interval of DM speaks of the spread of v over users, not of the error
of the model.

MRDR: the variance of DR is that of w (r - q) plus what does not depend on q, less the square of the mean of w (r - q) in each
context; that last term is left out, as in obp, so that q is a regression under the weights w^2.
"""

import numpy as np

from recsys_meta.ab.estimators.importance import chosen
from recsys_meta.ab.estimators.sample import Contributions, Numbers, Sample
from recsys_meta.ab.estimators.selection import slope
from recsys_meta.ab.estimators.weights import shrinking, switching


def direct(sample: Sample) -> Contributions:
    """What the model says that the target policy earns."""
    return Contributions(_given(sample.model_value))


def doubly_robust(sample: Sample) -> Contributions:
    """Unbiased where either the propensities or the model are right."""
    return _corrected(sample, sample.weights)


def self_normalized_doubly_robust(sample: Sample) -> Contributions:
    """DR whose correction is divided by the mean weight."""
    weights = sample.weights
    return Contributions(weights * _residuals(sample), weights, direct=_given(sample.model_value))


def switch_doubly_robust(sample: Sample, setting: float | None = None) -> Contributions:
    """DR that leaves to the model what weighs more than a threshold, which the logs choose or which is given."""
    return chosen(
        sample, switching(sample.weights), lambda weights: _corrected(sample, weights), setting=setting
    )


def shrunk_doubly_robust(sample: Sample, setting: float | None = None) -> Contributions:
    """DR with weights shrunk optimistically, by as much as the logs choose, or as is given."""
    return chosen(
        sample, shrinking(sample.weights), lambda weights: _corrected(sample, weights), slope, setting
    )


def more_robust_doubly_robust(sample: Sample) -> Contributions:
    """DR by the model that was fitted for it."""
    robust = sample._replace(model_value=sample.robust_value, model_reward=sample.robust_reward)
    return _corrected(robust, robust.weights)


def _corrected(sample: Sample, weights: Numbers) -> Contributions:
    """The model, corrected by weighted residuals."""
    return Contributions(weights * _residuals(sample), direct=_given(sample.model_value))


def _residuals(sample: Sample) -> Numbers:
    return np.subtract(sample.rewards, _given(sample.model_reward))


def _given(predictions: Numbers | None) -> Numbers:
    if predictions is None:
        raise ValueError("there is no reward model; expected its predictions beside the rewards")
    return predictions
