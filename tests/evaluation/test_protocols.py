"""Fixed episodes: what is read from the table, and which tables are refused."""

import polars as pl
import pytest

from recsys_meta.evaluation.protocols import FixedEpisodes, ProtocolError

ITEMS = pl.Series("item_id", ["w", "x", "y", "z"])

TABLE = pl.DataFrame(
    {
        "user_id": [7, 7, 7, 7, 7, 5],
        "item_id": ["z", "w", "x", "y", "z", "w"],
        "rating": [1, 2, 3, 4, 5, 6],
        "draw": [0, 0, 0, 1, 1, 0],
        "position": [1, 0, 2, 0, 1, 0],
        "role": ["support", "support", "query", "support", "test", "query"],
    }
)


def test_a_task_is_a_user_and_a_draw_and_its_support_goes_by_position() -> None:
    episodes = FixedEpisodes.from_table(TABLE, ITEMS, value="rating")
    assert episodes.user_ids.to_list() == [5, 7, 7]
    assert episodes.draws.tolist() == [0, 0, 1]
    assert episodes.support.offsets.tolist() == [0, 0, 2, 3]
    assert episodes.support.items.tolist() == [0, 3, 2]
    assert episodes.support.values.tolist() == [2.0, 1.0, 4.0]
    assert episodes.query.offsets.tolist() == [0, 1, 2, 3]
    assert episodes.query.items.tolist() == [0, 1, 3]
    assert episodes.query.values.tolist() == [6.0, 3.0, 5.0]


def test_without_a_value_every_row_weighs_1() -> None:
    episodes = FixedEpisodes.from_table(TABLE.drop("rating"), ITEMS)
    assert episodes.query.values.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TABLE.drop("draw"), r"lack the columns \['draw'\]"),
        (TABLE.with_columns(role=pl.lit("train")), "unknown roles"),
        (TABLE.with_columns(pl.col("item_id").replace("x", "w")), "twice in one task"),
        (TABLE.with_columns(pl.col("item_id").replace("x", "unheard of")), "outside the catalogue"),
        (TABLE.with_columns(pl.col("position") + 1), "do not run 0, 1, 2"),
        (TABLE.with_columns(position=pl.lit(0)), "do not run 0, 1, 2"),
        (TABLE.filter(pl.col("role") != "test"), "no query row"),
        (TABLE.with_columns(pl.col("item_id").replace("x", None)), r"empty cells in \['item_id'\]"),
        (TABLE.with_columns(item_id=pl.lit(3)), "item ids are"),
    ],
)
def test_a_table_that_breaks_the_protocol_is_refused(broken: pl.DataFrame, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        FixedEpisodes.from_table(broken, ITEMS, value="rating")


def test_the_order_of_the_rows_does_not_matter() -> None:
    straight = FixedEpisodes.from_table(TABLE, ITEMS, value="rating")
    turned = FixedEpisodes.from_table(TABLE.reverse(), ITEMS, value="rating")
    assert straight.user_ids.equals(turned.user_ids)
    assert straight.support.items.tolist() == turned.support.items.tolist()
    assert straight.query.values.tolist() == turned.query.values.tolist()
