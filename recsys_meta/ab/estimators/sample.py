"""What an estimator sees of the logs, what it gives, and how rows become users.

Letters: n logged rows (or slates), U users, A actions, K positions of a slate.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]


class Sample(NamedTuple):
    """The logged actions as numbers, in one order. What is not known is None."""

    users: Codes  # [n], 0 .. U-1: whose action it was
    rewards: Numbers  # [n]
    propensities: Numbers | None  # [n], probability of the logged action under the logging policy
    target: Numbers  # [n], probability of the same action under the target policy
    model_value: Numbers | None = (
        None  # [n], sum over a of target(a | x) * q(x, a), by a model that never saw the user
    )
    model_reward: Numbers | None = None  # [n], q(x, logged action), by the same model
    robust_value: Numbers | None = None  # the same two by the model of MRDR, fitted under squared weights
    robust_reward: Numbers | None = None
    embeddings: Codes | None = (
        None  # [n], the cell (embedding of the action, context) that MIPS marginalizes in
    )

    @property
    def weights(self) -> Numbers:
        """Importance weights, [n]: target over logging probability. Raises ValueError without propensities."""
        if self.propensities is None:
            raise ValueError(
                "there are no propensities; expected them beside the rewards for a weighted estimator"
            )
        return self.target / self.propensities


class Contributions(NamedTuple):
    """What each row adds: value = mean(direct) + sum(numerator) / sum(denominator)."""

    numerator: Numbers  # [n]
    denominator: Numbers | None = None  # [n]; None: 1 for each row, so that the second term is a mean too
    direct: Numbers | None = None  # [n]; None: nothing
    setting: float | None = None  # what was chosen from the logs: a threshold, a shrinkage


class UserSums(NamedTuple):
    """An estimate as a ratio of sums over users, from which every interval follows."""

    numerator: Numbers  # [U]
    denominator: Numbers  # [U]

    @property
    def value(self) -> float:
        """The estimate; NaN where the denominator is 0."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total else float("nan")

    @property
    def influence(self) -> Numbers:
        """How far each user moves the estimate, [U], by linearizing the ratio: mean 0, and variance U times that of the value."""
        moved: Numbers = (self.numerator - self.value * self.denominator) / self.denominator.mean()
        return moved

    @property
    def standard_error(self) -> float:
        """Cluster-robust (sandwich): users are independent of each other, the rows of one are not."""
        users = len(self.numerator)
        if users < 2:
            return float("inf")
        influence = self.influence
        return float(np.sqrt(np.square(influence).sum() / (users - 1) / users))


def user_sums(contributions: Contributions, users: Codes, n_users: int) -> UserSums:
    """The contributions of each user added up.

    A mean, or a ratio alone, stays what it is. A mean plus a ratio becomes the mean that equals it to first order: each user's
    direct part, plus the estimated ratio, plus the user's influence on the ratio.
    """
    rows = per_user(users, None, n_users)
    numerator = per_user(users, contributions.numerator, n_users)
    if contributions.denominator is None:
        if contributions.direct is not None:
            numerator = numerator + per_user(users, contributions.direct, n_users)
        return UserSums(numerator, rows)
    ratio = UserSums(numerator, per_user(users, contributions.denominator, n_users))
    if contributions.direct is None:
        return ratio
    direct = per_user(users, contributions.direct, n_users)
    return UserSums(direct + ratio.value * rows + ratio.influence * rows.mean(), rows)


def per_user(users: Codes, values: Numbers | None, n_users: int) -> Numbers:
    """The sum of each user's values, [U]; without values the number of rows."""
    return np.bincount(users, values, n_users).astype(np.float64, copy=False)


def difference(left: UserSums, right: UserSums, rows: Numbers) -> UserSums:
    """The value of one policy minus that of another, on the same users: what both share cancels out.

    Linearized as in ``user_sums``: to first order the difference of the estimates is the mean difference of their influences.
    After Jeunen & Ustimenko, "Delta-OPE: Off-Policy Estimation with Pairs of Policies", RecSys 2024, with users for rows.

    rows: [U], logged rows of each user.
    """
    gap = left.value - right.value
    return UserSums(gap * rows + (left.influence - right.influence) * rows.mean(), rows)
