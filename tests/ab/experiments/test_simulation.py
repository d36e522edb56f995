"""Twenty looks at experiments in which nothing differs: the band is wrong one time in twenty at most, whatever the users do."""

import pytest

from recsys_meta.ab.experiments.simulation import WORLDS, Alarms, false_positives

EXPERIMENTS = 1000


@pytest.fixture(scope="module")
def alarms() -> dict[str, Alarms]:
    return {world: false_positives(world, EXPERIMENTS, seed=1) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_twenty_looks_by_the_band_are_wrong_one_time_in_twenty_at_most(world, alarms) -> None:
    assert alarms[world].band <= 0.05


@pytest.mark.parametrize("world", WORLDS)
def test_one_look_is_wrong_one_time_in_twenty_clustered_or_not(world, alarms) -> None:
    assert alarms[world].once == pytest.approx(0.05, abs=0.02)  # 0.02: three standard errors of 1,000


def test_twenty_looks_by_a_test_made_for_one_are_wrong_one_time_in_four(alarms) -> None:
    for world in ("users arrive, one number each", "every day a new draw of each user"):
        assert alarms[world].plain == pytest.approx(0.25, abs=0.05)


def test_rows_of_users_taken_as_independent_are_wrong_far_more_often(alarms) -> None:
    by_row = {world: found.by_row for world, found in alarms.items() if found.by_row is not None}
    assert list(by_row) == ["clicks per impression, CUPED"]
    assert min(by_row.values()) > 0.1


def test_a_seed_gives_the_same_experiments() -> None:
    world = "users arrive, one number each"
    assert false_positives(world, 50, seed=3) == false_positives(world, 50, seed=3)
