"""What items share beside factors: the score of Fisher against autograd, and pairs that were put there."""

import torch
from torch import Tensor

from recsys_meta.models import residual_covariance as module
from recsys_meta.models.residual_covariance import residual_covariances
from recsys_meta.models.variational_factors import VariationalFactors, variational_factors

USERS, ITEMS = 1500, 40
PAIRS = torch.tensor([[3, 17], [8, 9], [20, 30]])


def simulated(shared: float) -> tuple[Tensor, Tensor, Tensor]:
    """owners, items, ratings: one factor, noise of variance 0.25 and, of each pair, something that both have by themselves."""
    draw = torch.Generator().manual_seed(0)
    taste, factor = torch.randn(USERS, generator=draw), torch.randn(ITEMS, generator=draw)
    noise = 0.5 * torch.randn(USERS, ITEMS, generator=draw)
    for one, other in PAIRS.tolist():
        together = shared * torch.randn(USERS, generator=draw)
        noise[:, one] += together
        noise[:, other] += together
    owners, items = (torch.rand(USERS, ITEMS, generator=draw) < 0.6).nonzero(as_tuple=True)
    return owners, items, 3 + (taste[:, None] * factor + noise)[owners, items]


def found_of(owners: Tensor, items: Tensor, ratings: Tensor, size: int = ITEMS) -> VariationalFactors:
    return variational_factors(owners, USERS, items, size, ratings, factors=1, rounds=20)


def dense(neighbour: Tensor, covariance: Tensor) -> Tensor:
    return torch.zeros(len(neighbour), len(neighbour)).scatter_add(1, neighbour, covariance)


def test_pairs_that_share_something_are_found_and_others_by_chance_alone() -> None:
    data = simulated(shared=0.4)
    shared = dense(
        *residual_covariances(data[0], USERS, *data[1:], found_of(*data), neighbours=10, largest=100)
    )
    one, other = PAIRS.unbind(1)
    assert ((shared[one, other] > 0.1) & (shared[one, other] < 0.25)).all()  # 0.16 was put there
    torch.testing.assert_close(shared, shared.T)
    shared[one, other] = shared[other, one] = 0.0
    assert (shared != 0).float().mean() < 0.1
    assert shared.abs().max() < 0.05


def test_where_nothing_is_shared_hardly_anything_is_found() -> None:
    data = simulated(shared=0.0)
    shared = dense(
        *residual_covariances(data[0], USERS, *data[1:], found_of(*data), neighbours=ITEMS, largest=100)
    )
    assert (shared != 0).float().mean() < 0.05


def test_the_score_and_its_variance_are_those_of_the_likelihood() -> None:
    owners, items, ratings = simulated(shared=0.4)
    few = owners < 5
    owners, items, ratings = owners[few], items[few], ratings[few]
    factors = found_of(*simulated(shared=0.4))
    left = ratings - factors.mean - factors.bias[items]
    slope, information = module._scores(owners, 5, items, left, factors, torch.arange(ITEMS))
    shared = torch.zeros(ITEMS, ITEMS, dtype=torch.float64, requires_grad=True)

    def likelihood(covariance: Tensor) -> Tensor:
        total = covariance.new_zeros(())
        for user in range(5):
            at, y = items[owners == user], left[owners == user].double()
            q = factors.vectors[at].double()
            own = (factors.noise + factors.variance[at].sum(1)).double()
            sigma = q @ q.T + own.diag() + 1 / factors.offset_precision.double() + covariance[at][:, at]
            total = total + torch.distributions.MultivariateNormal(
                torch.zeros(len(at)).double(), sigma
            ).log_prob(y)
        return total

    (gradient,) = torch.autograd.grad(likelihood(shared), shared)
    expected = (gradient + gradient.T).fill_diagonal_(0)  # one number stands at both places
    torch.testing.assert_close(slope.double(), expected, rtol=1e-3, atol=1e-3)
    for (
        one,
        other,
    ) in PAIRS.tolist():  # the variance of the score, over ratings drawn anew from the model without R
        both = [u for u in range(5) if {one, other} <= set(items[owners == u].tolist())]
        assert both or information[one, other] == 0
    drawn = []
    for seed in range(400):
        draw = torch.Generator().manual_seed(seed)
        noise = (factors.noise + factors.variance[items].sum(1)).sqrt() * torch.randn(
            len(items), generator=draw
        )
        taste = torch.randn(5, 1, generator=draw)
        offset = torch.randn(5, generator=draw) / factors.offset_precision.sqrt()
        y = (factors.vectors[items] * taste[owners]).sum(1) + offset[owners] + noise
        drawn.append(module._scores(owners, 5, items, y, factors, torch.arange(ITEMS))[0])
    scores = torch.stack(drawn)
    asked = information > 0
    assert scores.mean(0)[asked].abs().mean() < 0.1 * information[asked].sqrt().mean()
    ratio = scores.var(0)[asked] / information[asked]
    assert 0.9 < float(ratio.mean()) < 1.1


def test_of_many_items_the_most_rated_alone_share_anything() -> None:
    owners, items, ratings = simulated(shared=0.4)
    seen = (items != 3) | (owners < 50)
    owners, items, ratings = owners[seen], items[seen], ratings[seen]
    found = found_of(owners, items, ratings)
    shared = dense(
        *residual_covariances(owners, USERS, items, ratings, found, neighbours=10, largest=ITEMS - 1)
    )
    assert not shared[3].any()
    assert not shared[:, 3].any()
    assert shared[8, 9] > 0.1


def test_what_is_shared_has_the_square_of_the_unit_of_the_ratings() -> None:
    owners, items, ratings = simulated(shared=0.4)
    found = found_of(owners, items, ratings)
    large = VariationalFactors(
        mean=4 * found.mean,
        bias=4 * found.bias,
        marginal_bias=4 * found.marginal_bias,
        vectors=4 * found.vectors,
        variance=16 * found.variance,
        noise=16 * found.noise,
        offset_precision=found.offset_precision / 16,
    )
    once = residual_covariances(owners, USERS, items, ratings, found, neighbours=10, largest=100)[1]
    often = residual_covariances(owners, USERS, items, 4 * ratings, large, neighbours=10, largest=100)[1]
    torch.testing.assert_close(often, 16 * once, rtol=1e-3, atol=1e-4)


def test_a_few_users_alone_are_asked_where_there_are_many(monkeypatch) -> None:
    data = simulated(shared=0.4)
    found = found_of(*data)
    monkeypatch.setattr(module, "_USERS", USERS // 2)
    monkeypatch.setattr(module, "_RATINGS", 10)
    _, information = module._scores(data[0], USERS, data[1], data[2] - 3, found, torch.arange(ITEMS))
    monkeypatch.setattr(module, "_USERS", USERS)
    _, of_all = module._scores(data[0], USERS, data[1], data[2] - 3, found, torch.arange(ITEMS))
    assert 0.4 < float(information.sum() / of_all.sum()) < 0.6
