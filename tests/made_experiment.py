"""Made-up users of an experiment, for the tests of its statistics."""

import numpy as np
import polars as pl


def made_users(
    users: int = 400, *, effect: float = 0.0, correlation: float = 0.0, seed: int = 0
) -> pl.DataFrame:
    """One row per user, as ``measuring.totals`` gives: variant A or B at random, impressions that differ between users."""
    random = np.random.default_rng(seed)
    taste = random.normal(size=users)
    own = random.normal(size=users)
    is_b = random.random(users) < 0.5
    return pl.DataFrame(
        {
            "user_id": np.arange(users),
            "variant": np.where(is_b, "B", "A"),
            "numerator": 5.0
            + correlation * taste
            + np.sqrt(1.0 - correlation**2) * own
            + np.where(is_b, effect, 0.0),
            "denominator": 1.0 + random.poisson(4.0, users).astype(float),
            "covariate": taste,
        }
    )
