"""Off-policy evaluation as a whole: the truth is found where it can be, and no answer is given where it cannot."""

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.intervals import KINDS, MEANT
from recsys_meta.ab.logged_actions import logged_actions
from recsys_meta.ab.off_policy import ESTIMATES, compare, fitted_models, off_policy
from recsys_meta.ab.policies import from_table, uniform
from recsys_meta.ab.synthetic_logs import SITUATION, WORLDS, policy_of, world
from recsys_meta.ab.verdict import AGREEMENT

WORLD = WORLDS["users nested"]


@pytest.fixture(scope="module")
def logs():
    return WORLD.logs(20_000, np.random.default_rng(1))


@pytest.fixture(scope="module")
def found(logs):
    return off_policy(logs, WORLD.policy, models=fitted_models(logs), draws=300)


def test_the_answer_is_the_value_of_the_policy_and_its_interval_holds_it(found):
    assert found.verdict.word == "trustworthy"
    answer = found.answer
    assert answer["estimator"] == "DR"
    assert answer["low"] <= WORLD.value <= answer["high"]
    assert answer["value"] == pytest.approx(WORLD.value, abs=0.02)


def test_the_table_has_every_estimator_once_and_one_answer(found):
    assert dict(found.estimates.schema) == dict(ESTIMATES)
    assert found.estimates["estimator"].to_list() == [
        "Replay", "IPS", "clipped IPS", "SNIPS", "sub-Gaussian", "DM", "DR", "SNDR", "Switch-DR", "DRos", "MRDR",
    ]  # fmt: skip
    assert found.estimates["is_answer"].sum() == 1


def test_rows_of_a_user_taken_as_independent_would_promise_too_much(logs, found):
    alone = off_policy(
        logged_actions(logs.table.drop("user_id"), context=[SITUATION]), WORLD.policy, draws=300
    )
    wide = found.estimates.filter(estimator="SNIPS")["standard_error"].item()
    narrow = alone.estimates.filter(estimator="SNIPS")["standard_error"].item()
    assert narrow < 0.8 * wide
    assert alone.verdict.word == "doubtful"


def test_without_overlap_no_estimate_is_an_answer():
    far = world(0.1, 4.0, 6.0)
    found = off_policy(far.logs(2000, np.random.default_rng(0)), far.policy, draws=200)
    assert found.verdict.word == "not identified"
    assert found.answer is None
    assert not found.estimates["is_answer"].any()


def test_without_propensities_only_agreement_is_said(logs):
    bare = logged_actions(logs.table, context=[SITUATION], origin="none")
    found = off_policy(bare, WORLD.policy, draws=200)
    assert found.estimates["estimator"].to_list() == ["Replay"]
    assert found.estimates["note"].to_list() == [AGREEMENT]
    assert found.answer is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_that_does_not_hold_as_often_as_it_says_says_so(logs, kind):
    found = off_policy(logs, WORLD.policy, estimators=["IPS"], kind=kind, draws=200)
    assert found.verdict.word == "trustworthy"
    assert found.estimates["note"].to_list() == [MEANT.get(kind, "")]
    assert (kind in MEANT) == (kind != "studentized")


def test_only_the_estimators_that_were_named_are_computed(logs):
    found = off_policy(logs, WORLD.policy, estimators=["SNIPS", "DM"], draws=200)
    assert found.estimates["estimator"].to_list() == ["SNIPS"]


def four_items(logging):
    """Ten rows of each of 400 users; clicks .1, .2, .3, .4, so that uniformly drawn items earn .25."""
    generator = np.random.default_rng(0)
    items = generator.choice(4, 4000, p=logging)
    clicks = (generator.random(4000) < 0.1 * (items + 1)).astype(float)
    columns = {"user_id": np.arange(4000) // 10, "item_id": items, "reward": clicks}
    return logged_actions(pl.DataFrame(columns | {"propensity": np.array(logging)[items]}))


def always(item):
    return from_table("always", pl.DataFrame({"item_id": [item], "probability": [1.0]}), [])


@pytest.mark.parametrize("estimators", [["Replay"], ["IPS", "Replay"]])
def test_replay_is_no_answer_where_the_propensities_of_the_matches_differ(estimators):
    logs = four_items([0.5, 0.3, 0.15, 0.05])
    found = off_policy(logs, uniform(logs), estimators=estimators, draws=200)
    assert found.answer is None
    assert "Replay" not in found.answers
    assert "no answer here: the propensities" in found.estimates.filter(estimator="Replay")["note"].item()
    difference = compare(found, off_policy(logs, always(0), estimators=estimators, drawn=found.drawn))
    assert not difference["is_answer"].any()


def test_replay_is_an_answer_where_the_matches_were_logged_alike():
    even, uneven = four_items([0.25] * 4), four_items([0.5, 0.3, 0.15, 0.05])
    for logs, policy, truth in (
        (even, uniform(even), 0.25),
        (even, always(3), 0.4),
        (uneven, always(0), 0.1),
    ):
        found = off_policy(logs, policy, estimators=["Replay", "SNIPS"], draws=200).estimates
        values = dict(found.select("estimator", "value").rows())
        assert values["Replay"] == pytest.approx(values["SNIPS"])
        alone = off_policy(logs, policy, estimators=["Replay"], draws=200)
        assert alone.verdict.word == "trustworthy"
        assert alone.answer["low"] <= truth <= alone.answer["high"]
        assert "no answer" not in alone.answer["note"]


@pytest.mark.parametrize("name", ["IPS", "DM", "SNDR"])
def test_an_estimator_that_is_never_the_answer_leaves_the_verdict_and_gives_none(logs, name):
    found = off_policy(logs, WORLD.policy, models=fitted_models(logs), estimators=[name], draws=200)
    assert found.verdict.answers
    assert found.answer is None
    assert found.answers == ["DR", "SNIPS"]


def test_the_paired_difference_holds_the_true_one_and_is_narrower_than_the_two_apart(logs, found):
    other_target = 0.7 * WORLD.target + 0.3 * WORLD.logging
    other = off_policy(logs, policy_of(other_target, "other"), models=fitted_models(logs), drawn=found.drawn)
    gap = compare(found, other).filter("is_answer").row(0, named=True)
    truth = WORLD.value - float((WORLD.rewards * other_target).sum(axis=1).mean())
    assert gap["low"] <= truth <= gap["high"]
    apart = sum(side.answer["high"] - side.answer["low"] for side in (found, other))
    assert gap["high"] - gap["low"] < 0.3 * apart


def test_the_difference_to_what_is_not_identified_is_no_answer(logs, found):
    nothing = found._replace(verdict=found.verdict._replace(word="not identified"))
    assert not compare(found, nothing)["is_answer"].any()


def test_mips_gains_where_an_embedding_says_all(logs):
    # Two embeddings, and rewards that depend on them alone.
    rewards = np.where(np.arange(10) < 5, 0.1, 0.4)[None].repeat(8, axis=0)
    alike = WORLDS["poor overlap"]._replace(rewards=rewards)
    table = alike.logs(5000, np.random.default_rng(0)).table
    table = table.with_columns(kind=(table["item_id"] < 5).cast(int), situation_too=table[SITUATION])
    by_kind = logged_actions(table, context=[SITUATION], embedding=["kind", "situation_too"])
    found = off_policy(by_kind, alike.policy, draws=200).estimates
    error = {row["estimator"]: row["standard_error"] for row in found.iter_rows(named=True)}
    value = found.filter(estimator="MIPS")["value"].item()
    assert error["MIPS"] < 0.5 * error["IPS"]
    assert value == pytest.approx(alike.value, abs=0.03)
