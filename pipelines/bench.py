"""How fast the engine is, side by side with what it replaces: ``make bench``.

Synthetic data in the shape of MeLU on MovieLens-1M: 8 features of 32 columns -> 256 -> 64 -> 64 -> 1, support 3..90 (median
31), query 10. One thread; users per CPU-second; medians of interleaved repeats, so that a noisy machine harms all alike.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipelines.bench_data import rates_of_data
from pipelines.bench_loops import MeLU, loop_loss, loop_top, torchopt_loss
from pipelines.bench_night import night_of_the_default, nights
from recsys_meta.adaptation.recommend import recommend
from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.algorithms.maml import FOMAML, MAML
from recsys_meta.episodes import RandomSplits, collate
from recsys_meta.tensors import (
    Catalogue,
    EpisodeBatch,
    Examples,
    Features,
    FeatureSizes,
    Histories,
    Sizes,
)

ITEM_ROWS = (7, 26, 2187, 8031)  # rate, genre, director, actor
USER_ROWS = (3, 8, 22, 3403)  # gender, age, occupation, zip code
STEP_SIZE = 0.05
QUERY = 10
TOP_K = 100

Figures = dict[str, float]


class Effort(NamedTuple):
    """How much is measured."""

    repeats: int = 7
    training_users: int = 2_048
    night_users: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    default_night: tuple[int, int] = (100_000, 3_706)  # users and items
    items: tuple[int, int] = (3_706, 50_000)
    scored_users: tuple[int, int] = (1_024, 512)
    looped_users: tuple[int, int] = (64, 12)
    data_rows: int = 10_000_000


def main(effort: Effort | None = None) -> Figures:
    """Prints what was measured as it comes, and one JSON line at the end."""
    effort = effort or Effort()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peak = matmul_peak()
    print(f"torch {torch.__version__}, one thread, matmul peak {peak / 1e9:.0f} GFLOP/s")
    rates_of_data(effort.data_rows)
    figures = training(effort) | scoring(effort, peak) | nights(effort.night_users)
    figures |= night_of_the_default(*effort.default_night)
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))
    return figures


class World(NamedTuple):
    """Users with histories, and what is known of them and of the items."""

    histories: Histories
    users: Features
    catalogue: Catalogue
    sizes: Sizes


def synthetic(num_users: int, num_items: int, *, typical: int, query: int = 0, seed: int = 0) -> World:
    """Histories of ``typical`` interactions at the median, 3 at least and 90 at most, and ``query`` more; popular items
    are met more often (1 / (100 + rank)).
    """
    chance = torch.Generator().manual_seed(seed)
    lengths = (typical * torch.randn(num_users, generator=chance).mul(0.75).exp()).long().clamp(3, 90) + query
    weights = 1.0 / (100 + torch.arange(num_items, dtype=torch.float32))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    drawn = [
        torch.multinomial(weights, length, replacement=False, generator=chance) for length in lengths.tolist()
    ]
    values = torch.randint(1, 6, (int(offsets[-1]),), generator=chance).float()
    histories = Histories(torch.cat(drawn), values, torch.zeros(0, dtype=torch.int64), offsets)
    users, items = (
        categorical(count, rows, chance) for count, rows in ((num_users, USER_ROWS), (num_items, ITEM_ROWS))
    )
    catalogue = Catalogue(items, weights.log(), torch.ones(num_items, dtype=torch.bool))
    sizes = Sizes(FeatureSizes(categorical=USER_ROWS), FeatureSizes(categorical=ITEM_ROWS))
    return World(histories, users, catalogue, sizes)


def with_ids_alone(world: World) -> World:
    """The same interactions as events, of which nothing is known but who met what."""
    num_items, nobody = len(world.catalogue.eligible), torch.zeros(len(world.users.ids), 0)
    nothing = torch.zeros(num_items, 0)
    items = Features(torch.arange(1, num_items + 1), nothing.long(), (), nothing, nothing)
    users = Features(world.users.ids, nobody.long(), (), nobody, nobody)
    histories = world.histories._replace(values=torch.ones_like(world.histories.values))
    catalogue = world.catalogue._replace(features=items)
    return World(histories, users, catalogue, Sizes(FeatureSizes(), FeatureSizes(ids=num_items + 1)))


def categorical(count: int, rows: tuple[int, ...], chance: torch.Generator) -> Features:
    """Random values of categorical features, [count]."""
    values = torch.stack([torch.randint(1, n, (count,), generator=chance) for n in rows], dim=1)
    nothing = torch.zeros(count, 0)
    return Features(torch.zeros(count, dtype=torch.int64), values, (), nothing, nothing)


def melu(cls: type[MAML], sizes: Sizes, num_steps: int) -> MAML:
    """A learner that computes what MeLU does: fixed step sizes, nothing learned beside the layers."""
    torch.manual_seed(1)
    return cls(
        sizes,
        head="mlp",
        dim=32,
        num_steps=num_steps,
        step_size=STEP_SIZE,
        step_sizes="fixed",
        shot_power=0.0,
        pull=0.0,
        unknown_share=0.0,
    )


def rates(contenders: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Users per CPU-second of each: the median of ``repeats`` rounds, in which they take turns. The first round is lost
    to warming up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            began = time.process_time()
            users = run()
            seconds[name].append((time.process_time() - began) / users)
    return {name: 1 / median(times[1:]) for name, times in seconds.items()}


def show(title: str, found: Mapping[str, float]) -> None:
    """One line: users per CPU-second, and how many times the first contender that is."""
    first = next(iter(found.values()))
    print(
        f"{title:<40}" + "   ".join(f"{n} {rate:,.0f}/s ({rate / first:.2f}x)" for n, rate in found.items())
    )


def training(effort: Effort) -> Figures:
    """Meta-loss and meta-gradient, 1 and 5 steps, second and first order, batches of 32 and 256."""
    world = synthetic(effort.training_users, effort.items[0], typical=31, query=QUERY)
    figures: Figures = {}
    for batch_size in (32, 256):
        splits = RandomSplits(*world[:3], shots=None, query_size=QUERY, batch_size=batch_size)
        batches = list(splits.epoch(0))[: 192 // batch_size + 3]
        for cls in (MAML, FOMAML):
            for num_steps in (1, 5):
                learner = melu(cls, world.sizes, num_steps)
                model = MeLU(learner)
                loop = partial(
                    loop_loss, model, num_steps=num_steps, step_size=STEP_SIZE, first_order=cls.first_order
                )
                check_same_loss(learner, loop, batches[0])
                contenders = {
                    "loop": Turns(model, loop, batches, users=32),
                    "engine": Turns(learner, learner.meta_loss, batches),
                }
                if cls is MAML and batch_size == 32 and find_spec("torchopt"):
                    torchopt = partial(torchopt_loss, model, num_steps=num_steps, step_size=STEP_SIZE)
                    contenders["torchopt"] = Turns(model, torchopt, batches)
                found = rates(contenders, effort.repeats)
                order = "first" if cls.first_order else "second"
                show(f"train, {num_steps} steps, {order} order, batch {batch_size}", found)
                if cls is MAML:
                    name = f"{num_steps}_step" + "s" * (num_steps > 1) + "_256" * (batch_size == 256)
                    figures[f"train_{name}"] = found["engine"] / found["loop"]
                    if "torchopt" in found:
                        figures[f"torchopt_{name}"] = found["engine"] / found["torchopt"]
    return figures


class Turns:
    """Forward and backward, as a training step does, of some batches."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[EpisodeBatch], Tensor],
        batches: list[EpisodeBatch],
        users: int | None = None,
    ) -> None:
        self.module, self.loss = module, loss
        self.batches = [batch if users is None else first_users(batch, users) for batch in batches]

    def __call__(self) -> int:
        """Gives the number of users."""
        users = 0
        for batch in self.batches:
            self.module.zero_grad(set_to_none=True)
            torch.autograd.backward(self.loss(batch))
            users += len(batch.users.ids)
        return users


