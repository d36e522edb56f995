"""Tests of simulated months: what is logged follows the probabilities, and the truth follows from them alone."""

from datetime import date, timedelta

import polars as pl
import pytest
import torch
from scipy import stats

from recsys_meta.ab.experiments.preference import credited, preferences, preferred
from recsys_meta.ab.simulation import (
    Audience,
    InterleavedMonth,
    Month,
    Variant,
    assigned,
    habits,
    interleaved_month,
    logged_actions,
    naive_value,
    pools,
    simulated_month,
    slate_probabilities,
    slates_on,
    true_values,
    visits_of_a_user,
)
from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.hashing import hashed
from recsys_meta.tables import EXPOSURES, ID, INTERLEAVED, OUTCOMES

FIRST = date(2026, 11, 1)
USERS, ITEMS = 300, 6


def audience(users: int = USERS, visiting: float = 0.5) -> Audience:
    """Users like the items that follow their number; two positions, the second looked at half as often."""
    rows = torch.arange(users)
    attraction = torch.full((users, ITEMS), 0.1, dtype=torch.float64)
    attraction[rows, rows % ITEMS] = 0.8
    return Audience(
        user_ids=pl.Series([f"u{row}" for row in range(users)]),
        user_keys=(rows + 1) * 1_000_003,
        item_ids=pl.Series([10 * (item + 1) for item in range(ITEMS)], dtype=pl.Int32),
        item_keys=torch.arange(ITEMS) * 77,
        visiting=torch.full((users,), visiting, dtype=torch.float64),
        attraction=attraction,
        examined=torch.tensor([1.0, 0.5], dtype=torch.float64),
    )


def popular(users: int = USERS, temperature: float = 1.0, exploration: float = 0.2) -> Variant:
    """The same order of all items for everybody."""
    items = torch.arange(ITEMS).expand(users, -1)
    scores = torch.linspace(2, 0, ITEMS).expand(users, -1)
    return Variant("control", "night-a", PlackettLuce(temperature, exploration), 5, items, scores)


def personal(users: int = USERS) -> Variant:
    """Everybody's own item first; the last of the others is no candidate."""
    items = (torch.arange(users).unsqueeze(1) + torch.arange(ITEMS)) % ITEMS
    scores = torch.tensor([3.0, 1.0, 0.5, 0.2, 0.1, -torch.inf]).expand(users, -1)
    items = items.masked_fill(scores == -torch.inf, -1)
    return Variant("treatment", "night-b", PlackettLuce(0.5), 6, items, scores)


def month(days: int = 20, **changes) -> Month:
    settings = {"experiment": "e", "first": FIRST, "days": days, "seed": 3}
    return simulated_month(audience(), popular(), personal(), **{**settings, **changes})


def test_a_month_has_the_columns_of_the_tables_and_every_user_one_variant() -> None:
    shown, clicked = month()
    for table, schema in ((shown, EXPOSURES), (clicked, OUTCOMES)):
        ids = {"user_id": pl.String, "item_id": pl.Int32}
        wanted = {name: ids[name] if kind is ID else kind for name, kind in schema.items()}
        assert dict(table.schema) == wanted
        assert table.null_count().sum_horizontal().item() == 0
    assert shown.group_by("user_id").agg(pl.col("variant").n_unique())["variant"].max() == 1
    assert set(shown["variant"]) == {"control", "treatment"}
    assert shown["exposed_at"].dt.date().n_unique() == 20
    assert shown.group_by("user_id", "exposed_at").len()["len"].unique().to_list() == [2]
    assert clicked.join(shown, on=["user_id", "item_id"], how="anti").is_empty()


def test_visits_and_clicks_come_as_often_as_the_probabilities_say() -> None:
    found = month(days=40)
    visits = found.exposures.filter(position=1).height
    assert visits / (USERS * 40) == pytest.approx(0.5, abs=0.02)
    actions = pl.concat(logged_actions(found, name) for name in ("control", "treatment"))
    own = pl.col("item_id") == (pl.col("user_id").str.slice(1).cast(pl.Int32) % ITEMS + 1) * 10
    rates = actions.group_by("position", own=own).agg(pl.col("reward").mean(), pl.len())
    for position, mine, rate, rows in rates.iter_rows():
        chance = (0.8 if mine else 0.1) * (1.0 if position == 1 else 0.5)
        assert abs(rate - chance) < 4 * (chance * (1 - chance) / rows) ** 0.5, (position, mine)


