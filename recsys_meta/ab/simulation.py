"""A month of visits in a world whose answer is known: policies show slates, users click, and the truth stands beside the logs.

Visits and clicks follow the position-based model (M. Richardson, E. Dominowska & R. Ragno, Predicting Clicks, WWW 2007):

    visit(u, day)             ~ Bernoulli(visiting_u)
    click(u, i, position)     ~ Bernoulli(examined_position * attraction_ui)

so the true value of a policy is known from the probabilities alone: the expected clicks of a visit, with no click drawn and no
log read. Users keep their own tastes and habits from visit to visit: visits of one user are alike, as in life.

Everything that is drawn follows from a seed and the user's key: a user's month is the same whoever else is there.

Letters: U users, I items, N candidates of a pool, k positions of a slate.
"""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from recsys_meta.ab.interleaving import as_table, coins, team_draft
from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.hashing import hashed, mixed, uniform
from recsys_meta.tables import EXPOSURES, INSTANT, INTERLEAVED, ITEM_ID, OUTCOMES, USER_ID

CLICK = "click"

_ASSIGNMENT, _HABIT, _VISIT, _MOMENT, _CLICK, _TRUTH = range(6)  # what the draws of one seed are for
_DELAY = timedelta(
    seconds=20
)  # from a slate to the first click that it may get, and from one position to the next


class Audience(NamedTuple):
    """Who visits, and what is true of them."""

    user_ids: pl.Series  # U
    user_keys: Tensor  # [U] int64
    item_ids: pl.Series  # I
    item_keys: Tensor  # [I] int64
    visiting: Tensor  # [U] float64: probability of a visit on a day; one a day at most
    attraction: Tensor  # [U, I] float64: probability of a click on an item that is looked at
    examined: Tensor  # [k] float64: probability that a position is looked at


class Variant(NamedTuple):
    """What some of the users are shown."""

    name: str
    run_id: str  # of the night whose scores these are
    policy: PlackettLuce
    seed: int  # of its slates; each day draws anew
    items: (
        Tensor  # [U, N] int64: rows of Audience.item_ids, best first; -1 where there is no further candidate
    )
    scores: Tensor  # [U, N]; minus infinity there


class Month(NamedTuple):
    """What was logged."""

    exposures: pl.DataFrame  # tables.EXPOSURES: one row per shown item
    outcomes: pl.DataFrame  # tables.OUTCOMES: one row per click


class InterleavedMonth(NamedTuple):
    """What was logged where every visitor was shown a merged list."""

    lists: pl.DataFrame  # tables.INTERLEAVED
    outcomes: pl.DataFrame  # tables.OUTCOMES: one row per click


class Value(NamedTuple):
    """A figure of the truth and how exactly it is known."""

    mean: float
    standard_error: float  # of the Monte Carlo estimate, of slates alone


class Truth(NamedTuple):
    """One figure under each of two policies, and what the one has over the other."""

    control: Value
    treatment: Value
    difference: Value


class TrueValues(NamedTuple):
    """What is true of two policies."""

    visit: Truth  # expected clicks of a visit
    top: Truth  # expected clicks of a visit on the first position


class Shown(NamedTuple):
    """What some of the users are shown on a day."""

    items: Tensor  # [V, k] int64: rows of Audience.item_ids; -1 where there is none
    propensity: Tensor  # [V, k] float64


def assigned(keys: Tensor, share: float, seed: int) -> Tensor:
    """Who gets the treatment, [U] bool; by the key alone, so whoever asks gets the same answer."""
    return uniform(_bits(keys, seed, _ASSIGNMENT)) < share


def habits(keys: Tensor, mean: float, seed: int) -> Tensor:
    """How probable a visit of each user is on a day, [U] float64: between none and twice the mean.

    Raises ValueError where that is no probability.
    """
    if not 0 < mean <= 0.5:
        raise ValueError(f"the mean of visits is above 0 and at most 0.5; found {mean}")
    return 2 * mean * uniform(_bits(keys, seed, _HABIT))


