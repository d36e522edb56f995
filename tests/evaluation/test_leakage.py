"""Features that were made from the events to be predicted are found, and honest ones are not."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.evaluation.leakage import SUSPECT, giveaways
from recsys_meta.tables import Feature

ITEMS = 60


def world() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items of which one is rated higher than the other, and rated more often; and what may be said of them."""
    rows = [
        (item, (item * 7 % 13) / 3 + 0.1 * user % 1) for item in range(ITEMS) for user in range(2 + item % 9)
    ]
    interactions = pl.DataFrame(rows, schema=["item_id", "value"], orient="row")
    figures = interactions.group_by("item_id").agg(mean=pl.col("value").mean(), n=pl.len()).sort("item_id")
    features = figures.select(
        "item_id",
        pl.col("mean").alias("average_rating"),
        (1 / pl.col("n")).alias("scarcity"),  # monotonic, far from a straight line of the logarithm
        (pl.col("item_id") * 11 % 17).cast(pl.Float32).alias("weight"),
        pl.col("n").cast(pl.String).alias("sales_class"),
        (pl.col("item_id") % 5).cast(pl.String).alias("colour"),
        pl.col("item_id").cast(pl.String).alias("title"),
        pl.concat_list(pl.col("mean") * 2 + 1, pl.col("item_id") % 3).alias("embedding"),
        pl.concat_list((pl.col("item_id") % 4), (pl.col("item_id") % 3))
        .cast(pl.List(pl.Float64))
        .alias("picture"),
        pl.concat_list(pl.col("n").cast(pl.String)).alias("tags"),
    )
    return interactions, features


KINDS = (
    Feature("average_rating", "number"),
    Feature("scarcity", "number"),
    Feature("weight", "number"),
    Feature("sales_class", "categorical"),
    Feature("colour", "categorical"),
    Feature("title", "categorical"),
    Feature("embedding", "vector"),
    Feature("picture", "vector"),
    Feature("tags", "multi"),
)


def test_what_was_computed_from_the_events_is_found_and_nothing_else() -> None:
    interactions, features = world()
    found = giveaways(features, "item_id", KINDS, interactions)
    suspects = {
        (row["feature"], row["figure"]) for row in found.filter(pl.col("explained") >= SUSPECT).to_dicts()
    }
    assert suspects == {
        ("average_rating", "mean_value"),
        ("scarcity", "log_count"),
        ("sales_class", "log_count"),
        ("embedding", "mean_value"),
    }
    assert found["entities"].unique().to_list() == [ITEMS]
    assert "tags" not in found["feature"]


def test_a_category_of_its_own_for_every_item_explains_nothing() -> None:
    interactions, features = world()
    found = giveaways(features, "item_id", KINDS, interactions)
    assert found.filter(feature="title")["explained"].to_list() == [0.0, 0.0]


@given(st.lists(st.sampled_from("ab"), min_size=30, max_size=60))
def test_the_share_of_two_groups_is_that_of_the_analysis_of_variance(groups: list[str]) -> None:
    values = [(number * 37 % 101) / 7 + (group == "a") for number, group in enumerate(groups)]
    interactions = pl.DataFrame({"item_id": range(len(groups)), "value": values})
    features = pl.DataFrame({"item_id": range(len(groups)), "group": groups})
    found = giveaways(features, "item_id", [Feature("group", "categorical")], interactions)
    parts = [
        [value for value, group in zip(values, groups, strict=True) if group == name] for name in set(groups)
    ]
    n, k = len(groups), len(parts)
    mean = sum(values) / n
    within = sum((value - sum(part) / len(part)) ** 2 for part in parts for value in part)
    total = sum((value - mean) ** 2 for value in values)
    assert found["figure"].to_list() == ["mean_value"]  # every item has one event
    assert found["explained"].item() == pytest.approx(1 - (within / (n - k)) / (total / (n - 1)))


def test_of_few_items_nothing_is_said() -> None:
    interactions, features = world()
    assert giveaways(features.head(20), "item_id", KINDS, interactions).is_empty()