def test_what_is_logged_has_the_propensities_of_the_policy() -> None:
    actions = logged_actions(month(), "control")
    assert actions["slate_id"].n_unique() * 2 == actions.height
    some = actions.filter(slate_id=actions["slate_id"][0])
    places = torch.tensor([some["item_id"].to_list()]) // 10 - 1
    expected = popular().policy.propensities(popular().scores[:1], places)
    assert some["propensity"].to_list() == pytest.approx(expected[0].tolist())


def test_the_probabilities_of_the_other_policy_average_to_one_over_the_logged_propensities() -> None:
    actions = logged_actions(month(days=60, share=0.0), "control")
    target = slate_probabilities(actions, audience(), personal())
    weight = actions.with_columns(weight=target / pl.col("propensity"))
    top = weight.filter(position=1)["weight"]
    assert abs(top.mean() - 1) < 4 * top.std() / len(top) ** 0.5
    assert (target == 0).any(), "the item that is no candidate of the other policy was shown"
    itself = slate_probabilities(actions, audience(), popular())
    assert itself.to_list() == pytest.approx(actions["propensity"].to_list())


def test_rows_out_of_order_keep_their_probabilities() -> None:
    actions = logged_actions(month(), "control")
    target = slate_probabilities(actions, audience(), personal())
    backwards = slate_probabilities(
        actions.sort("slate_id", "position", descending=[False, True]), audience(), personal()
    )
    both = (
        actions.with_columns(target),
        actions.sort("slate_id", "position", descending=[False, True]).with_columns(backwards),
    )
    keys = ["slate_id", "position"]
    assert both[0].sort(keys).equals(both[1].sort(keys))


def test_the_truth_is_what_plain_sums_say() -> None:
    liked = torch.linspace(0.6, 0.1, ITEMS, dtype=torch.float64)
    world = audience()._replace(attraction=liked.expand(USERS, -1))
    certain = popular(temperature=0.0, exploration=0.0)
    found = true_values(world, certain, popular(), draws=100, seed=1)
    truth, top = found.visit, found.top
    assert truth.control.mean == pytest.approx(0.6 + 0.5 * 0.5)
    assert top.control.mean == pytest.approx(0.6)
    first = popular().policy.next_shown(popular().scores[:1], torch.zeros(1, ITEMS, dtype=torch.bool))[0]
    assert abs(top.treatment.mean - (first @ liked).item()) < 4 * top.treatment.standard_error
    assert truth.control.standard_error == pytest.approx(0.0, abs=1e-12)
    # Of two positions the sum over all pairs is short.
    pairs = [(i, j) for i in range(ITEMS) for j in range(ITEMS) if i != j]
    scores, policy = popular().scores[:1].expand(len(pairs), -1), popular().policy
    chances = policy.propensities(scores, torch.tensor(pairs)).prod(1).tolist()
    exact = sum(
        chance * (liked[i] + 0.5 * liked[j]).item() for chance, (i, j) in zip(chances, pairs, strict=True)
    )
    assert exact < 0.8
    assert abs(truth.treatment.mean - exact) < 4 * truth.treatment.standard_error < 0.01
    assert truth.difference.mean == pytest.approx(truth.treatment.mean - truth.control.mean)


def test_who_visits_more_weighs_more_in_the_truth() -> None:
    some = audience(users=2)
    lopsided = some._replace(visiting=torch.tensor([0.3, 0.1], dtype=torch.float64))
    first_only = popular(users=2, temperature=0.0, exploration=0.0)
    truth = true_values(lopsided, first_only, first_only, draws=2).visit
    assert truth.control.mean == pytest.approx(0.75 * (0.8 + 0.05) + 0.25 * (0.1 + 0.4))
    assert truth.difference.mean == 0


def test_the_month_agrees_with_the_truth() -> None:
    found = month(days=40)
    truth = true_values(audience(), popular(), personal(), draws=20).visit
    for name, value in (("control", truth.control), ("treatment", truth.treatment)):
        slates = logged_actions(found, name).group_by("slate_id", "user_id").agg(pl.col("reward").sum())
        users = slates.group_by("user_id").agg(pl.col("reward").mean())["reward"]
        assert abs(slates["reward"].mean() - value.mean) < 4 * users.std() / len(users) ** 0.5


