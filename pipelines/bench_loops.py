"""What the engine is measured against: MeLU (Lee et al. 2019) written cleanly, one user after the other.

Ids are looked up once for a whole batch, weights are values, gradients come from ``torch.autograd.grad``: what a careful
programmer writes without batching over users. ``torchopt_loss`` is the same with torchopt's differentiable optimizer.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss, relu

from recsys_meta.algorithms.maml import MAML
from recsys_meta.tensors import EpisodeBatch


class Task(NamedTuple):
    """One user of a batch."""

    support: Tensor  # [S, F + F_user], the first layer's input
    support_targets: Tensor  # [S]
    query: Tensor  # [Q, F + F_user]
    query_targets: Tensor  # [Q]


class MeLU(nn.Module):
    """Embeddings of categorical features, and decision layers on all of them side by side.

    learner: a MAML with an MLP head, whose weights are copied, so that both compute the same.
    """

    def __init__(self, learner: MAML) -> None:
        super().__init__()
        copies = {name: weight.detach().clone() for name, weight in learner.state_dict().items()}
        tables = [
            [weight for name, weight in copies.items() if name.startswith(f"{encoder}.categorical")]
            for encoder in ("item_encoder", "head.user_encoder")
        ]
        self.item_tables, self.user_tables = (nn.ParameterList(some) for some in tables)
        layers = [weight for name, weight in copies.items() if name.startswith("head.layers")]
        self.layers = nn.ParameterList(layers)  # weight and bias of each, the first layer first

    def items(self, categorical: Tensor) -> Tensor:
        """[N, C] ids -> [N, F]."""
        return torch.cat([table[categorical[:, c]] for c, table in enumerate(self.item_tables)], dim=1)

    def users(self, categorical: Tensor) -> Tensor:
        """[T, C] ids -> [T, F_user]."""
        return torch.cat([table[categorical[:, c]] for c, table in enumerate(self.user_tables)], dim=1)

    def tasks(self, batch: EpisodeBatch) -> list[Task]:
        """The users of a batch, without padding; every feature is looked up once per interaction."""
        support, query = batch.support, batch.query
        sizes = torch.stack([support.shots, query.shots], dim=1).flatten().tolist()
        mask = torch.cat([support.mask, query.mask], dim=1)
        rows = torch.cat([support.items, query.items], dim=1)[mask]
        owners = mask.nonzero()[:, 0]
        features = batch.catalogue.features.categorical[rows]
        inputs = torch.cat([self.items(features), self.users(batch.users.categorical)[owners]], dim=1)
        parts = torch.split(inputs, sizes)
        targets = torch.split(torch.cat([support.targets, query.targets], dim=1)[mask], sizes)
        return [Task(parts[n], targets[n], parts[n + 1], targets[n + 1]) for n in range(0, len(parts), 2)]

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, F + F_user] -> [N], with the weights of the module (torchopt swaps them)."""
        return scores([*self.layers], inputs)


def scores(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """[N, F + F_user] -> [N]."""
    for n in range(0, len(weights) - 2, 2):
        inputs = relu(linear(inputs, weights[n], weights[n + 1]))
    return linear(inputs, weights[-2], weights[-1]).squeeze(1)


def adapted(model: MeLU, task: Task, *, num_steps: int, step_size: float, create_graph: bool) -> list[Tensor]:
    """The layers after gradient descent on the support set of one user."""
    weights = [*model.layers]
    for _ in range(num_steps):
        loss = mse_loss(scores(weights, task.support), task.support_targets)
        slopes = torch.autograd.grad(loss, weights, create_graph=create_graph)
        weights = [weight - step_size * slope for weight, slope in zip(weights, slopes, strict=True)]
    return weights


def loop_loss(
    model: MeLU, batch: EpisodeBatch, *, num_steps: int, step_size: float, first_order: bool = False
) -> Tensor:
    """The meta-loss of a batch, user by user."""
    losses = []
    for task in model.tasks(batch):
        weights = adapted(model, task, num_steps=num_steps, step_size=step_size, create_graph=not first_order)
        losses.append(mse_loss(scores(weights, task.query), task.query_targets))
    return torch.stack(losses).mean()


def torchopt_loss(model: MeLU, batch: EpisodeBatch, *, num_steps: int, step_size: float) -> Tensor:
    """The same by torchopt (Ren et al. 2022). Raises ImportError without the extra ``bench``."""
    torchopt: Any = importlib.import_module("torchopt")
    decision = Decision(model.layers)
    optimizer = torchopt.MetaSGD(decision, lr=step_size)
    start = [torchopt.extract_state_dict(one, by="reference") for one in (decision, optimizer)]
    losses = []
    for task in model.tasks(batch):
        for _ in range(num_steps):
            optimizer.step(mse_loss(decision(task.support), task.support_targets))
        losses.append(mse_loss(decision(task.query), task.query_targets))
        for one, state in zip((decision, optimizer), start, strict=True):
            torchopt.recover_state_dict(one, state)
    return torch.stack(losses).mean()


class Decision(nn.Module):
    """The decision layers as a module of their own, whose weights torchopt swaps."""

    def __init__(self, weights: nn.ParameterList) -> None:
        super().__init__()
        self.count = len(weights)
        for n, weight in enumerate(weights):
            self.register_parameter(f"weight_{n}", weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, F + F_user] -> [N]."""
        return scores([getattr(self, f"weight_{n}") for n in range(self.count)], inputs)


def loop_top(
    model: MeLU, item_vectors: Tensor, batch: EpisodeBatch, *, num_steps: int, step_size: float, top_k: int
) -> Tensor:
    """Adapts, scores the catalogue and lists the best that were not consumed, user by user: [T, k] items."""
    tops = []
    users = model.users(batch.users.categorical)
    for t, task in enumerate(model.tasks(batch)):
        weights = adapted(model, task, num_steps=num_steps, step_size=step_size, create_graph=False)
        with torch.no_grad():
            inputs = torch.cat([item_vectors, users[t].expand(len(item_vectors), -1)], dim=1)
            found = scores(weights, inputs)
            found[batch.support.items[t][batch.support.mask[t]]] = -torch.inf
            tops.append(found.topk(top_k).indices)
    return torch.stack(tops)
