"""What a learner, or several of which the mean is kept, leave to users that they were not trained on, after meta-training."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_meta.algorithms.base import Gains, Learner, TaskState
from recsys_meta.evaluation.metrics import multi_hot, ranking_metrics, tie_places
from recsys_meta.tensors import EpisodeBatch, ItemCodes

_CUTOFF, _CUTOFF_OF_LISTED = 10, 5
_ROOM = 2**30  # bytes for what adaptation found, of all learners together


class Judged(NamedTuple):
    """A learner, and episodes of users that it was not trained on."""

    learner: Learner
    once: Sequence[EpisodeBatch]  # one episode of each user, on which its prior is judged
    again: Sequence[EpisodeBatch] = ()  # further ones of the same users, to judge it adapted on as well
    in_time: bool = False  # whether their queries come after their support


class Findings:
    """What adaptation finds of each batch of a learner, kept as long as there is room, and found anew where there is not.

    What is settled decides how it is weighed, never what is found (``Learner.evidence``), so that nothing here grows old.

    Args:
        room: bytes.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: dict[int, TaskState] = {}

    def of(self, learner: Learner, place: int, batch: EpisodeBatch, items: ItemCodes) -> TaskState:
        """Of the batch at this place; items: the codes of its catalogue."""
        if place in self._kept:
            return self._kept[place]
        found = learner.evidence(batch.support, batch.users, items)
        size = sum(tensor.nbytes for tensor in found.values())
        if size <= self._room:
            self._room -= size
            self._kept[place] = found
        return found


def settle(judged: Sequence[Judged], seed: int = 0) -> None:
    """Lets learners that are to be averaged, or the one there is, decide by the NDCG@10 on their users' queries.

    Without users, or where episodes carry but the items that they mention, everything stays as it is.
    """
    leader, *fellows = [one.learner for one in judged]
    of_all = [Findings(_ROOM // len(judged)) for _ in judged]

    def gains(adapted: bool, ways: Sequence[Callable[[], None]]) -> list[Gains]:
        of_each = [
            episode_gains(
                one.learner,
                [*one.once, *(one.again if adapted else ())],
                ways,
                adapted=adapted,
                in_time=one.in_time,
                seed=seed,
                findings=findings,
            )
            for one, findings in zip(judged, of_all, strict=True)
        ]
        return [together(of_way) for of_way in zip(*of_each, strict=True)]

    if leader.whole_catalogue and any(one.once for one in judged):
        leader.settle(gains, fellows)


def mean_of(learners: Sequence[Learner]) -> Learner:
    """The first one, with the mean of the weights of all; what is not learned stays its own.

    The learners have to have started alike: M. Wortsman et al.: Model soups, ICML 2022, average fits that differ in their
    settings, these differ in their users.
    """
    first = learners[0]
    with torch.no_grad():
        for weights in zip(*(learner.parameters() for learner in learners), strict=True):
            weights[0].copy_(torch.stack(weights).double().mean(0))
    return first


def together(gains: Sequence[Gains]) -> Gains:
    """Those of several learners; a user of one is not a user of another."""
    values, shots, users, asked, plain = zip(*gains, strict=True)
    numbered = [torch.unique(some, return_inverse=True)[1] for some in users]
    firsts = torch.tensor([0, *(len(some.unique()) for some in users)]).cumsum(0)
    every = torch.cat([some + first for some, first in zip(numbered, firsts[:-1], strict=True)])
    return Gains(torch.cat(values), torch.cat(shots), every, torch.cat(asked), torch.cat(plain))


@torch.no_grad()
def episode_gains(
    learner: Learner,
    validation: Sequence[EpisodeBatch],
    ways: Sequence[Callable[[], None]],
    *,
    adapted: bool,
    in_time: bool = False,
    seed: int = 0,
    findings: Findings | None = None,
) -> list[Gains]:
    """NDCG@10 of the learner, put in each of these ways, adapted or not, on every episode that has something to be found; of
    listed items, where episodes list what was not chosen, NDCG@5: such lists are short. in_time: of ``Judged``.

    What adaptation finds is found once for all ways: they differ in how it is weighed, which ``settle`` decides.
    findings: of the same batches in the same order; None: nothing is kept.
    """
    findings = findings or Findings(0)
    values: list[list[Tensor]] = [[torch.empty(0)] for _ in ways]
    shots: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    keys: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    asked: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    plain: list[Tensor] = [torch.empty(0, dtype=torch.bool)]
    for place, batch in enumerate(validation):
        support, query, users, catalogue, _, key = batch
        items = learner.encode(catalogue)
        evidence = findings.of(learner, place, batch, items) if adapted else {}
        number = len(catalogue.eligible)
        cutoff = _CUTOFF_OF_LISTED if query.lists.any() else _CUTOFF
        left = catalogue.eligible & ~multi_hot(support.items, support.mask, number)
        listed = multi_hot(query.items, query.mask, number)
        candidates = torch.where(query.lists.unsqueeze(1), listed, left)
        relevant = multi_hot(query.items, query.mask & (query.targets > 0), number)
        places = tie_places(number, seed)
        for put, of_way in zip(ways, values, strict=True):
            put()
            state = learner.weighed(evidence) if adapted else learner.prior(support, users, items)
            found = ranking_metrics(learner.predict(state, items), candidates, relevant, cutoff, places)
            of_way.append(found[f"ndcg@{cutoff}"])
        shots.append((support.mask & (support.targets > 0)).sum(1))
        keys.append(torch.arange(len(support.mask)) + sum(len(some) for some in keys) if key is None else key)
        asked.append((relevant & candidates).sum(1))
        plain.append(~query.lists & (not in_time))
    every = Gains(torch.empty(0), torch.cat(shots), torch.cat(keys), torch.cat(asked), torch.cat(plain))
    gains = [every._replace(values=torch.cat(of_way)) for of_way in values]
    return [Gains(*(column[~of_way.values.isnan()] for column in of_way)) for of_way in gains]
