"""Which setting of a family of weights to use, the families ordered from little bias and much variance to the reverse.

``slope``: Su, Srinath & Krishnamurthy, "Adaptive Estimator Selection for Off-Policy Evaluation", ICML 2020. With estimates
V_1 .. V_M and half-widths cnf_1 >= .. >= cnf_M of their intervals, chosen is the last m such that for all j < m

    |V_m - V_j| <= cnf_m + (sqrt(6) - 1) * cnf_j

``least_error``: the smallest variance plus squared bias, as in Wang, Agarwal & Dudik (ICML 2017, sec. 4.2) and Su et al. (ICML
2020, sec. 5), with the bias bounded from the logs themselves: by how much V_m differs from the unbiased V_1 on the same users,
plus the standard error of that difference.

    V_m minimizing  se(V_m)^2 + (|V_m - V_1| + se(V_m - V_1))^2,  and se(V_1)^2 for V_1

Both look at the rewards that the estimate is made of. Widths are made monotone by the running minimum, as SLOPE assumes.
"""

from collections.abc import Sequence

import numpy as np

from recsys_meta.ab.estimators.sample import UserSums, difference

_SLACK = np.sqrt(6.0) - 1.0
_Z95 = 1.959964  # half-widths at 95 %


def slope(candidates: Sequence[UserSums]) -> int:
    """The place of the chosen one; 0, the least biased, where there is nothing to go by."""
    values = np.array([sums.value for sums in candidates])
    narrow = np.minimum.accumulate([_Z95 * sums.standard_error for sums in candidates])
    for place in range(1, len(values)):
        gaps = np.abs(values[place] - values[:place])
        if not (gaps <= narrow[place] + _SLACK * narrow[:place]).all():
            return place - 1
    return len(values) - 1


def least_error(candidates: Sequence[UserSums]) -> int:
    """The place of the smallest bound of the mean squared error; the first of equals."""
    unbiased = candidates[0]
    errors = [unbiased.standard_error**2]
    for sums in candidates[1:]:
        gap = difference(sums, unbiased, sums.denominator)
        errors.append(sums.standard_error**2 + (abs(gap.value) + gap.standard_error) ** 2)
    return int(np.argmin(errors))
