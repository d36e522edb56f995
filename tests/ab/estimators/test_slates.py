"""Slates: unbiased by enumeration of every slate and every reward, each under what it assumes; and cases by hand."""

from itertools import permutations, product

import numpy as np
import polars as pl
import pytest

from recsys_meta.ab.estimators.sample import user_sums
from recsys_meta.ab.estimators.slates import SLATE_ESTIMATORS, SlateSample
from recsys_meta.ab.intervals import resamples
from recsys_meta.ab.logged_actions import LoggedActions, LogsError, logged_actions
from recsys_meta.ab.policies import Policy, from_column, from_table
from recsys_meta.ab.slate_off_policy import ordered, slate_off_policy, slate_sample_of

ITEMS, LENGTH = 3, 2
LOGGING = np.array([0.5, 0.3, 0.2])
TARGET = np.array([0.1, 0.3, 0.6])


def policy_of(probabilities: np.ndarray, keys: dict | None = None) -> Policy:
    table = pl.DataFrame({"item_id": range(len(probabilities)), "probability": probabilities})
    return from_table("target", table, [])


def chances(probabilities: np.ndarray, slate: tuple[int, ...], *, again: bool) -> list[float]:
    """The probability of each item given those above it."""
    left = [
        1.0 if again else 1.0 - sum(probabilities[above] for above in slate[:k]) for k in range(len(slate))
    ]
    return [probabilities[item] / rest for item, rest in zip(slate, left, strict=True)]


def every_slate(*, again: bool) -> list[tuple[int, ...]]:
    return list(product(range(ITEMS), repeat=LENGTH)) if again else list(permutations(range(ITEMS), LENGTH))


def cascade(slate: tuple[int, ...], k: int) -> float:
    """Chance of a click at k: of the item, less where a better one stands above; what stands below does not matter."""
    return (0.2 + 0.3 * slate[k]) * (0.5 if k and slate[0] > slate[k] else 1.0)


def anyhow(slate: tuple[int, ...], k: int) -> float:
    """What stands below matters too."""
    return 0.1 + 0.2 * slate[k] + 0.1 * slate[1 - k]


def alone(slate: tuple[int, ...], k: int) -> float:
    """The item and its position are all that matters."""
    return (0.2 + 0.3 * slate[k]) / (k + 1)


def logs_of(slate: tuple[int, ...], rewards: tuple[int, ...], *, again: bool) -> LoggedActions:
    return logged_actions(
        pl.DataFrame(
            {
                "slate_id": 0, "position": range(1, LENGTH + 1), "item_id": slate, "reward": rewards,
                "propensity": chances(LOGGING, slate, again=again),
            }
        )
    )  # fmt: skip


def expected(name: str, clicks, *, again: bool, model: np.ndarray | None = None) -> tuple[float, float]:
    """The mean of an estimate over every slate and reward, and the true value."""
    total = value = 0.0
    for slate in every_slate(again=again):
        odds = [clicks(slate, k) for k in range(LENGTH)]
        value += np.prod(chances(TARGET, slate, again=again)) * sum(odds)
        for rewards in product((0, 1), repeat=LENGTH):
            chance = np.prod(chances(LOGGING, slate, again=again))
            chance *= np.prod([odd if reward else 1 - odd for odd, reward in zip(odds, rewards, strict=True)])
            filling = "independently" if again else "without replacement"
            sample = slate_sample_of(logs_of(slate, rewards, again=again), policy_of(TARGET), filling, None)
            if model is not None:
                sample = sample._replace(
                    model_reward=model[range(LENGTH), slate], model_value=placed(model, slate, again=again)
                )
            total += chance * user_sums(SLATE_ESTIMATORS[name].contributions(sample), sample.users, 1).value
    return total, value


def placed(model: np.ndarray, slate: tuple[int, ...], *, again: bool) -> np.ndarray:
    """What the model expects of what the target would place at each position."""
    values = []
    for k in range(LENGTH):
        open_items = [item for item in range(ITEMS) if again or item not in slate[:k]]
        mass = TARGET[open_items] / TARGET[open_items].sum()
        values.append(mass @ model[k, open_items])
    return np.array(values)


