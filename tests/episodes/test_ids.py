"""Laws of original ids."""

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.episodes import rows_of, split_folds, split_users, user_keys

WORDS = st.lists(st.text("ab7é\0", max_size=5), unique=True, max_size=12)


@given(among=WORDS, others=WORDS)
@settings(deadline=None, max_examples=60)
def test_every_id_finds_its_position_or_null(among: list[str], others: list[str]) -> None:
    asked = among[::-1] + others
    rows = rows_of(pl.Series("id", asked, dtype=pl.String), pl.Series("id", among, dtype=pl.String))
    assert rows.to_list() == [among.index(word) if word in among else None for word in asked]


def test_integers_of_several_widths_are_the_same_ids() -> None:
    among = pl.Series("id", [5, 7], dtype=pl.Int16)
    assert rows_of(pl.Series("id", [7, 100_000, None], dtype=pl.Int64), among).to_list() == [1, None, None]


def test_integers_and_strings_are_never_the_same_ids() -> None:
    with pytest.raises(ValueError, match=r"'user' are String, but Int64 was expected"):
        rows_of(pl.Series("user", ["007"]), pl.Series("id", [7]))


def test_an_id_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'id' name 'b' more than once"):
        rows_of(pl.Series("id", ["a"]), pl.Series("id", ["b", "a", "b"]))


def test_a_null_is_nobody() -> None:
    assert rows_of(pl.Series("id", [None, "a"]), pl.Series("id", [None, "a"])).to_list() == [None, 1]


@given(words=WORDS, data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_key_depends_on_its_id_alone(words: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(words))
    keys = dict(zip(words, user_keys(pl.Series("id", words, dtype=pl.String)).tolist(), strict=True))
    again = user_keys(pl.Series("id", shuffled, dtype=pl.String)).tolist()
    assert [keys[word] for word in shuffled] == again
    assert len(set(again)) == len(words)


def test_keys_never_change_between_versions() -> None:
    words = user_keys(pl.Series("id", ["u1", "ü", ""]))
    assert words.tolist() == [-4292172821377374441, 6101191759993745267, -2152535657050944081]
    assert user_keys(pl.Series("id", [0, 1, -1])).tolist() == [
        -2152535657050944081,
        -7995527694508729151,
        -1956407806741107680,
    ]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int32, pl.Int64])
def test_the_width_of_an_integer_does_not_change_its_key(dtype: pl.DataType) -> None:
    assert torch.equal(
        user_keys(pl.Series("id", [-3, 12], dtype=dtype)), user_keys(pl.Series("id", [-3, 12]))
    )


def test_the_largest_unsigned_ids_have_keys_too() -> None:
    assert len(user_keys(pl.Series("id", [2**64 - 1, 2**63, 0], dtype=pl.UInt64)).unique()) == 3


def test_a_null_has_no_key() -> None:
    with pytest.raises(ValueError, match="1 nulls"):
        user_keys(pl.Series("id", ["a", None]))


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30), share=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_a_split_puts_every_user_on_one_side(ids: list[int], share: float) -> None:
    train, held_out = split_users(pl.Series("id", ids, dtype=pl.Int64), share, 3)
    assert sorted(train.tolist() + held_out.tolist()) == list(range(len(ids)))


def test_the_side_of_a_user_depends_neither_on_order_nor_on_company() -> None:
    ids = pl.Series("id", [f"user {n}" for n in range(500)])
    _, held_out = split_users(ids, 0.3, 1)
    some = ids.gather([499, 7, 130, 2])
    _, held_out_of_some = split_users(some, 0.3, 1)
    assert set(some.gather(held_out_of_some.tolist())) == set(some) & set(ids.gather(held_out.tolist()))


def test_a_split_holds_out_about_the_share_and_another_seed_holds_out_others() -> None:
    ids = pl.Series("id", range(20_000), dtype=pl.Int64)
    first, second = split_users(ids, 0.2, 1)[1], split_users(ids, 0.2, 2)[1]
    assert 3_800 < len(first) < 4_200
    both = len(set(first.tolist()) & set(second.tolist()))
    assert 650 < both < 950  # 0.2 * 0.2 of all, where the seeds have nothing to do with one another


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40),
    share=st.floats(0, 1),
    folds=st.integers(2, 6),
)
@settings(deadline=None, max_examples=60)
def test_in_folds_everybody_is_judged_once_by_what_was_not_trained_on_it(
    ids: list[int], share: float, folds: int
) -> None:
    users = pl.Series("id", ids, dtype=pl.Int64)
    parts, (train, held_out) = split_folds(users, share, folds, 3), split_users(users, share, 3)
    assert len(parts) == folds
    assert sorted(row for _, judges in parts for row in judges.tolist()) == list(range(len(ids)))
    for some, judges in parts:
        # Whoever a champion is compared on trains none of them; of the others each trains on all but its judges.
        assert set(some.tolist()) == set(train.tolist()) - set(judges.tolist())
        assert not set(some.tolist()) & set(held_out.tolist())
        assert some.tolist() == sorted(some.tolist())


def test_folds_are_about_alike_and_hang_on_the_id_alone() -> None:
    ids = pl.Series("id", [f"user {n}" for n in range(5_000)])
    parts = split_folds(ids, 0.1, 5, 1)
    assert all(900 < len(judges) < 1_100 for _, judges in parts)
    some = ids.gather([4_999, 7, 130, 2])
    for (_, judges), (_, judges_of_some) in zip(parts, split_folds(some, 0.1, 5, 1), strict=True):
        assert set(some.gather(judges_of_some.tolist())) == set(some) & set(ids.gather(judges.tolist()))


def test_one_fold_is_none() -> None:
    with pytest.raises(ValueError, match="folds is 1; expected 2 or more"):
        split_folds(pl.Series("id", [1, 2]), 0.1, 1)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        split_users(pl.Series("id", [1]), share)
