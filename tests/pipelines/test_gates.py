"""Gates: what each measures, where it refuses, and what is said of it; figures worked by hand."""

from typing import Any

import polars as pl
import pytest

from pipelines.champion import Challenge
from pipelines.gates import (
    KEPT,
    NOT_JUDGED,
    PASSED,
    PROMOTED,
    REFUSED,
    GatesRefused,
    champion_gate,
    drift_gates,
    fallen_gate,
    features_gate,
    quarantine_gate,
    rows_gate,
    usual_nights,
)
from recsys_meta import store
from recsys_meta.store.shown import Shown


def shown(scores: list[float], items: dict[int, int]) -> Shown:
    return Shown(
        pl.Series("score", scores, pl.Float32),
        pl.DataFrame({"item_id": list(items), "n": list(items.values())}),
    )


def status(rows: list[tuple[str, int]]) -> pl.LazyFrame:
    return pl.DataFrame(rows, schema=["source", "n_support"], orient="row").lazy()


@pytest.mark.parametrize(
    ("rows", "earlier", "figure", "verdict"),
    [
        (70, [100, 10, 110], 0.3, PASSED),  # the median is 100: the odd night in between moves nothing
        (69, [100, 10, 110], 0.31, REFUSED),
        (20, [10], -1.0, PASSED),
        (50, [], None, NOT_JUDGED),
        (0, [], 1.0, REFUSED),
    ],
)
def test_rows_are_held_against_the_median_of_the_last_nights(rows, earlier, figure, verdict) -> None:
    gate = rows_gate(rows, earlier, 0.3)
    assert gate.figure == (None if figure is None else pytest.approx(figure))
    assert gate.verdict == verdict
    assert gate.setting == "publish.max_row_drop"


@pytest.mark.parametrize(
    ("items", "allowed", "figure", "verdict"),
    [
        (0, 0.3, 1.0, REFUSED),
        (70, 0.3, 0.3, PASSED),
        (69, 0.3, 0.31, REFUSED),
        (200, 0.3, 0.0, PASSED),
        (0, None, 1.0, PASSED),
    ],
)
def test_tables_of_features_are_held_against_the_last_nights_and_the_worst_is_the_figure(
    items, allowed, figure, verdict
) -> None:
    rows = {"users of a.csv": 9, "items of b.csv": items}
    gate = features_gate(rows, {"users of a.csv": [9], "items of b.csv": [100, 10, 110]}, allowed)
    assert (gate.figure, gate.verdict) == (pytest.approx(figure), verdict)
    assert (
        f"items of b.csv: {items} rows are {items / 100 - 1:+.1%} against the median of the last 3 nights, 100"
        in (gate.reason)
    )
    assert ("users of a.csv" in gate.reason) == (verdict == PASSED)


def test_tables_of_features_that_no_night_has_read_are_not_judged() -> None:
    for rows in ({}, {"items of b.csv": 0}):
        assert features_gate(rows, {"items of b.csv": []}, 0.3).verdict == NOT_JUDGED


def night(number: int, figure: float | None) -> store.Manifest:
    """A published night of which the rows came to this figure; None: they were not judged."""
    gate = {"gate": "rows", "figure": figure}
    record: Any = {"run_id": f"night-{number}", "gates": [{"gate": "features", "figure": 1.0}, gate]}
    return store.Manifest(number, "", {}, {}, record)


@pytest.mark.parametrize(
    ("figures", "allowed", "usual"),
    [
        ([0.1, 0.75, -3.0, None], 0.3, [0, 2, 3]),  # newest first; the second was let through
        ([0.75, 0.1, 0.1, 0.1, 0.1, 0.1], 0.3, [1, 2, 3, 4]),  # five nights are looked back, no further
        ([0.75, 0.75, 0.75, 0.75, 0.75, 0.1], 0.3, [0, 1, 2, 3, 4]),  # by now that is usual
        ([0.1, 0.75], 0.8, [0, 1]),
        ([0.1, 0.75], None, [0, 1]),
        ([], 0.3, []),
    ],
)
def test_nights_that_were_let_through_do_not_tell_what_is_usual_until_there_are_no_others(
    figures, allowed, usual
) -> None:
    others = [night(number, figure) for number, figure in enumerate(figures)]
    assert [one.sequence for one in usual_nights("rows", allowed, others, 5)] == usual
    assert usual_nights("champion", 0.3, others, 5) == others[:5]  # a gate that these nights have not had


