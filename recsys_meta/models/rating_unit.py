"""The unit of ratings: what priors and ridges are worth depends on how far ratings spread, 1 to 5 or 0 to 100."""

from torch import Tensor, where


def unit_of(ratings: Tensor) -> Tensor:
    """The power of two nearest to the standard deviation of the ratings, [M] -> []; 1 where they are all the same.

    A power of two, so that ratings in its units are exact: of twice the ratings everything is exactly twice as much.
    """
    spread = ratings.std(correction=0)
    return where(spread > 0, spread.log2().round().exp2(), 1.0)
