"""Losses against torch's own, and against sums worked by hand."""

import math

import pytest
import torch
from torch import nn

from recsys_meta.models.losses import (
    LossName,
    Pool,
    Scored,
    masked_mean,
    mean_surprise,
    pool_chances,
    score_gradient,
    task_loss,
)

SCORES = torch.tensor([0.5, -1.0, 2.0, 9.0])
MASK = torch.tensor([True, True, True, False])


def test_pointwise_losses_equal_those_of_torch() -> None:
    targets = torch.tensor([1.0, 0.0, 3.0, 5.0])
    scored = Scored(SCORES, targets, MASK)
    kept = SCORES[:3], targets[:3]
    torch.testing.assert_close(task_loss("squared", scored), nn.functional.mse_loss(*kept))
    torch.testing.assert_close(task_loss("absolute", scored), nn.functional.l1_loss(*kept))
    positive = (targets[:3] > 0).float()
    torch.testing.assert_close(
        task_loss("logistic", scored), nn.functional.binary_cross_entropy_with_logits(SCORES[:3], positive)
    )


def test_the_softmax_is_the_cross_entropy_over_the_kept_pool() -> None:
    pool_scores = torch.tensor([0.5, 2.0, -0.3, 4.0])
    kept = torch.tensor([True, True, True, False])
    scored = Scored(pool_scores[[0, 1]], torch.tensor([1.0, 1.0]), torch.ones(2, dtype=torch.bool))
    loss = task_loss("softmax", scored, Pool(pool_scores, torch.ones(2, dtype=torch.bool), ~kept))
    expected = nn.functional.cross_entropy(pool_scores[:3].expand(2, 3), torch.tensor([0, 1]))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("power", [0.0, 0.3])
def test_an_item_that_stands_for_several_counts_as_if_it_stood_there_so_often(power) -> None:
    scores = torch.tensor([0.5, 2.0, -0.3, 4.0], dtype=torch.float64, requires_grad=True)
    scored = Scored(scores[[0, 1]], torch.tensor([1.0, 2.0]), torch.ones(2, dtype=torch.bool))
    holds, counts = torch.ones(2, dtype=torch.bool), torch.tensor([1, 1, 5, 2])
    weighed = Pool(scores, holds, torch.tensor([False, False, False, False]), counts.double().log())
    repeated = Pool(scores.repeat_interleave(counts), holds)
    losses = [task_loss("softmax", scored, pool, power) for pool in (weighed, repeated)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in losses))
    # Gradients written out are of the scores before they are weighed.
    residuals = score_gradient("softmax", scored, weighed)
    assert residuals.chances is not None
    expected = torch.softmax(scores + counts.double().log(), 0)
    torch.testing.assert_close(residuals.chances, expected)


def test_a_positive_outside_the_pool_joins_its_own_normalizer() -> None:
    scored = Scored(torch.tensor([50.0]), torch.ones(1), torch.ones(1, dtype=torch.bool))
    pool = Pool(torch.tensor([0.0, 0.0]), torch.zeros(1, dtype=torch.bool))
    assert 0 <= task_loss("softmax", scored, pool).item() < 1e-6


def test_the_sampled_softmax_with_every_item_as_negative_is_the_full_softmax() -> None:
    everything = torch.tensor([0.5, 2.0, -0.3, 1.0])
    proposal = torch.zeros(4)
    scored = Scored(
        torch.cat([everything[:1], everything[1:]]),
        torch.tensor([1.0, 0, 0, 0]),
        torch.ones(4, dtype=torch.bool),
        proposal,
    )
    expected = nn.functional.cross_entropy(everything[None], torch.tensor([0]))
    torch.testing.assert_close(task_loss("sampled_softmax", scored), expected)


def test_the_sampled_softmax_corrects_for_a_popular_negative() -> None:
    scored = Scored(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), torch.ones(2, dtype=torch.bool))
    plain = task_loss("sampled_softmax", scored)
    corrected = task_loss("sampled_softmax", scored._replace(log_proposal=torch.tensor([0.0, 2.0])))
    assert plain.item() == pytest.approx(math.log(2))
    assert corrected.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_bpr_is_the_mean_over_pairs() -> None:
    scored = Scored(SCORES, torch.tensor([1.0, 0.0, 2.0, 1.0]), MASK)
    pairs = [(0.5 + 1.0, 1.0), (2.0 + 1.0, 2.0)]  # difference, weight of the positive
    expected = sum(w * math.log1p(math.exp(-d)) for d, w in pairs) / 3
    assert task_loss("bpr", scored).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LossName.__args__)