@pytest.mark.parametrize(
    ("name", "clicks", "again"),
    [
        ("SIPS", anyhow, False),
        ("SIPS", anyhow, True),
        ("SIPS", cascade, False),
        ("RIPS", cascade, False),
        ("RIPS", cascade, True),
        ("IIPS", alone, True),
        ("PI", alone, True),
    ],
)
def test_the_mean_over_every_slate_and_reward_is_the_value_of_the_policy(name, clicks, again):
    found, value = expected(name, clicks, again=again)
    assert found == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "clicks", "again"), [("RIPS", anyhow, False), ("IIPS", cascade, True), ("PI", cascade, True)]
)
def test_an_estimator_is_biased_where_its_assumption_does_not_hold(name, clicks, again):
    found, value = expected(name, clicks, again=again)
    assert abs(found - value) > 0.005


@pytest.mark.parametrize("again", [False, True])
def test_cascade_doubly_robust_is_unbiased_under_any_model(again):
    model = np.random.default_rng(0).random((LENGTH, ITEMS))
    found, value = expected("Cascade-DR", cascade, again=again, model=model)
    assert found == pytest.approx(value, abs=1e-12)


def test_the_estimates_are_those_worked_by_hand():
    sample = SlateSample(
        slates=np.array([0, 0, 1]),  # the second slate has a single position
        users=np.array([0, 1]),
        rewards=np.array([1.0, 1.0, 1.0]),
        weights=np.array([2.0, 0.5, 3.0]),
        prefix=np.array([2.0, 1.0, 3.0]),
        independent=True,
        model_reward=np.array([0.5, 0.5, 0.0]),
        model_value=np.array([0.1, 0.2, 0.3]),
    )
    values = {
        name: user_sums(estimator.contributions(sample), sample.users, 2).numerator.tolist()
        for name, estimator in SLATE_ESTIMATORS.items()
    }
    assert values == {
        "SIPS": [2.0, 3.0],
        "RIPS": [3.0, 3.0],
        "IIPS": [2.5, 3.0],
        "PI": [(2.5 - 2 + 1) * 2, 3.0],
        # 2 * .5 + .1, then 1 * .5 + 2 * .2
        "Cascade-DR": [pytest.approx(2.0), pytest.approx(3.3)],
    }


