"""The page and the picture of a suite: every cell with the gain that its figures have, coloured by the verdict."""

import re

import polars as pl
import pytest

from recsys_meta.reports.suite import STANDINGS, standings_chart, standings_picture, suite_page

ROWS = [
    ("Films", "ndcg@10", "0", 0.22, 0.20, "Popularity", 0.01, 0.03, "win"),
    ("Films", "ndcg@10", "all", 0.19, 0.20, "IALS <b>", -0.02, 0.01, "tie"),
    ("Stars", "mae", "0", 0.74, 0.80, "ALS", 0.04, 0.06, "win"),
    ("Stars", "mae", "10", 0.84, 0.80, "ALS", -0.06, -0.02, "loss"),
    ("Nothing", "ndcg@10", "0", 0.10, 0.0, "Popularity", 0.01, 0.2, "win"),
    ("Alone", "ndcg@10", "0", 0.10, None, None, None, None, "alone"),
]


@pytest.fixture
def standings() -> pl.DataFrame:
    return pl.DataFrame(ROWS, schema=STANDINGS, orient="row")


def test_a_gain_is_above_zero_where_the_learner_is_better_whichever_way_the_metric_points(standings) -> None:
    chart = standings_chart(standings, "Default").to_dict()
    (rows,) = chart["datasets"].values()
    gains = [row["gain"] for row in rows]
    assert gains[:4] == pytest.approx([0.1, -0.05, 0.075, -0.05])
    assert gains[4:] == [None, None]  # no share of nothing
    assert [row["said"] for row in rows] == ["better", "level", "better", "worse", "better", "no baseline"]


def test_shots_and_evaluations_keep_their_order_and_every_verdict_its_colour(standings) -> None:
    cell = standings_chart(standings, "Default").to_dict()["layer"][0]["encoding"]
    assert cell["x"]["sort"] == ["0", "10", "all"]
    assert [name.split(",")[0] for name in cell["y"]["sort"]] == ["Films", "Stars", "Nothing", "Alone"]
    some = standings_chart(standings.filter(pl.col("verdict") != "tie"), "Default").to_dict()
    of_all = dict(zip(cell["color"]["scale"]["domain"], cell["color"]["scale"]["range"], strict=True))
    colour = some["layer"][0]["encoding"]["color"]["scale"]
    assert "level" not in colour["domain"]
    assert all(of_all[name] == value for name, value in zip(colour["domain"], colour["range"], strict=True))


def test_the_picture_says_the_gains(standings) -> None:
    picture = standings_picture(standings, "Default")
    assert picture.startswith("<svg")
    for text in ("+10.0%", "−5.0%", "+7.5%", "Default is"):  # noqa: RUF001 (Vega's minus)
        assert text in picture


def test_the_page_holds_ranks_and_figures_and_fetches_nothing(standings) -> None:
    ranks = pl.DataFrame(
        {"learner": ["Default", "ALS"], "mean_rank": [1.25, 2.0], "cells": [6, 4], "best": [4, 1], "ratio": [1.031, None]}
    )  # fmt: skip
    page = suite_page("4 evaluations", {"judged": "test users"}, standings, ranks, "Default")
    visible = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=", visible)
    assert "IALS &lt;b&gt;" in visible
    assert "<b>" not in visible
    assert "+3.1%" in visible
    assert "4 of 6" in visible
    assert '<td class="worse">worse</td>' in visible
    assert "-0.0600 to -0.0200" in visible
