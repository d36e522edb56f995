"""Worlds with a known answer: logs are drawn from them, and the value of the target policy is worked out exactly.

Letters: X situations, all as frequent; A actions.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from recsys_meta.ab.estimators.sample import Numbers
from recsys_meta.ab.logged_actions import PROPENSITY, REWARD, LoggedActions, logged_actions
from recsys_meta.ab.policies import PROBABILITY, Policy, from_table
from recsys_meta.tables import ITEM_ID, USER_ID

SITUATION = "situation"
_LONGEST = 19  # rows of a nested user: from 1 to so many, as often each
_FACTOR = 0.75  # a nested user clicks this share more or less often than others


class World(NamedTuple):
    """How rewards come about, and the two policies."""

    rewards: Numbers  # [X, A], probability of a click
    logging: Numbers  # [X, A]
    target: Numbers  # [X, A]
    nested: bool = False  # whether a user has several rows, all in one situation, and clicks more often than others, or less

    @property
    def value(self) -> float:
        """What the target policy earns per row."""
        return float((self.rewards * self.target).sum(axis=1).mean())

    @property
    def logged_value(self) -> float:
        """What the logging policy earns per row."""
        return float((self.rewards * self.logging).sum(axis=1).mean())

    @property
    def policy(self) -> Policy:
        """The target policy as a table."""
        return policy_of(self.target, "target")

    def logs(self, rows: int, generator: np.random.Generator) -> LoggedActions:
        """That many logged rows."""
        users = np.arange(rows)
        if self.nested:
            lengths = generator.integers(1, _LONGEST + 1, size=rows)
            users = np.repeat(np.arange(rows), lengths)[:rows]
        n_users = int(users[-1]) + 1
        situations = generator.integers(len(self.rewards), size=n_users)[users]
        factors = np.ones(rows)
        if self.nested:
            factors = (1 + _FACTOR * generator.choice([-1.0, 1.0], size=n_users))[users]
        # The last action catches what rounding leaves of the sum.
        edges = self.logging.cumsum(axis=1)[:, :-1]
        actions = (generator.random(rows)[:, None] > edges[situations]).sum(axis=1)
        clicks = generator.random(rows) < self.rewards[situations, actions] * factors
        table = pl.DataFrame(
            {
                USER_ID: users,
                ITEM_ID: actions,
                REWARD: clicks.astype(np.float64),
                PROPENSITY: self.logging[situations, actions],
                SITUATION: situations.astype(str),
            }
        )
        return logged_actions(table, context=(SITUATION,))


def policy_of(probabilities: Numbers, name: str) -> Policy:
    """A matrix [X, A] as a policy."""
    situations, actions = np.divmod(np.arange(probabilities.size), probabilities.shape[1])
    table = pl.DataFrame(
        {SITUATION: situations.astype(str), ITEM_ID: actions, PROBABILITY: probabilities.ravel()}
    )
    return from_table(name, table, (SITUATION,))


def world(
    rate: float,
    logging_spread: float,
    target_spread: float,
    *,
    nested: bool = False,
    situations: int = 8,
    actions: int = 10,
    seed: int = 1,
) -> World:
    """A world of click rates around ``rate``; the larger the spreads of the policies' scores, the less they overlap."""
    generator = np.random.default_rng(seed)
    shape = (situations, actions)
    appeal = generator.normal(size=shape)
    odds = rate / (1 - rate) * np.exp(0.7 * appeal + 0.5 * generator.normal(size=shape))
    rewards = np.minimum(odds / (1 + odds), 1 / (1 + _FACTOR))
    logging = _softmax(logging_spread * generator.normal(size=shape))
    return World(rewards, logging, _softmax(target_spread * appeal), nested)


def _softmax(scores: Numbers) -> Numbers:
    mass = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Numbers = mass / mass.sum(axis=1, keepdims=True)
    return shares


WORLDS = {
    "good overlap": world(0.2, 0.5, 0.5),
    "users nested": world(0.2, 0.5, 0.5, nested=True),
    "rare clicks": world(0.03, 0.5, 0.8),
    "poor overlap": world(0.1, 1.2, 1.5),
}
