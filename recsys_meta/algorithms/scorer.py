"""The scorer that meta-learners adapt: encoders of users and items shared by all, a small head, and a loss for both loops."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.hashing import inclusion_chances, mixed, uniform
from recsys_meta.models.encoders import Combination, FeatureEncoder
from recsys_meta.models.heads import Head, Inputs, LinearHead, MLPHead, Weights
from recsys_meta.models.losses import (
    PAIRED_LOSSES,
    RATING_LOSSES,
    SHIFT_INVARIANT_LOSSES,
    LossName,
    Pool,
    Scored,
    score_gradient,
    task_loss,
)
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Ragged, Sizes

# Items that steps of adaptation normalize over where no gradient is asked for; of more a part, so many on average.
_MOST_ITEMS, _PART = 16_384, 4_096


class Shelf(NamedTuple):
    """The items that all tasks share: codes of everything, and of the eligible alone for a softmax to
    normalize over.
    """

    items: ItemCodes  # [I]
    pool: ItemCodes | None  # [P], the eligible ones, under a full softmax
    part: ItemCodes | None  # those of them that steps of adaptation normalize over
    log_proposal: Tensor  # [I]


class Scorer(Learner):
    """Everything of a meta-learner but its adaptation: a task state is the weights of the head.

    Args:
        sizes: features of users and items to provide for.
        head: "linear" (bias + user . item) or "mlp" (MeLU's decision layers).
        loss: judged on support and query alike; see ``models.losses``.
        dim: columns of each feature's embedding (and of the user vector of a linear head).
        hidden: widths of the MLP's hidden layers.
        dropout: share of item-code entries dropped in meta-training.
        unknown_share: share of item ids hidden in meta-training.
        num_negatives: sampled negatives per positive, for the losses that need them.
        tempering: exponent of popularity that these negatives are drawn with.
        spread: standard deviation of the initial embeddings.
        item_ids: whether items are known by their ids, beside their features and popularity. Where items rise and
            fall within hours, ids only remember what has passed.
    """

    power: float = 0.0  # of the mean over the positives that a task is judged on: see ``models.losses``

    def __init__(
        self,
        sizes: Sizes,
        *,
        head: Literal["linear", "mlp"] = "linear",
        loss: LossName = "squared",
        dim: int = 64,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        unknown_share: float = 0.01,
        num_negatives: int = 4,
        tempering: float = 0.75,
        spread: float = 0.1,
        item_ids: bool = True,
    ) -> None:
        super().__init__(sizes)
        self.loss: LossName = loss
        self.tempering = tempering
        self._last_shelf: tuple[ItemCodes, Shelf] | None = None
        self.whole_catalogue = loss == "softmax"
        self.negatives = num_negatives if loss in PAIRED_LOSSES else 0
        combination: Combination = "sum" if head == "linear" else "concatenation"
        of_item = sizes.item if item_ids else sizes.item._replace(ids=1)
        self.item_encoder = FeatureEncoder(
            of_item,
            dim,
            combination=combination,
            dropout=dropout,
            unknown_share=unknown_share,
            spread=spread,
        )
        self.item_bias = FeatureEncoder(of_item, 1, spread=0.0)
        self.popularity_weight = nn.Parameter(torch.tensor(0.0 if loss in RATING_LOSSES else 1.0))
        offset = loss not in SHIFT_INVARIANT_LOSSES
        self.head: Head
        if head == "linear":
            self.head = LinearHead(sizes.user, self.item_encoder.width, offset=offset, spread=spread)
        elif head == "mlp":
            self.head = MLPHead(
                sizes.user, self.item_encoder.width, offset=offset, user_dim=dim, hidden=hidden, spread=spread
            )
        else:
            raise ValueError(f"unknown head {head!r}; expected linear or mlp")

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Rating losses: the offset starts at the mean, item biases at the shrunk mean residual of each
        item.
        """
        if self.loss not in RATING_LOSSES or len(histories.values) == 0:
            return
        mean = histories.values.mean()
        with torch.no_grad():
            self.head.offset_parameter().fill_(mean)
            if self.item_bias.ids is not None:
                rows = self.sizes.item.ids
                ids = catalogue.features.ids[histories.items]
                totals = torch.zeros(rows).index_add_(0, ids, histories.values - mean)
                counts = torch.zeros(rows).index_add_(0, ids, torch.ones_like(histories.values))
                self.item_bias.ids.weight.copy_((totals / (counts + 5.0)).unsqueeze(1))
                self.item_bias.ids.weight[0] = 0.0

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """vectors [I, F] and bias [I]: learned bias + a learned multiple of log popularity."""
        features = catalogue.features
        bias = self.item_bias(features).squeeze(1) + self.popularity_weight * catalogue.log_popularity
        vectors = self.item_encoder(features)
        return ItemCodes(
            features.ids,
            vectors,
            bias,
            catalogue.eligible,
            catalogue.log_popularity,
            catalogue.snapshot,
            catalogue.log_weight,
        )

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The start itself: a user without support stays there."""
        return self.head.start(users)

    def written_gradient(self, weights: Weights, inputs: Inputs, support: Examples, shelf: Shelf) -> Weights:
        """The derivative of the support loss by the fast weights of T tasks. inputs: of the support items."""
        scores, pullback = self.head.rated(weights, inputs, shelf.items.bias[support.items])
        scored = self.scored(scores, support, shelf)
        if shelf.part is None:
            return pullback(score_gradient(self.loss, scored).examples)
        weights = _once(weights)
        all_inputs = self.head.inputs(weights, shelf.part.vectors)
        all_scores, from_pool = self.head.rated(weights, all_inputs, shelf.part.bias)
        pool = Pool(all_scores, shelf.items.eligible[support.items], log_weight=shelf.part.log_weight)
        residuals = score_gradient(self.loss, scored, pool)
        assert residuals.chances is not None
        assert residuals.pull is not None
        of_pool, pull = from_pool(residuals.chances), residuals.pull
        return {
            name: torch.addcmul(slope, pull.reshape(-1, *[1] * (slope.dim() - 1)), of_pool[name])
            for name, slope in pullback(residuals.examples).items()
        }

    def scored(self, scores: Tensor, examples: Examples, shelf: Shelf) -> Scored:
        """These examples with their scores."""
        return Scored(scores, examples.targets, examples.mask, shelf.log_proposal[examples.items])

    def pool_of(
        self, weights: Weights, examples: Examples, shelf: Shelf, excluded: Tensor | None = None
    ) -> Pool | None:
        """What a full softmax normalizes over for T tasks, or once for all where they stand alike; None under any other loss."""
        if shelf.pool is None:
            return None
        scores = self.predict(_once(weights) if excluded is None else weights, shelf.pool)
        return Pool(scores, shelf.items.eligible[examples.items], excluded, shelf.pool.log_weight)

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        return self.head.scores(state, items.vectors, items.bias, index)

    def contenders(self, state: TaskState, items: ItemCodes, least: Tensor) -> Tensor:
        """[T, I]: of an MLP, what bf16 rules out is not computed to the end."""
        return self.head.scores(state, items.vectors, items.bias, least=least)

    def user_vectors(self, state: TaskState) -> Tensor:
        """[T, P]: everything in the state, the first layer formed, so that P is the same for all users."""
        return super().user_vectors(self.head.whole(state) if isinstance(self.head, MLPHead) else state)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """[T]: the loss of each task on these examples.

        Under a full softmax a task that lists what was not chosen (target 0) is judged by every pair of a positive and one
        of these, for it asks to tell the two apart, and nothing of the rest of the catalogue.
        """
        shelf = self.shelf(items)
        marked = (
            None
            if excluded is None or shelf.pool is None
            else excluded_from_pool(items, len(shelf.pool.bias), excluded)
        )
        scored = self.scored(self.predict(state, items, examples.items), examples, shelf)
        lists = examples.lists
        if shelf.pool is None or not lists.any():
            return task_loss(self.loss, scored, self.pool_of(state, examples, shelf, marked), self.power)
        among_listed = task_loss("bpr", scored)
        if lists.all():
            return among_listed
        among_all = task_loss(self.loss, scored, self.pool_of(state, examples, shelf, marked), self.power)
        return torch.where(lists, among_listed, among_all)

    def shelf(self, items: ItemCodes) -> Shelf:
        """The items as the inner loop sees them. Without gradient the last one is kept: a night adapts batch after batch to
        the same codes.
        """
        if torch.is_grad_enabled():
            return self.new_shelf(items)
        known = self._last_shelf
        if known is None or known[0] is not items:
            known = self._last_shelf = items, self.new_shelf(items)
        return known[1]

    def new_shelf(self, items: ItemCodes) -> Shelf:
        """The same, put together anew."""
        popularity = torch.zeros_like(items.bias) if items.log_popularity is None else items.log_popularity
        pool = items.take(items.eligible.nonzero().squeeze(1)) if self.whole_catalogue else None
        part = pool if pool is None or torch.is_grad_enabled() else part_of(pool, self.tempering)
        return Shelf(items, pool, part, self.tempering * popularity)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Weight decay falls on the encoders' embeddings alone: they overfit first, and nothing else has a
        reason to be 0.
        """
        decayed = [*self.item_encoder.parameters()]
        chosen = {id(parameter) for parameter in decayed}
        others = [p for p in self.parameters() if id(p) not in chosen and p.requires_grad]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def part_of(pool: ItemCodes, tempering: float) -> ItemCodes:
    """A part of many items, for a softmax that has no time for all; the same at every look at them. Few stay as they are.

    Drawn as ``episodes.DrawnPart`` does for a step of training, but by a number that each id keeps: from night to night the part
    changes no more than popularity does.
    """
    if len(pool.ids) <= _MOST_ITEMS or pool.log_popularity is None or pool.log_weight is not None:
        return pool
    chances = inclusion_chances((pool.log_popularity.double() * tempering).exp(), _PART)
    unknown = -1 - torch.arange(len(pool.ids), device=pool.ids.device)  # which have no id of their own
    number = uniform(mixed(torch.where(pool.ids > 0, pool.ids, unknown)))
    rows = (number < chances).nonzero().squeeze(1)
    return pool.take(rows)._replace(log_weight=-chances[rows].log().to(pool.bias.dtype))


def columns_of(table: Tensor, ids: Tensor) -> Tensor:
    """Those of these ids, of a table [T, ids]; a view where they follow each other, as a catalogue's mostly do."""
    if ids.is_cpu and len(ids):  # a GPU would have to be waited for
        first = int(ids[0])
        if torch.equal(ids, torch.arange(first, first + len(ids))):
            return table[:, first : first + len(ids)]
    return table[:, ids]


def _once(weights: Weights) -> Weights:
    """Those of one task where all tasks have the same, as those have of whom nothing is known; with gradient as they are."""
    alike = not torch.is_grad_enabled() and all(
        not weight.stride(0) or torch.equal(weight, weight[:1].expand_as(weight))
        for weight in weights.values()
    )
    return {name: weight[:1] for name, weight in weights.items()} if alike else weights


def excluded_from_pool(items: ItemCodes, pool_size: int, excluded: Examples) -> Tensor:
    """[T, P] bool: which of the eligible items each task does not want to see again."""
    # Sampled negatives (target 0) and padding, like items outside the pool, are sent to a column that is
    # cut off.
    place = torch.where(items.eligible, items.eligible.cumsum(0) - 1, pool_size)[excluded.items]
    place = place.masked_fill(~excluded.mask | (excluded.targets <= 0), pool_size)
    marked = torch.zeros(len(place), pool_size + 1, dtype=torch.bool, device=place.device)
    return marked.scatter(1, place, True)[:, :pool_size]


def no_features(sizes: Sizes) -> Features:
    """One user nothing is known of; gives the shapes of the weights of one task."""
    user = sizes.user
    empty = tuple(
        Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)) for _ in user.multi
    )
    unknown = torch.zeros(1, dtype=torch.int64)
    categorical = torch.zeros(1, len(user.categorical), dtype=torch.int64)
    return Features(unknown, categorical, empty, torch.zeros(1, user.numbers), torch.zeros(1, user.vectors))
