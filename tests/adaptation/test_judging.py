"""The k-shot judge: which rows it adapts on, which items it ranks, and that it never depends on the batch."""

import math
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor

from recsys_meta.adaptation.judging import Oracle, judge_listed, judge_ranking, judge_rating, oracle_users
from recsys_meta.algorithms.base import TaskState
from recsys_meta.baselines.popularity import Popularity
from recsys_meta.baselines.user_bias import ItemMeanUserBias
from recsys_meta.evaluation.breakdown import popularity_groups
from recsys_meta.evaluation.intervals import SUPPORT_LOSSES, summarize
from recsys_meta.evaluation.sanity import (
    check_batch_size,
    check_disjoint,
    check_oracle,
    check_shuffled_labels,
    shuffled_labels,
)
from recsys_meta.tables import JUDGEMENTS
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, ItemCodes, Sizes

TASKS, ITEMS = 23, 40
SIZES = Sizes(FeatureSizes(), FeatureSizes(ids=ITEMS + 1))
USER_IDS = pl.Series("user_id", [f"u{task // 2}" for task in range(TASKS)])  # two draws each
DRAWS = torch.arange(TASKS) % 2


def features(ids: Tensor) -> Features:
    nothing = torch.zeros(len(ids), 0)
    return Features(ids, nothing.long(), (), nothing, nothing)


NOBODY = features(torch.zeros(TASKS, dtype=torch.int64))
CATALOGUE = Catalogue(
    features(torch.arange(1, ITEMS + 1)),
    torch.arange(ITEMS).flip(0).float().log1p(),
    torch.arange(ITEMS) != 3,
)


def history(rows: list[list[int]], values: list[list[float]]) -> Histories:
    return Histories(
        torch.tensor([item for row in rows for item in row], dtype=torch.int64),
        torch.tensor([value for row in values for value in row]),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([0, *(sum(map(len, rows[: n + 1])) for n in range(len(rows)))]),
    )


def episodes(seed: int = 0) -> tuple[Histories, Histories]:
    """Support sets of 0..7 rows and query sets of 6, ratings around a bias of the user."""
    draw = torch.Generator().manual_seed(seed)
    support: tuple[list[list[int]], list[list[float]]] = [], []
    query: tuple[list[list[int]], list[list[float]]] = [], []
    for task in range(TASKS):
        items = [item for item in torch.randperm(ITEMS, generator=draw).tolist() if item != 3]
        ratings = (
            (3 + 2 * torch.randn(1, generator=draw) + torch.rand(ITEMS, generator=draw) / 4)
            .clamp(1, 5)
            .tolist()
        )
        few = task % 8
        for side, rows in ((support, slice(few)), (query, slice(few, few + 6))):
            side[0].append(items[rows])
            side[1].append(ratings[rows])
    return history(*support), history(*query)


SUPPORT, QUERY = episodes()


class Recorder(Popularity):
    """Popularity that notes what it was adapted on."""

    def __init__(self) -> None:
        super().__init__(SIZES)
        self.seen: list[Examples] = []

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        self.seen.append(support)
        assert not self.training
        assert not torch.is_grad_enabled()
        return super().adapt(support, users, items)


def values(judgements: pl.DataFrame, shot: str, metric: str) -> list[float]:
    kept: list[float] = judgements.filter((pl.col("shot") == shot) & (pl.col("metric") == metric))[
        "value"
    ].to_list()
    return kept


def test_judgements_have_the_columns_of_the_table_and_the_ids_as_they_came() -> None:
    judgements = judge_rating(
        Popularity(SIZES),
        SUPPORT,
        QUERY,
        NOBODY,
        CATALOGUE,
        user_ids=USER_IDS,
        draws=DRAWS,
        shots=(0, None),
        name="it",
    )
    assert judgements.columns == list(JUDGEMENTS)
    expected = {name: dtype for name, dtype in JUDGEMENTS.items() if name != "user_id"}
    assert {name: dtype for name, dtype in judgements.schema.items() if name != "user_id"} == expected
    assert len(judgements) == TASKS * 2 * 4
    one = judgements.filter((pl.col("shot") == "all") & (pl.col("metric") == "mae"))
    assert one["user_id"].to_list() == USER_IDS.to_list()
    assert one["draw"].to_list() == DRAWS.tolist()
    assert judgements["shot"].unique(maintain_order=True).to_list() == ["0", "all"]
    assert set(judgements["metric"]) == {"mae", "mse", "ndcg_exponential@5", "ndcg_linear@5"}
    assert set(judgements["learner"]) == {"it"}


