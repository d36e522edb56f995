"""The sample world: the files in data/ are what the generator makes, and the truth in them beats popularity."""

import filecmp
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys_meta.ingest import Source, read_features, read_interactions
from recsys_meta.ingest.sample_world import (
    BASE,
    COLD,
    DAYS,
    DAYS_AFTER,
    ITEMS,
    START,
    WARM,
    World,
    generate,
    true_scores,
    write,
)
from recsys_meta.tables import ITEM_ID, TIMESTAMP, USER_ID


@pytest.fixture(scope="module")
def shipped() -> World:
    folder = Path(__file__).resolve().parents[2] / "data" / "sample"
    return World(*(pl.read_parquet(folder / f"{name}.parquet") for name in World._fields))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write(folder)
    return folder


def test_the_files_of_a_seed_are_the_same_every_time(tmp_path: Path, made: Path) -> None:
    names = [f"{name}.parquet" for name in World._fields]
    write(tmp_path, seed=7)
    assert filecmp.cmpfiles(made, tmp_path, names, shallow=False)[0] == names
    assert sum((made / name).stat().st_size for name in names) <= 1_000_000
    assert not generate(seed=8).interactions.equals(pl.read_parquet(made / "interactions.parquet"))


def test_the_shipped_files_are_what_the_generator_makes(shipped: World, made: Path) -> None:
    for name in World._fields:
        ours, theirs = getattr(shipped, name), pl.read_parquet(made / f"{name}.parquet")
        if name.startswith("truth"):  # rounded to 3 digits, after sums that may differ in the last bit
            assert np.allclose(ours["bias"].to_numpy(), theirs["bias"].to_numpy(), atol=2e-3)
            assert np.allclose(
                np.stack(ours["vector"].to_list()), np.stack(theirs["vector"].to_list()), atol=2e-3
            )
        else:
            assert ours.equals(theirs), name


def test_a_third_of_the_users_are_cold_and_only_they_have_a_holdout(shipped: World) -> None:
    counts = shipped.users.join(shipped.interactions.group_by(USER_ID).len(), on=USER_ID, how="left")[
        "len"
    ].fill_null(0)
    assert (counts <= 10).sum() == COLD
    assert (counts.is_between(15, 45)).sum() == WARM
    cold = shipped.users.filter(counts <= 10)[USER_ID]
    assert set(shipped.holdout[USER_ID]) == set(cold)
    assert (counts == 0).any()


def test_the_holdout_is_later_and_nothing_is_picked_twice(shipped: World) -> None:
    end = START.timestamp() + DAYS * 86_400
    seconds = pl.col(TIMESTAMP).dt.epoch("s")
    assert shipped.interactions.select(seconds.max()).item() < end
    assert end <= shipped.holdout.select(seconds.min()).item()
    assert shipped.holdout.select(seconds.max()).item() < end + DAYS_AFTER * 86_400
    everything = pl.concat([shipped.interactions, shipped.holdout])
    assert everything.select(USER_ID, ITEM_ID).is_unique().all()
    assert everything["rating"].is_between(1, 5).all()


def test_true_scores_are_base_biases_and_inner_product_in_the_order_asked(shipped: World) -> None:
    users, items = shipped.truth_users[[5, 2]], shipped.truth_items[[7, 0, 3]]
    scores = true_scores(users, items)
    assert scores.shape == (2, 3)
    by_hand = (
        BASE
        + users["bias"][1]
        + items["bias"][2]
        + np.dot(users["vector"][1].to_numpy(), items["vector"][2].to_numpy())
    )
    assert scores[1, 2] == pytest.approx(by_hand, abs=1e-5)


def test_the_truth_beats_popularity_among_the_cold_users_by_far(shipped: World) -> None:
    rows = {user: row for row, user in enumerate(shipped.users[USER_ID])}
    columns = {item: column for column, item in enumerate(shipped.items[ITEM_ID])}

    def matrix(table: pl.DataFrame) -> np.ndarray:
        filled = np.zeros((WARM + COLD, ITEMS))
        for user, item, rating in table.select(USER_ID, ITEM_ID, "rating").iter_rows():
            filled[rows[user], columns[item]] = rating
        return filled

    known, later = matrix(shipped.interactions), matrix(shipped.holdout)
    liked = later >= 4
    judged = liked.any(1)
    popularity = np.broadcast_to((known >= 4).sum(0), known.shape)

    def hits(scores: np.ndarray) -> float:
        top = np.argsort(-np.where(known > 0, -np.inf, scores), axis=1)[:, :10]
        return float(np.take_along_axis(liked, top, 1)[judged].sum() / judged.sum())

    truth = true_scores(shipped.truth_users, shipped.truth_items)
    assert hits(truth) > 1.8 * hits(popularity)
    rated = later > 0
    spread = np.sqrt(np.square(later[rated] - known[known > 0].mean()).mean())
    assert np.sqrt(np.square(later[rated] - truth.clip(1, 5)[rated]).mean()) < 0.6 * spread


def test_the_shipped_files_pass_their_own_checks() -> None:
    folder = Path(__file__).resolve().parents[2] / "data" / "sample"
    events = read_interactions(
        Source(folder / "interactions.parquet"),
        value="rating",
        timestamp=TIMESTAMP,
        value_range=(1, 5),
        max_quarantined_share=0,
    )
    assert events.counts["rows_kept"] == events.counts["rows_read"]
    items = read_features(
        Source(folder / "items.parquet"), id_column=ITEM_ID, id_name=ITEM_ID,
        categorical=("studio",), multi=("genres",), numbers=("year", "minutes"), max_quarantined_share=0,
    )  # fmt: skip
    assert items.table.height == ITEMS
    assert items.table["genres"].list.len().is_between(1, 3).all()
