"""From rows to what every user did after its exposure, on a case worked by hand."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from recsys_meta.ab.experiments.measuring import before, daily, steps, totals
from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.ab.experiments.population import population

START = datetime(2026, 1, 1, tzinfo=UTC)
INSTANT = pl.Datetime("us", "UTC")


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


EXPOSURES = pl.DataFrame(
    [("u", "A", at(10)), ("u", "A", at(30)), ("v", "B", at(26)), ("w", "B", at(1)), ("w", "A", at(2))],
    schema={"user_id": pl.String, "variant": pl.String, "exposed_at": INSTANT},
    orient="row",
)
OUTCOMES = pl.DataFrame(
    [
        ("u", "play", 4.0, at(9)),  # before the exposure
        ("u", "play", 2.0, at(10)),  # at that instant: counts
        ("u", "play", 3.0, at(31)),
        ("u", "play", 5.0, at(32)),
        ("v", "play", 7.0, at(80)),  # day 4
        ("w", "play", 9.0, at(3)),  # seen in both
        ("z", "play", 9.0, at(3)),  # never exposed
        ("v", "skip", 1.0, at(27)),
    ],
    schema={"user_id": pl.String, "metric": pl.String, "value": pl.Float64, "occurred_at": INSTANT},
    orient="row",
)
PEOPLE = population(EXPOSURES)


def per_user(metric: Metric, **limits: object) -> dict[str, tuple[float, float]]:
    rows = daily(PEOPLE, EXPOSURES, OUTCOMES, **limits)
    table = totals(steps(PEOPLE, rows.rows, metric, None))
    return {user: (n, d) for user, n, d in table.select("user_id", "numerator", "denominator").iter_rows()}


def test_outcomes_before_the_exposure_and_of_others_are_not_counted_but_told() -> None:
    found = daily(PEOPLE, EXPOSURES, OUTCOMES)
    assert (found.before_exposure, found.of_others, found.too_late) == (1, 4, 0)
    assert per_user(Metric("m", "play")) == {"u": (10.0, 1.0), "v": (7.0, 1.0)}


def test_a_users_number_is_its_sum_its_rows_or_whether_there_is_any() -> None:
    assert per_user(Metric("m", "play", aggregate="count")) == {"u": (3.0, 1.0), "v": (1.0, 1.0)}
    assert per_user(Metric("m", "play", aggregate="any")) == {"u": (1.0, 1.0), "v": (1.0, 1.0)}
    assert per_user(Metric("m", "skip", aggregate="any")) == {"u": (0.0, 1.0), "v": (1.0, 1.0)}


def test_a_ratio_divides_by_exposures_or_by_another_outcome() -> None:
    assert per_user(Metric("m", "play", "ratio")) == {"u": (10.0, 2.0), "v": (7.0, 1.0)}
    assert per_user(Metric("m", "play", "ratio", per="skip")) == {"u": (10.0, 0.0), "v": (7.0, 1.0)}


def test_nothing_counts_from_the_end_on_nor_beyond_a_users_window() -> None:
    assert per_user(Metric("m", "play"), until=at(32)) == {"u": (5.0, 1.0), "v": (0.0, 1.0)}
    assert per_user(Metric("m", "play"), window=timedelta(hours=21)) == {"u": (2.0, 1.0), "v": (0.0, 1.0)}
    assert daily(PEOPLE, EXPOSURES, OUTCOMES, until=at(32)).too_late == 2


def test_the_last_row_is_of_a_user_who_takes_part_and_before_the_end() -> None:
    stray = OUTCOMES.vstack(OUTCOMES.filter(user_id="z").with_columns(occurred_at=pl.lit(at(1000), INSTANT)))
    assert daily(PEOPLE, EXPOSURES, stray).last == at(80)
    assert daily(PEOPLE, EXPOSURES, stray, until=at(80)).last == at(32)
    assert daily(PEOPLE, EXPOSURES, stray, window=timedelta(hours=1)).last == at(80), "the log goes so far"
    assert daily(PEOPLE, EXPOSURES, stray, until=at(1)).last is None


def test_a_step_is_what_a_day_adds() -> None:
    rows = daily(PEOPLE, EXPOSURES, OUTCOMES).rows
    found = steps(PEOPLE, rows, Metric("m", "play", "ratio"), None)
    assert found.select("user_id", "day", "entry", "numerator", "denominator").rows() == [
        ("u", date(2026, 1, 1), 1.0, 2.0, 1.0),
        ("u", date(2026, 1, 2), 0.0, 8.0, 1.0),
        ("v", date(2026, 1, 2), 1.0, 0.0, 1.0),
        ("v", date(2026, 1, 4), 0.0, 7.0, 0.0),
    ]


def test_covariates_are_of_before_a_users_own_first_exposure() -> None:
    interactions = pl.DataFrame(
        [("u", 3.0, at(-30)), ("u", 2.0, at(9)), ("u", 9.0, at(11)), ("v", 1.0, at(25)), ("w", 1.0, at(0))],
        schema={"user_id": pl.String, "value": pl.Float32, "timestamp": INSTANT},
        orient="row",
    )
    metrics = [
        Metric("count", "play", covariate="interactions"),
        Metric("sum", "play", covariate="value"),
        Metric("own", "play", covariate="outcome"),
        Metric("none", "play"),
    ]
    found = before(PEOPLE, metrics, interactions, OUTCOMES)
    assert {name: dict(table.iter_rows()) for name, table in found.items()} == {
        "count": {"u": 2.0, "v": 1.0},
        "sum": {"u": 5.0, "v": 1.0},
        "own": {"u": 4.0},
    }
    short = before(PEOPLE, metrics[:1], interactions, OUTCOMES, over=timedelta(hours=24))
    assert dict(short["count"].iter_rows()) == {"u": 1.0, "v": 1.0}
    with pytest.raises(ValueError, match="there are none"):
        before(PEOPLE, metrics, None, OUTCOMES)
    rows = daily(PEOPLE, EXPOSURES, OUTCOMES).rows
    joined = totals(steps(PEOPLE, rows, metrics[2], found["own"]))
    assert joined["covariate"].to_list() == [4.0, 0.0]