def test_a_user_who_comes_at_all_comes_as_often_as_was_seen() -> None:
    rare = audience()._replace(visiting=torch.full((USERS,), 0.05, dtype=torch.float64))
    assert visits_of_a_user(rare, 1) == pytest.approx(1.0)
    shown = simulated_month(
        rare, popular(), personal(), experiment="e", first=FIRST, days=30, seed=3
    ).exposures
    visits = shown.filter(position=1).group_by("user_id").len()["len"]
    assert abs(visits.mean() - visits_of_a_user(rare, 30)) < 4 * visits.std() / len(visits) ** 0.5


def test_the_naive_figure_takes_the_rows_that_agree_as_they_come() -> None:
    actions = pl.DataFrame(
        {"user_id": ["u0", "u0", "u1"], "item_id": [10, 60, 20], "reward": [1.0, 1.0, 0.0]},
        schema_overrides={"item_id": pl.Int32},
    )
    assert naive_value(actions, audience(users=2), personal(users=2)) == 0.5
    assert naive_value(actions.clear(), audience(users=2), personal(users=2)) == 0.0


def test_pools_hold_every_candidate_with_its_probability_at_the_top() -> None:
    table = pools(audience(), [popular(), personal()])
    assert table.group_by("variant").len().sort("variant").rows() == [
        ("control", USERS * ITEMS),
        ("treatment", USERS * (ITEMS - 1)),
    ]
    sums = table.group_by("variant", "user_id").agg(pl.col("probability").sum())["probability"]
    assert sums.to_list() == pytest.approx([1.0] * (2 * USERS))


def test_a_month_is_the_same_again_and_a_user_has_the_same_one_in_any_company() -> None:
    found = month()
    assert all(one.equals(other) for one, other in zip(found, month(), strict=True))
    assert not found.exposures.equals(month(seed=4).exposures)
    few = simulated_month(
        audience(users=40),
        popular(users=40),
        personal(users=40),
        experiment="e",
        first=FIRST,
        days=20,
        seed=3,
    )
    known = found.exposures.filter(pl.col("user_id").is_in(few.exposures["user_id"].unique().implode()))
    assert known.equals(few.exposures)


def test_each_day_draws_anew_and_as_a_night_of_that_day_would() -> None:
    everybody = torch.arange(USERS)
    days = [FIRST, FIRST + timedelta(days=1)]
    slates = [
        slates_on(popular(), audience(), everybody, int(hashed(5, day.toordinal()))).items for day in days
    ]
    assert (slates[0] != slates[1]).float().mean() > 0.3
    shown = month(days=1).exposures.filter(variant="control").sort("user_id", "position")
    users = shown["user_id"].unique(maintain_order=True).str.slice(1).cast(pl.Int64).to_torch()
    assert shown["item_id"].to_list() == ((slates[0][users] + 1) * 10).flatten().tolist()


def test_the_treated_are_as_many_as_was_meant_and_stay_so() -> None:
    keys = torch.arange(20_000) * 31
    few, more = assigned(keys, 0.3, seed=1), assigned(keys, 0.5, seed=1)
    assert few.double().mean().item() == pytest.approx(0.3, abs=0.015)
    assert (more | ~few).all(), "raising the share moves nobody back"


