"""Losses of tasks, given the scores of their examples, and their derivatives with respect to these scores.

Letters: S examples, P items of a pool. Every tensor may have leading task dimensions: [S] and [P] for one
task, [T, S] and [T, P] for T of them.

Pointwise losses judge each score by its target. Ranking losses judge positives (target > 0, which is their
weight) against a pool: all eligible items (softmax) or the sampled negatives among the examples (target 0;
sampled softmax, BPR). Every loss is a mean over what it judges, so that its size does not depend on the
number of shots, and 0 for an empty set.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

LossName = Literal["squared", "absolute", "logistic", "softmax", "sampled_softmax", "bpr"]

RATING_LOSSES = ("squared", "absolute")  # the score is in the units of the target
PAIRED_LOSSES = ("logistic", "sampled_softmax", "bpr")  # need sampled negatives beside the positives
SHIFT_INVARIANT_LOSSES = (
    "softmax",
    "sampled_softmax",
    "bpr",
)  # a constant added to a task's scores changes nothing

# Stands for minus infinity: keeps second derivatives finite for a task without negatives.
_FAR_BELOW = -1e4


class Scored(NamedTuple):
    """Scored examples."""

    scores: Tensor  # [.., S]
    targets: Tensor  # [.., S]
    mask: Tensor  # [.., S] bool
    log_proposal: Tensor | None = (
        None  # [.., S]: log probability of being drawn as a negative, up to a constant
    )


class Pool(NamedTuple):
    """What a full softmax normalizes over."""

    scores: Tensor  # [.., P]
    holds: Tensor  # [.., S] bool: whether the example is itself one of the P items
    excluded: Tensor | None = None  # [.., P] bool: items that will not be recommended to this task
    log_weight: Tensor | None = None  # [P]: log of how many items each stands for; None: for itself alone


class ScoreGradient(NamedTuple):
    """The derivative of a loss with respect to scores."""

    examples: Tensor  # [.., S]
    # Under a full softmax: by the pool's scores it is the product of the two.
    chances: Tensor | None = None  # [.., P]
    pull: Tensor | None = None  # [.., 1]


def task_loss(name: LossName, scored: Scored, pool: Pool | None = None, power: float = 0.0) -> Tensor:
    """The loss of each task, [..]. Raises ValueError where a loss lacks what it judges against.

    power: of the mean over a task's positives, for a softmax, full or sampled: see ``mean_surprise``.
    """
    scores, targets, mask = scored.scores, scored.targets, scored.mask
    match name:
        case "squared":
            return masked_mean((scores - targets).square(), mask)
        case "absolute":
            return masked_mean((scores - targets).abs(), mask)
        case "logistic":
            return masked_mean(
                binary_cross_entropy_with_logits(scores, positives(scored), reduction="none"), mask
            )
        case "softmax":
            # A positive outside the pool (no longer eligible) joins its own normalizer, so that its loss
            # stays above 0.
            pool = required(pool)
            below = pool_normalizer(pool).unsqueeze(-1) - scores
            surprise = torch.where(pool.holds, below, softplus(below))
            return mean_surprise(surprise, positive_weights(scored), power)
        case "sampled_softmax":
            # This is logaddexp(negatives, logit) - logit, whose second derivative torch gives as NaN where
            # they are far apart.
            logits = corrected(scored)
            surprise = softplus(negatives_normalizer(scored, logits) - logits)
            return mean_surprise(surprise, positive_weights(scored), power)
        case "bpr":
            difference = scores.unsqueeze(-1) - scores.unsqueeze(-2)
            return masked_mean(softplus(-difference).flatten(-2), pair_weights(scored).flatten(-2))
    raise ValueError(f"unknown loss {name!r}; expected one of {', '.join(LossName.__args__)}")


def score_gradient(name: LossName, scored: Scored, pool: Pool | None = None) -> ScoreGradient:
    """The derivative of ``task_loss`` by the scores, written out: differentiable once more without a second
    graph.

    Raises ValueError as ``task_loss`` does.
    """
    scores, targets, mask = scored.scores, scored.targets, scored.mask
    match name:
        case "squared":
            return ScoreGradient(2 * (scores - targets) * shares(mask.to(scores.dtype)))
        case "absolute":
            return ScoreGradient((scores - targets).sign() * shares(mask.to(scores.dtype)))
        case "logistic":
            return ScoreGradient((scores.sigmoid() - positives(scored)) * shares(mask.to(scores.dtype)))
        case "softmax":
            pool = required(pool)
            chances, normalizer = pool_chances(pool)
            below = normalizer.unsqueeze(-1) - scores
            pulls = torch.where(pool.holds, 1.0, below.sigmoid()) * shares(positive_weights(scored))
            return ScoreGradient(-pulls, chances, pulls.sum(-1, keepdim=True))
        case "sampled_softmax":
            logits = corrected(scored)
            pulls = (negatives_normalizer(scored, logits) - logits).sigmoid() * shares(
                positive_weights(scored)
            )
            chances = logits.masked_fill(~negatives(scored), _FAR_BELOW).softmax(-1) * negatives(scored)
            return ScoreGradient(pulls.sum(-1, keepdim=True) * chances - pulls)
        case "bpr":
            difference = scores.unsqueeze(-1) - scores.unsqueeze(-2)
            weights = pair_weights(scored)
            pulls = (-difference).sigmoid() * weights / total(weights.flatten(-2)).unsqueeze(-1)
            return ScoreGradient(pulls.sum(-2) - pulls.sum(-1))
    raise ValueError(f"unknown loss {name!r}; expected one of {', '.join(LossName.__args__)}")


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(weights * values) / sum(weights) over the last dimension; 0 where all weights are 0, whatever the
    values.
    """
    return (torch.where(weights > 0, values, 0.0) * shares(weights.to(values.dtype))).sum(-1)