def slates(count: int, seed: int = 0) -> LoggedActions:
    """Slates drawn without replacement, two of each user, clicked by the cascade."""
    generator = np.random.default_rng(seed)
    rows = []
    for slate_id in range(count):
        keys = np.log(LOGGING) + generator.gumbel(size=ITEMS)
        slate = tuple(int(item) for item in np.argsort(-keys)[:LENGTH])
        for k, (item, chance) in enumerate(zip(slate, chances(LOGGING, slate, again=False), strict=True)):
            rows.append(
                (slate_id // 2, slate_id, k + 1, item, float(generator.random() < cascade(slate, k)), chance)
            )
    names = ["user_id", "slate_id", "position", "item_id", "reward", "propensity"]
    return logged_actions(pl.DataFrame(rows, schema=names, orient="row"))


def test_slates_are_valued_per_slate_whatever_the_order_of_their_rows():
    from recsys_meta.ab.off_policy import fitted_models

    logs = slates(3000)
    mixed = logs._replace(table=logs.table.sample(fraction=1.0, shuffle=True, seed=1))
    _, truth = expected("SIPS", cascade, again=False)
    for given in (logs, mixed):
        found = slate_off_policy(given, policy_of(TARGET), models=fitted_models(ordered(given)), draws=300)
        assert found.estimates["estimator"].to_list() == ["SIPS", "RIPS", "Cascade-DR"]
        assert found.unit == "slate"
        assert found.diagnostics.rows == 3000
        assert found.diagnostics.users == 1500
        assert found.verdict.word == "trustworthy"
        assert found.answer["estimator"] == "Cascade-DR"
        assert found.answer["low"] <= truth <= found.answer["high"]
        assert found.diagnostics.overlap.mean_weight == pytest.approx(1.0, abs=0.1)
    widths = {row["estimator"]: row["standard_error"] for row in found.estimates.iter_rows(named=True)}
    assert widths["Cascade-DR"] < widths["RIPS"] < widths["SIPS"]


def test_where_the_target_is_the_logging_policy_every_estimate_is_the_mean_of_the_slates():
    logs = slates(200)
    found = slate_off_policy(logs, policy_of(LOGGING), draws=100)
    mean = logs.rewards.sum() / 200
    assert found.estimates["value"].to_list() == pytest.approx([mean] * 2)


def without(logs: LoggedActions, slate_ids: range, *, position: int) -> LoggedActions:
    """The logs without a position of some slates."""
    gone = pl.col("slate_id").is_in(list(slate_ids)) & (pl.col("position") == position)
    return logs._replace(table=logs.table.filter(~gone))


@pytest.mark.parametrize("position", [1, 2])
@pytest.mark.parametrize(("lacking", "word"), [(20, "trustworthy"), (300, "doubtful")])
def test_a_slate_that_lacks_a_row_is_left_out_whole_and_said(position, lacking, word):
    from recsys_meta.ab.off_policy import compare, fitted_models

    logs = slates(3000)
    cut = without(logs, range(lacking), position=position)
    whole = logs._replace(table=logs.table.filter(pl.col("slate_id") >= lacking))
    drawn = resamples(1500, 200)  # as for all users: those of the slates that are left out are among them
    models = fitted_models(ordered(cut))
    found = slate_off_policy(cut, policy_of(TARGET), models=models, drawn=drawn)
    as_if = slate_off_policy(whole, policy_of(TARGET), models=fitted_models(ordered(whole)), draws=200)
    assert found.estimates["value"].to_list() == as_if.estimates["value"].to_list()
    assert found.diagnostics.rows == 3000 - lacking
    assert found.verdict.word == word
    said = f"{lacking} of 3,000 slates ({lacking / 3000:.2%}) lack rows and are left out whole"
    assert all(said in note for note in found.estimates["note"])
    assert (said in found.verdict.reasons) == (word == "doubtful")
    other = slate_off_policy(cut, policy_of(LOGGING), models=models, drawn=drawn)
    assert compare(found, other)["low"].is_not_null().all()


def test_positions_may_begin_at_0_and_slates_may_be_of_any_length_where_lengths_differ():
    logs = slates(100)
    from_0 = logs._replace(table=logs.table.with_columns(pl.col("position") - 1))
    half = without(logs, range(50), position=2)
    for given in (logs, from_0, half):
        assert len(ordered(given).table) == len(given.table)
    assert len(ordered(without(from_0, range(5), position=0)).table) == 2 * 95


def test_where_gaps_tell_that_rows_are_missing_a_shorter_slate_lacks_its_end():
    tops = without(without(slates(100), range(2), position=1), range(2, 42), position=2)
    assert len(ordered(tops).table) == 2 * 58
    few = without(without(slates(100), range(1), position=1), range(2, 42), position=2)
    assert len(ordered(few).table) == 2 * 59 + 40


def test_positions_in_text_are_sorted_as_numbers_or_refused():
    places = [str(place) for place in range(1, 13)]
    columns = {
        "slate_id": [0] * 12,
        "position": places,
        "item_id": range(12),
        "reward": 0.0,
        "propensity": 0.5,
    }
    logs = logged_actions(pl.DataFrame(columns).sort("position"))
    assert ordered(logs).table["position"].to_list() == places
    for place in ("top", "1.5", "inf"):
        wrong = logs._replace(table=logs.table.with_columns(position=pl.col("position").replace("7", place)))
        with pytest.raises(LogsError, match=rf"slate 0 holds position '{place}'.*expected whole numbers"):
            ordered(wrong)


def test_logs_of_which_no_slate_is_whole_are_refused():
    logs = slates(20)
    with pytest.raises(LogsError, match="none of the 20 logged slates"):
        slate_off_policy(without(logs, range(20), position=1), policy_of(TARGET))


def test_slates_without_propensities_or_with_a_policy_by_position_are_refused():
    logs = slates(20)
    with pytest.raises(LogsError, match=r"lack .*propensity"):
        slate_off_policy(logs._replace(table=logs.table.drop("propensity")), policy_of(TARGET))
    table = pl.DataFrame({"position": [1, 2], "item_id": [0, 1], "probability": [1.0, 1.0]})
    with pytest.raises(LogsError, match="depends on the position"):
        slate_off_policy(logs, from_table("by position", table, ["position"]))


def test_a_column_of_the_logs_holds_what_is_given_the_items_above_already():
    logs = slates(500)
    chance = [
        chance
        for slate in logs.table.group_by("slate_id", maintain_order=True).agg("item_id")["item_id"].to_list()
        for chance in chances(TARGET, tuple(slate), again=False)
    ]
    told = logged_actions(logs.table.with_columns(new=pl.Series(chance)), probabilities=["new"])
    by_column = slate_off_policy(told, from_column("new"), draws=100)
    by_table = slate_off_policy(logs, policy_of(TARGET), draws=100)
    assert by_column.estimates["value"].to_list() == pytest.approx(by_table.estimates["value"].to_list())
    assert by_column.diagnostics.support is None
