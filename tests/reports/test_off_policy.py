"""The report of an off-policy evaluation: the verdict in words on top, faithful to the figures, whole without a network."""

import json
import re

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.logged_actions import logged_actions
from recsys_meta.ab.off_policy import OffPolicy, compare, fitted_models, off_policy
from recsys_meta.ab.slate_off_policy import slate_off_policy
from recsys_meta.ab.synthetic_logs import SITUATION, WORLDS, policy_of
from recsys_meta.ab.verdict import AGREEMENT
from recsys_meta.reports.off_policy import Told, difference_headline, headline, markdown, off_policy_page

WORLD = WORLDS["good overlap"]
LOGS = WORLD.logs(2000, np.random.default_rng(0))


@pytest.fixture(scope="module")
def found() -> OffPolicy:
    return off_policy(LOGS, WORLD.policy._replace(name="new <b>"), models=fitted_models(LOGS), draws=200)


@pytest.fixture(scope="module")
def told(found: OffPolicy) -> Told:
    against = off_policy(LOGS, policy_of(WORLD.logging, "old"), models=fitted_models(LOGS), drawn=found.drawn)
    return Told("spring", found, against, compare(found, against), 3)


@pytest.fixture(scope="module")
def page(told: Told) -> str:
    return off_policy_page("A & B", {"logs": "<x>"}, [told])


def denied(found: OffPolicy) -> OffPolicy:
    return found._replace(
        verdict=found.verdict._replace(word="not identified", reasons=("too little overlap",)),
        estimates=found.estimates.with_columns(is_answer=pl.lit(False)),
    )


def test_the_headline_gives_the_answer_with_its_interval_and_what_was_logged(found):
    answer = found.answer
    sentence = headline(found)
    for figure in (
        f"{answer['value']:.6g}",
        f"{answer['low']:.4g} to {answer['high']:.4g}",
        f"{LOGS.rewards.mean():.6g}",
        "DR",
    ):
        assert figure in sentence


def test_what_is_not_identified_is_said_without_a_figure_of_it(found):
    sentence = headline(denied(found))
    assert "do not identify" in sentence
    assert f"{found.estimates['value'][0]:.6g}" not in sentence


def test_without_propensities_the_words_are_agreement():
    bare = logged_actions(LOGS.table, context=[SITUATION], origin="none")
    found = off_policy(bare, WORLD.policy, draws=200)
    assert AGREEMENT in headline(found)
    assert AGREEMENT in markdown([Told("all", found, None, None, 0)])


def test_the_difference_is_said_only_where_it_is_known(told):
    row = told.differences.filter("is_answer").row(0, named=True)
    assert row["low"] > 0
    assert "'new <b>' is better than 'old'" in difference_headline(told)
    flipped = told._replace(
        differences=told.differences.with_columns(low=-pl.col("high"), high=-pl.col("low"))
    )
    assert "is worse than" in difference_headline(flipped)
    open_ended = told._replace(differences=told.differences.with_columns(low=pl.lit(None, pl.Float64)))
    assert "cannot be told from" in difference_headline(open_ended)
    none = told._replace(
        against=denied(told.against), differences=told.differences.with_columns(is_answer=pl.lit(False))
    )
    assert "not identified" in difference_headline(none)


def test_estimators_that_are_no_answers_do_not_speak_against_the_logs():
    found = off_policy(LOGS, WORLD.policy, estimators=["IPS"], draws=200)
    against = off_policy(LOGS, policy_of(WORLD.logging, "old"), estimators=["IPS"], drawn=found.drawn)
    told = Told("spring", found, against, compare(found, against), 0)
    words = "None of the estimators asked for is given as an answer (those that are: DR, SNIPS)"
    assert words in headline(found)
    assert words in difference_headline(told)
    for text in (markdown([told]), off_policy_page("x", {}, [told])):
        assert text.count(words) >= 2
        assert "identif" not in text[: text.find("<script")]


def test_slates_name_their_own_answers():
    world = WORLDS["slates"]
    logs = world.logs(2000, np.random.default_rng(0))
    found = slate_off_policy(logs, world.policy, estimators=["SIPS"], draws=200)
    assert "(those that are: Cascade-DR, RIPS)" in headline(found)


def test_markdown_says_everything_that_stands_beside_an_estimate(told):
    text = markdown([told])
    for words in (
        "propensities | logged", "share of the policy with support", "mean weight (should be 1)", "effective sample size",
        "largest weight", "rewarded of 2,000 rows", "of 2,000 users", "studentized 95%", "policies compared", "**trustworthy.**",
        "3 rows were set aside",
    ):  # fmt: skip
        assert words in text, words
    for row in told.target.estimates.iter_rows(named=True):
        assert f"{row['value']:.6g}" in text


def test_names_are_text_and_not_markup_and_the_verdict_comes_first(page):
    visible = page[: page.index("<script")]
    assert "A &amp; B" in visible
    assert "new &lt;b&gt;" in visible
    assert "&lt;x&gt;" in visible
    assert "new <b>" not in visible
    assert visible.index("spring: trustworthy.") < visible.index('class="figure"')


def test_nothing_is_fetched_from_elsewhere(page):
    outside_of_scripts = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=", outside_of_scripts)
    assert not re.search(r"<script[^>]*\bsrc=", page)


def charts_of(page: str) -> dict:
    return json.loads(re.search(r"^const charts = (.*);$", page, re.MULTILINE)[1])


def test_the_forest_holds_every_estimate_with_its_interval(page, told):
    charts = charts_of(page)
    assert set(charts) == {"forest00", "weights00", "forest01", "weights01", "difference0"}
    rows = next(rows for rows in charts["forest00"]["datasets"].values() if len(rows) > 1)
    expected = told.target.estimates.select("estimator", "value", "low", "high").rows()
    assert [(row["estimator"], row["value"], row["low"], row["high"]) for row in rows] == expected


def test_intervals_without_bounds_can_be_drawn(found):
    endless = found._replace(
        estimates=found.estimates.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    )
    page = off_policy_page("x", {}, [Told("all", endless, None, None, 0)])
    assert "no bound to no bound" in page
    assert "forest00" in charts_of(page)