def test_habits_lie_between_none_and_twice_the_mean() -> None:
    found = habits(torch.arange(20_000), 0.4, seed=1)
    assert found.mean().item() == pytest.approx(0.4, abs=0.01)
    assert 0 <= found.min() < 0.01 < 0.79 < found.max() < 0.8


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: month(days=0), "one day at least"),
        (lambda: month(share=1.5), "share within 0..1"),
        (lambda: true_values(audience(), popular(), personal(), draws=1), "draws are 2 or more"),
        (lambda: habits(torch.arange(3), 0.6, seed=0), "above 0 and at most 0.5; found 0.6"),
    ],
)
def test_what_cannot_be_is_told(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def merged(users: int = USERS, days: int = 20, seed: int = 3) -> InterleavedMonth:
    return interleaved_month(
        audience(users), popular(users), personal(users), first=FIRST, days=days, seed=seed
    )


def test_a_month_of_merged_lists_has_the_visits_of_the_other_and_what_both_variants_would_show() -> None:
    lists, outcomes = merged()
    for table, schema in ((lists, INTERLEAVED), (outcomes, OUTCOMES)):
        ids = {"user_id": pl.String, "item_id": pl.Int32}
        wanted = {name: ids[name] if kind is ID else kind for name, kind in schema.items()}
        assert dict(table.schema) == wanted
    days = pl.col("exposed_at").dt.date().alias("day")
    visits = month().exposures.select(days, "user_id").unique().sort("day", "user_id")
    assert lists.select("day", "user_id").unique().sort("day", "user_id").equals(visits)
    day = FIRST + timedelta(days=3)
    rows = torch.arange(USERS)
    for variant, team in ((popular(), "A"), (personal(), "B")):
        items = slates_on(variant, audience(), rows, int(hashed(variant.seed, day.toordinal()))).items
        own = pl.DataFrame(
            {"user_id": audience().user_ids, "item_id": audience().item_ids.gather(items[:, 0].numpy())}
        )
        first = lists.filter(pl.col("day") == day, pl.col("position") == 1, pl.col("team") == team)
        assert first.height > 30
        assert first.join(own, on=["user_id", "item_id"], how="anti").is_empty(), (
            "a team's first pick is its best"
        )
    assert credited(lists, outcomes).outcomes == outcomes.height, "every click is on the list of its day"


def test_clicks_on_merged_lists_follow_the_same_probabilities() -> None:
    lists, outcomes = merged(days=60)
    found = credited(lists, outcomes)
    number = pl.col("user_id").str.slice(1).cast(pl.Int64) % ITEMS
    liked = pl.when(pl.col("item_id") == 10 * (number + 1)).then(0.8).otherwise(0.1)
    examined = pl.when(pl.col("position") == 1).then(1.0).otherwise(0.5)
    told = (
        lists.with_columns(chance=liked * examined)
        .group_by("team")
        .agg(pl.col("chance").sum(), variance=(pl.col("chance") * (1 - pl.col("chance"))).sum())
    )
    for team, credit in (("A", found.rows["a"].sum()), ("B", found.rows["b"].sum())):
        (row,) = told.filter(team=team).rows(named=True)
        assert abs(credit - row["chance"]) < 4 * row["variance"] ** 0.5


def test_merged_lists_tell_the_better_ranking_with_users_too_few_for_an_experiment() -> None:
    """Which is better is known. A hundred groups of 50 users: nearly all tell it by preferences, few by an experiment."""
    groups, size, days = 100, 50, 4
    users = groups * size
    better = personal(users)._replace(policy=PlackettLuce(1.0))
    worse = better._replace(name="control", policy=PlackettLuce(3.0), seed=9)
    people = audience(users)
    truth = true_values(people, worse, better, draws=5)
    assert truth.visit.difference.mean > 10 * truth.visit.difference.standard_error > 0
    group = pl.col("user_id").str.slice(1).cast(pl.Int64) % groups

    lists, outcomes = interleaved_month(people, worse, better, first=FIRST, days=days, seed=3)
    done = preferences(credited(lists, outcomes).rows).with_columns(group=group)
    split = simulated_month(people, worse, better, experiment="e", first=FIRST, days=days, seed=3)
    clicks = split.outcomes.group_by("user_id").agg(pl.col("value").sum())
    clicks = split.exposures.select("user_id", "variant").unique().join(clicks, on="user_id", how="left")
    clicks = clicks.with_columns(pl.col("value").fill_null(0.0), group=group)

    by_preference = by_experiment = 0
    for number in range(groups):
        found = preferred(done.filter(group=number))
        by_preference += found.p_value < 0.05 and found.effect > 0
        control, treatment = (
            clicks.filter(group=number, variant=name)["value"] for name in ("control", "treatment")
        )
        by_experiment += stats.ttest_ind(treatment, control, equal_var=False).pvalue < 0.05
    assert by_preference >= 80
    assert by_experiment <= 50


def test_a_month_of_merged_lists_has_a_day() -> None:
    with pytest.raises(ValueError, match="one day at least; found 0"):
        merged(days=0)
