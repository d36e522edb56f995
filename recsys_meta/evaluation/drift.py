"""How far what is shown has moved from one night to the next: two distances of distributions, both from 0 to 1.

scores    Kolmogorov-Smirnov: the largest difference of the two distribution functions, sup_x |F(x) - G(x)|
items     total variation: sum over items of |p_i - q_i| / 2, p and q the shares of all rows that an item has
"""

import polars as pl
import torch
from torch import Tensor


def ks_distance(before: Tensor, now: Tensor) -> float:
    """The largest difference of two empirical distribution functions; 1 where one of the samples is empty.

    before, now: samples, [N] and [M], of finite numbers.
    """
    if not len(before) or not len(now):
        return 1.0
    before, now = before.sort().values, now.sort().values
    at = torch.cat([before, now])
    difference = torch.searchsorted(before, at, right=True).double() / len(before)
    difference -= torch.searchsorted(now, at, right=True).double() / len(now)
    return float(difference.abs().max())


def total_variation(before: pl.DataFrame, now: pl.DataFrame, key: str) -> float:
    """The share of the rows that went from some items to others; 1 where one of the tables is empty.

    before, now: one row per item, columns ``key`` and ``n``, the number of rows that it has.
    """
    if not before["n"].sum() or not now["n"].sum():
        return 1.0
    both = before.join(now, on=key, how="full", suffix="_now")
    shares = both.select(pl.col(name).fill_null(0) / pl.col(name).sum() for name in ("n", "n_now"))
    return float((shares["n"] - shares["n_now"]).abs().sum() / 2)
