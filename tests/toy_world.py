"""A toy world with a known answer, in tensors: tastes are latent vectors, so adaptation has something to find."""

from typing import NamedTuple

import torch
from torch import Tensor

from recsys_meta.tensors import (
    Catalogue,
    EpisodeBatch,
    Examples,
    Features,
    FeatureSizes,
    Histories,
    ItemCodes,
    Ragged,
    Sizes,
)

NUM_ITEMS, NUM_USERS, TASTES = 30, 160, 2


class ToyWorld(NamedTuple):
    """Ratings of every user for every item, and how users and items are described to a learner."""

    ratings: Tensor  # [U, I], 1..5
    users: Features  # U rows
    catalogue: Catalogue  # I rows
    sizes: Sizes


def toy_world(seed: int = 0) -> ToyWorld:
    """rating = clip(3 + quality + user bias + 0.9 * taste_user . taste_item + noise); features say a part of the tastes."""
    draw = torch.Generator().manual_seed(seed)
    tastes_u, tastes_i = (
        torch.randn(NUM_USERS, TASTES, generator=draw),
        torch.randn(NUM_ITEMS, TASTES, generator=draw),
    )
    quality, bias = torch.randn(NUM_ITEMS, generator=draw) * 0.4, torch.randn(NUM_USERS, generator=draw) * 0.4
    noise = torch.randn(NUM_USERS, NUM_ITEMS, generator=draw) * 0.2
    ratings = (3 + quality + bias[:, None] + 0.9 * tastes_u @ tastes_i.T + noise).clamp(1, 5)
    users = Features(
        torch.zeros(NUM_USERS, dtype=torch.int64),
        1 + (tastes_u[:, :1] > 0).long(),
        (),
        torch.zeros(NUM_USERS, 0),
        torch.zeros(NUM_USERS, 0),
    )
    bags = Ragged(
        torch.randint(1, 4, (2 * NUM_ITEMS,), generator=draw), torch.arange(0, 2 * NUM_ITEMS + 1, 2)
    )
    items = Features(
        torch.arange(1, NUM_ITEMS + 1),
        1 + (tastes_i[:, :1] > 0).long(),
        (bags,),
        torch.randn(NUM_ITEMS, 1, generator=draw),
        torch.randn(NUM_ITEMS, 3, generator=draw),
    )
    popularity = torch.log1p((ratings > 3.5).sum(0).float())
    catalogue = Catalogue(items, popularity, torch.ones(NUM_ITEMS, dtype=torch.bool))
    sizes = Sizes(FeatureSizes(categorical=(3,)), FeatureSizes(NUM_ITEMS + 1, (3,), (4,), 1, 3))
    return ToyWorld(ratings, users, catalogue, sizes)


def episodes(
    world: ToyWorld, rows: Tensor, *, implicit: bool, shots: int, query: int, seed: int, negatives: int = 0
) -> EpisodeBatch:
    """One episode for each of these users: ``shots`` support and ``query`` query examples, disjoint.

    Implicit examples are drawn by exp(rating) with target 1, and followed by ``negatives`` uniform ones with target 0
    for each.
    """
    draw = torch.Generator().manual_seed(seed)
    ratings = world.ratings[rows]
    weights = torch.exp(1.5 * ratings) if implicit else torch.ones_like(ratings)
    chosen = torch.multinomial(weights, shots + query, generator=draw)
    return EpisodeBatch(
        with_targets(ratings, chosen[:, :shots], chosen, implicit, negatives, draw),
        with_targets(ratings, chosen[:, shots:], chosen, implicit, negatives, draw),
        world.users.take(rows),
        world.catalogue,
    )


def with_targets(
    ratings: Tensor, items: Tensor, taken: Tensor, implicit: bool, negatives: int, draw: torch.Generator
) -> Examples:
    """The examples of these items: rated, or events with sampled negatives that are none of the taken."""
    if not implicit:
        return Examples(items, ratings.gather(1, items), torch.ones_like(items, dtype=torch.bool))
    free = torch.ones_like(ratings).scatter(1, taken, 0.0)
    count = negatives * items.shape[1]
    drawn = torch.multinomial(free, count, replacement=True, generator=draw) if count else items[:, :0]
    targets = torch.cat([torch.ones(items.shape), torch.zeros(drawn.shape)], 1)
    return Examples(torch.cat([items, drawn], 1), targets, torch.ones_like(targets, dtype=torch.bool))


def histories(world: ToyWorld, rows: Tensor, *, implicit: bool) -> Histories:
    """What these users rated: half of the catalogue each (implicit: what they liked, as events)."""
    seen = torch.rand(len(rows), NUM_ITEMS, generator=torch.Generator().manual_seed(99)) < 0.5
    if implicit:
        seen &= world.ratings[rows] > 3.5
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), seen.sum(1).cumsum(0)])
    values = torch.ones(int(seen.sum())) if implicit else world.ratings[rows][seen]
    return Histories(seen.nonzero()[:, 1], values, torch.zeros(0, dtype=torch.int64), offsets)


def padded(examples: Examples, width: int, junk_item: int = 0) -> Examples:
    """The same examples with ``width`` more columns of padding, filled with junk that nobody may look at."""
    tasks = len(examples.items)
    return Examples(
        torch.cat([examples.items, torch.full((tasks, width), junk_item)], 1),
        torch.cat([examples.targets, torch.full((tasks, width), 7.0, dtype=examples.targets.dtype)], 1),
        torch.cat([examples.mask, torch.zeros(tasks, width, dtype=torch.bool)], 1),
    )


def one(examples: Examples, task: int) -> Examples:
    """The examples of one task alone, without padding."""
    kept = examples.mask[task]
    return Examples(
        examples.items[task][kept][None], examples.targets[task][kept][None], kept[kept][None].to(torch.bool)
    )


def uneven(examples: Examples) -> Examples:
    """The same examples, each task t keeping only some: 0, 1, 2, ... of them, and round again."""
    width = examples.items.shape[1]
    keep = torch.arange(len(examples.items)) % (width + 1)
    return examples._replace(mask=examples.mask & (torch.arange(width) < keep[:, None]))


def meta_train(learner, world: ToyWorld, rows: Tensor, *, implicit: bool, steps: int, seed: int = 0) -> None:  # type: ignore[no-untyped-def]
    """Minimizes the meta-loss over fresh episodes with Adam."""
    torch.manual_seed(seed)
    learner.train()
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for step in range(steps):
        batch = episodes(
            world,
            rows[torch.randperm(len(rows))[:32]],
            implicit=implicit,
            shots=4 + 4 * (step % 2),
            query=6,
            seed=1000 + step,
            negatives=learner.negatives,
        )
        optimizer.zero_grad()
        learner.meta_loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
    learner.eval()


def query_losses(learner, batch: EpisodeBatch, codes: ItemCodes, *, adapted: bool) -> Tensor:  # type: ignore[no-untyped-def]
    """The query loss of each adapted task, or of its prior, [T]."""
    support = batch.support if adapted else batch.support.emptied()
    state = learner.adapt(support, batch.users, codes)
    losses: Tensor = learner.task_loss(state, batch.query, codes, batch.support).detach()
    assert losses.isfinite().all()
    return losses
