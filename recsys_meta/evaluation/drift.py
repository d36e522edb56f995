"""How far what is shown has moved from one night to the next: two distances of distributions, both from 0 to 1.

scores    Kolmogorov-Smirnov: the largest difference of the two distribution functions, sup_x |F(x) - G(x)|
items     total variation: sum over items of |p_i - q_i| / 2, p and q the shares of all rows that an item has
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_meta.tables import same_kind

Sample = npt.NDArray[np.floating]

_KEPT = 1_000_000  # order statistics that a distribution function is read off: of more, it is known to a millionth


def ks_distance(before: Sample, now: Sample) -> float:
    """The largest difference of two empirical distribution functions; 1 where one of the samples is empty.

    before, now: finite numbers, [N] and [M]. Of more than a million each the difference may be off by two millionths.
    """
    if not len(before) or not len(now):
        return 1.0
    before, now = _in_order(before), _in_order(now)
    at = np.concatenate([before, now])
    shares = [np.searchsorted(one, at, side="right") / len(one) for one in (before, now)]
    return float(np.abs(shares[0] - shares[1]).max())


def _in_order(sample: Sample) -> Sample:
    """Ascending; of a large sample every n-th."""
    return np.sort(sample)[:: -(-len(sample) // _KEPT)]


def total_variation(before: pl.DataFrame, now: pl.DataFrame, key: str) -> float:
    """The share of the rows that went from some items to others; 1 where one of the tables is empty.

    before, now: one row per item, columns ``key`` and ``n``, the rows that it has. Integer keys of any width are compared
    by value. Raises ValueError where one side's are text and the other's are not.
    """
    if not before["n"].sum() or not now["n"].sum():
        return 1.0
    keys = [table.schema[key] for table in (before, now)]
    if keys[0] != keys[1]:
        if not same_kind(*keys):
            raise ValueError(f"{key} is {keys[0]} before and {keys[1]} now; expected one kind of id")
        before, now = (table.with_columns(pl.col(key).cast(pl.Int128)) for table in (before, now))
    both = before.join(now, on=key, how="full", suffix="_now")
    shares = both.select(pl.col(name).fill_null(0) / pl.col(name).sum() for name in ("n", "n_now"))
    return float((shares["n"] - shares["n_now"]).abs().sum() / 2)
