"""Laws of grouping interactions into histories and of cutting them."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.episodes import group, head, is_first, met_before, met_by_others, newest, select
from recsys_meta.tables import INSTANT
from recsys_meta.tensors import Histories

USERS = pl.Series("user_id", ["u", "v", "w"])
ITEMS = pl.Series("item_id", [10, 20, 30])
EVENTS = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from([10, 20, 30, 40]), st.integers(0, 4)), max_size=25
)


def moment(minutes: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)


def table(events: list[tuple[str, int, int]], *, timed: bool = True) -> pl.DataFrame:
    """Events of (user, item, minute); the value is the number of the row."""
    rows = [(user, item, float(row), moment(minute)) for row, (user, item, minute) in enumerate(events)]
    schema = {"user_id": pl.String, "item_id": pl.Int64, "value": pl.Float32, "timestamp": INSTANT}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame if timed else frame.drop("timestamp")


def lists(histories: Histories) -> list[list[tuple[int, float]]]:
    pairs = list(zip(histories.items.tolist(), histories.values.tolist(), strict=True))
    bounds = histories.offsets.tolist()
    return [pairs[a:b] for a, b in pairwise(bounds)]


def expected(events: list[tuple[str, int, int]], *, timed: bool = True) -> list[list[tuple[int, float]]]:
    found = []
    for user in USERS:
        mine = [(t, row, i) for row, (u, i, t) in enumerate(events) if u == user and i in (10, 20, 30)]
        mine = sorted(mine, key=lambda event: event[0]) if timed else mine
        found.append([(ITEMS.to_list().index(item), float(row)) for _, row, item in mine])
    return found


@given(events=EVENTS, timed=st.booleans())
@settings(deadline=None, max_examples=50)
def test_a_history_is_its_users_interactions_oldest_first_and_ties_in_the_order_of_the_table(
    events: list[tuple[str, int, int]], timed: bool
) -> None:
    histories = group(table(events, timed=timed), USERS, ITEMS)
    assert lists(histories) == expected(events, timed=timed)
    assert histories.timed == (timed and len(histories.items) > 0)


def test_times_are_microseconds_since_1970_whatever_unit_the_table_has() -> None:
    frame = table([("v", 20, 5)])
    exact = int(moment(5).timestamp()) * 1_000_000
    assert group(frame, USERS, ITEMS).times.tolist() == [exact]
    in_milliseconds = frame.with_columns(pl.col("timestamp").dt.cast_time_unit("ms"))
    assert group(in_milliseconds, USERS, ITEMS).times.tolist() == [exact]


def test_without_a_value_every_interaction_weighs_1() -> None:
    histories = group(table([("u", 10, 0), ("w", 30, 0)]).drop("value"), USERS, ITEMS)
    assert histories.values.tolist() == [1.0, 1.0]
    assert histories.values.dtype == torch.float32


def test_a_table_without_rows_gives_every_user_an_empty_history() -> None:
    assert lists(group(table([]), USERS, ITEMS)) == [[], [], []]


def test_ids_of_another_type_than_the_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="item_id"):
        group(table([("u", 10, 0)]), USERS, ITEMS.cast(pl.String))


@pytest.mark.parametrize("column", ["value", "timestamp"])
def test_an_unchecked_null_is_refused(column: str) -> None:
    frame = table([("u", 10, 0)]).with_columns(pl.lit(None).cast(table([]).schema[column]).alias(column))
    with pytest.raises(ValueError, match=f"'{column}' has 1 nulls"):
        group(frame, USERS, ITEMS)


@given(events=EVENTS, n=st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_head_and_newest_keep_the_two_ends_of_each_history(
    events: list[tuple[str, int, int]], n: int
) -> None:
    histories = group(table(events), USERS, ITEMS)
    assert lists(head(histories, n)) == [each[:n] for each in lists(histories)]
    assert lists(newest(histories, n)) == [each[max(0, len(each) - n) :] for each in lists(histories)]


@given(events=EVENTS, timed=st.booleans())
@settings(deadline=None, max_examples=60)
def test_select_keeps_the_interactions_of_the_mask_with_their_users_and_times(
    events: list[tuple[str, int, int]], timed: bool
) -> None:
    histories = group(table(events, timed=timed), USERS, ITEMS)
    mask = histories.values.long() % 2 == 0
    kept = select(histories, mask)
    assert lists(kept) == [[pair for pair in each if pair[1] % 2 == 0] for each in lists(histories)]
    assert torch.equal(kept.times, histories.times[mask] if histories.timed else histories.times[:0])


@given(events=EVENTS)
@settings(deadline=None, max_examples=60)
def test_exactly_the_first_interaction_with_an_item_is_first(events: list[tuple[str, int, int]]) -> None:
    histories = group(table(events), USERS, ITEMS)
    seen: set[tuple[int, int]] = set()
    wanted = []
    for pair in zip(histories.owners().tolist(), histories.items.tolist(), strict=True):
        wanted.append(pair not in seen)
        seen.add(pair)
    assert is_first(histories).tolist() == wanted


@given(events=EVENTS)
@settings(deadline=None, max_examples=60)
def test_what_a_user_met_before_is_counted_once_each(events: list[tuple[str, int, int]]) -> None:
    histories = group(table(events), USERS, ITEMS)
    met: dict[int, set[int]] = {}
    wanted = []
    for user, item in zip(histories.owners().tolist(), histories.items.tolist(), strict=True):
        wanted.append(len(met.setdefault(user, set())))
        met[user].add(item)
    assert met_before(histories).tolist() == wanted


@given(events=EVENTS, known=st.sets(st.integers(0, len(USERS) - 1)))
@settings(deadline=None, max_examples=60)
def test_who_is_known_otherwise_is_counted_once_and_not_oneself(
    events: list[tuple[str, int, int]], known: set[int]
) -> None:
    histories = group(table(events), USERS, ITEMS)
    pairs = list(zip(histories.owners().tolist(), histories.items.tolist(), strict=True))
    wanted = [any(i == item and u != user and u in known for u, i in pairs) for user, item in pairs]
    assert met_by_others(histories, torch.tensor(sorted(known), dtype=torch.int64)).tolist() == wanted


def test_a_million_interactions_are_grouped_without_losing_one() -> None:
    users, items = torch.arange(1_000_000) * 7919 % 50_000, torch.arange(1_000_000) % 997
    times = torch.arange(1_000_000) * 104_729 % 1_000_003
    frame = pl.DataFrame({"user_id": users.tolist(), "item_id": items.tolist(), "timestamp": times.tolist()})
    histories = group(
        frame.with_columns(pl.col("timestamp").cast(INSTANT)),
        pl.Series(range(50_000), dtype=pl.Int64),
        pl.Series(range(997), dtype=pl.Int64),
    )
    assert histories.lengths.tolist() == [20] * 50_000
    assert (histories.times.diff()[histories.owners().diff() == 0] >= 0).all()
    assert torch.equal(torch.bincount(histories.items), torch.bincount(items))
