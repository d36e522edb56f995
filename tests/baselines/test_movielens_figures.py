"""The fixed episodes of MovieLens-1M: the simple baselines reproduce the figures that were read off the same rows before."""

from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from recsys_meta.adaptation.judging import judge_ranking, judge_rating
from recsys_meta.algorithms.base import Learner
from recsys_meta.baselines.als import ALS
from recsys_meta.baselines.ease import EASEPopularity
from recsys_meta.baselines.ials import IALS
from recsys_meta.baselines.item_knn import ItemKNN
from recsys_meta.baselines.item_mean import ItemMean
from recsys_meta.baselines.popularity import Popularity
from recsys_meta.baselines.user_bias import ItemMeanUserBias
from recsys_meta.episodes import group
from recsys_meta.evaluation.intervals import summarize
from recsys_meta.evaluation.protocols import FixedEpisodes
from recsys_meta.evaluation.sanity import check_disjoint
from recsys_meta.tensors import Catalogue, Features, FeatureSizes, Histories, Sizes

# evaluation.md, at shots 1, 3, 5, 10, 20 and all.
ITEM_MEAN = {"mae": [0.7765] * 6, "rmse": [0.9748] * 6}
USER_BIAS = {
    "mae": [0.7646, 0.7544, 0.7487, 0.7390, 0.7329, 0.7288],
    "rmse": [0.9663, 0.9551, 0.9484, 0.9389, 0.9320, 0.9271],
}
ALS_16 = {
    "mae": [0.7745, 0.7575, 0.7466, 0.7259, 0.7113, 0.6955],
    "rmse": [0.9708, 0.9545, 0.9422, 0.9218, 0.9048, 0.8863],
}
NDCG_AT_ALL = {
    "ALS": {"ndcg_exponential@5": 0.8183, "ndcg_linear@5": 0.9145},
    "ItemMean": {"ndcg_exponential@5": 0.7912, "ndcg_linear@5": 0.8989},
    "ItemMeanUserBias": {"ndcg_exponential@5": 0.7913, "ndcg_linear@5": 0.8991},
}
# NDCG@10 at shots 1, 3, 5, 10, 20.
POPULARITY = [0.3500, 0.3532, 0.3562, 0.3654, 0.3839]
ITEM_KNN = [0.2769, 0.3533, 0.3913, 0.4580, 0.5416]
EASE_1000 = [0.2673, 0.3505, 0.3944, 0.4683, 0.5676]
EASE_AND_POPULARITY = [
    0.3685,
    0.4017,
    0.4257,
    0.4798,
    0.5695,
]  # beta chosen on the test rows, ours on training users
IALS_128 = [0.2578, 0.3396, 0.3890, 0.4619, 0.5587]


def plain(rows: int, ids: Tensor) -> Features:
    """Features of rows of which nothing but the id is known."""
    return Features(
        ids, torch.zeros(rows, 0, dtype=torch.int64), (), torch.zeros(rows, 0), torch.zeros(rows, 0)
    )


def catalogue_of(counts: Tensor) -> Catalogue:
    """A catalogue whose row r has the id r + 1."""
    items = len(counts)
    return Catalogue(
        plain(items, torch.arange(1, items + 1)), counts.log1p(), torch.ones(items, dtype=torch.bool)
    )


@pytest.fixture(scope="module")
def folder(datasets: Path) -> Path:
    if not (datasets / "ml-1m" / "episodes_rating.parquet").is_file():
        pytest.skip(f"needs MovieLens-1M: {datasets} holds no ml-1m/episodes_rating.parquet")
    return datasets / "ml-1m"


@pytest.fixture(scope="module")
def splits(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "splits.parquet", columns=["user_id", "item_id_ml1m", "rating", "split"])


@pytest.fixture(scope="module")
def item_ids(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / "items.parquet", columns=["item_id"])["item_id"]


@pytest.fixture(scope="module")
def warm(splits: pl.DataFrame, item_ids: pl.Series) -> Histories:
    rows = splits.filter(pl.col("split") == "warm_state").select(
        "user_id", item_id="item_id_ml1m", value=pl.col("rating").cast(pl.Float32)
    )
    return group(rows, rows["user_id"].unique().sort(), item_ids)


@pytest.fixture(scope="module")
def rating_episodes(folder: Path, item_ids: pl.Series) -> FixedEpisodes:
    return FixedEpisodes.from_table(
        pl.read_parquet(folder / "episodes_rating.parquet"), item_ids, value="rating"
    )


