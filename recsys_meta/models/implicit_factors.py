"""Factors of events: every pair of user and item that did not meet counts a little against it; a new user is folded in.

Y. Hu, Y. Koren, C. Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; the form of S. Rendle et al.:
Revisiting the Performance of iALS on Item Recommendation Benchmarks, RecSys 2022.

    argmin of sum over chosen (u, i) confidence (1 - p_u . q_i)^2 + sum over all (u, i) (p_u . q_i)^2 + ridge (|p|^2 + |q|^2)
    p_u = (Q^T Q + confidence sum over chosen q_i q_i^T + ridge I)^-1  confidence sum over chosen q_i,   score(u, i) = p_u . q_i

and the same for q_i. A new user is solved as one more p_u.

p . q is small where few users were fitted on beside the ridge, and its scale means nothing: scores are given in units of their
spread (``models.score_spread``).

Factors that a user helped to shape know what it chose besides its support. Who is to learn how far they can be trusted is
therefore cross-fitted: users are dealt into a few folds, and each is served by factors of the other folds alone.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from recsys_meta.models.incidence import incidence
from recsys_meta.models.ridge_solutions import ridge_by_group, ridge_solution
from recsys_meta.models.score_spread import spread_of
from recsys_meta.tensors import Catalogue, Histories


class ImplicitFactors(nn.Module):
    """iALS over a vocabulary, row 0 of which, the unknown, is never counted, and its cross-fitted versions.

    Args:
        ids: rows of the vocabulary.
        factors, confidence, ridge, rounds: of the fit; those of the baseline, but for fewer factors.
        folds: users r with equal r modulo ``folds`` are left out together.
        most_users: of more users so many are fitted on, drawn at random, whatever their fold.
    """

    factor: Tensor  # [ids, F]: q, of everybody
    precision: Tensor  # [F, F]: of a fold-in with these
    spread: Tensor  # []: the unit of scores
    fold_factor: (
        Tensor  # [folds, ids, F]: without those of the fold; [0, ..] where nobody is to be served by them
    )
    fold_precision: Tensor  # [folds, F, F]
    fold_spread: Tensor  # [folds]

    def __init__(
        self,
        ids: int,
        *,
        factors: int = 64,
        confidence: float = 10.0,
        ridge: float = 50.0,
        rounds: int = 5,
        folds: int = 4,
        most_users: int = 50_000,
    ) -> None:
        super().__init__()
        self.confidence, self.ridge, self.rounds = confidence, ridge, rounds
        self.folds, self.most_users = folds, most_users
        self.register_buffer("factor", torch.zeros(ids, factors))
        self.register_buffer("precision", torch.eye(factors))
        self.register_buffer("spread", torch.ones(()))
        # Of use in training alone: no bundle carries them.
        self.register_buffer("fold_factor", torch.zeros(0, ids, factors), persistent=False)
        self.register_buffer("fold_precision", torch.zeros(0, factors, factors), persistent=False)
        self.register_buffer("fold_spread", torch.ones(0), persistent=False)

    def fit(self, histories: Histories, catalogue: Catalogue, *, cross: bool) -> None:
        """Factors of everybody, and those of the folds where they are asked for (``cross``)."""
        chosen = incidence(histories, catalogue, len(self.factor))
        drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        users = drawn[: self.most_users].sort().values
        self.factor, self.precision, self.spread = self._fitted(chosen, users)
        served = range(self.folds if cross else 0)
        parts = [self._fitted(chosen, users[users % self.folds != fold]) for fold in served]
        if parts:
            self.fold_factor, self.fold_precision, self.fold_spread = map(
                torch.stack, zip(*parts, strict=True)
            )
        else:
            self.fold_factor, self.fold_precision = self.fold_factor[:0], self.fold_precision[:0]
            self.fold_spread = self.fold_spread[:0]

    def _fitted(self, chosen: Tensor, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, the precision of a fold-in and the spread of its scores, of these users' choices."""
        strength = {"confidence": self.confidence, "ridge": self.ridge}
        some = chosen.index_select(0, users).coalesce()
        factor = implicit_factors(some, self.factor.shape[1], **strength, rounds=self.rounds, seed=0)
        precision = precision_of(factor, **strength)
        spread = spread_of(some, partial(_folded_in, factor, precision, torch.ones(())))
        return (
            factor.to(self.factor),
            precision.to(self.factor),
            spread.to(self.factor),
        )

    @torch.no_grad()
    def scores(
        self, ids: Tensor, mask: Tensor, counted: Tensor | None = None, among: Tensor | None = None
    ) -> Tensor:
        """Of every item of the vocabulary after T support sets, in units of ``spread``, [T, ids]; 0 without support.
        ids, mask: [T, S].

        counted: [T], the rows that these users had when the factors were fitted; None: they had none.
        among: [C] ids: of these items alone, [T, C].
        """
        if counted is None or not len(self.fold_factor):
            return _folded_in(self.factor, self.precision, self.spread, ids, mask, among)
        asked, fold = len(self.factor if among is None else among), counted % self.folds
        scores = self.factor.new_zeros(len(ids), asked)
        of_folds = zip(self.fold_factor, self.fold_precision, self.fold_spread, strict=True)
        for number, (factor, precision, spread) in enumerate(of_folds):
            rows = (fold == number).nonzero().squeeze(1)
            scores[rows] = _folded_in(factor, precision, spread, ids[rows], mask[rows], among)
        return scores


def _folded_in(
    factor: Tensor,
    precision: Tensor,
    spread: Tensor,
    ids: Tensor,
    mask: Tensor,
    among: Tensor | None = None,
) -> Tensor:
    user = ridge_solution(factor[ids], mask.to(factor.dtype), mask, precision) / spread
    scores: Tensor = user @ (factor if among is None else factor[among]).T
    return scores


def implicit_factors(
    chosen: Tensor, factors: int, *, confidence: float, ridge: float, rounds: int, seed: int
) -> Tensor:
    """q, [ids, F], after so many rounds. chosen: [U, ids] sparse, 1 where the user chose the item."""
    users, vocabulary = chosen.shape
    owners, ids = chosen.indices()
    start = torch.randn(vocabulary, factors, generator=torch.Generator().manual_seed(seed))
    factor: Tensor = start * 0.1 / math.sqrt(factors)
    choices = torch.ones(len(ids))
    factor[0] = 0  # the unknown item
    for _ in range(rounds):
        precision = precision_of(factor, confidence=confidence, ridge=ridge)
        of_users = ridge_by_group(owners, users, factor, ids, choices, precision)
        precision = precision_of(of_users, confidence=confidence, ridge=ridge)
        factor = ridge_by_group(ids, vocabulary, of_users, owners, choices, precision)
    return factor


def precision_of(factor: Tensor, *, confidence: float, ridge: float) -> Tensor:
    """What all the pairs not chosen say, and the ridge, in units of a choice, [F, F]. factor: [N, F]."""
    precision: Tensor = (factor.T @ factor + ridge * torch.eye(factor.shape[1])) / confidence
    return precision
