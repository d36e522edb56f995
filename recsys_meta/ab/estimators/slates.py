"""Estimators of the value of a slate: the sum of the rewards of its positions, k = 1 .. K from the top.

With w_k the ratio of target to logging probability of the item at k given those above it, and m_k that of its marginal
probabilities at k, whatever stands above:

    SIPS         1/S sum_s (prod_k w_k) sum_k r_k                  standard: nothing is assumed of how a user looks at a slate
                                                                   (Precup, Sutton & Singh, ICML 2000)
    RIPS         1/S sum_s sum_k (prod_{j<=k} w_j) r_k             cascade: what stands below k does not matter to r_k
                                                                   (McInerney et al., KDD 2020)
    IIPS         1/S sum_s sum_k m_k r_k                           r_k depends on the item at k alone (Li et al., KDD 2018)
    PI           1/S sum_s (sum_k m_k - K + 1) sum_k r_k           the reward of a slate is a sum over its positions
                                                                   (Swaminathan et al., NeurIPS 2017, eq. 8)
    Cascade-DR   1/S sum_s sum_k [W_k (r_k - q_k) + W_{k-1} v_k]   RIPS with a model: W_k = prod_{j<=k} w_j; q_k for r_k of the
                                                                   logged item, v_k of what the target would place at k given the
                                                                   items above (Kiyohara et al., WSDM 2022, eq. 8)

IIPS and PI need marginal probabilities: those of positions that are filled independently of each other (for PI the product form,
where the pseudo-inverse is explicit). Difference from the paper: q of Cascade-DR predicts the reward of its own position, not
that of all below; any q leaves it unbiased.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recsys_meta.ab.estimators.sample import Codes, Contributions, Numbers, per_user


class SlateSample(NamedTuple):
    """Slates as rows, one per position, ordered by slate and position."""

    slates: Codes  # [n], 0 .. S-1
    users: Codes  # [S], 0 .. U-1
    rewards: Numbers  # [n]
    weights: Numbers  # [n], w_k
    prefix: Numbers  # [n], prod of w_j over j <= k
    independent: bool = False  # whether positions are filled independently, so that w_k is m_k
    model_reward: Numbers | None = None  # [n], q_k
    model_value: Numbers | None = None  # [n], v_k

    def total(self, values: Numbers) -> Numbers:
        """Sums over the positions of each slate, [S]."""
        return per_user(self.slates, values, len(self.users))

    @property
    def whole(self) -> Numbers:
        """The weight of each whole slate, [S]: that of its last position."""
        last = np.bincount(self.slates).cumsum() - 1
        products: Numbers = self.prefix[last]
        return products


def standard(sample: SlateSample) -> Contributions:
    """SIPS."""
    return Contributions(sample.whole * sample.total(sample.rewards))


def reward_interaction(sample: SlateSample) -> Contributions:
    """RIPS."""
    return Contributions(sample.total(sample.prefix * sample.rewards))


def independent(sample: SlateSample) -> Contributions:
    """IIPS."""
    return Contributions(sample.total(sample.weights * sample.rewards))


def pseudo_inverse(sample: SlateSample) -> Contributions:
    """PI, for positions that are filled independently."""
    weights = sample.total(sample.weights - 1.0) + 1.0
    return Contributions(weights * sample.total(sample.rewards))


def cascade_doubly_robust(sample: SlateSample) -> Contributions:
    """Cascade-DR."""
    if sample.model_reward is None or sample.model_value is None:
        raise ValueError("there is no reward model; expected its predictions beside the rewards")
    before = sample.prefix.copy()
    before[1:] = before[:-1]
    first = sample.slates != _shifted(sample.slates)
    before[first] = 1.0
    corrected = sample.prefix * (sample.rewards - sample.model_reward) + before * sample.model_value
    return Contributions(sample.total(corrected))


def _shifted(slates: Codes) -> Codes:
    """The slate of the row before, [n]; that of the first row is none."""
    before = slates.copy()
    before[1:] = slates[:-1]
    before[0] = -1
    return before


class SlateEstimator(NamedTuple):
    """An estimator of slates and what there is to say of it."""

    name: str
    contributions: Callable[[SlateSample], Contributions]
    needs_independence: bool
    needs_model: bool
    note: str


_CASCADE = "assumes that what stands below a position does not change its reward"

SLATE_ESTIMATORS = {
    estimator.name: estimator
    for estimator in (
        SlateEstimator("SIPS", standard, False, False, ""),
        SlateEstimator("RIPS", reward_interaction, False, False, _CASCADE),
        SlateEstimator(
            "IIPS",
            independent,
            True,
            False,
            "assumes that the other positions do not change the reward of one",
        ),
        SlateEstimator(
            "PI",
            pseudo_inverse,
            True,
            False,
            "assumes that the reward of a slate is a sum over its positions",
        ),
        SlateEstimator("Cascade-DR", cascade_doubly_robust, False, True, _CASCADE),
    )
}


def available_for_slates(sample: SlateSample) -> list[SlateEstimator]:
    """Those that this sample has everything for, in order."""
    return [
        estimator
        for estimator in SLATE_ESTIMATORS.values()
        if (sample.independent or not estimator.needs_independence)
        and (sample.model_value is not None or not estimator.needs_model)
    ]