def slates_on(variant: Variant, audience: Audience, rows: Tensor, seed: int) -> Shown:
    """The slates of these users under this seed; those of a night with the same scores, policy and seed.

    rows: [V] int64.
    """
    items, scores = variant.items[rows], variant.scores[rows]
    slates = variant.policy.draw(
        scores,
        len(audience.examined),
        users=audience.user_keys[rows],
        items=audience.item_keys[items.clamp(min=0)],
        seed=seed,
    )
    places = slates.places
    return Shown(items.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1), slates.propensity)


def simulated_month(
    audience: Audience,
    control: Variant,
    treatment: Variant,
    *,
    experiment: str,
    first: date,
    days: int,
    share: float = 0.5,
    seed: int = 0,
) -> Month:
    """Logs of ``days`` days from ``first``, in which ``share`` of the users are shown the treatment and the others the control.

    Raises ValueError where there is no day, or the share is not within 0..1.
    """
    if days < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected one day at least and a share within 0..1; found {days} and {share}")
    treated = assigned(audience.user_keys, share, seed)
    exposures, outcomes = [], []
    for day in (first + timedelta(days=number) for number in range(days)):
        visits = _visits(audience, day, seed)
        for variant, group in ((control, ~treated), (treatment, treated)):
            shown, clicked = _day(audience, variant, (visits & group).nonzero().squeeze(1), day, seed)
            exposures.append(shown.with_columns(pl.lit(experiment).alias("experiment")))
            outcomes.append(clicked)
    by_time = ["exposed_at", USER_ID, "position"]
    return Month(
        pl.concat(exposures).select(EXPOSURES.keys()).sort(by_time),
        pl.concat(outcomes).select(OUTCOMES.keys()).sort("occurred_at", USER_ID),
    )


def interleaved_month(
    audience: Audience, control: Variant, treatment: Variant, *, first: date, days: int, seed: int = 0
) -> InterleavedMonth:
    """Logs of the same days and visits, had everybody been shown the team draft of what both variants would show; A is control.

    Raises ValueError where there is no day.
    """
    if days < 1:
        raise ValueError(f"expected one day at least; found {days}")
    lists, outcomes = [], []
    for day in (first + timedelta(days=number) for number in range(days)):
        rows, ordinal = _visits(audience, day, seed).nonzero().squeeze(1), day.toordinal()
        slates = [
            slates_on(variant, audience, rows, int(hashed(variant.seed, ordinal))).items.numpy()
            for variant in (control, treatment)
        ]
        tossed = coins(audience.user_keys[rows], len(audience.examined), seed, ordinal)
        drafted = team_draft(slates[0], slates[1], tossed)
        users = audience.user_ids.gather(_series(rows))
        shown = as_table(drafted, users, audience.item_ids)
        items = torch.from_numpy(drafted.items)
        clicks, at = _clicks(audience, rows, items, day, seed)
        owner, _ = (items >= 0).nonzero(as_tuple=True)
        told = shown.with_columns(clicked=_series(clicks[items >= 0]), second=_series(at[owner]))
        lists.append(shown.select(pl.lit(day).alias("day"), pl.all()))
        outcomes.append(
            _clicked(told.with_columns((_midnight(day) + pl.duration(seconds="second")).alias("exposed_at")))
        )
    return InterleavedMonth(
        pl.concat(lists).select(INTERLEAVED.keys()),
        pl.concat(outcomes).select(OUTCOMES.keys()).sort("occurred_at", USER_ID),
    )