def test_nights_that_are_not_counted_are_said() -> None:
    said = "(2 let through beyond this limit not counted)"
    assert said in rows_gate(50, [100], 0.3, left_out=2).reason
    assert said in features_gate({"users of a.csv": 50}, {"users of a.csv": [100]}, 0.3, left_out=2).reason
    assert "not counted" not in rows_gate(50, [100], 0.3).reason


@pytest.mark.parametrize(("allowed", "verdict"), [(0.25, REFUSED), (0.5, PASSED)])
def test_who_fell_back_though_there_was_a_history_is_counted_and_who_has_none_is_not(
    allowed, verdict
) -> None:
    gate = fallen_gate(status([("adapted", 3), ("prior", 0), ("prior", 2), ("popularity", 0)]), allowed)
    assert gate.figure == 0.5
    assert gate.verdict == verdict


def test_scores_and_items_that_stay_are_no_drift() -> None:
    night = shown([1.0, 2.0, 3.0], {1: 2, 2: 1})
    score, item = drift_gates(night, night, 0.0, 0.0)
    assert (score.figure, score.verdict) == (0.0, PASSED)
    assert (item.figure, item.verdict) == (0.0, PASSED)


def test_drift_is_the_largest_difference_of_the_distributions_and_the_share_of_rows_that_moved() -> None:
    before, now = shown([1.0, 2.0, 3.0, 4.0], {1: 2, 2: 2}), shown([3.5, 4.5], {2: 1, 3: 1})
    score, item = drift_gates(now, before, 0.7, None)
    assert score.figure == pytest.approx(0.75)  # below 3.5 lie three of four, and none
    assert score.verdict == REFUSED
    assert item.figure == pytest.approx(0.5)
    assert item.verdict == PASSED
    assert "no limit is set" in item.reason


def test_without_a_night_to_compare_with_drift_is_not_judged() -> None:
    night = shown([1.0], {1: 1})
    for gate in drift_gates(night, "no other night of the same settings is published", 0.1, 0.1):
        assert (gate.figure, gate.verdict) == (None, NOT_JUDGED)


def test_the_worst_source_is_named_among_the_quarantined() -> None:
    counts = {
        "interactions_rows_read": 1000,
        "interactions_rows_quarantined": 1,
        "items_rows_read": 100,
        "items_rows_quarantined": 1,
    }
    gate = quarantine_gate(counts, 0.02)
    assert gate.figure == 0.01
    assert "of items" in gate.reason


def test_a_kept_champion_is_said_and_refuses_nothing() -> None:
    found = Challenge(False, "worse", "ndcg@10", 9, 0.5, 0.4, -0.2, -0.3, -0.1)
    gate = champion_gate(found, "old", "new", 0.01)
    assert (gate.verdict, gate.figure, gate.limit) == (KEPT, -0.1, -0.01)
    assert gate.row() | {"champion": "old", "challenger": "new", "gain": -0.2, "users": 9} == gate.row() | {
        "champion": "old",
        "challenger": "new",
        "gain": -0.2,
        "users": 9,
    }
    assert champion_gate(Challenge(True, "first"), None, "new", None).verdict == PROMOTED


def test_a_refusal_says_every_refusing_gate_and_carries_all_of_them() -> None:
    gates = [rows_gate(1, [10], 0.3), fallen_gate(status([("prior", 2)]), 0.01), rows_gate(10, [10], 0.3)]
    error = GatesRefused("night-1", gates)
    assert isinstance(error, store.PublishRefused)
    assert error.exit_code == 4
    assert "publish.max_row_drop" in str(error)
    assert "gates.max_fallen_share" in str(error)
    assert [gate["verdict"] for gate in error.details["gates"]] == [REFUSED, REFUSED, PASSED]
