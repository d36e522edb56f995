"""A small learner and small episodes for the tests of training."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, FeatureSizes, ItemCodes, Sizes

ITEMS = 12
SIZES = Sizes(user=FeatureSizes(), item=FeatureSizes(ids=ITEMS + 1))


class TinyLearner(Learner):
    """score = bias_i + u . v_i; u takes one gradient step of squared error from a shared start."""

    def __init__(self, sizes: Sizes, *, dim: int = 3, dropout: float = 0.0, step_size: float = 0.1) -> None:
        super().__init__(sizes)
        generator = torch.Generator().manual_seed(7)
        self.vectors = nn.Parameter(0.3 * torch.randn(sizes.item.ids, dim, generator=generator))
        self.start = nn.Parameter(torch.full((dim,), 0.1))
        self.dropout = nn.Dropout(dropout)
        self.step_size = step_size
        self.register_buffer("bias", torch.zeros(sizes.item.ids))

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        ids = catalogue.features.ids
        bias: Tensor = self.bias  # type: ignore[assignment]
        return ItemCodes(ids, self.dropout(self.vectors[ids]), bias[ids], catalogue.eligible)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        start = self.start.expand(len(support.mask), -1)

        def support_loss(user: Tensor) -> Tensor:
            return self.task_loss({"user": user}, support, items).sum()

        return {"user": start - self.step_size * grad(support_loss)(start)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        scores = state["user"] @ items.vectors.T + items.bias
        return scores if index is None else scores.gather(1, index)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        error = (self.predict(state, items, examples.items) - examples.targets) ** 2
        return (error * examples.mask).sum(-1) / examples.shots.clamp(min=1)


class SeededSampler:
    """Random rating episodes of a linear world; the same epoch number gives the same ones."""

    def __init__(self, batches: int = 4, tasks: int = 8, seed: int = 0) -> None:
        self.batches, self.tasks, self.seed = batches, tasks, seed
        self.drawn: list[int] = []

    def epoch(self, number: int) -> Iterator[EpisodeBatch]:
        self.drawn.append(number)
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        for _ in range(self.batches):
            yield episodes(self.tasks, generator)

    def __len__(self) -> int:
        return self.batches


def features(ids: Tensor) -> Features:
    rows = len(ids)
    return Features(
        ids, torch.zeros(rows, 0, dtype=torch.int64), (), torch.zeros(rows, 0), torch.zeros(rows, 0)
    )


def episodes(tasks: int, generator: torch.Generator) -> EpisodeBatch:
    truth = torch.randn(ITEMS, 2, generator=torch.Generator().manual_seed(3))
    users = torch.randn(tasks, 2, generator=generator) + 0.5
    picked = torch.stack([torch.randperm(ITEMS, generator=generator)[:8] for _ in range(tasks)])
    targets = (users @ truth.T).gather(1, picked)
    mask = torch.ones(tasks, 8, dtype=torch.bool)
    catalogue = Catalogue(
        features(torch.arange(1, ITEMS + 1)), torch.zeros(ITEMS), torch.ones(ITEMS, dtype=torch.bool)
    )
    return EpisodeBatch(
        Examples(picked[:, :5], targets[:, :5], mask[:, :5]),
        Examples(picked[:, 5:], targets[:, 5:], mask[:, 5:]),
        features(torch.zeros(tasks, dtype=torch.int64)),
        catalogue,
    )


def validation_episodes() -> list[EpisodeBatch]:
    generator = torch.Generator().manual_seed(99)
    return [episodes(16, generator), episodes(5, generator)]


@pytest.fixture
def tiny() -> SimpleNamespace:
    """What stands above, for tests cannot import this file."""
    return SimpleNamespace(
        SIZES=SIZES,
        Learner=TinyLearner,
        Sampler=SeededSampler,
        validation=validation_episodes(),
        file=Path(__file__),
    )
