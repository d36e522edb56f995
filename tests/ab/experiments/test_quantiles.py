"""The difference of quantiles: as tea-tasting's bootstrap has it, and with the false alarms that it promises."""

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt
from scipy import stats

from recsys_meta.ab.experiments.quantiles import quantile_difference


def test_the_interval_is_that_of_resampling() -> None:
    random = np.random.default_rng(0)
    a, b = random.exponential(10.0, 900), random.exponential(12.0, 1100)
    found = quantile_difference(a, b, 0.9)
    table = pl.DataFrame({"variant": ["A"] * 900 + ["B"] * 1100, "x": np.concatenate([a, b])})
    direct = tt.Quantile("x", 0.9, method="percentile", n_resamples=4000, batch=500, rng=1)
    said = tt.Experiment({"m": direct}).analyze(table, "A")["m"]
    assert (found.control, found.treatment) == (said.control, said.treatment)
    width = said.effect_size_ci_upper - said.effect_size_ci_lower
    assert found.low == pytest.approx(said.effect_size_ci_lower, abs=0.08 * width)
    assert found.high == pytest.approx(said.effect_size_ci_upper, abs=0.08 * width)
    assert found.relative_low == pytest.approx(said.rel_effect_size_ci_lower, abs=0.02)


def enumerated(a: np.ndarray, b: np.ndarray, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Every difference of two order statistics, ascending, and its probability, by two loops."""
    found = []
    for k in range(len(a) + 2):
        for j in range(len(b) + 2):
            x, y = (np.sort(v)[min(max(n, 1), len(v)) - 1] for v, n in ((a, k), (b, j)))
            probability = stats.binom.pmf(k, len(a) + 1, q) * stats.binom.pmf(j, len(b) + 1, q)
            found.append((y - x, probability))
    return tuple(np.array(sorted(found)).T)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (9, 14), (40, 30)])
@pytest.mark.parametrize("whole", [True, False])
def test_interval_and_p_value_are_those_of_all_pairs_written_down(
    q: float, sizes: tuple[int, int], whole: bool
) -> None:
    random = np.random.default_rng(3)
    a, b = (
        random.integers(1, 6, size).astype(float) if whole else random.normal(9.0, size=size)
        for size in sizes
    )
    found = quantile_difference(a, b, q, level=0.9)
    differences, masses = enumerated(a, b, q)
    reached = masses.cumsum()
    assert found.low == pytest.approx(differences[np.argmax(reached >= 0.05)], rel=1e-12)
    assert found.high == pytest.approx(differences[np.argmax(reached >= 0.95)], rel=1e-12)
    one_side = min(masses[differences <= 0].sum(), masses[differences >= 0].sum())
    assert found.p_value == pytest.approx(min(1.0, 2 * one_side), rel=1e-9)
    mean = masses @ differences
    assert found.error == pytest.approx(np.sqrt(masses @ (differences - mean) ** 2), rel=1e-9, abs=1e-9)


def test_of_whole_numbers_the_ends_are_whole_numbers() -> None:
    random = np.random.default_rng(4)
    a, b = (random.poisson(20.0, size).astype(float) for size in (3000, 2500))
    found = quantile_difference(a, b, 0.75)
    assert found.low == round(found.low)
    assert found.high == round(found.high)


def test_draws_fall_into_the_interval_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    a, b = random.exponential(size=5000), random.exponential(1.1, size=4000)
    found = quantile_difference(a, b, 0.6)
    x, y = (np.sort(v)[random.binomial(len(v) + 1, 0.6, 200_000) - 1] for v in (a, b))
    assert np.mean(y - x <= found.low) == pytest.approx(0.025, abs=0.002)  # 0.002: five standard errors
    assert np.mean(y - x <= found.high) == pytest.approx(0.975, abs=0.002)
    assert np.mean(y / x - 1 <= found.relative_low) == pytest.approx(0.025, abs=0.002)
    assert np.mean(y / x - 1 <= found.relative_high) == pytest.approx(0.975, abs=0.002)
    assert found.p_value == pytest.approx(2 * np.mean(y - x <= 0), abs=0.004)


def test_a_quantile_that_is_hardly_above_zero_has_no_relative_interval() -> None:
    a, b = np.array([0.0] * 40 + [1.0] * 60), np.array([1.0] * 50 + [2.0] * 50)
    assert np.isnan(quantile_difference(a, b, 0.5).relative_low)
    assert quantile_difference(a, b, 0.9).relative_high == 1.0


def test_groups_of_one_kind_are_called_different_one_time_in_twenty() -> None:
    random = np.random.default_rng(2)
    p = [
        quantile_difference(random.exponential(size=400), random.exponential(size=400), 0.75).p_value
        for _ in range(800)
    ]  # fmt: skip
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.025)


def test_the_order_of_the_users_does_not_matter_and_swapping_the_groups_turns_the_difference_around() -> None:
    random = np.random.default_rng(6)
    a, b = random.normal(5.0, size=50), random.normal(5.3, size=60)
    found = quantile_difference(a, b, 0.5)
    assert found == quantile_difference(a[::-1], b[::-1], 0.5)
    other = quantile_difference(b, a, 0.5)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), rel=1e-12)
    assert other.p_value == pytest.approx(found.p_value, rel=1e-12)