def test_an_empty_set_has_no_loss_and_no_gradient(name) -> None:
    scores = SCORES.clone().requires_grad_()
    scored = Scored(scores, torch.ones(4), torch.zeros(4, dtype=torch.bool))
    pool = Pool(scores, torch.ones(4, dtype=torch.bool))
    loss = task_loss(name, scored, pool)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_the_mean_surprise_is_that_of_the_power_mean_of_chances(power: float) -> None:
    chances = torch.tensor([0.5, 0.125, 0.25, 0.9], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0])
    mean = ((0.5**power + 2 * 0.125**power + 0.25**power) / 4) ** (1 / power)
    assert mean_surprise(-chances.log(), weights, power).item() == pytest.approx(-math.log(mean))


def test_the_mean_surprise_of_power_0_is_the_limit_of_small_powers() -> None:
    surprise, weights = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64), torch.tensor([1.0, 0.5, 2.0])
    torch.testing.assert_close(
        mean_surprise(surprise, weights, 1e-6), mean_surprise(surprise, weights), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax"])
def test_a_power_has_a_finite_gradient_towards_the_likelier_positives(name) -> None:
    scores = torch.tensor([2.0, -3.0, 0.0, 50.0], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    scored = Scored(scores, targets, torch.tensor([True, True, True, False]))
    pool = Pool(torch.zeros(5, dtype=torch.float64), torch.ones(4, dtype=torch.bool))
    pulls = {}
    for power in (0.0, 1.0):
        (pulls[power],) = torch.autograd.grad(task_loss(name, scored, pool, power), scores)
        assert pulls[power].isfinite().all()
        assert pulls[power][3] == 0
    assert pulls[1.0][0] / pulls[1.0][1] > pulls[0.0][0] / pulls[0.0][1]
    assert torch.autograd.gradcheck(lambda s: task_loss(name, scored._replace(scores=s), pool, 0.5), scores)


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax"])
def test_an_empty_set_has_no_loss_under_a_power_either(name) -> None:
    scores = SCORES.clone().requires_grad_()
    scored = Scored(scores, torch.ones(4), torch.zeros(4, dtype=torch.bool))
    loss = task_loss(name, scored, Pool(scores, torch.ones(4, dtype=torch.bool)), 0.3)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_what_is_masked_out_cannot_spoil_a_mean() -> None:
    values = torch.tensor([1.0, math.inf, math.nan])
    assert masked_mean(values, torch.tensor([2.0, 0.0, 0.0])).item() == 1.0


def test_a_softmax_without_a_pool_and_an_unknown_name_are_refused() -> None:
    scored = Scored(SCORES, torch.ones(4), MASK)
    with pytest.raises(ValueError, match="needs the scores"):
        task_loss("softmax", scored)
    with pytest.raises(ValueError, match="unknown loss"):
        task_loss("hinge", scored)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LossName.__args__)
def test_the_written_out_derivative_is_that_of_autograd(name) -> None:
    draw = torch.Generator().manual_seed(3)
    scores, pool_scores = (torch.randn(6, n, generator=draw, dtype=torch.float64) for n in (5, 7))
    targets = torch.randint(0, 3, (6, 5), generator=draw).double()
    mask = torch.arange(5) < torch.tensor([0, 1, 2, 3, 4, 5])[:, None]
    holds, excluded = torch.rand(6, 5, generator=draw) < 0.6, torch.rand(6, 7, generator=draw) < 0.3
    scores.requires_grad_()
    pool_scores.requires_grad_()
    scored, pool = (
        Scored(scores, targets, mask, torch.randn(6, 5, generator=draw).double()),
        Pool(pool_scores, holds, excluded),
    )
    expected = torch.autograd.grad(
        task_loss(name, scored, pool).sum(), (scores, pool_scores), materialize_grads=True, allow_unused=True
    )
    found = score_gradient(name, scored, pool)
    torch.testing.assert_close(found.examples, expected[0])
    by_pool = torch.zeros_like(pool_scores) if found.chances is None else found.pull * found.chances
    torch.testing.assert_close(by_pool, expected[1])


def test_chances_and_normalizer_are_the_same_with_and_without_gradient() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 20
    excluded = torch.zeros(3, 50, dtype=torch.bool)
    excluded[1, ::2] = True
    excluded[2] = True  # nothing is left to choose
    pool = Pool(scores, torch.ones(3, 1, dtype=torch.bool), excluded)
    chances, normalizer = pool_chances(pool)
    with torch.no_grad():
        quick_chances, quick = pool_chances(pool)
    assert torch.equal(quick_chances[:2], chances[:2])
    assert torch.allclose(quick[:2], normalizer[:2], rtol=1e-6)
    assert quick[2] == normalizer[2] == -torch.inf
