"""The variational factorization on ratings whose answer is known."""

import torch

from recsys_meta.models import variational_factors as module
from recsys_meta.models.variational_factors import VariationalFactors, variational_factors

USERS, ITEMS = 400, 40


def simulated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """owners, items, ratings, and the item factor behind them; item 0 is rated by few, noise has variance 0.25."""
    draw = torch.Generator().manual_seed(0)
    taste, factor = torch.randn(USERS, generator=draw), torch.randn(ITEMS, generator=draw)
    seen = torch.rand(USERS, ITEMS, generator=draw) < 0.5
    seen[8:, 0] = False
    owners, items = seen.nonzero(as_tuple=True)
    bias = 0.5 * torch.randn(USERS, generator=draw)
    noise = 0.5 * torch.randn(len(items), generator=draw)
    return owners, items, 3 + bias[owners] + taste[owners] * factor[items] + noise, factor


def fitted(rounds: int = 30) -> VariationalFactors:
    owners, items, ratings, _ = simulated()
    return variational_factors(owners, USERS, items, ITEMS, ratings, factors=2, rounds=rounds)


def test_it_finds_the_noise_the_users_spread_and_the_factor() -> None:
    found, factor = fitted(), simulated()[3]
    torch.testing.assert_close(found.noise, torch.tensor(0.25), rtol=0.05, atol=0.0)
    torch.testing.assert_close(found.offset_precision, torch.tensor(4.0), rtol=0.25, atol=0.0)
    together = torch.corrcoef(torch.stack([factor, *found.vectors.T]))[0, 1:]
    assert together.abs().max() > 0.95
    # The second factor, which the ratings do not have, is pruned.
    strength = found.vectors.square().mean(0).sort().values
    assert strength[0] < 0.01 * strength[1]


def test_an_item_that_few_have_rated_is_less_certain() -> None:
    variance = fitted().variance.amax(1)
    assert variance[0] > 3 * variance[1:].max()


def test_users_in_blocks_give_the_same_factors(monkeypatch) -> None:
    whole = fitted(rounds=3)
    monkeypatch.setattr(module, "_USERS", 37)
    for one, other in zip(fitted(rounds=3), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_marginal_biases_are_those_of_the_ridge_without_factors() -> None:
    owners, items, ratings, _ = simulated()
    centred = ratings - ratings.mean()
    of_item, of_user = 2 + torch.arange(ITEMS) / 10, torch.tensor(3.0)
    found = module._biases(
        owners, items, centred, torch.zeros(ITEMS), of_item, of_user, torch.bincount(owners, minlength=USERS)
    )
    rows = torch.arange(len(items))
    design = torch.zeros(len(items), ITEMS + USERS, dtype=torch.float64)
    design[rows, items] = design[rows, ITEMS + owners] = 1.0
    prior = torch.cat([of_item, of_user.expand(USERS)]).double().diag()
    expected = torch.linalg.solve(design.T @ design + prior, design.T @ centred.double())[:ITEMS]
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=5e-4)
