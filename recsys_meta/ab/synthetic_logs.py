"""Worlds with a known answer: logs are drawn from them, and the value of the target policy is worked out exactly.

Letters: X situations, all as frequent; A actions.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_meta.ab.estimators.sample import Numbers
from recsys_meta.ab.logged_actions import (
    POSITION,
    PROPENSITY,
    REWARD,
    SLATE_ID,
    LoggedActions,
    logged_actions,
)
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


class SlateWorld(NamedTuple):
    """Slates filled without replacement, and clicks that what stands above makes rarer: the cascade. Two slates of each user."""

    appeal: Numbers  # [A], probability of a click at the top
    logging: Numbers  # [A], of the first position
    target: Numbers  # [A]
    length: int = 3

    @property
    def value(self) -> float:
        """What the target policy earns per slate, by enumeration."""
        total = 0.0
        for slate in permutations(range(len(self.appeal)), self.length):
            items = np.array(slate)
            total += float(np.prod(_in_turn(self.target, items[None]))) * float(
                self._clicks(items[None]).sum()
            )
        return total

    @property
    def policy(self) -> Policy:
        """The target policy as a table."""
        table = pl.DataFrame({ITEM_ID: range(len(self.target)), PROBABILITY: self.target})
        return from_table("target", table, ())

    def logs(self, rows: int, generator: np.random.Generator) -> LoggedActions:
        """That many logged slates."""
        keys = np.log(self.logging) + generator.gumbel(size=(rows, len(self.logging)))
        items = np.argsort(-keys, axis=1)[:, : self.length]
        users = np.arange(rows) // 2
        factors = 1 + _FACTOR * generator.choice([-1.0, 1.0], size=int(users[-1]) + 1)[users]
        clicks = generator.random(items.shape) < self._clicks(items) * factors[:, None]
        table = pl.DataFrame(
            {
                USER_ID: np.repeat(users, self.length),
                SLATE_ID: np.repeat(np.arange(rows), self.length),
                POSITION: np.tile(np.arange(1, self.length + 1), rows),
                ITEM_ID: items.ravel(),
                REWARD: clicks.ravel().astype(np.float64),
                PROPENSITY: _in_turn(self.logging, items).ravel(),
            }
        )
        return logged_actions(table)

    def _clicks(self, items: NDArray[np.int64]) -> Numbers:
        """Probability of a click at each position, [S, K]: of the item, times the chance that nothing above satisfied."""
        chances = self.appeal[items]
        above = np.cumprod(1 - 0.5 * chances, axis=1)
        attended: Numbers = chances * np.concatenate([np.ones((len(items), 1)), above[:, :-1]], axis=1)
        return attended


def _in_turn(probabilities: Numbers, items: NDArray[np.int64]) -> Numbers:
    """The probability of each item given those above it, [S, K]."""
    taken = probabilities[items]
    left: Numbers = taken / (1 - (taken.cumsum(axis=1) - taken))
    return left


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


WORLDS: dict[str, World | SlateWorld] = {
    "good overlap": world(0.2, 0.5, 0.5),
    "users nested": world(0.2, 0.5, 0.5, nested=True),
    "rare clicks": world(0.03, 0.5, 0.8),
    "poor overlap": world(0.1, 1.2, 1.5),
    "slates": SlateWorld(
        appeal=np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4]),
        logging=np.array([0.2, 0.2, 0.2, 0.15, 0.15, 0.1]),
        target=np.array([0.1, 0.1, 0.2, 0.2, 0.2, 0.2]),
    ),
}
