"""The softmax regression: closed forms, another solver, and what it must not fall over."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from recsys_meta.models.softmax_regression import softmax_regression


def moments(seed: int, sizes: tuple[int, ...] = (30, 12, 50), numbers: int = 4):
    draw = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, numbers, generator=draw, dtype=torch.float64) for size in sizes]
    counts = [torch.randint(0, 5, (size,), generator=draw) for size in sizes]
    return inputs, counts


def test_of_one_mark_the_weight_is_the_log_odds_ratio() -> None:
    marked = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).unsqueeze(1)
    counts = torch.tensor([3, 5, 1, 0, 1])  # 8 of 10 on two of five
    weight = softmax_regression([marked], [counts])
    assert float(weight) == pytest.approx(float(torch.tensor((0.8 / 2) / (0.2 / 3)).log()), abs=1e-4)


def test_log_counts_foretell_shares_of_their_own_power() -> None:
    before = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    asked = (before**1.5 * 1000).round()
    weight = softmax_regression([before.log().unsqueeze(1)], [asked])
    assert float(weight) == pytest.approx(1.5, abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([1e-3, 0.1]))
def test_it_is_where_another_solver_ends(seed: int, ridge: float) -> None:
    inputs, counts = moments(seed)

    def loss(weights) -> float:
        found = torch.from_numpy(weights)
        surprise = [
            -(count / count.sum() * (numbers @ found).log_softmax(0)).sum()
            for numbers, count in zip(inputs, counts, strict=True)
        ]
        return float(torch.stack(surprise).mean() + ridge / 2 * found @ found)

    other = minimize(loss, torch.zeros(4, dtype=torch.float64).numpy(), method="BFGS", options={"gtol": 1e-9})
    torch.testing.assert_close(
        softmax_regression(inputs, counts, ridge), torch.from_numpy(other.x), rtol=1e-3, atol=1e-4
    )


def test_moments_weigh_alike_however_much_was_asked_for() -> None:
    inputs, counts = moments(1)
    busy = [counts[0] * 100, *counts[1:]]
    torch.testing.assert_close(softmax_regression(inputs, busy), softmax_regression(inputs, counts))


def test_a_moment_at_which_nothing_was_asked_for_says_nothing() -> None:
    inputs, counts = moments(2)
    quiet = [*counts[:2], torch.zeros_like(counts[2])]
    torch.testing.assert_close(softmax_regression(inputs, quiet), softmax_regression(inputs[:2], counts[:2]))
    assert not softmax_regression(inputs, [torch.zeros_like(count) for count in counts]).any()


def test_numbers_that_say_the_same_share_what_they_say() -> None:
    inputs, counts = moments(3, numbers=2)
    doubled = [torch.cat([numbers, numbers[:, :1]], dim=1) for numbers in inputs]
    plain, shared = softmax_regression(inputs, counts), softmax_regression(doubled, counts)
    assert float(shared[0]) == pytest.approx(float(shared[2]), abs=1e-4)
    assert float(shared[0] + shared[2]) == pytest.approx(float(plain[0]), abs=1e-3)


def test_what_can_be_told_apart_for_certain_has_a_finite_weight() -> None:
    weight = softmax_regression([torch.tensor([[1.0], [0.0], [-5.0]])], [torch.tensor([9, 0, 0])])
    assert 5 < float(weight) < 100
