"""MAML: one shared initialization, adapted to every user by a few gradient steps on the support set.

C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017.
For T tasks

    phi_0 = theta_t
    phi_{k+1} = phi_k - a_k * n_t^p * (grad L_support(phi_k) + l_k * (phi_k - theta_t))      k = 0 .. K-1
    meta-loss = mean over tasks of L_query(phi_K)

What differs from the paper, each a setting that can be turned off: the step sizes a_k are learned per step
and per entry (Meta-SGD, Li et al. 2017; per step as in MAML++, Antoniou et al. 2019); theta_t is the shared
initialization plus what is known of the user; the support loss is a mean, so n_t^p (n_t shots, p learned)
lets more evidence move further; l_k pulls back to the start, which is the weight decay of a Gaussian prior
(MAML as inference, Grant et al. 2018). A user without support stays at theta_t.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import grad

from recsys_meta.algorithms.base import Learner, TaskState
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

StepSizes = Literal["fixed", "per_step", "per_entry"]


class Shelf(NamedTuple):
    """The items that all tasks share: codes of everything, and of the eligible alone for a softmax to
    normalize over.
    """

    items: ItemCodes  # [I]
    pool: ItemCodes | None  # [P], the eligible ones, under a full softmax
    log_proposal: Tensor  # [I]


class MAML(Learner):
    """Second-order MAML on the head of an item-user scorer; the encoders are shared by all users.

    Args:
        sizes: features of users and items to provide for.
        head: "linear" (bias + user . item) or "mlp" (MeLU's decision layers).
        loss: judged on support and query alike; see ``models.losses``.
        dim: columns of each feature's embedding (and of the user vector of a linear head).
        hidden: widths of the MLP's hidden layers.
        dropout: share of item-code entries dropped in meta-training.
        unknown_share: share of item ids hidden in meta-training.
        num_steps: K, gradient steps of the inner loop.
        step_size: initial a_k.
        step_sizes: "fixed", or learned "per_step" (one per weight tensor and step) or "per_entry".
        shot_power: initial p.
        pull: initial l_k.
        num_negatives: sampled negatives per positive, for the losses that need them.
        tempering: exponent of popularity that these negatives are drawn with.
        spread: standard deviation of the initial embeddings.
        item_ids: whether items are known by their ids, beside their features and popularity. Where items rise and
            fall within hours, ids only remember what has passed.
    """

    first_order = False  # whether second derivatives are left out of the meta-gradient
    contract_settings = (
        *({"loss": loss, "dim": 8} for loss in get_args(LossName)),
        {"loss": "squared", "head": "mlp", "dim": 8, "hidden": (16,), "step_sizes": "per_step"},
        {"loss": "softmax", "head": "mlp", "dim": 8, "hidden": (16, 8), "num_steps": 2},
        {"loss": "squared", "dim": 8, "step_sizes": "fixed", "num_steps": 1, "dropout": 0.2},
    )

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
        num_steps: int = 5,
        step_size: float = 0.1,
        step_sizes: StepSizes = "per_entry",
        shot_power: float = 0.5,
        pull: float = 0.01,
        num_negatives: int = 4,
        tempering: float = 0.75,
        spread: float = 0.1,
        item_ids: bool = True,
    ) -> None:
        super().__init__(sizes)
        self.loss: LossName = loss
        self.num_steps = num_steps
        self.step_sizes: StepSizes = step_sizes
        self.tempering = tempering
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
        self.step_size = self.initial_step_sizes(step_size, step_sizes)
        self.shot_power = nn.Parameter(torch.tensor(shot_power), requires_grad=step_sizes != "fixed")
        # The first step stands at the start, where there is nothing to pull back.
        self.pull = nn.Parameter(torch.full((num_steps - 1,), pull), requires_grad=step_sizes != "fixed")

    def initial_step_sizes(self, step_size: float, step_sizes: StepSizes) -> nn.ParameterDict:
        """One tensor per adapted weight: [K, 1, ..] per step, or [K, *shape of the weight] per entry."""
        start = self.head.start(no_features(self.sizes))
        sizes = {}
        for name in self.head.adapted:
            shape = start[name].shape[1:] if step_sizes == "per_entry" else [1] * (start[name].dim() - 1)
            sizes[name] = nn.Parameter(
                torch.full((self.num_steps, *shape), step_size), requires_grad=step_sizes != "fixed"
            )
        return nn.ParameterDict(sizes)

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
        return ItemCodes(features.ids, vectors, bias, catalogue.eligible, catalogue.log_popularity)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """T tasks at once: {name: [T, ...]}, the head's weights after K steps."""
        theta, shelf = self.theta(support, users, items), self.shelf(items)
        return self.written_inner_loop(theta, support, shelf)

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """theta itself: a user without support stays there."""
        return self.theta(support, users, items)

    def theta(self, support: Examples, users: Features, items: ItemCodes) -> Weights:
        """Where adaptation on this support starts from. Of an MLP in the dual form, where that is exact and
        the smaller one.
        """
        theta = self.head.start(users)
        if not isinstance(self.head, MLPHead) or self.whole_catalogue or self.step_sizes == "per_entry":
            return theta
        if support.items.shape[1] > self.head.item_width:
            return theta
        return self.head.spanned(theta, items.vectors, support.items, first_order=self.first_order)

    def inner_loop(self, theta: Weights, support: Examples, shelf: Shelf) -> Weights:
        """One user: theta -> phi after K gradient steps on the support set. To be read, and to be batched by
        vmap: what ``written_inner_loop`` is held against.
        """
        fast, fixed = self.split(theta)
        for k in range(self.num_steps):
            gradient = grad(self.support_loss)(fast, fixed, support, shelf)
            fast = self.stepped(k, fast, gradient, theta, support.shots)
        return fast | fixed

    def written_inner_loop(self, theta: Weights, support: Examples, shelf: Shelf) -> Weights:
        """T users: the same steps with the inner gradient written out, as matrix products over all tasks."""
        fast, fixed = self.split(theta)
        inputs = self.head.inputs(theta, shelf.items.vectors, support.items)
        for k in range(self.num_steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.first_order):
                gradient = self.written_gradient(fast | fixed, inputs, support, shelf)
            fast = self.stepped(k, fast, gradient, theta, support.shots)
        return fast | fixed

    def written_gradient(self, weights: Weights, inputs: Inputs, support: Examples, shelf: Shelf) -> Weights:
        """The derivative of the support loss by the fast weights of T tasks. inputs: of the support items."""
        scores, pullback = self.head.rated(weights, inputs, shelf.items.bias[support.items])
        scored = self.scored(scores, support, shelf)
        if shelf.pool is None:
            return pullback(score_gradient(self.loss, scored).examples)
        all_inputs = self.head.inputs(weights, shelf.pool.vectors)
        all_scores, from_pool = self.head.rated(weights, all_inputs, shelf.pool.bias)
        pool = Pool(all_scores, shelf.items.eligible[support.items])
        residuals = score_gradient(self.loss, scored, pool)
        assert residuals.pool is not None
        of_pool = from_pool(residuals.pool)
        return {name: slope + of_pool[name] for name, slope in pullback(residuals.examples).items()}

    def split(self, theta: Weights) -> tuple[Weights, Weights]:
        """The weights that the inner loop moves, and those it does not."""
        fast = {name: theta[name] for name in self.head.adapted}
        return fast, {name: weight for name, weight in theta.items() if name not in fast}

    def stepped(self, k: int, fast: Weights, gradient: Weights, theta: Weights, shots: Tensor) -> Weights:
        """The fast weights after step k. Of one task, or of T tasks with ``shots`` [T]."""
        # Without support there is nothing to learn from and nothing to be pulled back from.
        scale = torch.where(shots > 0, shots.clamp(min=1).to(self.shot_power.dtype) ** self.shot_power, 0.0)
        stepped = {}
        for name, weight in fast.items():
            slope = gradient[name].detach() if self.first_order else gradient[name]
            if k > 0:
                slope = torch.addcmul(slope, self.pull[k - 1], weight - theta[name])
            rate = scale.reshape(scale.shape + (1,) * (weight.dim() - scale.dim())) * self.step_size[name][k]
            stepped[name] = torch.addcmul(weight, rate, slope, value=-1)
        return stepped

    def support_loss(self, fast: Weights, fixed: Weights, support: Examples, shelf: Shelf) -> Tensor:
        """The support loss of one task as a function of its fast weights; a scalar."""
        index = support.items
        scores = self.head.score(fast | fixed, shelf.items.vectors[index], shelf.items.bias[index])
        pool = None
        if shelf.pool is not None:
            pool_scores = self.head.score(fast | fixed, shelf.pool.vectors, shelf.pool.bias)
            pool = Pool(pool_scores, shelf.items.eligible[index])
        return task_loss(self.loss, self.scored(scores, support, shelf), pool)

    def scored(self, scores: Tensor, examples: Examples, shelf: Shelf) -> Scored:
        """These examples with their scores."""
        return Scored(scores, examples.targets, examples.mask, shelf.log_proposal[examples.items])

    def pool_of(
        self, weights: Weights, examples: Examples, shelf: Shelf, excluded: Tensor | None = None
    ) -> Pool | None:
        """What a full softmax normalizes over for T tasks; None under any other loss."""
        if shelf.pool is None:
            return None
        scores = self.head.scores(weights, shelf.pool.vectors, shelf.pool.bias)
        return Pool(scores, shelf.items.eligible[examples.items], excluded)

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
        """[T]: the loss of each task on these examples."""
        shelf = self.shelf(items)
        marked = (
            None
            if excluded is None or shelf.pool is None
            else excluded_from_pool(items, len(shelf.pool.bias), excluded)
        )
        scored = self.scored(self.predict(state, items, examples.items), examples, shelf)
        return task_loss(self.loss, scored, self.pool_of(state, examples, shelf, marked))

    def shelf(self, items: ItemCodes) -> Shelf:
        """The items as the inner loop sees them."""
        popularity = torch.zeros_like(items.bias) if items.log_popularity is None else items.log_popularity
        items = items._replace(log_popularity=None)
        pool = items.take(items.eligible.nonzero().squeeze(1)) if self.whole_catalogue else None
        return Shelf(items, pool, self.tempering * popularity)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Weight decay falls on the encoders' embeddings alone: they overfit first, and nothing else has a
        reason to be 0.
        """
        decayed = [*self.item_encoder.parameters()]
        chosen = {id(parameter) for parameter in decayed}
        others = [p for p in self.parameters() if id(p) not in chosen and p.requires_grad]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class FOMAML(MAML):
    """First-order MAML (section 5.2 of the paper): the same steps, the meta-gradient without second
    derivatives.
    """

    first_order = True


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
