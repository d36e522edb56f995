"""What is measured of one user: errors of predicted ratings, and how well the relevant items stand at the top of a ranking.

Letters: T users (tasks), Q rated query items, I items of the catalogue, k the length of the list that is looked at.
All functions answer for T users at once, [T]; NaN says that a user cannot be judged (nothing rated, or nothing relevant):
callers count these users and report them, instead of giving them a 0 or a 1.
"""

from typing import Literal

import torch
from torch import Tensor

from recsys_meta.evaluation.breakdown import ItemGroups
from recsys_meta.native import kernels
from recsys_meta.native.topk import Running, TieRanks

Gain = Literal["exponential", "linear"]


def absolute_errors(predictions: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The mean absolute error of each user, [T], in the units of the targets. All arguments [T, Q]."""
    return _masked_mean((predictions - targets).abs(), mask)


def squared_errors(predictions: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of each user, [T]. All arguments [T, Q]. The root is taken over the mean of all users."""
    return _masked_mean((predictions - targets).square(), mask)


def tie_places(items: int, seed: int) -> Tensor:
    """The place of each item in one random permutation of all, [items] int32: of two equal scores the lower place wins."""
    return torch.randperm(items, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


def multi_hot(index: Tensor, mask: Tensor, items: int) -> Tensor:
    """Which items are listed, [T, items] bool. index: [T, R] rows of the catalogue, mask: [T, R] True where one stands."""
    # An extra column takes the padding, so that it cannot unset the item whose row number it borrows.
    listed = torch.zeros(len(index), items + 1, dtype=torch.bool, device=index.device)
    return listed.scatter_(1, index.masked_fill(~mask, items), True)[:, :items]


def top_items(scores: Tensor, candidates: Tensor, k: int, places: Tensor) -> Tensor:
    """The k best candidates of each user, best first, [T, min(k, I)]; -1 where candidates run out.

    scores: [T, I]; candidates: [T, I] bool; places: [I], from ``tie_places``.
    Raises ValueError if the score of a candidate is NaN or infinite (NaN would sort first).
    """
    users, items = scores.shape
    if users * items == 0:
        return torch.zeros(users, min(k, items), dtype=torch.int64, device=scores.device)
    ranks, compiled = TieRanks.of(places), kernels() if scores.is_cpu else None
    running = Running(ranks, users, min(k, items), None, device=scores.device, compiled=compiled)
    running.add(scores, torch.arange(items, device=scores.device), candidates)
    keys, sound = running.best()
    if not bool(sound.all()):
        raise ValueError("found a candidate whose score is NaN or infinite; expected finite scores")
    return ranks.read(keys)[0]


def ranking_metrics(
    scores: Tensor,
    candidates: Tensor,
    relevant: Tensor,
    k: int,
    places: Tensor,
    groups: ItemGroups | None = None,
) -> dict[str, Tensor]:
    """NDCG, recall, hit rate and reciprocal rank of the k best candidates of each user: names like ``ndcg@10`` to [T].

    scores: [T, I]; candidates, relevant: [T, I] bool; places: [I], from ``tie_places``.
    A relevant item that is no candidate could not be listed and does not count. Relevance is yes or no, so that the
    exponential and the linear gain of NDCG agree. Recall is the share of all relevant items, however many beyond k;
    with ``groups`` also of the relevant items of each group.
    """
    relevant = relevant & candidates
    # Few of the columns; any() would take many times as long.
    asked_for = relevant.view(torch.int8).amax(0).nonzero().squeeze(1)
    owners, wanted = relevant[:, asked_for].nonzero(as_tuple=True)
    wanted = asked_for[wanted]
    total = torch.bincount(owners, minlength=len(scores))
    top = top_items(scores, candidates, k, places)
    hits = (relevant.gather(1, top.clamp(min=0)) & (top >= 0)).to(torch.float64)  # [T, k]
    discounts = _discounts(min(k, max(scores.shape[1], 1)), scores.device)
    ideal = discounts.cumsum(0)[total.clamp(1, len(discounts)) - 1]
    rank = torch.arange(1, hits.shape[1] + 1, device=scores.device)
    metrics = {
        f"ndcg@{k}": hits @ discounts[: hits.shape[1]] / ideal,
        f"recall@{k}": hits.sum(1) / total.clamp(min=1),
        f"hit_rate@{k}": hits.amax(1),
        f"mrr@{k}": (hits / rank).amax(1),
    }
    metrics = {name: values.masked_fill(total == 0, torch.nan) for name, values in metrics.items()}
    if groups is not None:
        for group in range(len(groups.names)):
            found = (hits * (groups.of[top] == group)).sum(1)
            asked = torch.bincount(owners[groups.of[wanted] == group], minlength=len(scores))
            metrics[groups.named(f"recall@{k}", group)] = found / asked  # 0 / 0 gives the NaN
    return metrics


def rated_ndcg(scores: Tensor, ratings: Tensor, mask: Tensor, k: int, gain: Gain, places: Tensor) -> Tensor:
    """NDCG@k of each user's own rated items, ranked by score, [T].

    scores, ratings, mask, places: [T, Q]; places are those of the items (``tie_places(I, seed)[items]``).
    The gain of rating r is 2^r - 1 or r, and belongs into the name of the result.
    Raises ValueError for a negative rating (a gain has to be at least 0) and for a score that is not finite.
    """
    if bool(((ratings < 0) & mask).any()):
        raise ValueError(f"found a rating of {ratings[mask].min().item()}; gains need ratings of at least 0")
    if not bool((torch.isfinite(scores) | ~mask).all()):
        raise ValueError("found a score that is not finite; expected none")
    gains = ratings.to(torch.float64).masked_fill(~mask, 0)
    if gain == "exponential":
        gains = torch.exp2(gains) - 1  # 0 stays 0
    discounts = _discounts(min(k, scores.shape[1]), scores.device)
    found = gains.gather(1, _best_first(scores.masked_fill(~mask, -torch.inf), places))
    best = gains.sort(1, descending=True).values
    ideal = best[:, :k] @ discounts
    return (found[:, :k] @ discounts / ideal).masked_fill(ideal <= 0, torch.nan)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean where the mask is True, NaN where it never is, [T] float64."""
    values = values.to(torch.float64).masked_fill(~mask, 0)
    return values.sum(1) / mask.sum(1)  # 0 / 0 gives the NaN


def _best_first(scores: Tensor, places: Tensor) -> Tensor:
    """The order of each row by falling score, equal scores by rising place. scores, places: [T, N]."""
    by_place = places.argsort(1)
    return by_place.gather(1, scores.gather(1, by_place).argsort(dim=1, descending=True, stable=True))


def _discounts(k: int, device: torch.device) -> Tensor:
    """1 / log2(1 + rank) for the ranks 1..k, [k] (Jarvelin and Kekalainen 2002)."""
    return 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64, device=device))
