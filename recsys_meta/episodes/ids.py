"""Original ids: the rows they stand for, keys that never change, and splits of users by the id alone."""

import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys_meta.hashing import hashed, mixed, uniform
from recsys_meta.tables import same_kind

_SPARSE = 4  # places of a table of integer ids for each id that is asked for or in it, at most
_LARGEST = 2**63 - 1  # of Int64


def rows_of(ids: pl.Series, among: pl.Series) -> pl.Series:
    """The position of every id in ``among``, null where it is not there.

    Raises ValueError where the two are of different kinds (the integer 7 is not the string "007"),
    and where ``among`` names an id twice.
    """
    if ids.dtype != among.dtype:
        if not same_kind(ids.dtype, among.dtype):
            raise ValueError(
                f"ids {ids.name!r} are {ids.dtype}, but {among.dtype} was expected: ids have to keep one type"
            )
        ids = ids.cast(among.dtype, strict=False)  # what the other type cannot hold becomes null: not there
    if among.n_unique() < len(among):
        twice = among.filter(among.is_duplicated())
        raise ValueError(f"ids {among.name!r} name {twice[0]!r} more than once; every row needs its own")
    if among.dtype.is_integer() and len(among) and not among.null_count():
        low, high = int(among.min()), int(among.max())  # type: ignore[arg-type]
        if high - low < _SPARSE * (len(ids) + len(among)) and high <= _LARGEST:
            return _looked_up(ids, among, low, high)
    index = pl.DataFrame({"id": among}).with_row_index("row")
    return pl.DataFrame({"id": ids}).join(index, on="id", how="left", maintain_order="left")["row"]


def _looked_up(ids: pl.Series, among: pl.Series, low: int, high: int) -> pl.Series:
    """The same by a table with a place for every number from ``low`` to ``high``: five times faster than a join."""
    rows = pl.repeat(None, high - low + 1, dtype=pl.UInt32, eager=True)
    rows = rows.scatter(among.cast(pl.Int64) - low, pl.int_range(len(among), dtype=pl.UInt32, eager=True))
    inside = ids.set(~ids.is_between(low, high), None)
    return rows.gather(inside.cast(pl.Int64) - low).alias("row")


def user_keys(ids: pl.Series) -> Tensor:
    """A 64-bit key of every id, [U] int64, given by the id alone: the same in every run, order and version.

    A string is the wrapped sum of one mixed word for each of its bytes in its place.
    Raises ValueError on a null.
    """
    if ids.null_count():
        raise ValueError(f"ids {ids.name!r} have {ids.null_count()} nulls; every user needs an id")
    if ids.dtype.is_integer():
        return mixed(ids.cast(pl.Int64, wrap_numerical=True).to_torch())
    text = ids.cast(pl.String)
    lengths = text.str.len_bytes().cast(pl.Int64).to_torch()
    offsets = pad(lengths.cumsum(0), (1, 0))
    if not len(text) or not int(offsets[-1]):
        return mixed(lengths)
    letters = torch.frombuffer(bytearray(text.str.join("").item().encode()), dtype=torch.uint8).long()
    places = torch.arange(len(letters)) - torch.repeat_interleave(offsets[:-1], lengths)
    sums = pad(mixed(places << 8 | letters).cumsum(0), (1, 0))
    return mixed(sums[offsets[1:]] - sums[offsets[:-1]] + lengths)


def split_users(ids: pl.Series, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of the users to train on and rows of those held out, about ``share`` of all; ascending, int64.

    Where a user falls depends on its id and the seed alone: neither on the order nor on who else is there.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}, but a share of the users lies in 0..1")
    held_out = _places(ids, seed) < share
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def split_folds(ids: pl.Series, share: float, folds: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """For each of ``folds`` learners the rows of the users to train it on and of those to judge it by; ascending, int64.

    Everybody is judged once, by a learner that was not trained on it; those whom ``split_users`` holds out train none.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}; expected 2 or more")
    train, _ = split_users(ids, share, seed)
    fold = (_places(ids, seed + 1) * folds).long()
    return [(train[fold[train] != one], (fold == one).nonzero().squeeze(1)) for one in range(folds)]


def _places(ids: pl.Series, seed: int) -> Tensor:
    """[U] in 0..1: where each user falls, by its id and the seed alone."""
    return uniform(mixed(user_keys(ids) ^ hashed(seed)))
