"""Replay: the mean reward of those logged actions that the target policy would have chosen too.

Li, Chu, Langford & Wang, "Unbiased Offline Evaluation of Contextual-bandit-based News Article Recommendation Algorithms",
WSDM 2011, algorithm 2:

    V = sum_i 1[a_i = target(x_i)] r_i / sum_i 1[a_i = target(x_i)]

A target that draws its action matches with probability target(a_i | x_i), which stands in the place of the indicator: the mean
over its draws. Unbiased only where the logging policy chose uniformly at random; elsewhere it says how the target agrees with
what was shown.
"""

from recsys_meta.ab.estimators.sample import Contributions, Sample

_ALIKE = 1.001  # propensities within this factor of each other are the same, written with few digits


def replay(sample: Sample) -> Contributions:
    """Rewards of the matches over the matches."""
    return Contributions(sample.target * sample.rewards, sample.target)


def matches_alike(sample: Sample) -> bool:
    """Whether the logged actions that the target may choose too had the same propensity: then Replay is SNIPS.

    False without propensities, for then nobody knows.
    """
    if sample.propensities is None:
        return False
    matched = sample.propensities[sample.target > 0]
    return not len(matched) or bool(matched.max() <= _ALIKE * matched.min())