def test_shot_k_adapts_on_the_first_k_rows_of_the_support() -> None:
    learner = Recorder().train()
    judge_rating(
        learner, SUPPORT, QUERY, NOBODY, CATALOGUE, user_ids=USER_IDS, shots=(0, 2, None), batch_size=TASKS
    )
    assert learner.training  # left as it was found
    prior, two, everything = learner.seen
    assert prior.shots.tolist() == [0] * TASKS
    assert two.shots.tolist() == [min(task % 8, 2) for task in range(TASKS)]
    # Whoever has no more than two stands at "all" where it stood before.
    assert everything.shots.tolist() == [task % 8 for task in range(TASKS) if task % 8 > 2]
    for task in range(TASKS):
        start = int(SUPPORT.offsets[task])
        kept = two.mask[task]
        assert two.items[task][kept].tolist() == SUPPORT.items[start : start + int(kept.sum())].tolist()
        assert two.targets[task][kept].tolist() == SUPPORT.values[start : start + int(kept.sum())].tolist()


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("shots", [(0, 2, 5, None), (None, 5, 0, 2), (2, 2, 0)])
def test_judged_at_several_shots_is_judged_at_each_alone(
    shots: tuple[int | None, ...], adapted: bool
) -> None:
    arguments: dict[str, Any] = {"user_ids": USER_IDS, "draws": DRAWS, "adapted": adapted, "batch_size": 5}
    for learner in (Halving(SIZES), ItemMeanUserBias(SIZES)):
        for judge in (judge_rating, judge_ranking):
            parts = [
                judge(learner, SUPPORT, QUERY, NOBODY, CATALOGUE, shots=(shot,), **arguments)
                for shot in shots
            ]
            together = judge(learner, SUPPORT, QUERY, NOBODY, CATALOGUE, shots=shots, **arguments)
            columns = ["shot", "metric", "user_id", "draw", "value"]
            assert_frame_equal(
                together.sort(columns), pl.concat(parts).sort(columns), check_row_order=True, abs_tol=1e-6
            )


def test_shot_k_adapts_on_the_last_k_rows_where_the_newest_are_wanted() -> None:
    learner = Recorder()
    support, query = history([[0, 2, 1], [5]], [[1.0, 1.0, 1.0], [1.0]]), history([[4], [4]], [[1.0], [1.0]])
    judge_ranking(
        learner,
        support,
        query,
        features(torch.zeros(2, dtype=torch.int64)),
        CATALOGUE,
        user_ids=pl.Series("user_id", [1, 2]),
        shots=(2,),
        newest=True,
    )
    used = learner.seen[-1]
    assert [used.items[task][used.mask[task]].tolist() for task in (0, 1)] == [[2, 1], [5]]


def test_unadapted_the_prior_ranks_what_the_support_leaves() -> None:
    support, query = history([[0, 1]], [[1.0, 1.0]]), history([[2]], [[1.0]])
    learner = Recorder()
    judgements = judge_ranking(
        learner,
        support,
        query,
        features(torch.zeros(1, dtype=torch.int64)),
        CATALOGUE,
        user_ids=pl.Series("user_id", [1]),
        shots=(0, None),
        adapted=False,
    )
    assert [used.shots.tolist() for used in learner.seen] == [[0]]
    assert [values(judgements, shot, "mrr@10") for shot in ("0", "all")] == [pytest.approx([1 / 3]), [1.0]]


def test_listed_candidates_are_ranked_among_themselves() -> None:
    # By popularity 0 comes before 1 before 2; 3 is not eligible, which a list does not ask.
    support = history([[9]], [[1.0]])
    query = history([[2, 0, 3, 1]], [[1.0, 0.0, 1.0, 0.0]])
    judgements = judge_listed(
        Popularity(SIZES),
        support,
        query,
        features(torch.zeros(1, dtype=torch.int64)),
        CATALOGUE,
        user_ids=pl.Series("user_id", [1]),
        shots=(0, 1),
        k=3,
    )
    discount = [1 / math.log2(rank + 1) for rank in (1, 2, 3)]
    expected = discount[2] / (discount[0] + discount[1])  # 0, 1, 2, 3: the relevant are third and fourth
    assert values(judgements, "1", "ndcg_of_listed@3") == pytest.approx([expected])
    assert set(judgements["metric"]) == {"ndcg_of_listed@3"}


class Halving(Popularity):
    """Meta-trained as far as the judge can tell; adaptation halves its loss."""

    meta_trained = True

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        return {"offset": 1.0 + (support.shots == 0).float().unsqueeze(1)}

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        return state["offset"].squeeze(1)


