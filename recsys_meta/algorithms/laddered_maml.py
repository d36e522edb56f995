"""MAML that starts from the strongest closed forms instead of from nothing: cosines, iALS and a regression stand in its score.

C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning, ICML 2017, as in ``maml``; M. Deshpande, G. Karypis: Item-based top-N
recommendation algorithms, ACM TOIS 22(1), 2004, for the cosines; ``models.implicit_factors`` for iALS,
``models.episode_regression`` for the regression.

    score(u, i | S) = w_0(n) bias_i + phi_u . v_i                              MAML: phi_u after K gradient steps on S
                    + w_1(n) c_i(S) + w_2(n) log(1 + kappa c_i(S))             c_i(S): cosines of i with the n items of S
                    + w_3(n) log lift_i(S)                                     how many times more likely S makes i
                    + w_4(n) p(S) . q_i                                        q: iALS, p(S): S folded in

bias_i holds a learned multiple of log popularity, and w_0 .. w_4 are curves over the number of shots n, so that popularity,
ItemKNN, iALS, the regression on few choices and their blends are points of the space that is searched; the logarithm is what
sparse data ask for, where any meeting at all says much and a second one little. All is learned end to end from the query loss,
with a training user's own contribution taken out of popularity and of the cosines (see ``models.cooccurrence``), and with factors
and a regression that others shaped (see ``models.implicit_factors``): without that each looks too good, and its weight grows too
large, the more so the fewer users.

The query loss speaks of everything that a user chose, a list of ten only of what stands on top. The loss leans towards the
latter (a power mean over the chances of what was chosen, see ``models.losses``), and how much of phi_u - theta is kept, and how
much more or less iALS, the regression, popularity and cosines count, is settled after meta-training by the NDCG@10 of users not
trained on.

What suits most data sets before anything is learned is known as well: weights of the same parts, with log popularity for bias_i,
read off draws of nine of them (docs/new-sets.md). Where few users are there to settle what was learned, a quarter of
it and three quarters of this are the score (not in time, where items may rise and fall); elsewhere what was learned alone.

Without history the score is popularity plus a share of what was learned besides, and that share is settled after meta-training
by users not trained on: 0 unless they gain. Where nothing is known of a user there is often nothing to add.

Where items come and go within a day nothing is known of them but numbers (counts of several windows, ages), and what these
foretold at moments of the past (``models.softmax_regression``) is the score, of everybody alike. Meta-trained besides, the same
numbers served two nights alike and one much worse (docs/news.md).

The query loss weighs users as NDCG@10 does, |Q| / ideal DCG(min(|Q|, 10)): a mean over each query set alone would have users with
few examples say what is popular.

Differs from MAML in nothing else: the inner loop descends the support loss of MAML's own part.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import Gains, Judging, TaskState
from recsys_meta.algorithms.maml import MAML
from recsys_meta.algorithms.scorer import columns_of
from recsys_meta.models.cooccurrence import Cooccurrence
from recsys_meta.models.episode_regression import EpisodeRegression
from recsys_meta.models.heads import LinearHead
from recsys_meta.models.implicit_factors import ImplicitFactors
from recsys_meta.models.incidence import choices_of
from recsys_meta.models.losses import RATING_LOSSES, LossName
from recsys_meta.models.shot_curve import KNOTS, ShotCurve
from recsys_meta.models.softmax_regression import softmax_regression
from recsys_meta.tensors import (
    Catalogue,
    EpisodeBatch,
    Examples,
    Features,
    Histories,
    ItemCodes,
    Ragged,
    Sizes,
)

_CUTOFF = 10  # of the NDCG that the meta-loss weighs users for
_DEPARTURES = (0.5, 1.0)  # shares that are tried against none
_LESS = ((0.0, 0.0), (0.5, 0.0))  # times the adaptation; plus nothing
_OTHER_TRUST = (
    *_LESS,
    *((1.0, more) for more in (0.25, 0.5, 1.0, 2.0)),
)  # the trust in iALS, or the regression
_OTHER_BIAS = tuple((1.0, more) for more in (-0.3, -0.15, 0.15, 0.3, 0.5))  # the same of the item biases
_OTHER_COSINES = tuple((times, 0.0) for times in (0.0, 0.5, 1.5, 2.0))  # the same of the cosines
_OTHER_LOGS = (*_OTHER_COSINES, (0.75, 0.0), (1.25, 0.0), (1.0, 0.5), (1.0, 1.0))  # and of their logarithms
_ROUNDS = 3  # in which all of these are settled, fewer where one changes nothing
_FEWEST, _FEWEST_USERS = 20, 10  # episodes that can say anything
_ENOUGH_USERS = 300  # to settle by
_SHARE_OF_FEW = 0.25  # of what was learned, where there are fewer, beside what is usual
# What suits most data sets before anything is learned, at the knots: weights of log popularity, log cosines, log lift and iALS.
_USUAL = {
    "bias_curve": (1.0, 1.0, 1.0, 1.0, 1.0, 0.95, 0.9, 0.8, 0.75, 0.7),
    "linear_curve": (0.0,) * len(KNOTS),
    "log_curve": (0.4, 0.4, 0.4, 0.45, 0.5, 0.5, 0.55, 0.65, 0.7, 0.7),
    "lift_curve": (0.6, 0.6, 0.7, 0.75, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7),
    "factor_curve": (0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.25, 0.25, 0.25),
}
_SHOT_GROUPS = ((1, 5), (6, 14), (15, KNOTS[-1]))
_CURVE_LR = 0.03  # of some dozen weights that all episodes speak of; the encoders need smaller steps


# What closed forms say, and how much each counts.
_LADDER = {"cosines": "linear_curve", "logs": "log_curve", "lift": "lift_curve", "factors": "factor_curve"}
_EVIDENCE = (*_LADDER, "shots", "start", "liked")
_CURVES = tuple(_USUAL)


class _Known(nn.Module):
    """What is counted and solved of the events of one time."""

    def __init__(
        self, cooccurrence: Cooccurrence, regression: EpisodeRegression, implicit: ImplicitFactors
    ) -> None:
        super().__init__()
        self.cooccurrence, self.regression, self.implicit = cooccurrence, regression, implicit

    def fit(self, histories: Histories, catalogue: Catalogue, *, cross: bool) -> None:
        """cross: of ``EpisodeRegression`` and ``ImplicitFactors``."""
        self.cooccurrence.fit(histories, catalogue)
        self.regression.fit(histories, catalogue, cross=cross)
        self.implicit.fit(histories, catalogue, cross=cross)


class LadderedMAML(MAML):
    """MAML plus item-item cosines, a regression on few choices and iALS, for losses that rank.

    Args:
        sizes: features of users and items to provide for.
        loss: one that ranks; see ``models.losses``.
        neighbours, largest: of ``Cooccurrence``.
        regressed: of ``EpisodeRegression``, its ``largest``.
        factors: of ``ImplicitFactors``.
        prior_decay: weight decay of item biases and of what is known of users: what is not said again and again falls back
            to popularity.
        vector_decay: weight decay of the item vectors.
        power: of the mean that tasks are judged by; see ``models.losses.mean_surprise``.
        item_ids: as of ``MAML``.
        counts: whether there are cosines, a regression and factors; None: where there are ids.
        settings: of ``MAML``.

    Raises:
        ValueError: the loss predicts ratings.
    """

    departure: (
        Tensor  # []: the share of what was learned that stands beside popularity where there is no history
    )
    forecast: (
        Tensor  # [1 + numbers]: weights of log popularity and of an item's numbers; at first popularity alone
    )

    averaged = True
    contract_settings = (
        {"loss": "softmax", "dim": 8},
        {"loss": "softmax", "dim": 8, "largest": 0, "neighbours": 10, "regressed": 20},
        {"loss": "sampled_softmax", "dim": 8},
    )

    def __init__(
        self,
        sizes: Sizes,
        *,
        loss: LossName = "softmax",
        dim: int = 128,
        dropout: float = 0.5,
        num_steps: int = 4,
        largest: int = 6000,
        neighbours: int = 300,
        regressed: int = 6000,
        factors: int = 64,
        prior_decay: float = 5.0,
        vector_decay: float = 1.0,
        power: float = 0.6,
        item_ids: bool = True,
        counts: bool | None = None,
        **settings: Any,
    ) -> None:
        if loss in RATING_LOSSES:
            ranking = [name for name in get_args(LossName) if name not in RATING_LOSSES]
            raise ValueError(f"found loss {loss!r}; expected one that ranks: {', '.join(ranking)}")
        super().__init__(
            sizes, loss=loss, dim=dim, dropout=dropout, num_steps=num_steps, item_ids=item_ids, **settings
        )
        self.vocabulary = sizes.item.ids if (item_ids if counts is None else counts) else 1
        self.past: list[_Known] = []  # of training alone; no bundle carries it
        self.choices: Ragged | None = None  # of those counted; of training alone too
        self.prior_decay = prior_decay
        self.vector_decay = vector_decay
        self.power = power
        self.known = _Known(
            Cooccurrence(self.vocabulary, largest=largest, neighbours=neighbours),
            EpisodeRegression(self.vocabulary, largest=regressed),
            ImplicitFactors(self.vocabulary, factors=factors),
        )
        self.bias_curve = ShotCurve(1.0)
        self.linear_curve = ShotCurve(0.0)
        self.log_curve = ShotCurve(0.5)
        self.lift_curve = ShotCurve(0.75)
        self.factor_curve = ShotCurve(0.0)
        self.kept_curve = ShotCurve(1.0).requires_grad_(False)
        self.usual = nn.ModuleDict({name: ShotCurve(_USUAL[name]) for name in _CURVES}).requires_grad_(False)
        self.learned_curve = ShotCurve(1.0).requires_grad_(False)  # share of what was learned beside it
        self.register_buffer("departure", torch.ones(()))
        self.foretells = self.item_bias.ids is None and self.vocabulary == 1 and self.whole_catalogue
        self.averaged = not self.foretells
        if self.foretells:
            self.register_buffer("forecast", torch.eye(1, 1 + sizes.item.numbers).squeeze(0))
        self.log_kappa = nn.Parameter(torch.tensor(50.0).log())
        if self.vocabulary == 1:
            self.log_kappa.requires_grad_(False)
            for name in _CURVES:
                getattr(self, name).requires_grad_(False)
        if isinstance(self.head, LinearHead):  # noise would only hide what the ladder knows
            for weight in self.head.parameters():
                nn.init.zeros_(weight)

    def fit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """Counts who was chosen together with whom, and factorizes it."""
        super().fit_statistics(histories, catalogue)
        self._fit_ladder(histories, catalogue, cross=not self.past)
        self.choices = choices_of(histories, catalogue, self.vocabulary)

    def fit_snapshots(self, snapshots: Sequence[tuple[Histories, Catalogue]]) -> None:
        """Counts and factors as of each."""
        for histories, catalogue in snapshots if self.vocabulary > 1 else ():
            then = deepcopy(self.known)
            then.fit(histories, catalogue, cross=False)
            self.past.append(then)

    def fit_forecast(self, asked: Sequence[tuple[Catalogue, Tensor]]) -> None:
        """Where nothing but numbers tells items apart that come and go, what these foretell takes the place of popularity, and
        stands alone.
        """
        if self.foretells and any(counts.any() for _, counts in asked):
            inputs = [_numbers_of(catalogue) for catalogue, _ in asked]
            self.forecast.copy_(softmax_regression(inputs, [counts for _, counts in asked]))
            self.departure.zero_()

    def refit_statistics(self, histories: Histories, catalogue: Catalogue) -> None:
        """The same, of more users."""
        self._fit_ladder(histories, catalogue, cross=False)
        self.choices = None

    def _fit_ladder(self, histories: Histories, catalogue: Catalogue, *, cross: bool) -> None:
        # Counts of all time would tell what the moments of training could not know, where items rise and fall within hours.
        if self.vocabulary > 1:
            self.known.fit(histories, catalogue, cross=cross)

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        """As of every learner; how much of the adaptation is kept is settled anew."""
        super().continue_from(state)
        self.kept_curve.values.fill_(1.0)
        self.learned_curve.values.fill_(1.0)

    def settle(self, gains: Judging, fellows: Sequence[Self] = ()) -> None:
        """How much of the prior stands beside popularity, and, at few, some and many shots, how much of the adaptation is kept
        and how much iALS, the regression, item biases and cosines count; the same for all fellows. Where users are few, it leans
        on what is usual besides.

        The first is the share with the largest gain of those that gain two standard errors, since popularity is seldom far from
        the best. The others stay as learned unless something else gains more than a standard error, one after the other and
        again, since what one of them should be depends on the rest. Both are asked of users who weigh alike and of users who
        weigh as much as they want, see ``_votes``.
        """
        together = (self, *fellows)

        def depart(share: float) -> None:
            for one in together:
                one.departure.fill_(share)

        best, most_gained = 0.0, 0.0
        popular, *departed = gains(False, [partial(depart, share) for share in (0.0, *_DEPARTURES)])
        for share, of_share in zip(_DEPARTURES, departed, strict=True):
            votes = _votes(of_share.values - popular.values, popular)
            gain = min(mean for mean, _ in votes)
            if gain > most_gained and all(mean > 2 * error for mean, error in votes):
                best, most_gained = share, gain
        depart(best)
        others: dict[str, Sequence[tuple[float, float]]] = (
            {"kept_curve": _LESS} if isinstance(self.head, LinearHead) else {}
        )
        if self.vocabulary > 1:
            others |= {
                "factor_curve": _OTHER_TRUST,
                "lift_curve": _OTHER_TRUST,
                "bias_curve": _OTHER_BIAS,
                "log_curve": _OTHER_LOGS,
                "linear_curve": _OTHER_COSINES,
            }
        unmoved = 0
        for name, of_it in [*others.items()] * _ROUNDS:
            moved = _settle_curves([getattr(one, name) for one in together], of_it, gains)
            unmoved = 0 if moved else unmoved + 1
            if unmoved == len(others):  # nor would the next round
                break
        if self.vocabulary > 1 and self.item_bias.ids is not None:
            _lean_on_the_usual([one.learned_curve for one in together], gains)

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        """As of MAML; without ids every item is the unknown one."""
        codes = super().encode(catalogue)
        if self.foretells:
            codes = codes._replace(log_popularity=_numbers_of(catalogue) @ self.forecast)
        return codes if self.vocabulary > 1 else codes._replace(ids=torch.zeros_like(codes.ids))

    def ladder(
        self,
        support: Examples,
        items: ItemCodes,
        own: Tensor | None = None,
        counted: Tensor | None = None,
        among: Tensor | None = None,
    ) -> TaskState:
        """What closed forms say of every item of the vocabulary, [T, ids]: "cosines", their "logs", "lift" and "factors" (iALS);
        and "shots": [T].

        own: of ``Cooccurrence.cosines``; counted: of ``EpisodeRegression.scores`` and ``ImplicitFactors.scores``; among: of all
        three.
        """
        known = self.known
        if items.snapshot is not None and self.past:
            known = self.past[int(items.snapshot)].to(items.ids.device)
            own = counted = None  # who came later was not counted
        ids = items.ids[support.items]
        liked = support.mask & (support.targets > 0) & (ids > 0)
        cosines = known.cooccurrence.cosines(ids, liked, own, among)
        return {
            "cosines": cosines,
            "logs": torch.log1p(self.log_kappa.exp() * cosines),
            "lift": known.regression.scores(ids, liked, counted, among),
            "factors": known.implicit.scores(ids, liked, counted, among),
            "shots": liked.sum(1),
        }

    def blend(self, ladder: TaskState) -> TaskState:
        """{"affinity": [T, ids], what cosines, lift and factors add to the score of every item of the vocabulary; "trust":
        [T, 1], how many times its bias is added once more; "learned": [T, 1], the share of all this beside popularity;
        "usual": [T, 1], how many times that counts}.
        """
        shots = ladder["shots"]
        share = self.learned_curve(shots)

        def weight(name: str) -> Tensor:
            # In units of what was learned, of which ``share`` remains in the end.
            return torch.addcmul(
                getattr(self, name)(shots), 1 / share - 1, self.usual[name](shots)
            ).unsqueeze(1)

        affinity = torch.zeros_like(ladder["lift"])
        for part, curve in _LADDER.items():  # in place: nothing that is differentiated needs what it was
            affinity.addcmul_(weight(curve), ladder[part])
        # The bias gives way to cosines; where there are none, a number of shots alone shall change nothing.
        trust = self.bias_curve(shots) - 1 if self.vocabulary > 1 else torch.zeros_like(affinity[:, 0])
        with_history = (shots > 0) & (not self.foretells)
        learned = torch.where(with_history, share, self.departure)
        usual = torch.where(with_history, self.usual["bias_curve"](shots), 1.0)
        return {
            "affinity": affinity,
            "trust": trust.unsqueeze(1),
            "learned": learned.unsqueeze(1),
            "usual": usual.unsqueeze(1),
        }

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The head's weights after K steps, as far as they are kept, and what ``blend`` gives."""
        if (
            self.foretells and self.departure == 0
        ):  # what was foretold stands alone: steps would change nothing
            return self.prior(support, users, items)
        return self.weighed(self.evidence(support, users, items))

    def evidence(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The head's weights after K steps, where they started ("start") and what ``ladder`` gives, with "liked": [T], for whom
        these steps are.
        """
        found = super().adapt(support, users, items) | self.ladder(support, items)
        if isinstance(self.head, LinearHead):  # an MLP's weights may be left unformed
            found["start"] = super().prior(support, users, items)["user"]
            found["liked"] = (support.mask & (support.targets > 0)).sum(1)
        return found

    def weighed(self, evidence: TaskState) -> TaskState:
        """The head's weights as far as they are kept, and what ``blend`` gives."""
        state = {name: value for name, value in evidence.items() if name not in _EVIDENCE}
        if isinstance(self.head, LinearHead):
            start, kept = evidence["start"], self.kept_curve(evidence["liked"]).unsqueeze(1)
            state["user"] = start + kept * (state["user"] - start)
        return state | self.blend(evidence)

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """theta; nothing is known to go with nothing."""
        tasks = len(support.items)
        nothing = {part: items.bias.new_zeros(tasks, 1) for part in _LADDER}
        blended = self.blend(nothing | {"shots": support.mask.new_zeros(tasks, dtype=torch.int64)})
        blended["affinity"] = blended["affinity"].expand(tasks, self.vocabulary)
        return super().prior(support, users, items) | blended

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Mean over tasks of the query loss after adaptation, each user's own choices taken out of the counts; a scalar."""
        items, among, columns = self.encode(episodes.catalogue), None, self.vocabulary
        placed = items  # with the column of each item in what the ladder says for its id
        tasks, ids, times = self._own_choices(episodes)
        partial = items.log_weight is not None or not self.whole_catalogue
        if partial and self.vocabulary > 1:  # of the batch's own items alone is anything asked
            among, places = torch.unique(torch.cat([items.ids, ids]), return_inverse=True)
            of_items, ids = places[: len(items.ids)], places[len(items.ids) :]
            placed, columns = items._replace(ids=of_items), len(among)
        own = items.bias.new_zeros(len(episodes.users.ids), columns)
        own[tasks, ids] = 1.0
        ladder = self.blend(self.ladder(episodes.support, items, own, episodes.counted, among))
        if episodes.catalogue.hindsight and self.vocabulary > 1:
            less = self.less_popular(placed, columns, ids, times) * (1 + ladder["trust"][tasks, 0])
            ladder["affinity"] = ladder["affinity"].index_put((tasks, ids), less, accumulate=True)
        state = super().adapt(episodes.support, episodes.users, items) | ladder
        return self.task_loss(state, episodes.query, placed, episodes.support).mean()

    def less_popular(self, items: ItemCodes, columns: int, ids: Tensor, times: Tensor) -> Tensor:
        """How much less popularity adds to the score of N ids below ``columns``, where so many choices do not count, [N]."""
        assert items.log_popularity is not None
        count = items.bias.new_zeros(columns).scatter(0, items.ids, items.log_popularity.expm1())[ids]
        return self.popularity_weight * ((count - times).clamp(min=0).log1p() - count.log1p())

    def _own_choices(self, episodes: EpisodeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """What of the users is counted, as tasks, ids and how often, [N] each: all that they chose, whatever of it the episodes
        hold; nothing of who was not there.
        """
        device = episodes.users.ids.device
        if self.choices is None or episodes.counted is None:
            nothing = torch.zeros(0, dtype=torch.int64, device=device)
            return nothing, nothing, nothing
        theirs = self.choices.take(episodes.counted.cpu())
        tasks = torch.arange(len(theirs.lengths)).repeat_interleave(theirs.lengths)
        ids, times = theirs.values.to(device).unbind(1)
        return tasks.to(device), ids, times

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        assert items.log_popularity is not None
        popularity = items.log_popularity if index is None else items.log_popularity[index]
        learned, usual = state["learned"], state["usual"]
        looked_at = learned.is_cpu and not learned.requires_grad  # elsewhere looking costs more than it saves
        if looked_at and bool((learned == 0).all()):  # as where what was foretold stands alone
            return usual * popularity
        scores, affinity = super().predict(state, items, index), state["affinity"]
        if self.vocabulary > 1:  # else the ladder has nothing to add
            of_ladder = (
                columns_of(affinity, items.ids) if index is None else affinity.gather(1, items.ids[index])
            )
            bias = items.bias if index is None else items.bias[index]
            scores = torch.addcmul(scores + of_ladder, state["trust"], bias)
        if looked_at and bool((learned == 1).all()):
            return scores
        return torch.lerp(usual * popularity, scores, learned)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        """[T]: as of MAML; among all items weighted as NDCG weighs the examples of users with many and with few."""
        positives = (examples.mask & (examples.targets > 0)).sum(1)
        places = torch.arange(2, _CUTOFF + 2, device=positives.device)
        ideal = torch.cat([positives.new_ones(1).float(), places.log2().reciprocal().cumsum(0)])
        weight = positives / ideal[positives.clamp(max=_CUTOFF)] * ideal[_CUTOFF] / _CUTOFF
        weight = torch.where(examples.lists, 1.0, weight) if self.whole_catalogue else weight
        return super().task_loss(state, examples, items, excluded) * weight

    def contenders(self, state: TaskState, items: ItemCodes, least: Tensor) -> Tensor:
        """All of them: what the head alone rules out may be lifted by its affinity."""
        return self.predict(state, items)

    def user_vectors(self, state: TaskState) -> Tensor:
        """[T, P]: the head's weights; what the ladder adds is as long as the vocabulary, and follows from the support set."""
        return super().user_vectors({name: value for name, value in state.items() if name != "affinity"})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """The curves in larger steps; decays as set, for ``weight_decay`` is one number for all learners of a config."""
        groups: dict[str, list[nn.Parameter]] = {"curves": [], "prior": [], "vectors": [], "others": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[_group_of(name)].append(parameter)
        return [
            {"params": groups["curves"], "weight_decay": 0.0, "lr": _CURVE_LR},
            {"params": groups["prior"], "weight_decay": self.prior_decay},
            {"params": groups["vectors"], "weight_decay": self.vector_decay},
            {"params": groups["others"], "weight_decay": 0.0},
        ]


def _settle_curves(
    curves: Sequence[ShotCurve],
    others: Sequence[tuple[float, float]],
    gains: Judging,
) -> bool:
    """Puts the best of (times, plus) at each group of shots, in all curves alike: what gains most beyond its standard error, if
    anything does, both where users weigh alike and where they weigh as much as they want. Whether anything did.
    """
    knots, learned = torch.tensor(KNOTS), [curve.values.detach().clone() for curve in curves]

    def put(some: Tensor, times: float, plus: float) -> None:
        for curve, values in zip(curves, learned, strict=True):
            curve.values.data[some] = times * values[some] + plus

    every, moved = knots >= 0, False
    kept, *found = gains(True, [partial(put, every, *other) for other in ((1.0, 0.0), *others)])
    put(every, 1.0, 0.0)
    for least, most in _SHOT_GROUPS:
        best = 0.0
        for (times, plus), of_other in zip(others, found, strict=True):
            asked = (kept.shots >= least) & (kept.shots <= most)
            beyond = min(gain - error for gain, error in _votes(of_other.values - kept.values, kept, asked))
            if beyond > best:
                best, moved = beyond, True
                put((knots >= least) & (knots <= most), times, plus)
    return moved


def _lean_on_the_usual(curves: Sequence[ShotCurve], gains: Judging) -> None:
    """Lets a quarter of what was learned stand beside what is usual, at each group of shots that few users say something of.

    Not where these lose two standard errors by it, nor of lists, of which it is not known what suits them, nor in time: where
    items rise and fall, what usually suits does not.
    """
    knots = torch.tensor(KNOTS)

    def keep(share: float, some: Tensor) -> None:
        for curve in curves:
            curve.values.data[some] = share

    with_history = knots > 0
    kept, leaning = gains(True, [partial(keep, share, with_history) for share in (1.0, _SHARE_OF_FEW)])
    if not kept.plain.all():
        keep(1.0, with_history)
        return
    gained = leaning.values - kept.values
    for least, most in _SHOT_GROUPS:
        asked = (kept.shots >= least) & (kept.shots <= most)
        gain, error = _mean_and_error(gained[asked], kept.users[asked])
        if len(torch.unique(kept.users[asked])) >= _ENOUGH_USERS or gain < -2 * error:
            keep(1.0, (knots >= least) & (knots <= most))


def _votes(gained: Tensor, of: Gains, some: Tensor | None = None) -> list[tuple[float, float]]:
    """What is gained and its standard error where users weigh alike, and where they weigh as much as they want, a list of ten at
    most: the many who want one thing may want another one than those who stay.

    some: mask of the episodes that are asked; None: all.
    """
    some = torch.ones_like(of.shots, dtype=torch.bool) if some is None else some
    gained, users, wanted = gained[some], of.users[some], of.asked[some].clamp(max=_CUTOFF)
    return [_mean_and_error(gained, users, weights) for weights in (None, wanted)]


def _mean_and_error(gained: Tensor, users: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """The mean and its standard error, several episodes of one user counted together; 0 and 0 of too few to say.

    weights: of the episodes, like gained; None: they weigh alike.
    """
    which = torch.unique(users, return_inverse=True)[1]
    number = int(which.max()) + 1 if len(which) else 0
    if len(gained) < _FEWEST or number < _FEWEST_USERS:
        return 0.0, 0.0
    shares = torch.ones_like(gained) if weights is None else weights.to(gained.dtype)
    shares = shares / shares.sum()
    mean = shares @ gained
    off = gained.new_zeros(number).index_add(0, which, shares * (gained - mean))
    return float(mean), float((off.square().sum() * number / (number - 1)).sqrt())


def _numbers_of(catalogue: Catalogue) -> Tensor:
    """Log popularity and the numbers of each item, [I, 1 + F]."""
    return torch.cat([catalogue.log_popularity.unsqueeze(1), catalogue.features.numbers], dim=1)


def _group_of(name: str) -> str:
    """Which of the groups a parameter belongs to."""
    if name.split(".")[0] in (*_CURVES, "log_kappa"):
        return "curves"
    if ".numbers." in name or ".vectors." in name:  # few weights, of which every example speaks
        return "others"
    if name.startswith(("item_bias", "head")):
        return "prior"
    return "vectors" if name.startswith("item_encoder") else "others"