def _day(
    audience: Audience, variant: Variant, rows: Tensor, day: date, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What these visitors are shown and click on that day."""
    shown = slates_on(variant, audience, rows, int(hashed(variant.seed, day.toordinal())))
    listed = shown.items >= 0
    clicks, at = _clicks(audience, rows, shown.items, day, seed)
    owner, position = listed.nonzero(as_tuple=True)
    rows_shown = pl.DataFrame(
        {
            USER_ID: audience.user_ids.gather(_series(rows[owner])),
            ITEM_ID: audience.item_ids.gather(_series(shown.items[listed])),
            "position": _series(position + 1).cast(pl.Int32),
            "propensity": _series(shown.propensity[listed]),
            "second": _series(at[owner]),
            "clicked": _series(clicks[listed]),
        }
    ).with_columns(
        (_midnight(day) + pl.duration(seconds="second")).alias("exposed_at"),
        pl.lit(variant.name).alias("variant"),
        pl.lit(variant.run_id).alias("run_id"),
    )
    return rows_shown, _clicked(rows_shown)


def _visits(audience: Audience, day: date, seed: int) -> Tensor:
    """Who comes on that day, [U] bool."""
    return uniform(_bits(audience.user_keys, seed, _VISIT, day.toordinal())) < audience.visiting


def _clicks(audience: Audience, rows: Tensor, items: Tensor, day: date, seed: int) -> tuple[Tensor, Tensor]:
    """What these visitors click of what they are shown, [V, k] bool, and when they come, [V] seconds of the day."""
    keys, ordinal = audience.user_keys[rows], day.toordinal()
    chance = audience.attraction[rows.unsqueeze(1), items.clamp(min=0)] * audience.examined
    clicks = (uniform(_bits(keys, seed, _CLICK, ordinal, len(audience.examined))) < chance) & (items >= 0)
    at = (
        uniform(_bits(keys, seed, _MOMENT, ordinal)) * (86_400 - 600)
    ).long()  # the clicks are of the same day
    return clicks, at


def _clicked(shown: pl.DataFrame) -> pl.DataFrame:
    """The clicks as outcomes. shown: USER_ID, ITEM_ID, "position", "exposed_at", "clicked"."""
    return shown.filter("clicked").select(
        USER_ID,
        ITEM_ID,
        pl.lit(CLICK).alias("metric"),
        pl.lit(1.0).alias("value"),
        (pl.col("exposed_at") + _DELAY * pl.col("position")).alias("occurred_at"),
    )


def _midnight(day: date) -> pl.Expr:
    return pl.lit(datetime.combine(day, time())).dt.replace_time_zone("UTC").cast(INSTANT)


def true_values(
    audience: Audience, control: Variant, treatment: Variant, *, draws: int, seed: int = 0
) -> TrueValues:
    """Expected clicks, users weighing what they visit, by Monte Carlo over slates alone.

    No estimator and no log has a part in it: slates are drawn, and what is examined and attractive is known of each.
    Both policies are drawn from in every repetition, and the error of their difference is that of the differences.

    Raises ValueError for fewer than 2 draws.
    """
    if draws < 2:
        raise ValueError(f"draws are 2 or more, for an error to be told; found {draws}")
    everybody = torch.arange(len(audience.user_keys))
    offered = (control.items >= 0).any(1) & (treatment.items >= 0).any(
        1
    )  # whoever is shown nothing leaves no log
    weight = audience.visiting * offered
    weight = weight / weight.sum()
    found = torch.zeros(2, draws, len(audience.examined), dtype=torch.float64)
    for number in range(draws):
        for row, variant in enumerate((control, treatment)):
            items = slates_on(variant, audience, everybody, int(hashed(seed, _TRUTH, row, number))).items
            attraction = audience.attraction.gather(1, items.clamp(min=0)) * (items >= 0)
            found[row, number] = weight @ (attraction * audience.examined)
    return TrueValues(_truth(found.sum(2)), _truth(found[..., 0]))


def visits_of_a_user(audience: Audience, days: int) -> float:
    """Expected visits in so many days of a user who comes at all: what turns clicks of a visit into clicks of a user."""
    comes = 1 - (1 - audience.visiting) ** days
    return float(days * audience.visiting.sum() / comes.sum())


def logged_actions(month: Month, variant: str) -> pl.DataFrame:
    """The actions of one variant with what came of them: slate_id, user_id, item_id, position, propensity, reward.

    A click is that of the last slate before it that showed the item to the user on the same day.
    """
    shown = month.exposures.filter(variant=variant)
    day = pl.col("exposed_at").dt.date()
    clicks = month.outcomes.filter(metric=CLICK).select(
        USER_ID, ITEM_ID, day=pl.col("occurred_at").dt.date(), reward="value"
    )
    slate = pl.format("{}@{}", pl.col(USER_ID), day).alias("slate_id")
    return (
        shown.with_columns(day=day)
        .join(clicks, on=[USER_ID, ITEM_ID, "day"], how="left", maintain_order="left")
        .select(slate, USER_ID, ITEM_ID, "position", "propensity", pl.col("reward").fill_null(0.0))
    )


def naive_value(actions: pl.DataFrame, audience: Audience, variant: Variant) -> float:
    """What one might read off the logs without propensities: the clicks of a row, were every row as good as those that show
    what this variant ranks best for the user, as many as a slate has positions. Right only where nothing but the item counts.

    actions: of ``logged_actions``, or some of them.
    """
    best = variant.items[:, : len(audience.examined)]
    present = best >= 0
    owner, _ = present.nonzero(as_tuple=True)
    wanted = pl.DataFrame(
        {
            USER_ID: audience.user_ids.gather(_series(owner)),
            ITEM_ID: audience.item_ids.gather(_series(best[present])),
        }
    )
    rewards = actions.join(wanted, on=[USER_ID, ITEM_ID], how="semi")["reward"]
    return float(rewards.sum() / max(len(rewards), 1))


def slate_probabilities(actions: pl.DataFrame, audience: Audience, variant: Variant) -> pl.Series:
    """How probable another policy makes each logged item at its position, given those above it; in the rows' order.

    actions: of ``logged_actions``; an item that is none of the policy's candidates has probability 0.
    """
    position = _of(actions["position"]).long() - 1
    _, slate = torch.unique_consecutive(_of(actions["slate_id"].rle_id()), return_inverse=True)
    user_at = {user: row for row, user in enumerate(audience.user_ids)}
    item_at = {item: row for row, item in enumerate(audience.item_ids)}
    users = torch.tensor([user_at[user] for user in actions[USER_ID]])
    items = torch.tensor([item_at[item] for item in actions[ITEM_ID]])
    count = int(slate.max()) + 1
    owners = torch.empty(count, dtype=torch.int64).scatter(0, slate, users)
    shown = torch.full((count, len(audience.examined)), -1).index_put((slate, position), items)
    matches = variant.items[owners].unsqueeze(1) == shown.unsqueeze(2)  # [slates, k, N]
    matches &= shown.unsqueeze(2) >= 0
    places = matches.int().argmax(2).masked_fill(~matches.any(2), -1)
    probability = variant.policy.propensities(variant.scores[owners], places)
    return _series(probability[slate, position]).alias("target_propensity")


def pools(audience: Audience, variants: Sequence[Variant]) -> pl.DataFrame:
    """What each variant chooses from: variant, run_id, user_id, item_id, score, probability (of the first position)."""
    tables = []
    for variant in variants:
        present = variant.items >= 0
        owner, _ = present.nonzero(as_tuple=True)
        nothing_above = torch.zeros_like(present)
        first = variant.policy.next_shown(variant.scores, nothing_above)
        tables.append(
            pl.DataFrame(
                {
                    USER_ID: audience.user_ids.gather(_series(owner)),
                    ITEM_ID: audience.item_ids.gather(_series(variant.items[present])),
                    "score": _series(variant.scores[present]),
                    "probability": _series(first[present]),
                }
            ).select(pl.lit(variant.name).alias("variant"), pl.lit(variant.run_id).alias("run_id"), pl.all())
        )
    return pl.concat(tables)


def _truth(draws: Tensor) -> Truth:
    """draws: [2, n]."""
    return Truth(_value(draws[0]), _value(draws[1]), _value(draws[1] - draws[0]))


def _value(draws: Tensor) -> Value:
    return Value(float(draws.mean()), float(draws.std() / len(draws) ** 0.5))


def _bits(keys: Tensor, seed: int, *purpose: int) -> Tensor:
    """Random bits of every user; a third number of the purpose says how many each gets, [U] or [U, n]."""
    mine = mixed(keys ^ hashed(seed, *purpose[:2]))
    return mine if len(purpose) < 3 else mixed(mine.unsqueeze(1) + mixed(torch.arange(purpose[2])))


def _series(values: Tensor) -> pl.Series:
    return pl.Series(values.numpy())


def _of(values: pl.Series) -> Tensor:
    return values.cast(pl.Int64).to_torch()