def test_the_loss_of_the_support_is_told_before_and_after_adaptation() -> None:
    support, query = history([[0], []], [[1.0], []]), history([[4], [4]], [[1.0], [1.0]])
    judge: dict[str, Any] = {"user_ids": pl.Series("user_id", [1, 2]), "shots": (0, 1)}
    nobody = features(torch.zeros(2, dtype=torch.int64))
    judgements = judge_ranking(Halving(SIZES), support, query, nobody, CATALOGUE, **judge)
    before, after = SUPPORT_LOSSES
    assert values(judgements, "1", before) == [2.0, 2.0]
    assert values(judgements, "1", after) == [1.0, 2.0]  # of whom nothing is known, nothing is adapted
    assert values(judgements, "0", after) == []
    plain = judge_ranking(Popularity(SIZES), support, query, nobody, CATALOGUE, **judge)
    assert not set(plain["metric"]) & set(SUPPORT_LOSSES)


def test_errors_on_groups_of_items_make_up_the_error_on_all() -> None:
    groups = popularity_groups(torch.arange(ITEMS))
    judged = judge_rating(
        Popularity(SIZES), SUPPORT, QUERY, NOBODY, CATALOGUE, user_ids=USER_IDS, shots=(0,), groups=groups
    )
    means = {name: torch.tensor(values(judged, "0", name)) for name in judged["metric"].unique()}
    counts = torch.stack([(groups.of[QUERY.items.view(TASKS, 6)] == group).sum(1) for group in range(4)])
    parts = [means[groups.named("mae", group)].nan_to_num() * counts[group] for group in range(4)]
    torch.testing.assert_close(torch.stack(parts).sum(0) / 6, means["mae"])


@pytest.mark.parametrize(
    ("values_", "expected"),
    [
        ([-10.0, 3.0], {"mae", "mse"}),
        ([2.0, 5000.0], {"mae", "mse", "ndcg_linear@5"}),
        ([0.0, 5.0], {"mae", "mse", "ndcg_exponential@5", "ndcg_linear@5"}),
    ],
)
def test_ratings_without_gains_are_judged_by_their_errors_alone(values_, expected) -> None:
    nothing, query = history([[]], [[]]), history([[0, 1]], [values_])
    page = judge_rating(
        Popularity(SIZES),
        nothing,
        query,
        features(torch.zeros(1, dtype=torch.int64)),
        CATALOGUE,
        user_ids=pl.Series([7]),
        shots=(0,),
    )
    assert set(page["metric"]) == expected
    assert page["value"].is_finite().all()


def test_errors_are_clipped_and_means_of_each_task() -> None:
    learner = ItemMeanUserBias(SIZES)
    learner.mean.fill_(9.0)
    support, query = history([[0]], [[5.0]]), history([[1, 2]], [[4.0, 2.0]])
    judge: dict[str, Any] = {"user_ids": pl.Series("user_id", [1]), "shots": (0, 1)}
    users = features(torch.zeros(1, dtype=torch.int64))
    judgements = judge_rating(learner, support, query, users, CATALOGUE, **judge, clip=(1.0, 5.0))
    assert values(judgements, "0", "mae") == [2.0]
    assert values(judgements, "0", "mse") == [5.0]
    judgements = judge_rating(learner, support, query, users, CATALOGUE, **judge)
    assert values(judgements, "0", "mae") == [6.0]
    assert values(judgements, "1", "mae") == pytest.approx([6.0 - 4 / 6])


def test_the_whole_catalogue_is_ranked_except_the_support_used_and_what_is_not_eligible() -> None:
    # Ranked by popularity: 0, 1, 2, (3 is not eligible), 4, 5, ... Relevant: 4, and 3, which nobody can be shown.
    support, query = history([[0, 2, 1]], [[1.0, 1.0, 1.0]]), history([[4, 3, 7]], [[1.0, 1.0, 0.0]])
    judgements = judge_ranking(
        Popularity(SIZES),
        support,
        query,
        features(torch.zeros(1, dtype=torch.int64)),
        CATALOGUE,
        user_ids=pl.Series("user_id", [1]),
        shots=(0, 1, None),
    )
    assert set(judgements["metric"]) == {"ndcg@10", "recall@10", "hit_rate@10", "mrr@10"}
    ranks = {shot: 1 / values(judgements, shot, "mrr@10")[0] for shot in ("0", "1", "all")}
    assert ranks == pytest.approx({"0": 4, "1": 3, "all": 1})
    assert values(judgements, "1", "recall@10") == [1.0]


