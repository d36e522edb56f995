"""Estimators by importance weights alone. w_i = target(a_i | x_i) / logging(a_i | x_i).

    IPS           V = 1/n sum_i w_i r_i                 Horvitz & Thompson, JASA 1952; Strehl et al., NeurIPS 2010
    SNIPS         V = sum_i w_i r_i / sum_i w_i         Swaminathan & Joachims, "The Self-Normalized Estimator for Counterfactual
                                                        Learning", NeurIPS 2015
    clipped IPS   V = 1/n sum_i min(w_i, t) r_i         weights.py; t by least_error (selection.py)
    sub-Gaussian  V = 1/n sum_i w_i r_i / (1 - l + l w_i)   weights.py; l by least_error, where the paper has a rate

The interval of a tuned estimator knows neither of the choice nor of the bias that was chosen.
"""

from collections.abc import Callable, Sequence

from recsys_meta.ab.estimators.sample import Contributions, Numbers, Sample, UserSums, user_sums
from recsys_meta.ab.estimators.selection import least_error
from recsys_meta.ab.estimators.weights import Candidates, clipping, sub_gaussian_weights


def ips(sample: Sample) -> Contributions:
    """Unbiased where the propensities are right and every action of the target could be logged."""
    return Contributions(sample.weights * sample.rewards)


def snips(sample: Sample) -> Contributions:
    """IPS over the mean weight: a little bias, no sensitivity to a shift of the rewards."""
    weights = sample.weights
    return Contributions(weights * sample.rewards, weights)


def clipped_ips(sample: Sample, setting: float | None = None) -> Contributions:
    """IPS whose weights end at a threshold that the logs choose, or at the one given."""
    return chosen(sample, clipping(sample.weights), _weighted_rewards(sample), setting=setting)


def sub_gaussian_ips(sample: Sample, setting: float | None = None) -> Contributions:
    """IPS whose weights are bent smoothly, by as much as the logs choose, or as is given."""
    return chosen(sample, sub_gaussian_weights(sample.weights), _weighted_rewards(sample), setting=setting)


def _weighted_rewards(sample: Sample) -> Callable[[Numbers], Contributions]:
    return lambda weights: Contributions(weights * sample.rewards)


def chosen(
    sample: Sample,
    candidates: Candidates,
    estimator: Callable[[Numbers], Contributions],
    select: Callable[[Sequence[UserSums]], int] = least_error,
    setting: float | None = None,
) -> Contributions:
    """The contributions under the setting that is given, or selected by estimates whose errors are clustered by user."""
    weights, n_users = sample.weights, int(sample.users.max()) + 1
    if setting is not None:
        return estimator(candidates.shrinkage(weights, setting))._replace(setting=setting)
    tried = [
        user_sums(estimator(candidates.shrinkage(weights, setting)), sample.users, n_users)
        for setting in candidates.settings
    ]
    setting = candidates.settings[select(tried)]
    return estimator(candidates.shrinkage(weights, setting))._replace(setting=setting)
