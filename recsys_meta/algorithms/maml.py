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

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import grad

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer, Shelf, no_features
from recsys_meta.models.heads import MLPHead, Weights
from recsys_meta.models.losses import LossName, Pool, task_loss
from recsys_meta.native import Kernels, inner_loop, kernels
from recsys_meta.tensors import EpisodeBatch, Examples, Features, ItemCodes, Sizes

StepSizes = Literal["fixed", "per_step", "per_entry"]


class MAML(Scorer):
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
        super().__init__(
            sizes,
            head=head,
            loss=loss,
            dim=dim,
            hidden=hidden,
            dropout=dropout,
            unknown_share=unknown_share,
            num_negatives=num_negatives,
            tempering=tempering,
            spread=spread,
            item_ids=item_ids,
        )
        self.num_steps = num_steps
        self.step_sizes: StepSizes = step_sizes
        self.step_size = self.initial_step_sizes(step_size, step_sizes)
        self.shot_power = nn.Parameter(torch.tensor(shot_power), requires_grad=step_sizes != "fixed")
        # The first step stands at the start, where there is nothing to pull back.
        self.pull = nn.Parameter(torch.full((num_steps - 1,), pull), requires_grad=step_sizes != "fixed")

    def initial_step_sizes(self, step_size: float, step_sizes: StepSizes) -> nn.ParameterDict:
        """One tensor per adapted weight: [K, 1, ..] per step, or [K, *shape of the weight] per entry."""
        start = self.head.start(no_features(self.sizes))
        sizes = {}
        for name in self.adapted_weights():
            shape = start[name].shape[1:] if step_sizes == "per_entry" else [1] * (start[name].dim() - 1)
            sizes[name] = nn.Parameter(
                torch.full((self.num_steps, *shape), step_size), requires_grad=step_sizes != "fixed"
            )
        return nn.ParameterDict(sizes)

    def adapted_weights(self) -> tuple[str, ...]:
        """The names of the weights that the inner loop moves."""
        return self.head.adapted

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """T tasks at once: {name: [T, ...]}, the head's weights after K steps."""
        theta = self.theta(support, users, items)
        compiled = None if torch.is_grad_enabled() or "support" not in theta else self.compiled(items)
        if compiled is not None:
            assert isinstance(self.head, MLPHead)
            start = self.compiled_start(users, items, support.shots)
            return self.head.after(theta, inner_loop.adapted(compiled, start, support, loss=self.loss))
        return self.written_inner_loop(theta, support, self.shelf(items))

    def is_plain(self) -> bool:
        """Whether the inner loop is the one of this class: one rewritten for speed is no other's."""
        parts = (
            "theta",
            "adapted_weights",
            "path",
            "written_inner_loop",
            "written_gradient",
            "stepped",
            "split",
            "scale",
        )
        return all(getattr(type(self), part) is getattr(MAML, part) for part in parts)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """As of every learner; of an MLP by the compiled inner loop, where there is one."""
        items = self.encode(episodes.catalogue)
        compiled = self.compiled(items)
        if compiled is None:
            state = self.adapt(episodes.support, episodes.users, items)
            return self.task_loss(state, episodes.query, items, episodes.support).mean()
        return inner_loop.meta_loss(
            compiled,
            self.compiled_start(episodes.users, items, episodes.support.shots),
            episodes.support,
            episodes.query,
            loss=self.loss,
            first_order=self.first_order,
        )

    def compiled(self, items: ItemCodes) -> Kernels | None:
        """The kernels, if their inner loop is this one: on a CPU, two hidden layers, a loss of single scores, a step size
        per weight. A variant's is its own.
        """
        judged = all(getattr(type(self), part) is getattr(MAML, part) for part in ("predict", "task_loss"))
        known = isinstance(self.head, MLPHead) and len(self.head.layers) == 3 and self.is_plain() and judged
        if not known or self.loss not in inner_loop.LOSSES or self.step_sizes == "per_entry":
            return None
        if not items.vectors.is_cpu or items.vectors.dtype not in (torch.float32, torch.float64):
            return None
        return kernels()

    def compiled_start(self, users: Features, items: ItemCodes, shots: Tensor) -> inner_loop.Start:
        """theta, and by how far each step moves each weight of each task."""
        assert isinstance(self.head, MLPHead)
        sizes = torch.stack([self.step_size[name].flatten() for name in self.head.adapted], dim=1)  # [K, 6]
        rates = self.scale(shots).reshape(-1, 1, 1) * sizes
        return self.head.compiled_start(users, items.vectors, items.bias, rates, self.pulls())

    def pulls(self) -> Tensor:
        """l of each step, [K]; of the first, which stands at the start, 0."""
        return torch.cat([self.pull.new_zeros(1), self.pull])

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
        return deque(self.path(theta, support, shelf), maxlen=1).pop()

    def path(self, theta: Weights, support: Examples, shelf: Shelf) -> Iterator[Weights]:
        """phi_1 .. phi_K of T users."""
        fast, fixed = self.split(theta)
        inputs = self.head.inputs(theta, shelf.items.vectors, support.items)
        for k in range(self.num_steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.first_order):
                gradient = self.written_gradient(fast | fixed, inputs, support, shelf)
            fast = self.stepped(k, fast, gradient, theta, support.shots)
            yield fast | fixed

    def split(self, theta: Weights) -> tuple[Weights, Weights]:
        """The weights that the inner loop moves, and those it does not."""
        fast = {name: theta[name] for name in self.adapted_weights()}
        return fast, {name: weight for name, weight in theta.items() if name not in fast}

    def stepped(self, k: int, fast: Weights, gradient: Weights, theta: Weights, shots: Tensor) -> Weights:
        """The fast weights after step k. Of one task, or of T tasks with ``shots`` [T]."""
        scale = self.scale(shots)
        stepped = {}
        for name, weight in fast.items():
            slope = gradient[name].detach() if self.first_order else gradient[name]
            if k > 0:
                slope = torch.addcmul(slope, self.pull[k - 1], weight - theta[name])
            rate = scale.reshape(scale.shape + (1,) * (weight.dim() - scale.dim())) * self.step_size[name][k]
            stepped[name] = torch.addcmul(weight, rate, slope, value=-1)
        return stepped

    def scale(self, shots: Tensor) -> Tensor:
        """n_t^p. Without support it is 0: there is nothing to learn from and nothing to be pulled back from."""
        return torch.where(shots > 0, shots.clamp(min=1).to(self.shot_power.dtype) ** self.shot_power, 0.0)

    def support_loss(self, fast: Weights, fixed: Weights, support: Examples, shelf: Shelf) -> Tensor:
        """The support loss of one task as a function of its fast weights; a scalar."""
        index = support.items
        scores = self.head.score(fast | fixed, shelf.items.vectors[index], shelf.items.bias[index])
        pool = None
        if shelf.part is not None:
            pool_scores = self.head.score(fast | fixed, shelf.part.vectors, shelf.part.bias)
            pool = Pool(pool_scores, shelf.items.eligible[index], log_weight=shelf.part.log_weight)
        return task_loss(self.loss, self.scored(scores, support, shelf), pool)


class FOMAML(MAML):
    """First-order MAML (section 5.2 of the paper): the same steps, the meta-gradient without second
    derivatives.
    """

    first_order = True
