"""iALS: a factorization of who chose what, every item not chosen counting a little against it; a new user is folded in.

Y. Hu, Y. Koren, C. Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; the form of S. Rendle et al.:
Revisiting the Performance of iALS on Item Recommendation Benchmarks, RecSys 2022.

    argmin of sum over chosen (u, i) confidence (1 - p_u . q_i)^2 + sum over all (u, i) (p_u . q_i)^2 + ridge (|p|^2 + |q|^2)
    p_u = (Q^T Q + confidence sum over chosen q_i q_i^T + ridge I)^-1  confidence sum over chosen q_i,   score(u, i) = p_u . q_i

and the same for q_i. A new user is solved as one more p_u. Ratings count as events, whatever their value above 0. The defaults
are those that give the row of evaluation.md on MovieLens-1M.
"""

import torch
from torch import Tensor

from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.fold_in import ridge_by_group, ridge_solution
from recsys_meta.baselines.item_item import TIE_BREAK
from recsys_meta.baselines.popularity import Popularity
from recsys_meta.models.incidence import incidence
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
        owners, ids = incidence(histories, catalogue, vocabulary).indices()
        start = torch.randn(self.factor.shape, generator=torch.Generator().manual_seed(self.seed))
        factor, chosen = 0.1 * columns**-0.5 * start, torch.ones(len(ids))
        factor[0] = 0
        for _ in range(self.rounds):
            of_users = ridge_by_group(
                owners, len(histories.offsets) - 1, factor, ids, chosen, self.precision_of(factor)
            )
            factor = ridge_by_group(ids, vocabulary, of_users, owners, chosen, self.precision_of(of_users))
        self.factor.copy_(factor)
        self.precision.copy_(self.precision_of(factor))

    def precision_of(self, factor: Tensor) -> Tensor:
        """What all the pairs not chosen say, and the ridge, in units of a choice, [F, F]. factor: [N, F]."""
        return (factor.T @ factor + self.ridge * torch.eye(factor.shape[1])) / self.confidence

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """vectors [I, F]: q. The bias breaks ties by popularity, which without history is the prior."""
        codes = super().encode(catalogue)
        return codes._replace(vectors=self.factor[codes.ids], bias=TIE_BREAK * codes.bias)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"user": [T, F]}: p; 0 without a history."""
        liked = support.mask & (support.targets > 0)
        return {"user": ridge_solution(items.vectors[support.items], liked.float(), liked, self.precision)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        scores = torch.addmm(items.bias, state["user"], items.vectors.T)
        return scores if index is None else scores.gather(1, index)
