"""Who takes part in an experiment, and with which variant."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_meta.ab.experiments.population import population

START = datetime(2026, 1, 1, tzinfo=UTC)


def exposures(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [(user, variant, START + timedelta(hours=hour)) for user, variant, hour in rows],
        schema={"user_id": pl.String, "variant": pl.String, "exposed_at": pl.Datetime("us", "UTC")},
        orient="row",
    )


ROWS = [
    ("u", "A", 3),
    ("u", "A", 1),
    ("v", "B", 2),
    ("w", "B", 5),
    ("w", "A", 4),
    ("x", "B", 6),
    ("x", "A", 6),
]


def test_users_seen_in_both_variants_are_left_out_and_counted() -> None:
    people = population(exposures(*ROWS))
    assert people.users["user_id"].to_list() == ["u", "v"]
    assert people.users["exposed_at"][0] == START + timedelta(hours=1)
    assert (people.seen, people.crossed) == (4, 2)


def test_or_they_stay_with_the_variant_that_they_saw_first() -> None:
    people = population(exposures(*ROWS), crossed="first")
    assert dict(people.users.select("user_id", "variant").iter_rows()) == {
        "u": "A",
        "v": "B",
        "w": "A",
        "x": "A",
    }
    assert (people.seen, people.crossed) == (4, 2)


@pytest.mark.parametrize("crossed", ["exclude", "first"])
@given(rows=st.permutations(ROWS))
def test_the_order_of_the_rows_does_not_matter(crossed, rows) -> None:
    assert population(exposures(*rows), crossed=crossed).users.equals(
        population(exposures(*ROWS), crossed=crossed).users
    )
