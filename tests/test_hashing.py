"""Laws of the counter-based random numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.hashing import generator, hashed, inclusion_chances, mixed, uniform

GOLDEN = 0x9E3779B97F4A7C15
# The first outputs of splitmix64 started at 0, from the reference program (prng.di.unimi.it/splitmix64.c).
REFERENCE = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("step", [0, 1, 2])
def test_mixing_agrees_with_the_reference_program(step: int) -> None:
    assert mixed(torch.tensor(signed(GOLDEN * step))).item() == signed(REFERENCE[step])


def test_no_two_counters_meet() -> None:
    assert len(mixed(torch.arange(-50_000, 50_000)).unique()) == 100_000


def test_uniform_numbers_lie_in_0_to_1_and_fill_it_evenly() -> None:
    numbers = uniform(mixed(torch.arange(100_000)))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    chi_square = ((counts - 5_000) ** 2 / 5_000).sum()
    assert chi_square < 43.8  # the 0.1 % point for 19 degrees of freedom
    assert uniform(torch.tensor([-1, 0])).tolist() == [1 - 2.0**-53, 0.0]


def test_a_hash_depends_on_every_number_and_on_their_order() -> None:
    assert (
        len({hashed(*numbers).item() for numbers in [(1, 2), (2, 1), (1, 3), (1,), (1, 2, 0), (-1, 2)]}) == 6
    )


def test_a_generator_is_given_by_its_numbers_alone() -> None:
    first, again, other = (torch.rand(4, generator=generator(*n)) for n in [(7, 1), (7, 1), (7, 2)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 5, 40, 3_000, 10**6]), min_size=1, max_size=30),
    size=st.integers(1, 35),
)
@settings(deadline=None)
def test_chances_are_in_proportion_to_the_weights_up_to_one_and_sum_to_the_size(
    counts: list[int], size: int
) -> None:
    weights = torch.tensor(counts, dtype=torch.float64)
    chances = inclusion_chances(weights, size)
    assert torch.equal(chances == 0, weights == 0)
    assert float(chances.max()) <= 1
    assert float(chances.sum()) == pytest.approx(min(size, int((weights > 0).sum())))
    below = (chances > 0) & (chances < 1)
    if below.any():
        scale = (chances / weights)[below]
        torch.testing.assert_close(scale, scale[:1].expand_as(scale))
        assert bool(
            (weights[chances == 1] * scale[0] >= 1 - 1e-9).all()
        )  # these would be drawn more than once