def mean_surprise(surprise: Tensor, weights: Tensor, power: float = 0.0) -> Tensor:
    """Minus the logarithm of the power mean of the chances exp(-surprise), over the last dimension; 0 where all weights are 0.

        -1/power log sum_i share_i exp(-power surprise_i),   at power 0 its limit: sum_i share_i surprise_i

    The mean surprise, of power 0, asks for every positive alike; of power 1 for some positive, whichever it is: where a user
    chose hundreds, ten of them on top of a list are all that can be shown.
    """
    if power == 0:
        return masked_mean(surprise, weights)
    share = shares(weights.to(surprise.dtype))
    logs = share.clamp(min=1e-30).log() - power * torch.where(weights > 0, surprise, 0.0)
    mean = torch.logsumexp(logs.masked_fill(weights <= 0, _FAR_BELOW), -1) / -power
    return torch.where((weights > 0).any(-1), mean, 0.0)


def shares(weights: Tensor) -> Tensor:
    """Weights that sum to 1 over the last dimension, or are all 0."""
    return weights / total(weights)


def total(weights: Tensor) -> Tensor:
    """The sum over the last dimension, kept; tiny instead of 0, so that it can divide."""
    return weights.sum(-1, keepdim=True).clamp(min=1e-12)


def positives(scored: Scored) -> Tensor:
    """1 for an example with a target above 0, 0 for any other."""
    return (scored.targets > 0).to(scored.scores.dtype)


def positive_weights(scored: Scored) -> Tensor:
    """The weight of each positive example, 0 for any other."""
    return scored.mask * scored.targets.clamp(min=0)


def negatives(scored: Scored) -> Tensor:
    """Which examples are sampled negatives."""
    return scored.mask & (scored.targets <= 0)


def pair_weights(scored: Scored) -> Tensor:
    """[.., S, S]: the weight of the positive where the row is one and the column a negative, else 0."""
    return positive_weights(scored).unsqueeze(-1) * negatives(scored).unsqueeze(-2)


def corrected(scored: Scored) -> Tensor:
    """Scores less the log proposal (Bengio & Senecal 2008), without which popular negatives would be pushed
    too far.
    """
    return scored.scores if scored.log_proposal is None else scored.scores - scored.log_proposal


def negatives_normalizer(scored: Scored, logits: Tensor) -> Tensor:
    """[.., 1]: log of the summed exponentials of the negatives."""
    return torch.logsumexp(logits.masked_fill(~negatives(scored), _FAR_BELOW), dim=-1, keepdim=True)


def required(pool: Pool | None) -> Pool:
    """The pool, which a full softmax cannot do without."""
    if pool is None:
        raise ValueError("a full softmax needs the scores of the eligible items; found none")
    return pool


def kept_scores(pool: Pool) -> Tensor:
    """[.., P]: what is normalized, minus infinity for what is excluded."""
    scores = pool.scores if pool.log_weight is None else pool.scores + pool.log_weight
    return scores if pool.excluded is None else scores.masked_fill(pool.excluded, -torch.inf)


def pool_chances(pool: Pool) -> tuple[Tensor, Tensor]:
    """The softmax over what is kept, [.., P], and ``pool_normalizer``, [..]."""
    kept = kept_scores(pool)
    chances = kept.softmax(-1)
    if torch.is_grad_enabled():
        return chances, torch.logsumexp(kept, dim=-1)
    # The largest score and its chance say it, in a quarter of the time.
    top = kept.amax(-1)
    return chances, torch.where(top > -torch.inf, top - chances.amax(-1).log(), top)


def pool_normalizer(pool: Pool) -> Tensor:
    """[..]: log of the summed exponentials of what is kept."""
    if torch.is_grad_enabled():
        return torch.logsumexp(kept_scores(pool), dim=-1)
    return pool_chances(pool)[1]
