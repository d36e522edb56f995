"""A bandit small enough to enumerate: every log that can come about, with its probability."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from recsys_meta.ab.estimators.sample import Sample

# Two situations, as frequent; two actions; a click or none.
CLICKS = np.array([[0.2, 0.7], [0.5, 0.1]])
LOGGING = np.array([[0.6, 0.4], [0.3, 0.7]])
TARGET = np.array([[0.1, 0.9], [0.5, 0.5]])
VALUE = float((CLICKS * TARGET).sum(axis=1).mean())

MODEL = np.array([[0.3, 0.5], [0.2, 0.4]])  # wrong everywhere


def all_logs(rows: int) -> Iterator[tuple[float, Sample]]:
    """Every log of so many rows, each of another user, with its probability; with the predictions of a wrong model."""
    one = list(product(range(2), range(2), range(2)))
    for log in product(one, repeat=rows):
        x, a, r = np.array(log).T
        probability = np.prod(0.5 * LOGGING[x, a] * np.where(r == 1, CLICKS[x, a], 1 - CLICKS[x, a]))
        value = (TARGET * MODEL).sum(axis=1)[x]
        sample = Sample(np.arange(rows), r.astype(float), LOGGING[x, a], TARGET[x, a], value, MODEL[x, a])
        yield float(probability), sample


def random_sample(rows: int, users: int, seed: int) -> Sample:
    """A log of some users, several rows each, with the predictions of a wrong model."""
    generator = np.random.default_rng(seed)
    x, a = generator.integers(2, size=(2, rows))
    r = (generator.random(rows) < CLICKS[x, a]).astype(float)
    owner = np.concatenate([np.arange(users), generator.integers(users, size=rows - users)])
    value = (TARGET * MODEL).sum(axis=1)[x]
    return Sample(owner, r, LOGGING[x, a], TARGET[x, a], value, MODEL[x, a], value, MODEL[x, a], a)
