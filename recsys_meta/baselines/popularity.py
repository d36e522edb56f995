"""Popularity: everybody is recommended what was chosen most often up to the moment of the task."""

import torch
from torch import Tensor

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.models.losses import Pool, Scored, task_loss
from recsys_meta.tensors import Catalogue, Examples, Features, ItemCodes


class Popularity(Learner):
    """score(u, i) = log(1 + interactions of i before the moment): as a softmax, the shares of the items.

    Knows nothing of users and learns nothing: the counts, and the window they are taken over, come with the catalogue.
    """

    meta_trained = False
    whole_catalogue = True

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """The bias is the score; vectors [I, 0]."""
        score = catalogue.log_popularity
        return ItemCodes(
            catalogue.features.ids, score.new_zeros(len(score), 0), score, catalogue.eligible, score
        )

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"offset": [T, 1]}, 0 whatever the user did."""
        return {"offset": items.bias.new_zeros(len(support.items), 1)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        return state["offset"] + (items.bias if index is None else items.bias[index])

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """Mean of -log softmax over the positives of each task, [T]; the excluded positives leave the normalizer."""
        scores = self.predict(state, items)
        gone = ~items.eligible.expand_as(scores)
        if excluded is not None:
            liked = (excluded.mask & (excluded.targets > 0)).to(torch.int32)
            # Added up, because padding shares row 0 with the item that stands there.
            gone = (
                gone
                | torch.zeros_like(scores, dtype=torch.int32).scatter_add(1, excluded.items, liked).bool()
            )
        scored = Scored(scores.gather(1, examples.items), examples.targets, examples.mask)
        return task_loss("softmax", scored, Pool(scores, ~gone.gather(1, examples.items), gone))
