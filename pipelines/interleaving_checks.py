"""How many users a difference needs, by interleaving and by an A/B test: the table of docs/interleaving.md.

python -m pipelines.interleaving_checks configs/simulate-sample.yaml    # two nights and eight months, about a minute of computing

Differences between policies of the simulated month are told from months in which everybody was shown the one, the other, or lists
merged from both, on the same visits. What is needed follows from effect and spread of those users; that it suffices is counted on
users drawn from them.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from pipelines.loading import load
from pipelines.settings import SimulateSettings
from pipelines.simulated_month import (
    CONTROL,
    EXPERIMENT,
    TREATMENT,
    audience_of,
    side_of,
    variant_of,
    write_candidates,
)
from recsys_meta import store
from recsys_meta.ab.experiments.moments import Array, contrast, moments, spread
from recsys_meta.ab.experiments.preference import credited, preferences
from recsys_meta.ab.simulation import Audience, Variant, interleaved_month, simulated_month
from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.tables import USER_ID

LEVEL, POWER = 0.95, 0.8
_DRAWS = 2000  # samples of users by which power is counted


class Users(NamedTuple):
    """What the users who come do in a month, rows alike, [U]."""

    clicks_a: Array  # of a month of control for everybody
    clicks_b: Array  # of treatment
    visits: Array
    before: Array  # interactions before the month
    preference: Array  # of merged lists; NaN where nothing was done with them


class Needed(NamedTuple):
    """The users who have to come, of both groups together where there are two."""

    difference: str
    control: float  # clicks of a visit
    treatment: float
    interleaved: float
    per_user: float  # A/B, clicks of a user
    cuped: float  # A/B, the same with what a user did before
    per_visit: float  # A/B, clicks of a visit, by the delta method
    seen_interleaved: (
        float  # share of samples of ``interleaved`` users that are called different by interleaving
    )
    seen_per_visit: float  # and by that last A/B test


def checks(config: Path) -> list[Needed]:
    """Runs both nights, plays the months, and prints the table."""
    settings = load(SimulateSettings, [config]).settings
    sides = [side_of(settings, name) for name in (CONTROL, TREATMENT)]
    with store.Workspace(settings.workspace).lock("interleaving-checks"):
        candidates = write_candidates(settings, sides[0].night)
        audience = audience_of(settings, sides[0].night.top_k)
        popular, learner = (variant_of(settings, side, candidates, audience) for side in sides)
    before = pl.read_parquet(sides[0].night.interactions.path).group_by(USER_ID).len("before")
    pairs = {
        "popular, explored, against the learner": (popular, learner),
        "the learner at temperature 2 against 1": (with_policy(learner, 2.0, 0.0), learner),
        "the learner exploring a fifth against none": (with_policy(learner, 1.0, 0.2), learner),
        "the learner exploring a tenth against none": (with_policy(learner, 1.0, 0.1), learner),
    }
    print(
        "| difference | clicks of a visit | interleaving | A/B, clicks of a user | with CUPED | A/B, clicks of a visit"
        " | times as many | seen with so few: interleaving | A/B |"
    )
    print(f"|{' --- |' * 9}")
    found = []
    for name, (control, treatment) in pairs.items():
        users = played(settings, audience, control, treatment, before)
        found.append(needed(name, users, settings.seed))
        print(line(found[-1]), flush=True)
    return found


def with_policy(variant: Variant, temperature: float, exploration: float) -> Variant:
    """The same scores, drawn from otherwise, and with other draws."""
    return variant._replace(policy=PlackettLuce(temperature, exploration), seed=variant.seed + 1)


def played(
    settings: SimulateSettings, audience: Audience, control: Variant, treatment: Variant, before: pl.DataFrame
) -> Users:
    """Three months on the same visits."""
    days = {"first": settings.first, "days": settings.days, "seed": settings.seed}
    merged = interleaved_month(audience, control, treatment, **days)  # type: ignore[arg-type]
    done = preferences(credited(merged.lists, merged.outcomes).rows)
    table = merged.lists.group_by(USER_ID).agg(visits=pl.col("day").n_unique()).sort(USER_ID)
    for name, share in (("a", 0.0), ("b", 1.0)):
        month = simulated_month(audience, control, treatment, experiment=EXPERIMENT, share=share, **days)  # type: ignore[arg-type]
        clicks = month.outcomes.group_by(USER_ID).agg(pl.len().alias(name))
        table = table.join(clicks, on=USER_ID, how="left", maintain_order="left")
    table = table.join(before, on=USER_ID, how="left", maintain_order="left")
    table = table.join(done.select(USER_ID, "preference"), on=USER_ID, how="left", maintain_order="left")
    a, b, visits, past = (
        table[name].fill_null(0).cast(pl.Float64).to_numpy() for name in ("a", "b", "visits", "before")
    )
    return Users(a, b, visits, past, table["preference"].fill_null(float("nan")).to_numpy())


def needed(difference: str, users: Users, seed: int) -> Needed:
    """The users each way needs, and how often so few of them show it."""
    one, none = np.ones_like(users.visits), np.zeros_like(users.visits)
    counted = users.preference[~np.isnan(users.preference)]
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    squared, few = (z + float(stats.norm.ppf(POWER))) ** 2, z**2 / 2  # few: for Student's t (Guenther 1981)
    active = squared * counted.var(ddof=1) / counted.mean() ** 2 + few
    interleaved = active * len(users.visits) / len(counted)

    def ab(below: Array, x: Array) -> float:
        (mean_a, var_a, _), (mean_b, var_b, _) = (
            spread(moments(clicks, below, x)) for clicks in (users.clicks_a, users.clicks_b)
        )
        return 2.0 * squared * (var_a + var_b) / (mean_b - mean_a) ** 2 + few

    enough = int(np.ceil(interleaved))
    shares = seen(users, enough, np.random.default_rng(seed))
    visits = users.visits.sum()
    return Needed(
        difference,
        float(users.clicks_a.sum() / visits),
        float(users.clicks_b.sum() / visits),
        interleaved,
        ab(one, none),
        ab(one, users.before),
        ab(users.visits, none),
        *shares,
    )


def seen(users: Users, size: int, random: np.random.Generator) -> tuple[float, float]:
    """Shares of samples of so many users, drawn with replacement, that are called different by interleaving and by A/B."""
    alpha, by_preference, by_group = 1 - LEVEL, 0, 0
    for _ in range(_DRAWS):
        rows = random.integers(len(users.visits), size=size)
        some = users.preference[rows]
        some = some[~np.isnan(some)]
        if len(some) > 1 and some.std() > 0:
            by_preference += bool(stats.ttest_1samp(some, 0.0).pvalue < alpha)
        treated = random.random(size) < 0.5
        control, treatment = (
            moments(clicks[rows[group]], users.visits[rows[group]], np.zeros(int(group.sum())))
            for clicks, group in ((users.clicks_a, ~treated), (users.clicks_b, treated))
        )
        by_group += bool(contrast(control, treatment).p_values() < alpha)
    return by_preference / _DRAWS, by_group / _DRAWS


def line(found: Needed) -> str:
    """One row of the table; the factor is against the best of the A/B tests."""
    best = min(found.per_user, found.cuped, found.per_visit)
    cells = [
        found.difference,
        f"{found.control:.4f} to {found.treatment:.4f}",
        *(f"{users:,.0f}" for users in found[3:7]),
        f"{best / found.interleaved:.1f}",
        f"{found.seen_interleaved:.0%}",
        f"{found.seen_per_visit:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    checks(Path(sys.argv[1] if len(sys.argv) > 1 else "configs/simulate-sample.yaml"))
