"""A meta-learned prior for ratings, solved, whose item factors start from the strongest simple recommender's, doubts and all.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with Differentiable Closed-form Solvers, ICLR 2019: MAML's inner
loop run to its end. For a user with n ratings r_j of the support items S, and w_u = (o_u, phi_u),

    score(u, i) = b_i + s(n) d_i + o_u + phi_u . q_i + sum over j in S of R_ij e_j / (noise_j + m_j)
    w_u = argmin  sum over j in S of [e_j^2 + sum over f of v_jf phi_uf^2] / noise_j
                + (w_u - theta_u)^T D (w_u - theta_u)

with e_j = r_j - (b_j + s(n) d_j + o_u + phi_u . q_j) and m_j = sum over k in S of |R_jk|. theta_u is the shared initialization
plus what is known of the user. q, b and v, how uncertain each entry of q is, start at their variational posterior
(``models.variational_factors``), and noise and D at its estimates: ALS folded in is that with v = 0, R = 0, theta = 0 and a ridge
tuned by hand. d is what the marginal bias of an item, that of the model without factors, has beyond b: where little is known of
the user it foretells more. s, a curve over n, starts at 1.

R is what few items share beside factors, as the parts of a series do (``models.residual_covariance``): what is left of the rating
of one tells of the others. Where several of them were rated, m has each tell its part, so that ten parts of a series say little
more than five. The posterior under Q Q^T + R would cost a system of n equations, and foretells no more (docs/closed-forms.md).

A factorization ends in one of many optima, each of which knows something that the others do not. So there are several views,
factorizations that begin at random elsewhere, with q, v, D, phi and o of their own, and the score is the mean of theirs; b, d and
the noise are means over the views from the start. That is cheaper than several learners, for each user solves small systems.

From there theta, D, noise, s and changes of q and b (of ids, and of the content, which alone speaks for items that nobody has
rated) are meta-trained through the solve. A quadratic price holds the changes at 0 unless training users keep saying otherwise.
What D says of offsets moves in larger steps: where a user's first ratings say little of its last ones, they are worth less than
the factorization, to which all ratings are one heap, makes of them.

The meta-loss is the mean of squared and absolute error of the mean score: ratings are judged by both.

All this is in units of the ratings, the power of two nearest to how far they spread: 1 for stars, 16 or 32 for a scale to 100.
What priors, prices and steps are worth depends on it: ratings a hundred times as large would have no factors at all.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.ridge import cholesky
from recsys_meta.algorithms.scorer import Scorer, columns_of
from recsys_meta.models.heads import LinearHead
from recsys_meta.models.losses import masked_mean
from recsys_meta.models.rating_unit import unit_of
from recsys_meta.models.residual_covariance import residual_covariances
from recsys_meta.models.shot_curve import ShotCurve
from recsys_meta.models.variational_factors import variational_factors
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, Histories, ItemCodes, Sizes

_OFFSET_LR = 0.03  # of a few weights that all episodes speak of; the others need smaller steps


class LadderedRidge(Scorer):
    """A linear head for ratings, solved under a meta-learned prior, that starts from variational factorizations.

    Args:
        sizes: features of users and items to provide for.
        factors: columns of q in each view, F.
        views: factorizations, V.
        rounds: of the variational fit.
        stay: price of the squared changes of items.
        neighbours, largest: of ``residual_covariances``.
        settings: of ``Scorer``.
    """

    contract_settings = ({"factors": 2, "views": 2}, {"factors": 4, "views": 1, "dropout": 0.2})

    factor: Tensor  # [ids, V F]: q at the start, view after view
    variance: Tensor  # [ids, V F]: v
    start_bias: Tensor  # [ids]: mean + b at the start
    marginal_shift: Tensor  # [ids]: d
    neighbour: Tensor  # [ids, K] int32: who shares something with each item, and R, [ids, K]
    covariance: Tensor
    unit: Tensor  # []: of all ratings and errors in here

    def __init__(
        self,
        sizes: Sizes,
        *,
        factors: int = 16,
        views: int = 5,
        rounds: int = 15,
        stay: float = 0.1,
        neighbours: int = 100,
        largest: int = 6000,
        **settings: Any,
    ) -> None:
        super().__init__(sizes, loss="squared", dim=views * factors, **{"spread": 0.0} | settings)
        assert isinstance(self.head, LinearHead)
        self.views = views
        self.rounds = rounds
        self.stay = stay
        self.largest = largest
        self.popularity_weight.requires_grad_(False)
        self.log_noise = nn.Parameter(torch.zeros(sizes.item.ids))
        self.log_precision = nn.Parameter(torch.zeros(views, factors))
        self.log_offset_precision = nn.Parameter(torch.zeros(views, 1))
        self.register_buffer("factor", torch.zeros(sizes.item.ids, views * factors))
        self.register_buffer("variance", torch.zeros(sizes.item.ids, views * factors))
        self.register_buffer("start_bias", torch.zeros(sizes.item.ids))
        self.register_buffer("marginal_shift", torch.zeros(sizes.item.ids))
        shape = sizes.item.ids, min(neighbours, sizes.item.ids)
        self.register_buffer("neighbour", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("covariance", torch.zeros(shape))
        self.register_buffer("unit", torch.ones(()))
        self.shift_curve = ShotCurve(1.0)

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """The variational factorizations and what they leave; of the unknown item nothing is learned."""
        ids = catalogue.features.ids[histories.items]
        known = ids > 0
        if not known.any():
            return
        owners, users = histories.owners()[known], len(histories.offsets) - 1
        self.unit.copy_(unit_of(histories.values[known]))
        items, ratings = ids[known], histories.values[known] / self.unit
        found = [
            variational_factors(
                owners,
                users,
                items,
                self.sizes.item.ids,
                ratings,
                factors=self.factor.shape[1] // self.views,
                rounds=self.rounds,
                seed=view,
            )
            for view in range(self.views)
        ]
        bias = torch.stack([one.bias for one in found]).mean(0)
        self.factor.copy_(torch.cat([one.vectors for one in found], 1))
        self.variance.copy_(torch.cat([one.variance for one in found], 1))
        self.start_bias.copy_(found[0].mean + bias)
        self.marginal_shift.copy_(torch.stack([one.marginal_bias for one in found]).mean(0) - bias)
        neighbour, self.covariance[:] = residual_covariances(
            owners,
            users,
            items,
            ratings,
            found[0],
            neighbours=self.neighbour.shape[1],
            largest=self.largest,
        )
        self.neighbour.copy_(neighbour)
        with torch.no_grad():
            self.log_noise.fill_(torch.stack([one.noise for one in found]).mean().log().item())
            self.log_offset_precision[:, 0] = torch.stack([one.offset_precision for one in found]).log()

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        """As of every learner; the factors too, for what was meta-learned speaks in their directions.

        All goes on in the units that it was learned in. Factors are known up to a rotation. New items come from tonight's
        factorizations, turned so that what both know lies as close as can be: with U S V^T = Q_new^T Q_old over the items of
        both, by R = U V^T (Schonemann 1966), in each view.
        """
        super().continue_from(state)
        ratio = self.unit / state["unit"]
        for table in (self.factor, self.start_bias, self.marginal_shift):
            table.mul_(ratio)
        for table in (self.variance, self.covariance):
            table.mul_(ratio.square())
        self.unit.copy_(state["unit"])
        known = len(state["factor"])
        for new, old, variance in zip(
            *(table.chunk(self.views, 1) for table in (self.factor, state["factor"], self.variance)),
            strict=True,
        ):
            left, _, right = torch.linalg.svd(new[:known].T @ old)
            turn = left @ right
            new.copy_(new @ turn)
            variance.copy_(variance @ turn.square())
        for name in ("factor", "variance", "start_bias", "marginal_shift"):
            getattr(self, name)[:known] = state[name]
        # What is known keeps what it shares with what is known, beside what it shares with new items.
        with_new = torch.where(self.neighbour[:known] >= known, self.covariance[:known], 0.0)
        shared = torch.cat([state["covariance"], with_new], 1)
        others = torch.cat([state["neighbour"], self.neighbour[:known]], 1)
        top = shared.abs().topk(self.covariance.shape[1], dim=1).indices
        self.covariance[:known], self.neighbour[:known] = shared.gather(1, top), others.gather(1, top)

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """vectors [I, V F + 1]: q of all views, d; bias [I]: mean + b."""
        codes, ids = super().encode(catalogue), catalogue.features.ids
        vectors = torch.cat([self.factor[ids] + codes.vectors, self.marginal_shift[ids].unsqueeze(1)], 1)
        return codes._replace(vectors=vectors, bias=self.start_bias[ids] + codes.bias)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """{"user": [T, V F + 1], the posterior means of phi, a V-th of each, and s; "offset": [T], the mean of those of o;
        "related": [T, ids], what the ratings tell of every item of the vocabulary besides}.
        """
        start, share = self._start(users), self.shift_curve(support.shots)
        vectors, ids = items.vectors[support.items], items.ids[support.items]
        left = support.targets / self.unit - items.bias[support.items] - share.unsqueeze(1) * vectors[..., -1]
        weight = support.mask / self.log_noise[ids].exp()
        inputs = pad(self._by_view(vectors[..., :-1]), (1, 0), value=1.0)  # [T, V, S, 1 + F]
        unsure = self.variance[ids] * weight.unsqueeze(2)
        unsure = pad(self._by_view(unsure).sum(2), (1, 0))  # [T, V, 1 + F]
        residuals = left.unsqueeze(1) - (inputs @ start.unsqueeze(3)).squeeze(3)
        weighed = inputs.mT * weight[:, None, None]
        quadratic = weighed @ inputs + (self.precision() + unsure).diag_embed()
        linear = (weighed @ residuals.unsqueeze(3)).squeeze(3) - unsure * start
        change = torch.cholesky_solve(linear.unsqueeze(3), cholesky(quadratic)).squeeze(3)
        left = (residuals - (inputs @ change.unsqueeze(3)).squeeze(3)).mean(1)
        return self._mean(start + change, share) | {"related": self._related(ids, left, support.mask)}

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """theta, s without history, and nothing related."""
        tasks = len(support.items)
        state = self._mean(self._start(users), self.shift_curve(torch.zeros_like(support.shots)))
        return state | {"related": self.covariance.new_zeros(1, 1).expand(tasks, len(self.covariance))}

    def precision(self) -> Tensor:
        """The diagonal of D in each view, [V, 1 + F]."""
        return torch.cat([self.log_offset_precision, self.log_precision], 1).exp()

    def _related(self, ids: Tensor, left: Tensor, mask: Tensor) -> Tensor:
        """[T, ids]: sum over j of R_ij e_j / (noise_j + m_j). ids, left, mask: [T, S], the ids of j and e_j."""
        tasks, vocabulary = len(ids), len(self.covariance)
        covariance, others = (
            self.covariance[ids],
            self.neighbour[ids].long().flatten(1),
        )  # [T, S, K]; [T, S K]
        rated = left.new_zeros(tasks, vocabulary).scatter_(1, ids.masked_fill(~mask, 0), mask.to(left.dtype))
        rated[:, 0] = 0.0
        met = (covariance.abs() * rated.gather(1, others).view_as(covariance)).sum(2)
        told = (mask * left / (self.log_noise[ids].exp() + met)).unsqueeze(2) * covariance
        return told.new_zeros(tasks, vocabulary).scatter_add(1, others, told.flatten(1))

    def _by_view(self, of_items: Tensor) -> Tensor:
        """[T, S, V F] -> [T, V, S, F]."""
        tasks, examples, columns = of_items.shape
        return of_items.view(tasks, examples, self.views, columns // self.views).movedim(2, 1)

    def _start(self, users: Features) -> Tensor:
        """theta, [T, V, 1 + F]; the offset is that of all views."""
        theta = self.head.start(users)
        user = theta["user"].view(len(theta["user"]), self.views, -1)
        return torch.cat([theta["offset"][:, None, None].expand(-1, self.views, 1), user], 2)

    def _mean(self, weights: Tensor, share: Tensor) -> TaskState:
        """What scores as the views [T, V, 1 + F] do on the mean, with s."""
        user = weights[..., 1:].flatten(1) / self.views
        return {"user": torch.cat([user, share.unsqueeze(1)], 1), "offset": weights[..., 0].mean(1)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        related = state["related"]
        told = columns_of(related, items.ids) if index is None else related.gather(1, items.ids[index])
        return super().predict(state, items, index).add_(told).mul_(self.unit)

    def user_vectors(self, state: TaskState) -> Tensor:
        """[T, P]: user and offset; what related items are told is as long as the vocabulary, and follows from the support set."""
        return super().user_vectors({name: value for name, value in state.items() if name != "related"})

    def contenders(self, state: TaskState, items: ItemCodes, least: Tensor) -> Tensor:
        """All of them."""
        return self.predict(state, items)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """[T]: the mean of squared and absolute error, in units."""
        errors = (self.predict(state, items, examples.items) - examples.targets) / self.unit
        return masked_mean((errors.square() + errors.abs()) / 2, examples.mask)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over tasks of the query loss after adaptation, and what changes of items cost; a scalar."""
        changes = [*self.item_encoder.parameters(), *self.item_bias.parameters()]
        return (
            super().meta_loss(episodes)
            + self.stay * torch.stack([change.square().sum() for change in changes]).sum()
        )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """None decays: ``weight_decay`` is one number for all learners of a config, and here ``stay`` takes its place. What is
        known of offsets moves in larger steps.
        """
        trust = self.log_offset_precision
        others = [p for p in self.parameters() if p.requires_grad and p is not trust]
        return [
            {"params": others, "weight_decay": 0.0},
            {"params": [trust], "weight_decay": 0.0, "lr": _OFFSET_LR},
        ]