def test_a_task_without_anything_relevant_is_nan() -> None:
    support, query = history([[0], [0]], [[1.0], [1.0]]), history([[], [3]], [[], [1.0]])
    judgements = judge_ranking(
        Popularity(SIZES),
        support,
        query,
        features(torch.zeros(2, dtype=torch.int64)),
        CATALOGUE,
        user_ids=pl.Series("user_id", [1, 2]),
        shots=(0,),
    )
    assert all(math.isnan(value) for value in judgements["value"])
    assert summarize(judgements)["users_without_relevant"].to_list() == [2] * 4


def test_the_learner_may_be_given_more_than_the_support_without_losing_candidates() -> None:
    def with_a_negative(support: Examples, rows: Tensor) -> Examples:
        assert len(rows) == len(support.items)
        more = torch.ones(len(rows), 1, dtype=torch.int64)
        return Examples(
            torch.cat([support.items, more], 1),
            torch.cat([support.targets, torch.zeros(len(rows), 1)], 1),
            torch.cat([support.mask, more > 0], 1),
        )

    learner = Recorder()
    judge: dict[str, Any] = {"user_ids": USER_IDS, "shots": (2,)}
    prepared = judge_ranking(learner, SUPPORT, QUERY, NOBODY, CATALOGUE, **judge, prepare=with_a_negative)
    assert learner.seen[-1].shots.tolist() == [1 + min(task % 8, 2) for task in range(TASKS)]
    plain = judge_ranking(Popularity(SIZES), SUPPORT, QUERY, NOBODY, CATALOGUE, **judge)
    assert prepared["value"].to_list() == pytest.approx(plain["value"].to_list(), nan_ok=True)


class Diverging(Popularity):
    """Popularity whose inner loop blows up for every task that has seen item 5."""

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        lost = ((support.items == 5) & support.mask).any(1, keepdim=True)
        return {"offset": torch.where(lost, torch.nan, super().adapt(support, users, items)["offset"])}


def test_a_task_whose_adaptation_diverges_is_judged_on_the_prior(caplog: pytest.LogCaptureFixture) -> None:
    judge: dict[str, Any] = {"user_ids": USER_IDS, "shots": (None,)}
    broken = judge_ranking(Diverging(SIZES), SUPPORT, QUERY, NOBODY, CATALOGUE, **judge)
    whole = judge_ranking(Popularity(SIZES), SUPPORT, QUERY, NOBODY, CATALOGUE, **judge)
    assert broken["value"].to_list() == pytest.approx(whole["value"].to_list(), nan_ok=True)
    assert f"of {TASKS} tasks have no finite scores" in caplog.text


def test_the_sanity_checks_pass_on_an_honest_learner() -> None:
    learner = ItemMeanUserBias(SIZES)
    learner.mean.fill_(3.0)
    check_disjoint(SUPPORT, QUERY)
    for judge in (judge_rating, judge_ranking):
        check_oracle(judge(Oracle(QUERY), SUPPORT, QUERY, oracle_users(TASKS), CATALOGUE, user_ids=USER_IDS))
        check_batch_size(
            lambda size, judge=judge: judge(  # type: ignore[misc]
                learner, SUPPORT, QUERY, NOBODY, CATALOGUE, user_ids=USER_IDS, draws=DRAWS, batch_size=size
            ),
            (TASKS, 5, 1),
        )
    shuffled = shuffled_labels(SUPPORT, 1)
    check_shuffled_labels(
        *(
            judge_rating(
                learner, shuffled, QUERY, NOBODY, CATALOGUE, user_ids=USER_IDS, draws=DRAWS, adapted=adapted
            )
            for adapted in (True, False)
        )
    )
    honest = summarize(
        judge_rating(learner, SUPPORT, QUERY, NOBODY, CATALOGUE, user_ids=USER_IDS, draws=DRAWS)
    )
    mae = {row["shot"]: row["mean"] for row in honest.filter(pl.col("metric") == "mae").iter_rows(named=True)}
    assert mae["all"] < 0.9 * mae["0"]  # there was something to lose by shuffling


def test_ties_are_broken_by_the_seed() -> None:
    flat = CATALOGUE._replace(log_popularity=torch.zeros(ITEMS))
    judged = [
        judge_ranking(
            Popularity(SIZES), SUPPORT, QUERY, NOBODY, flat, user_ids=USER_IDS, shots=(0,), seed=seed
        )
        for seed in (0, 0, 1)
    ]
    assert judged[0].equals(judged[1])
    assert not judged[0].equals(judged[2])


def test_no_task_gives_no_judgement() -> None:
    nobody = features(torch.zeros(0, dtype=torch.int64))
    empty = history([], [])
    judgements = judge_rating(
        Popularity(SIZES), empty, empty, nobody, CATALOGUE, user_ids=USER_IDS.clear(), shots=(0, 1)
    )
    assert len(judgements) == 0
    assert judgements.columns == list(JUDGEMENTS)