def first_users(batch: EpisodeBatch, count: int) -> EpisodeBatch:
    """The first users of a batch: a loop is as fast with fewer."""
    support, query = (Examples(*(field[:count] for field in part)) for part in (batch.support, batch.query))
    users = batch.users.take(torch.arange(min(count, len(batch.users.ids))))
    return EpisodeBatch(support, query, users, batch.catalogue)


def check_same_loss(learner: MAML, loop: Callable[[EpisodeBatch], Tensor], batch: EpisodeBatch) -> None:
    """Raises AssertionError unless both compute the same."""
    torch.testing.assert_close(learner.meta_loss(batch), loop(batch), rtol=1e-4, atol=1e-5)


def scoring(effort: Effort, peak: float) -> Figures:
    """Adapt (5 steps) cold users, who met 3..90 items (median 12), score the catalogue, list the top 100 without what was
    consumed.
    """
    figures: Figures = {}
    for num_items, scored, looped in zip(effort.items, effort.scored_users, effort.looped_users, strict=True):
        world = synthetic(scored, num_items, typical=12)
        learner = melu(MAML, world.sizes, 5)
        linear = MAML(world.sizes, dim=64)
        events = with_ids_alone(world)
        default = LadderedMAML(events.sizes)
        default.fit_statistics(events.histories, events.catalogue)
        model = MeLU(learner)
        with torch.no_grad():
            item_vectors = model.items(world.catalogue.features.categorical)
        rows = torch.arange(looped)
        some = collate(world.histories, rows)
        batch = EpisodeBatch(some, some, world.users.take(rows), world.catalogue)

        def loop(model: MeLU = model, vectors: Tensor = item_vectors, batch: EpisodeBatch = batch) -> int:
            return len(loop_top(model, vectors, batch, num_steps=5, step_size=STEP_SIZE, top_k=TOP_K))

        found = rates(
            {
                "loop": loop,
                "engine": partial(recommended_users, learner, world),
                "linear head": partial(recommended_users, linear, world),
                "default": partial(recommended_users, default, events),
            },
            max(effort.repeats // 2, 1),
        )
        show(f"adapt + score + top {TOP_K}, {num_items:,} items", found)
        figures[f"score_{num_items}"] = found["engine"] / found["loop"]
        # Of the dual form: coefficients of the support, two layers on top.
        support = world.histories.lengths.float().mean().item()
        flops = 2 * num_items * (support * 64 + 64 * 64 + 64)
        share = found["engine"] * flops / peak
        print(f"{'':<40}{found['engine'] * flops / 1e9:.0f} GFLOP/s, {share:.0%} of the matmul peak")
        figures["matmul_share"] = share
    return figures


def recommended_users(learner: MAML, world: World) -> int:
    """Serves everybody; gives the number of users."""
    users = torch.arange(len(world.users.ids))
    stream = recommend(
        learner,
        world.histories,
        world.users,
        world.catalogue,
        rows=users,
        consumed=world.histories,
        top_k=TOP_K,
        batch_size=256,
    )
    return sum(len(batch.rows) for batch in stream)


def matmul_peak() -> float:
    """FLOP/s of a large product, the best of some."""
    a = torch.randn(1024, 1024)
    seconds = []
    for _ in range(12):
        began = time.process_time()
        torch.mm(a, a)
        seconds.append(time.process_time() - began)
    return 2 * 1024**3 / min(seconds)


if __name__ == "__main__":
    main()
