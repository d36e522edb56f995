"""What a learner leaves to users that it was not trained on, decided after meta-training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_meta.algorithms.base import Gains, Learner
from recsys_meta.evaluation.metrics import multi_hot, ranking_metrics, tie_places
from recsys_meta.tensors import EpisodeBatch

_CUTOFF = 10


def settle(
    learner: Learner, once: Sequence[EpisodeBatch], again: Sequence[EpisodeBatch] = (), seed: int = 0
) -> None:
    """Lets the learner decide by its NDCG@10 on these users' queries; without users, or where episodes carry but the items that
    they mention, everything stays as it is.

    once: one episode of each user, on which its prior is judged. again: further ones of the same users, on which it is judged
    adapted as well.
    """
    if once and learner.whole_catalogue:
        every = [*once, *again]
        learner.settle(
            lambda adapted: episode_gains(learner, every if adapted else once, adapted=adapted, seed=seed)
        )


@torch.no_grad()
def episode_gains(
    learner: Learner, validation: Sequence[EpisodeBatch], *, adapted: bool, seed: int = 0
) -> Gains:
    """NDCG@10 of the learner, adapted or not, on every episode that has something to be found."""
    values: list[Tensor] = []
    shots: list[Tensor] = []
    keys: list[Tensor] = []
    for support, query, users, catalogue, _, key in validation:
        items = learner.encode(catalogue)
        state = (learner.adapt if adapted else learner.prior)(support, users, items)
        number = len(catalogue.eligible)
        candidates = catalogue.eligible & ~multi_hot(support.items, support.mask, number)
        relevant = multi_hot(query.items, query.mask & (query.targets > 0), number)
        places = tie_places(number, seed)
        found = ranking_metrics(learner.predict(state, items), candidates, relevant, _CUTOFF, places)
        values.append(found[f"ndcg@{_CUTOFF}"])
        shots.append((support.mask & (support.targets > 0)).sum(1))
        keys.append(torch.arange(len(support.mask)) + sum(len(some) for some in keys) if key is None else key)
    every = Gains(torch.cat(values), torch.cat(shots), torch.cat(keys))
    return Gains(*(column[~every.values.isnan()] for column in every))
