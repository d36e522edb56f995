"""The toy world in float64, where gradients can be held against finite differences."""

import pytest
import torch
from torch import Tensor
from toy_world import ToyWorld, episodes, toy_world, uneven

from recsys_meta.algorithms.base import Learner
from recsys_meta.tensors import EpisodeBatch


def double_world() -> ToyWorld:
    """The toy world in float64."""
    world = toy_world()
    users = world.users._replace(numbers=world.users.numbers.double(), vectors=world.users.vectors.double())
    items = world.catalogue.features
    items = items._replace(numbers=items.numbers.double(), vectors=items.vectors.double())
    catalogue = world.catalogue._replace(
        features=items, log_popularity=world.catalogue.log_popularity.double()
    )
    return world._replace(ratings=world.ratings.double(), users=users, catalogue=catalogue)


def batch_of(world: ToyWorld, learner: Learner, tasks: int = 5) -> EpisodeBatch:
    """Episodes of the first users, with 0, 1, 2 .. support examples."""
    batch = episodes(
        world,
        torch.arange(tasks),
        implicit=learner.loss not in ("squared", "absolute"),
        shots=4,
        query=4,
        seed=2,
        negatives=learner.negatives,
    )
    return batch._replace(
        support=uneven(batch.support._replace(targets=batch.support.targets.double())),
        query=batch.query._replace(targets=batch.query.targets.double()),
    )


def learner_of(cls: type, world: ToyWorld, **settings) -> Learner:  # type: ignore[no-untyped-def]
    """A small learner away from the zeros of its start, where many derivatives vanish."""
    torch.manual_seed(4)
    learner = cls(world.sizes, **{"dim": 3} | settings).double().eval()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return learner


def meta_gradient(learner: Learner, batch: EpisodeBatch) -> dict[str, Tensor]:
    """The derivative of the meta-loss by each meta-parameter that it reaches."""
    learner.zero_grad()
    learner.meta_loss(batch).backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def assert_the_meta_gradient_is_exact(learner: Learner, batch: EpisodeBatch, rel: float = 1e-5) -> None:
    """Holds the meta-gradient against central differences along a random direction in every parameter."""
    gradient = meta_gradient(learner, batch)
    draw = torch.Generator().manual_seed(6)
    step = 1e-5
    for name, parameter in learner.named_parameters():
        if not (parameter.numel() and name in gradient):
            assert not (parameter.numel() and parameter.requires_grad), name
            continue
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        start = parameter.detach().clone()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(start + sign * step * direction)
            losses.append(learner.meta_loss(batch).item())
        with torch.no_grad():
            parameter.copy_(start)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert (gradient[name] * direction).sum().item() == pytest.approx(slope, rel=rel, abs=1e-8), name
