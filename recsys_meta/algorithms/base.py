"""The contract: what every algorithm and every baseline answers, and all that training, adaptation and
evaluation know of it.

A night, seen from here::

    codes = learner.encode(catalogue)                 # once per item
    state = learner.adapt(support, users, codes)      # T users at once
    scores = learner.predict(state, codes)            # [T, I], or tile by tile: codes.take(slice)

The laws that every implementation keeps stand in tests/test_contract.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import gt
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories, ItemCodes, Sizes

TaskState = dict[str, Tensor]
"""What adaptation leaves of T users: names to tensors that begin with the task dimension."""


class Gains(NamedTuple):
    """How good a learner is for each of V episodes."""

    values: Tensor  # [V], higher is better
    shots: Tensor  # [V] int64
    users: Tensor  # [V] int64: equal for episodes of one user
    asked: Tensor  # [V] int64: how many items were to be found
    plain: Tensor  # [V] bool: whether among all items, and not later in time than the support


Judging = Callable[[bool, Sequence[Callable[[], None]]], list[Gains]]
"""Adapted or not, and ways to put a learner and its fellows -> how good they are, put so, for episodes of users not trained on;
the last way stays. Not adapted, each user stands there once; adapted, perhaps several times.
"""


class Learner(nn.Module, ABC):
    """Base of all learners. Everything that has to survive a bundle is a parameter or a buffer.

    Class settings, read by training and adaptation:
        meta_trained: whether ``meta_loss`` is to be minimized; a baseline says False and lives on
            ``fit_statistics`` alone.
        averaged: whether, where users are few, it may be the mean of learners that started alike and were each fitted without
            a part of the users.
        foretells: whether, around moments, it lives on ``fit_forecast`` alone, without meta-training.
        whole_catalogue: whether episodes must carry all eligible items (a full softmax) or only those they
            mention.
        negatives: sampled negatives wanted per positive example, in support and query alike.
        tempering: exponent of popularity that these are drawn with.
        order_matters: why the order of the support set matters to this learner; None where it does not.
        contract_settings: constructor settings that the contract suite runs the class with, one after the
            other.
    """

    meta_trained: bool = True
    averaged: bool = False
    foretells: bool = False
    whole_catalogue: bool = False
    negatives: int = 0
    tempering: float = 0.75
    order_matters: ClassVar[str | None] = None
    contract_settings: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Reads off the meta-training interactions what needs no gradient (means, counts, closed forms).

        Called once, before any meta-training. ``histories.items`` are rows of ``catalogue``;
        ``catalogue.features.ids`` gives the vocabulary row of each.
        """

    def fit_snapshots(self, snapshots: Sequence[tuple[Histories, Catalogue]]) -> None:
        """Reads statistics off what was known at some moments of the past; by default none.

        Called once, before ``fit_statistics``, where episodes look forward from such moments: their catalogues name the place of
        the snapshot that was known then. Statistics of everything would tell what only came later.
        """

    def fit_forecast(self, asked: Sequence[tuple[Catalogue, Tensor]]) -> None:
        """Reads off what was asked for after some moments of the past what the numbers of an item foretell; by default nothing.

        Called once, after ``fit_statistics``, of a learner that ``foretells``, in place of meta-training. asked: the candidates
        of each moment, and how often each of them was asked for, [I].
        """

    def refit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Reads statistics off all interactions, once, after meta-training: those of held-out users are among them now.

        Only what meta-training leaves alone may change here; by default nothing does.
        """

    def settle(self, gains: Judging, fellows: Sequence[Self] = ()) -> None:
        """Decides, once, after meta-training, what users that were not trained on had better decide; by default there is nothing.

        Args:
            gains: how good this learner and its fellows are for episodes of such users.
            fellows: learners fitted without other users, which are to be averaged with this one: for all the same is decided.
        """

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what an earlier learner of the same settings has meta-learned, and goes on from there.

        state: its ``state_dict``. Its vocabularies are the beginnings of this one's: their rows are taken over, and those of
        what is new stay as they are here. Statistics, which are buffers, stay as they are here too, unless a learner says
        otherwise. Raises ValueError where ``state`` is of a learner of other settings.
        """
        for name, weight in self.named_parameters():
            value = state.get(name)
            if value is None or value.dim() != weight.dim() or any(map(gt, value.shape, weight.shape)):
                found = "nothing" if value is None else f"the shape {list(value.shape)}"
                raise ValueError(f"{name}: found {found}; expected the beginning of {list(weight.shape)}")
            with torch.no_grad():
                weight[tuple(map(slice, value.shape))] = value

    @abstractmethod
    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """The codes of all I items of a catalogue, differentiable where the learner is meta-trained."""

    @abstractmethod
    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """Adapts to T users at once. support: [T, S], indexing the rows of ``items``; users: T rows.

        An empty support set gives the prior. Differentiable with respect to the meta-parameters.
        """

    def evidence(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """What ``adapt`` finds before anything that ``settle`` decides weighs it; by default that weighs nothing."""
        return self.adapt(support, users, items)

    def weighed(self, evidence: TaskState) -> TaskState:
        """What ``adapt`` gives where it has found this."""
        return evidence

    @abstractmethod
    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """Scores, higher is better; in the scale of the targets where the loss has one.

        Without ``index`` every task scores every item: [T, I]. With ``index`` [T, Q] task t scores
        items[index[t]]: [T, Q].
        """

    def contenders(self, state: TaskState, items: ItemCodes, least: Tensor) -> Tensor:
        """Scores of every item, [T, I], as ``predict`` gives them, except that a learner may save itself scores that are
        certainly below least[t]: something finite below stands there instead.
        """
        return self.predict(state, items)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over tasks of the query loss after adapting on the support set; a scalar."""
        items = self.encode(episodes.catalogue)
        state = self.adapt(episodes.support, episodes.users, items)
        return self.task_loss(state, episodes.query, items, episodes.support).mean()

    @abstractmethod
    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """The loss of each task on these examples, [T]; 0 for a task without examples.

        ``excluded`` are examples that will not be recommended again; a softmax leaves them out of its
        normalizer.
        """

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The state of the same tasks before adaptation."""
        return self.adapt(support.emptied(), users, items)

    def user_vectors(self, state: TaskState) -> Tensor:
        """One vector per user for an online ranker, [T, P]: everything in the state, in the order of its
        names.
        """
        return torch.cat([state[name].reshape(len(state[name]), -1) for name in sorted(state)], dim=1)
