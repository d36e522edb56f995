"""Coverage: the default interval holds the truth as often as it says, clustered users and slates included."""

import pytest
from scipy import stats

from recsys_meta.ab.coverage import COVERAGE, coverage
from recsys_meta.ab.off_policy import DEFAULT_KIND
from recsys_meta.ab.synthetic_logs import WORLDS

DRAWS = 80


def often_enough(covered: float, draws: int) -> bool:
    """Whether this share of the draws is what chance makes of 95 %."""
    return stats.binomtest(round(covered * draws), draws, 0.95).pvalue > 0.005


@pytest.mark.parametrize(
    ("world", "estimators"),
    [("good overlap", ("IPS", "SNIPS")), ("users nested", ("IPS", "SNIPS")), ("slates", ("SIPS", "RIPS"))],
)
def test_the_default_interval_covers_what_it_promises(world, estimators):
    found = coverage(
        WORLDS[world], 600, DRAWS, kinds=[DEFAULT_KIND], estimators=estimators, model=False, resampled=200
    )
    assert dict(found.schema) == dict(COVERAGE)
    assert found["estimator"].to_list() == list(estimators)
    for row in found.iter_rows(named=True):
        assert row["draws"] == DRAWS
        assert often_enough(row["covered"], DRAWS), row
        assert abs(row["bias"]) < 4 * row["deviation"] / DRAWS**0.5, row


def test_rows_of_nested_users_taken_as_independent_would_cover_too_seldom():
    nested = WORLDS["users nested"]

    class Apart:
        """The same world, whose logs do not say who is who."""

        value, policy = nested.value, nested.policy

        def logs(self, rows, generator):
            logs = nested.logs(rows, generator)
            return logs._replace(table=logs.table.drop("user_id"))

    (row,) = coverage(
        Apart(), 1000, DRAWS, kinds=["normal"], estimators=["SNIPS"], model=False, resampled=100
    ).to_dicts()
    assert stats.binomtest(round(row["covered"] * DRAWS), DRAWS, 0.93, alternative="less").pvalue < 0.01


def test_a_trustworthy_verdict_is_given_where_overlap_is_good_and_seldom_elsewhere():
    arguments = {"kinds": [DEFAULT_KIND], "estimators": ["SNIPS"], "model": False, "resampled": 100}
    shares = {
        name: coverage(WORLDS[name], 2000, 30, **arguments)["trusted"].item()
        for name in ("good overlap", "poor overlap")
    }
    assert shares["good overlap"] > 0.9
    assert shares["poor overlap"] < 0.3
