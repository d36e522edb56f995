"""The page and the Markdown of an experiment: the verdict comes first, nothing is fetched, names cannot break out."""

import json
import re
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.experiments.analysis import EVERYBODY, Analysis, Rules, analyse
from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.reports.experiment import (
    Told,
    aa_markdown,
    experiment_markdown,
    experiment_page,
    forest,
    relative_interval,
)

METRICS = [Metric("plays <b>|", "play"), Metric("skips", "skip", lower_is_better=True, margin=0.1)]


def moves(effect: float, users: int = 500) -> pl.DataFrame:
    random = np.random.default_rng(0)
    is_b = random.random(users) < 0.5
    return pl.DataFrame(
        {
            "user_id": np.arange(users),
            "variant": np.where(is_b, "B", "A"),
            "day": [date(2026, 1, 1) + timedelta(days=int(day)) for day in random.integers(0, 5, users)],
            "entry": np.ones(users),
            "numerator": 5.0 + random.normal(size=users) + np.where(is_b, effect, 0.0),
            "denominator": np.ones(users),
            "covariate": np.zeros(users),
        }
    )


def found(reading: str) -> Analysis:
    segments = pl.DataFrame({"user_id": np.arange(500), "region": ["east", "west"] * 250})
    tables = {METRICS[0].name: moves(0.6), METRICS[1].name: moves(0.0)}
    return analyse(tables, METRICS, "A", {"A": 1.0, "B": 1.0}, Rules(reading), segments=segments)


def page(reading: str) -> str:
    return experiment_page(Told("A <test>", {"users": "500"}, "A", METRICS, 0.95, found(reading)))


@pytest.mark.parametrize("reading", ["once", "always"])
def test_the_page_says_the_verdict_first_and_shows_effects_days_and_segments(reading) -> None:
    html = page(reading)
    assert html.index("B: better.") < html.index("B: effects") < html.index("B: effect until each day")
    assert "B: plays &lt;b&gt;| by segment" in html
    assert ("hold on any day" in html) == (reading == "always")
    charts = json.loads(re.search(r"^const charts = (.*);$", html, re.MULTILINE)[1])
    assert set(charts) == {"forest0", "days0", "segments0_0"}
    for name in charts:
        assert f'id="{name}"' in html


def test_nothing_is_fetched_and_names_cannot_break_out() -> None:
    html = page("once")
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=", markup)
    assert "<b>|" not in markup
    assert "A <test>" not in markup


def drawn(chart: object) -> list[dict]:
    """The rows with a verdict, wherever in a chart they stand."""
    if isinstance(chart, dict):
        return [row for part in chart.values() for row in drawn(part)]
    if isinstance(chart, list):
        is_rows = bool(chart) and all(isinstance(row, dict) and "verdict" in row for row in chart)
        return chart if is_rows else [row for part in chart for row in drawn(part)]
    return []


@pytest.mark.parametrize("reading", ["once", "always"])
def test_the_forest_draws_the_interval_that_decides_and_the_margin_of_a_guardrail(reading) -> None:
    effects = found(reading).effects.filter(pl.col("segment") == EVERYBODY)
    rows = {row["name"]: row for row in drawn(forest(effects, METRICS, "metric").to_dict())}
    effect = effects.row(0, named=True)
    assert (rows["plays <b>|"]["low"], rows["plays <b>|"]["high"]) == relative_interval(effect)
    assert rows["skips (guardrail)"]["margin"] == 0.1
    if reading == "always":
        assert rows["plays <b>|"]["low"] == effect["always_low"] / effect["control_mean"]


def test_the_markdown_has_the_same_and_its_cells_stay_cells() -> None:
    text = experiment_markdown("title", found("once"))
    assert text.index("**B: better**") < text.index("| treatment | metric |")
    assert "plays <b>\\|" in text
    assert "region = east" in text


def test_a_rate_of_false_alarms_that_cannot_be_five_percent_is_marked() -> None:
    row = {"draws": 2000, "users": 9, "false_positives": 1, "rate": 0.05, "uniform_p_value": 0.5}
    alarms = pl.DataFrame(
        [
            {**row, "metric": "m", "analysis": "by user", "rate_low": 0.04, "rate_high": 0.06},
            {**row, "metric": "m", "analysis": "by row", "rate_low": 0.10, "rate_high": 0.14},
        ]
    )
    lines = aa_markdown(alarms, 0.95).splitlines()
    assert [("off" in line) for line in lines if line.startswith("| m ")] == [False, True]


def test_where_no_split_can_be_compared_no_rate_is_off() -> None:
    nothing = dict.fromkeys(("rate", "rate_low", "rate_high", "uniform_p_value"), float("nan"))
    alarms = pl.DataFrame([{"metric": "m", "analysis": "by user", "draws": 0, "users": 1, **nothing}])
    assert (
        aa_markdown(alarms, 0.95).splitlines()[-1] == "| m | by user | 0 | no split could be compared | | |"
    )
