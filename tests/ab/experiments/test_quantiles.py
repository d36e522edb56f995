"""The difference of quantiles: as tea-tasting's bootstrap has it, and with the false alarms that it promises."""

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt

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


def test_groups_of_one_kind_are_called_different_one_time_in_twenty() -> None:
    random = np.random.default_rng(2)
    p = [
        quantile_difference(random.exponential(size=400), random.exponential(size=400), 0.75, draws=2000, seed=n).p_value
        for n in range(800)
    ]  # fmt: skip
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.025)


def test_one_seed_gives_one_answer_and_the_order_of_the_users_does_not_matter() -> None:
    a, b = np.arange(50.0), np.arange(60.0)
    assert quantile_difference(a, b, 0.5, seed=3) == quantile_difference(a[::-1], b[::-1], 0.5, seed=3)
