"""Made-up experiments in which nothing differs, looked at twenty times: how often each way of looking sees something.

Every world is drawn anew for each experiment and split at random. ``python -m pipelines.experiment_checks`` prints the table.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from recsys_meta.ab.experiments.always_valid import widths
from recsys_meta.ab.experiments.moments import Array, Centre, Moments, contrast, terms

LOOKS = 20
_EXPERIMENTS_AT_ONCE = 100  # bounds the memory: about 60 MiB


class Users(NamedTuple):
    """What the users of several experiments have done until each look, [E, looks, U]."""

    numerator: Array
    denominator: Array
    covariate: Array
    entered: Array  # 1 from the look on at which the user takes part


class Alarms(NamedTuple):
    """Shares of the experiments that were called different."""

    world: str
    experiments: int
    once: float  # one look, at the end
    plain: float  # any of the looks, each by a test that is made for one
    band: float  # any of the looks, by the always-valid band
    by_row: float | None  # one look, with rows taken as independent; where there are rows


def arriving(random: np.random.Generator, experiments: int) -> Users:
    """60 new users at every look, each with one number that never changes."""
    batch = 60
    shape = (experiments, 1, LOOKS * batch)
    came = np.repeat(np.arange(LOOKS), batch)
    entered = np.broadcast_to(
        came[None, None, :] <= np.arange(LOOKS)[None, :, None], (experiments, LOOKS, shape[2])
    )
    value = np.broadcast_to(random.normal(size=shape), entered.shape)
    return Users(value * entered, entered.astype(float), np.zeros_like(value), entered.astype(float))


def returning(random: np.random.Generator, experiments: int, persistence: float = 0.5) -> Users:
    """200 users who come on all 20 days; persistence: share of a day's variance that is the user's own."""
    own = random.normal(size=(experiments, 1, 200)) * np.sqrt(persistence)
    days = random.normal(size=(experiments, LOOKS, 200)) * np.sqrt(1.0 - persistence)
    total = (own + days).cumsum(1)
    return Users(total, np.ones_like(total), np.zeros_like(total), np.ones_like(total))


def strangers(random: np.random.Generator, experiments: int) -> Users:
    """The same, with days that have nothing to do with each other: the hardest case of looking."""
    return returning(random, experiments, 0.0)


def clicking(random: np.random.Generator, experiments: int) -> Users:
    """400 users with click rates of their own, 3 impressions a day; clicks per impression, with what they clicked before."""
    rate = random.beta(1.0, 4.0, size=(experiments, 1, 400))
    shown = random.poisson(3.0, size=(experiments, LOOKS, 400))
    clicks = random.binomial(shown, np.broadcast_to(rate, shown.shape))
    past = np.broadcast_to(random.binomial(20, rate).astype(float), shown.shape)
    return Users(clicks.cumsum(1).astype(float), shown.cumsum(1).astype(float), past, np.ones(shown.shape))


def converting(random: np.random.Generator, experiments: int) -> Users:
    """300 users of whom some do it, sooner or later: whether they ever did."""
    day = random.geometric(random.beta(1.0, 8.0, size=(experiments, 1, 300)))
    done = (day <= np.arange(1, LOOKS + 1)[None, :, None]).astype(float)
    return Users(done, np.ones_like(done), np.zeros_like(done), np.ones_like(done))


WORLDS: dict[str, Callable[[np.random.Generator, int], Users]] = {
    "users arrive, one number each": arriving,
    "users come back every day": returning,
    "every day a new draw of each user": strangers,
    "clicks per impression, CUPED": clicking,
    "whether users ever did it": converting,
}


def false_positives(world: str, experiments: int = 2000, seed: int = 0, level: float = 0.95) -> Alarms:
    """Splits the users of made-up experiments at random and counts those called different. world: of WORLDS."""
    random = np.random.default_rng(seed)
    found = []
    for start in range(0, experiments, _EXPERIMENTS_AT_ONCE):
        users = WORLDS[world](random, min(_EXPERIMENTS_AT_ONCE, experiments - start))
        found.append(_called(users, random, level))
    once, plain, band, by_row = np.concatenate(found, 1).mean(1)
    return Alarms(
        world, experiments, float(once), float(plain), float(band), float(by_row) if world.startswith("clicks") else None
    )  # fmt: skip


def _called(users: Users, random: np.random.Generator, level: float) -> Array:
    """Which experiments are called different, [4, E]: once, plain, band, by row."""
    experiments, _, people = users.numerator.shape
    is_b = (random.random((experiments, 1, people)) < 0.5).astype(float)
    control, treatment = (_moments(users, users.entered * arm) for arm in (1.0 - is_b, is_b))
    found = contrast(control, treatment)
    p = found.p_values()
    half = found.error * widths(found.time / found.time[:, :1], LOOKS / 2, level)  # narrowest at half time
    alpha = 1.0 - level
    return np.stack(
        [
            p[:, -1] < alpha,
            (p < alpha).any(1),
            (np.abs(found.effect) > half).any(1),
            _p_by_row(control, treatment) < alpha,
        ]
    ).astype(float)


def _moments(users: Users, counted: Array) -> Moments:
    added = terms(users.numerator, users.denominator, users.covariate, Centre())
    return Moments.around(Centre(), ((term * counted).sum(-1) for term in added))


def _p_by_row(control: Moments, treatment: Moments) -> Array:
    """Of two shares of rows at the last look: numerator of denominator, each row 0 or 1."""
    shares, errors = [], []
    for arm in (control, treatment):
        rows, total = arm.d[:, -1], arm.n[:, -1]
        share = total / rows
        shares.append(share)
        errors.append(np.maximum(share * (1.0 - share), 0.0) / rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        p: Array = 2.0 * stats.norm.sf(np.abs(shares[1] - shares[0]) / np.sqrt(errors[0] + errors[1]))
    return p
