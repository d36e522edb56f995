"""Ridge on item content: a regression of the user's own on the features of what it rated, above item mean and user bias.

A. E. Hoerl, R. W. Kennard: Ridge Regression, Technometrics 12(1), 1970; as a profile of the user in content-based filtering.
With x_i the features of the item, categories as 0 or 1, lists of them as shares,

    score(u, i) = mean + bias_i + bias_u + u . x_i,   (bias_u, u) the ridge solution on the user's support set alone

so that no support gives the item mean, and a large ridge item mean + shrunk user bias. More than ``width`` columns are hashed to
so many with random signs (Weinberger et al., Feature Hashing, ICML 2009; here every column to all, which keeps products in
expectation).
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys_meta.baselines.fold_in import FoldIn
from recsys_meta.baselines.user_bias import ItemMeanUserBias
from recsys_meta.tensors import Catalogue, Sizes


class ContentRidge(FoldIn, ItemMeanUserBias):
    """A linear model per user over item content. An item unknown to the vocabulary has its content all the same.

    Args:
        sizes: of the features of items.
        ridge: of the content weights, above 0.
        width: columns of content at most, at least 1.
        seed: of the signs.
        settings: of ``ItemMeanUserBias``, whose item biases are taken, and whose user shrinkage is the ridge of the bias.
    """

    contract_settings = ({}, {"width": 4})

    projection: Tensor  # [columns, F]: from all columns of content to those in use

    def __init__(
        self,
        sizes: Sizes,
        ridge: float = 10.0,
        width: int = 256,
        seed: int = 0,
        item_shrinkage: float = 5.0,
        user_shrinkage: float = 5.0,
        rounds: int = 10,
    ) -> None:
        super().__init__(sizes, item_shrinkage, user_shrinkage, rounds)
        if width < 1 or not ridge > 0:
            raise ValueError(f"found width {width}, ridge {ridge}; expected 1 or more and more than 0")
        self.ridge = ridge
        self.bias_ridge = user_shrinkage
        item = sizes.item
        self.blocks = [*item.categorical, *item.multi, item.numbers, item.vectors]
        columns = sum(self.blocks)
        projection = torch.eye(columns)
        if columns > width:
            draw = torch.Generator().manual_seed(seed)
            projection = (2.0 * torch.randint(2, (columns, width), generator=draw) - 1) / width**0.5
        self.register_buffer("projection", projection)

    def item_vectors(self, catalogue: Catalogue) -> Tensor:
        """x, [I, F]; a category that is unknown adds nothing."""
        features = catalogue.features
        blocks = list(torch.split(self.projection, self.blocks))
        tables = [
            table.index_fill(0, torch.zeros(1, dtype=torch.int64, device=table.device), 0)
            for table in blocks[:-2]
        ]
        categories = features.categorical.shape[1]
        content: Tensor = features.numbers @ blocks[-2] + features.vectors @ blocks[-1]
        for c, table in enumerate(tables[:categories]):
            content = content + table[features.categorical[:, c]]
        for bags, table in zip(features.multi, tables[categories:], strict=True):
            content = content + embedding_bag(bags.values, table, bags.offsets[:-1], mode="mean")
        return content
