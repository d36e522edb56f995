"""iALS: a factorization of who chose what, every item not chosen counting a little against it; a new user is folded in.

Y. Hu, Y. Koren, C. Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; the form of S. Rendle et al.:
Revisiting the Performance of iALS on Item Recommendation Benchmarks, RecSys 2022. The equations stand at
``models.implicit_factors``.

Ratings count as events, whatever their value above 0. The defaults are those that give the row of evaluation.md on MovieLens-1M.
"""

import torch
from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.item_item import TIE_BREAK
from recsys_meta.baselines.popularity import Popularity
from recsys_meta.models.implicit_factors import implicit_factors, precision_of
from recsys_meta.models.incidence import incidence
from recsys_meta.models.ridge_solutions import ridge_solution
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Sizes


class IALS(Popularity):
    """Factors of events. An item that is unknown to the vocabulary scores 0, and what ties is ordered by popularity.

    Args:
        sizes: only the number of item ids is read.
        factors: columns of p and q, at least 1.
        confidence: weight of a choice, where each pair of user and item has the weight 1; above 0.
        ridge: above 0.
        rounds: of the alternating fit, at least 1.
        seed: of the factors that the fit starts from.
    """

    loss = "softmax"
    contract_settings = ({"factors": 4, "ridge": 1.0},)

    factor: Tensor  # [ids, F]: q
    precision: Tensor  # [F, F]: (Q^T Q + ridge I) / confidence

    def __init__(
        self,
        sizes: Sizes,
        factors: int = 128,
        confidence: float = 10.0,
        ridge: float = 50.0,
        rounds: int = 6,
        seed: int = 0,
    ) -> None:
        super().__init__(sizes)
        if factors < 1 or rounds < 1 or not (confidence > 0 and ridge > 0):
            raise ValueError(
                f"found factors {factors}, rounds {rounds}, confidence {confidence}, ridge {ridge}; expected 1 or more of "
                "the former two and more than 0 of the others"
            )
        self.confidence = confidence
        self.ridge = ridge
        self.rounds = rounds
        self.seed = seed
        self.register_buffer("factor", torch.zeros(sizes.item.ids, factors))
        self.register_buffer("precision", torch.eye(factors))

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Alternates; nothing is learned of the unknown item."""
        vocabulary, columns = self.factor.shape
        factor = implicit_factors(
            incidence(histories, catalogue, vocabulary),
            columns,
            confidence=self.confidence,
            ridge=self.ridge,
            rounds=self.rounds,
            seed=self.seed,
        )
        self.factor.copy_(factor)
        self.precision.copy_(precision_of(factor, confidence=self.confidence, ridge=self.ridge))

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """vectors [I, F]: q. The bias breaks ties by popularity, which without history is the prior."""
        codes = super().encode(catalogue)
        return codes._replace(vectors=self.factor[codes.ids], bias=TIE_BREAK * codes.bias)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"user": [T, F]}: p; 0 without a history."""
        liked, vectors = support.mask & (support.targets > 0), items.vectors[support.items]
        return {"user": ridge_solution(vectors, liked.to(vectors.dtype), liked, self.precision)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        scores = torch.addmm(items.bias, state["user"], items.vectors.T)
        return scores if index is None else scores.gather(1, index)
