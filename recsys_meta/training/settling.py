"""What a learner leaves to users that it was not trained on, decided after meta-training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_meta.algorithms.base import Learner
from recsys_meta.evaluation.metrics import multi_hot, ranking_metrics, tie_places
from recsys_meta.tensors import EpisodeBatch

_CUTOFF = 10


def settle(learner: Learner, validation: Sequence[EpisodeBatch], seed: int = 0) -> None:
    """Lets the learner decide by the NDCG@10 of its prior on these users' queries; without users, or where episodes carry but
    the items that they mention, everything stays as it is.
    """
    if validation and learner.whole_catalogue:
        learner.settle(lambda: prior_gains(learner, validation, seed))


@torch.no_grad()
def prior_gains(learner: Learner, validation: Sequence[EpisodeBatch], seed: int = 0) -> Tensor:
    """NDCG@10 of the learner without history, of every task that has something to be found, [V]."""
    gains = []
    for support, query, users, catalogue, _ in validation:
        items = learner.encode(catalogue)
        scores = learner.predict(learner.prior(support, users, items), items)
        number = len(catalogue.eligible)
        candidates = catalogue.eligible & ~multi_hot(support.items, support.mask, number)
        relevant = multi_hot(query.items, query.mask & (query.targets > 0), number)
        gains.append(
            ranking_metrics(scores, candidates, relevant, _CUTOFF, tie_places(number, seed))[
                f"ndcg@{_CUTOFF}"
            ]
        )
    found = torch.cat(gains)
    return found[~found.isnan()]
