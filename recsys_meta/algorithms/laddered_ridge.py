"""A meta-learned prior for ratings, solved, whose item factors start from the strongest simple recommender's, doubts and all.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with Differentiable Closed-form Solvers, ICLR 2019: MAML's inner
loop run to its end. For a user with n ratings r_j of the support items S, and w_u = (o_u, phi_u),

    score(u, i) = b_i + s(n) d_i + o_u + phi_u . q_i
    w_u = argmin  sum over j in S of [(r_j - score(u, j))^2 + sum over f of v_jf phi_uf^2] / noise_j
                + (w_u - theta_u)^T D (w_u - theta_u)

theta_u is the shared initialization plus what is known of the user. q, b and v, how uncertain each entry of q is, start at their
variational posterior (``models.variational_factors``), and noise and D at its estimates: ALS folded in is that with v = 0,
theta = 0 and a ridge tuned by hand. d is what the marginal bias of an item, that of the model without factors, has beyond b:
where little is known of the user it foretells more. s, a curve over n, starts at 1.

From there theta, D, noise, s and changes of q and b (of ids, and of the content, which alone speaks for items that nobody has
rated) are meta-trained through the solve. A quadratic price holds the changes at 0 unless training users keep saying otherwise.

The meta-loss is the mean of squared and absolute error: ratings are judged by both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.ridge import cholesky
from recsys_meta.algorithms.scorer import Scorer
from recsys_meta.models.heads import LinearHead
from recsys_meta.models.losses import masked_mean
from recsys_meta.models.shot_curve import ShotCurve
from recsys_meta.models.variational_factors import variational_factors
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories, ItemCodes, Sizes


class LadderedRidge(Scorer):
    """A linear head for ratings, solved under a meta-learned prior, that starts from a variational factorization.

    Args:
        sizes: features of users and items to provide for.
        factors: columns of q.
        rounds: of the variational fit.
        stay: price of the squared changes of items.
        settings: of ``Scorer``.
    """

    contract_settings = ({"factors": 2}, {"factors": 4, "dropout": 0.2})

    factor: Tensor  # [ids, F]: q at the start
    variance: Tensor  # [ids, F]: v
    start_bias: Tensor  # [ids]: mean + b at the start
    marginal_shift: Tensor  # [ids]: d

    def __init__(
        self, sizes: Sizes, *, factors: int = 16, rounds: int = 15, stay: float = 0.1, **settings: Any
    ) -> None:
        super().__init__(sizes, loss="squared", dim=factors, **{"spread": 0.0} | settings)
        assert isinstance(self.head, LinearHead)
        self.rounds = rounds
        self.stay = stay
        self.popularity_weight.requires_grad_(False)
        self.log_noise = nn.Parameter(torch.zeros(sizes.item.ids))
        self.log_precision = nn.Parameter(torch.zeros(1 + factors))
        self.register_buffer("factor", torch.zeros(sizes.item.ids, factors))
        self.register_buffer("variance", torch.zeros(sizes.item.ids, factors))
        self.register_buffer("start_bias", torch.zeros(sizes.item.ids))
        self.register_buffer("marginal_shift", torch.zeros(sizes.item.ids))
        self.shift_curve = ShotCurve(1.0)

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """The variational factorization; of the unknown item nothing is learned."""
        ids = catalogue.features.ids[histories.items]
        known = ids > 0
        if not known.any():
            return
        owners, users = histories.owners()[known], len(histories.offsets) - 1
        found = variational_factors(
            owners,
            users,
            ids[known],
            self.sizes.item.ids,
            histories.values[known],
            factors=self.factor.shape[1],
            rounds=self.rounds,
        )
        self.factor.copy_(found.vectors)
        self.variance.copy_(found.variance)
        self.start_bias.copy_(found.mean + found.bias)
        self.marginal_shift.copy_(found.marginal_bias - found.bias)
        with torch.no_grad():
            self.log_noise.fill_(found.noise.log().item())
            self.log_precision[0] = found.offset_precision.log()

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        """As of every learner; the factors too, for what was meta-learned speaks in their directions.

        Factors are known up to a rotation. New items come from tonight's factorization, turned so that what both know lies as
        close as can be: with U S V^T = Q_new^T Q_old over the items of both, by R = U V^T (Schonemann 1966).
        """
        super().continue_from(state)
        known = len(state["factor"])
        left, _, right = torch.linalg.svd(self.factor[:known].T @ state["factor"])
        turn = left @ right
        self.factor.copy_(self.factor @ turn)
        self.variance.copy_(self.variance @ turn.square())
        for name in ("factor", "variance", "start_bias", "marginal_shift"):
            getattr(self, name)[:known] = state[name]

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """vectors [I, F + 1]: q, d; bias [I]: mean + b."""
        codes, ids = super().encode(catalogue), catalogue.features.ids
        vectors = torch.cat([self.factor[ids] + codes.vectors, self.marginal_shift[ids].unsqueeze(1)], 1)
        return codes._replace(vectors=vectors, bias=self.start_bias[ids] + codes.bias)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"user": [T, F + 1], the posterior mean of phi, and s; "offset": [T], that of o}."""
        theta = self._start(support, users)
        residuals = support.targets - self.predict(theta, items, support.items)
        vectors = items.vectors[support.items][..., :-1]
        inputs = torch.cat([torch.ones_like(vectors[..., :1]), vectors], 2)
        ids = items.ids[support.items]
        weight = (support.mask / self.log_noise[ids].exp()).unsqueeze(2)
        unsure = pad((self.variance[ids] * weight).sum(1), (1, 0))
        start = torch.cat([theta["offset"].unsqueeze(1), theta["user"][:, :-1]], 1)
        weighed = inputs.mT * weight.mT
        quadratic = weighed @ inputs + (self.log_precision.exp() + unsure).diag_embed()
        linear = (weighed @ residuals.unsqueeze(2)).squeeze(2) - unsure * start
        change = torch.cholesky_solve(linear.unsqueeze(2), cholesky(quadratic)).squeeze(2)
        return {
            "user": theta["user"] + pad(change[:, 1:], (0, 1)),
            "offset": theta["offset"] + change[:, 0],
        }

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """theta, and s without history."""
        return self._start(support.emptied(), users)

    def _start(self, support: Examples, users: Features) -> TaskState:
        theta = self.head.start(users)
        share = self.shift_curve(support.shots).unsqueeze(1)
        return theta | {"user": torch.cat([theta["user"], share], 1)}

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """[T]: the mean of squared and absolute error."""
        errors = self.predict(state, items, examples.items) - examples.targets
        return masked_mean((errors.square() + errors.abs()) / 2, examples.mask)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over tasks of the query loss after adaptation, and what changes of items cost; a scalar."""
        changes = [*self.item_encoder.parameters(), *self.item_bias.parameters()]
        return (
            super().meta_loss(episodes)
            + self.stay * torch.stack([change.square().sum() for change in changes]).sum()
        )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """None decays: ``weight_decay`` is one number for all learners of a config, and here ``stay`` takes its place."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": 0.0}]
