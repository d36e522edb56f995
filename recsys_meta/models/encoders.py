"""Encoders: features of N users or items -> one vector each. Sparse inputs are looked up, never made
dense.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from recsys_meta.tensors import Features, FeatureSizes, Ragged

Combination = Literal["sum", "concatenation"]


class FeatureEncoder(nn.Module):
    """Every feature to ``dim`` columns, then summed (a factorization's item vector) or laid side by side
    (MeLU's input).

    Args:
        sizes: vocabularies and columns to provide for.
        dim: columns of each feature's contribution.
        combination: "sum" gives ``dim`` columns in all, "concatenation" ``dim`` per feature.
        dropout: share of the result's entries set to 0 in training (the rest scaled up).
        unknown_share: share of ids hidden in training, so that the unknown row learns what an item or user
            nobody has seen before is like.
        spread: standard deviation of the initial embedding rows.
    """

    def __init__(
        self,
        sizes: FeatureSizes,
        dim: int,
        *,
        combination: Combination = "sum",
        dropout: float = 0.0,
        unknown_share: float = 0.0,
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        self.combination = combination
        self.dropout = dropout
        self.unknown_share = unknown_share
        # A vocabulary of the unknown row alone carries nothing, so it gets no table.
        self.ids = nn.Embedding(sizes.ids, dim) if sizes.ids > 1 else None
        self.categorical = nn.ModuleList(nn.Embedding(rows, dim) for rows in sizes.categorical)
        self.multi = nn.ModuleList(nn.EmbeddingBag(rows, dim, mode="mean") for rows in sizes.multi)
        self.numbers = nn.Linear(sizes.numbers, dim, bias=False) if sizes.numbers else None
        self.vectors = nn.Linear(sizes.vectors, dim, bias=False) if sizes.vectors else None
        for table in (self.ids, *self.categorical, *self.multi):
            if table is not None:
                nn.init.normal_(table.weight, std=spread)
        for linear in (self.numbers, self.vectors):
            if linear is not None:
                nn.init.normal_(linear.weight, std=spread / max(1.0, linear.in_features**0.5))
        parts = sum(part is not None for part in (self.ids, self.numbers, self.vectors))
        parts += len(sizes.categorical) + len(sizes.multi)
        self.width = dim if combination == "sum" else dim * parts
        self.empty = parts == 0  # nothing is known: the sum is a constant 0

    def forward(self, features: Features) -> Tensor:
        """features: N rows -> [N, width]."""
        parts: list[Tensor] = []
        if self.ids is not None:
            parts.append(self.ids(self.with_hidden_ids(features.ids)))
        parts += [table(features.categorical[:, c]) for c, table in enumerate(self.categorical)]
        parts += [mean_of_bags(table, bags) for table, bags in zip(self.multi, features.multi, strict=True)]
        if self.numbers is not None:
            parts.append(self.numbers(features.numbers))
        if self.vectors is not None:
            parts.append(self.vectors(features.vectors))
        if not parts:
            return features.numbers.new_zeros(len(features.ids), self.width)
        combined = torch.stack(parts).sum(0) if self.combination == "sum" else torch.cat(parts, dim=1)
        return nn.functional.dropout(combined, self.dropout, self.training)

    def with_hidden_ids(self, ids: Tensor) -> Tensor:
        """The same ids, in training some of them replaced by the unknown."""
        if not (self.training and self.unknown_share):
            return ids
        return ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.unknown_share, 0)


def mean_of_bags(table: nn.Module, bags: Ragged) -> Tensor:
    """The mean embedding of each list, [N, dim]; 0 for an empty one."""
    result: Tensor = table(bags.values, bags.offsets[:-1])
    return result
