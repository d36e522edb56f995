"""The page of an evaluation: whole without a network, faithful to the figures, legible."""

import json
import re
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from recsys_meta.evaluation.breakdown import breakdown
from recsys_meta.evaluation.intervals import against_prior, paired_differences, summarize
from recsys_meta.reports.evaluation import Found, best_on_average, curves, evaluation_page

NAMES = ["Default", "Strong", "Weak <b>", *(f"Alike {n}" for n in range(8))]
USERS = 12


@pytest.fixture(scope="module")
def found() -> Found:
    rows = [
        (name, user, 0, shot, metric, 0.1 * (place < 2) + 0.02 * place + 0.01 * user + 0.05 * (shot == "all"))
        for place, name in enumerate(NAMES)
        for user in range(USERS)
        for shot in ("0", "all")
        for metric in ("ndcg@5", "recall@5 on cold items")
    ]
    judgements = pl.DataFrame(
        rows, schema=["learner", "user_id", "draw", "shot", "metric", "value"], orient="row"
    )
    chief = judgements.filter(pl.col("metric") == "ndcg@5")
    groups = pl.DataFrame(
        {
            "user_id": range(USERS),
            "kind": "sex",
            "group": ["f", "m"] * (USERS // 2),
            "place": [0, 1] * (USERS // 2),
        }
    )
    return Found(
        title="A & B",
        facts={"users": "12"},
        metric="ndcg@5",
        default="Default",
        baselines=NAMES[1:],
        summary=summarize(judgements, 20),
        differences=paired_differences(chief, "Default", "Strong", 20),
        harmed=against_prior(chief, chief.filter(pl.col("learner") == "Default"), 20),
        breakdown=breakdown(judgements, "ndcg@5", groups, 20),
        costs=pl.DataFrame(
            [
                {
                    "learner": name,
                    "fit_cpu_seconds": None if name == "Strong" else 1.0,
                    "fit_peak_mib": 512,
                    "judge_cpu_seconds": 2.0,
                    "judge_peak_mib": 1024,
                }
                for name in NAMES
            ]
        ),
    )


@pytest.fixture(scope="module")
def page(found: Found) -> str:
    return evaluation_page(found)


def data_of(chart: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    """The rows that a mark of a layered chart is drawn from."""
    layer = next(layer for layer in chart["layer"] if layer["mark"]["type"] == mark)
    rows: list[dict[str, Any]] = chart["datasets"][layer.get("data", chart.get("data"))["name"]]
    return rows


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    outside_of_scripts = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=", outside_of_scripts)
    assert not re.search(r"<script[^>]*\bsrc=", page)
    assert "vegaEmbed" in page
    assert len(page) > 500_000  # Vega itself


def test_names_are_text_and_not_markup(page: str) -> None:
    visible = page[: page.index("<script")]
    assert "A &amp; B" in visible
    assert "Weak &lt;b&gt;" in visible
    assert "<b>" not in visible


def test_the_specifications_hold_the_means_of_all_learners(page: str, found: Found) -> None:
    text = re.search(r"^const charts = (.*);$", page, re.MULTILINE)
    assert text is not None
    charts = json.loads(text[1])
    assert set(charts) == {"curves", "groups"}
    told = {(row["learner"], row["shot"]): row["mean"] for row in data_of(charts["curves"], "line")}
    expected = found.summary.filter(pl.col("metric") == "ndcg@5").select("learner", "shot", "mean")
    assert told == {(learner, shot): mean for learner, shot, mean in expected.iter_rows()}


def test_the_best_baseline_is_the_best_on_average_whichever_way_the_metric_points() -> None:
    chief = pl.DataFrame({"learner": ["a", "a", "b", "b"], "mean": [0.1, 0.9, 0.4, 0.4]})
    assert best_on_average(chief, ["a", "b"], "ndcg@5") == "a"
    assert best_on_average(chief, ["a", "b"], "mae") == "b"
    assert best_on_average(chief, [], "mae") is None


def test_names_at_the_ends_of_the_lines_do_not_cover_each_other(found: Found) -> None:
    chief = found.summary.filter(pl.col("metric") == "ndcg@5").with_columns(
        mean=pl.lit(0.5), low=0.4, high=0.6
    )
    chart = curves(chief, "ndcg@5", "Default", "Strong").to_dict()
    heights = sorted(row["at"] for row in data_of(chart, "text"))
    low, high = chart["layer"][0]["encoding"]["y"]["scale"]["domain"]
    gaps = [(upper - lower) / (high - low) * chart["height"] for lower, upper in pairwise(heights)]
    assert len(heights) == len(NAMES)
    assert min(gaps) > 13  # pixels, as large as the letters


def test_a_page_of_a_single_user_has_figures_and_says_that_there_is_no_interval(found: Found) -> None:
    nothing = {"low": pl.lit(None, pl.Float64), "high": pl.lit(None, pl.Float64)}
    alone = found._replace(
        summary=found.summary.with_columns(**nothing),
        differences=found.differences.with_columns(**nothing, verdict=pl.lit("undecided")),
        harmed=found.harmed.with_columns(**nothing, verdict=pl.lit("undecided")),
        breakdown=found.breakdown.with_columns(**nothing),
    )
    text = evaluation_page(alone)
    assert text.count("<small>no interval</small>") > 2
    told = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bnan\b", told, flags=re.IGNORECASE)