def rating_figures(learner: Learner, warm: Histories, episodes: FixedEpisodes) -> dict[str, list[float]]:
    """Metric to the means at shots 1, 3, 5, 10, 20, all."""
    counts = torch.bincount(warm.items, minlength=learner.sizes.item.ids - 1)
    catalogue = catalogue_of(counts.float())
    learner.fit_statistics(warm, catalogue)
    tasks = len(episodes.user_ids)
    judgements = judge_rating(
        learner,
        episodes.support,
        episodes.query,
        plain(tasks, torch.zeros(tasks, dtype=torch.int64)),
        catalogue,
        user_ids=episodes.user_ids,
        draws=episodes.draws,
        shots=(1, 3, 5, 10, 20, None),
        clip=(1, 5),
    )
    summary = summarize(judgements, draws=10)
    assert set(summary["users"]) == {668}
    assert summary["users_without_relevant"].sum() == 0
    return {metric: rows["mean"].to_list() for (metric,), rows in summary.group_by("metric")}


@pytest.mark.parametrize(
    ("kind", "expected", "within"),
    [(ItemMean, ITEM_MEAN, 1e-4), (ItemMeanUserBias, USER_BIAS, 1e-4), (ALS, ALS_16, 0.003)],
)
def test_a_rating_baseline_reproduces_its_row(
    kind: type[Learner],
    expected: dict[str, list[float]],
    within: float,
    warm: Histories,
    rating_episodes: FixedEpisodes,
    item_ids: pl.Series,
) -> None:
    sizes = Sizes(FeatureSizes(), FeatureSizes(ids=len(item_ids) + 1))
    figures = rating_figures(kind(sizes), warm, rating_episodes)
    for metric, row in expected.items():
        assert figures[metric] == pytest.approx(row, abs=within)
    for metric, at_all in NDCG_AT_ALL[kind.__name__].items():
        assert figures[metric][-1] == pytest.approx(at_all, abs=max(within, 1e-3))


@pytest.fixture(scope="module")
def liked(folder: Path, splits: pl.DataFrame, item_ids: pl.Series) -> Histories:
    """What the users outside the cold ones liked."""
    cold = splits.filter(pl.col("split") == "user_cold_state")["user_id"].unique()
    ratings = pl.read_parquet(folder / "ratings.parquet", columns=["user_id", "item_id", "rating"])
    rows = ratings.filter((pl.col("rating") >= 4) & ~pl.col("user_id").is_in(cold.implode()))
    return group(rows, rows["user_id"].unique().sort(), item_ids)


@pytest.fixture(scope="module")
def ranking_episodes(folder: Path, item_ids: pl.Series) -> FixedEpisodes:
    episodes = FixedEpisodes.from_table(pl.read_parquet(folder / "episodes_ranking.parquet"), item_ids)
    check_disjoint(episodes.support, episodes.query)
    return episodes


def catalogue_before(liked: Histories, item_ids: pl.Series) -> Catalogue:
    return catalogue_of(torch.bincount(liked.items, minlength=len(item_ids)).float())


def ranking_figures(learner: Learner, catalogue: Catalogue, episodes: FixedEpisodes) -> list[float]:
    """The mean NDCG@10 at shots 1, 3, 5, 10, 20."""
    tasks = len(episodes.user_ids)
    judgements = judge_ranking(
        learner,
        episodes.support,
        episodes.query,
        plain(tasks, torch.zeros(tasks, dtype=torch.int64)),
        catalogue,
        user_ids=episodes.user_ids,
        draws=episodes.draws,
        shots=(1, 3, 5, 10, 20),
    )
    summary = summarize(judgements, draws=10).filter(pl.col("metric") == "ndcg@10")
    assert summary["shot"].to_list() == ["1", "3", "5", "10", "20"]
    assert set(summary["users"]) == {957}
    means: list[float] = summary["mean"].to_list()
    return means


@pytest.mark.parametrize(
    ("kind", "expected", "within"),
    [(Popularity, POPULARITY, 1e-3), (ItemKNN, ITEM_KNN, 1e-3), (IALS, IALS_128, 0.003)],
)
def test_a_ranking_baseline_reproduces_its_row(
    kind: type[Learner],
    expected: list[float],
    within: float,
    liked: Histories,
    ranking_episodes: FixedEpisodes,
    item_ids: pl.Series,
) -> None:
    learner = kind(Sizes(FeatureSizes(), FeatureSizes(ids=len(item_ids) + 1)))
    catalogue = catalogue_before(liked, item_ids)
    learner.fit_statistics(liked, catalogue)
    assert ranking_figures(learner, catalogue, ranking_episodes) == pytest.approx(expected, abs=within)


def test_ease_and_its_blend_with_popularity_reproduce_their_rows(
    liked: Histories, ranking_episodes: FixedEpisodes, item_ids: pl.Series
) -> None:
    learner = EASEPopularity(Sizes(FeatureSizes(), FeatureSizes(ids=len(item_ids) + 1)))
    catalogue = catalogue_before(liked, item_ids)
    learner.fit_statistics(liked, catalogue)
    blend = ranking_figures(learner, catalogue, ranking_episodes)
    assert blend == pytest.approx(EASE_AND_POPULARITY, abs=0.003)
    learner.beta.zero_()  # with no popularity in it the blend is EASE: its inverse is taken only once here
    assert ranking_figures(learner, catalogue, ranking_episodes) == pytest.approx(EASE_1000, abs=1e-3)
