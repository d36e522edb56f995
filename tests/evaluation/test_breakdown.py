"""Figures of groups: who and what stands in which, and that they are the means of their members."""

import polars as pl
import torch

from recsys_meta.evaluation.breakdown import breakdown, history_groups, popularity_groups, segment_groups
from recsys_meta.evaluation.metrics import ranking_metrics, tie_places


def test_head_middle_and_tail_hold_a_third_of_the_events_each_and_cold_items_none() -> None:
    groups = popularity_groups(torch.tensor([0, 4, 1, 12, 4, 1, 1, 1, 4, 4, 4]))
    assert [groups.names[group] for group in groups.of] == [
        "cold", "middle", "tail", "head", "middle", "tail", "tail", "tail", "middle", "tail", "tail"
    ]  # fmt: skip
    assert set(popularity_groups(torch.zeros(3, dtype=torch.int64)).of.tolist()) == {3}


def test_a_user_belongs_to_the_group_of_its_longest_history() -> None:
    groups = history_groups(pl.Series("user_id", [1, 2, 1, 3, 4]), torch.tensor([2, 0, 3, 50, 51]))
    assert dict(groups.select("user_id", "group").iter_rows()) == {
        1: "3 to 5",
        2: "0",
        3: "21 to 50",
        4: "more than 50",
    }


def test_segments_come_by_size_and_null_is_one() -> None:
    users = pl.DataFrame({"user_id": [1, 2, 3, 4], "sex": ["f", "m", "m", None]})
    groups = segment_groups(users, "sex").sort("place")
    assert groups["group"].to_list() == ["m", "m", "f", "unknown"]
    assert set(groups["kind"]) == {"sex"}


def test_a_group_has_the_mean_of_its_users_and_items_stand_apart() -> None:
    judgements = pl.DataFrame(
        {
            "learner": "A",
            "user_id": [1, 2, 3] * 2,
            "draw": 0,
            "shot": "1",
            "metric": ["ndcg@2"] * 3 + ["recall@2 on cold items"] * 3,
            "value": [0.1, 0.3, 0.8, 1.0, 0.0, float("nan")],
        }
    )
    groups = pl.concat(
        [
            pl.DataFrame({"user_id": [1, 2, 3], "kind": "sex", "group": ["f", "f", "m"], "place": [0, 0, 1]}),
            pl.DataFrame({"user_id": [1, 2, 3], "kind": "home", "group": "here", "place": [0, 0, 0]}),
        ]
    )
    found = breakdown(judgements, "ndcg@2", groups, draws=10)
    assert [tuple(row[:2]) for row in found.iter_rows()] == [
        ("sex", "f"),
        ("sex", "m"),
        ("popularity of the items", "cold"),
    ]
    torch.testing.assert_close(found["mean"].to_torch(), torch.tensor([0.2, 0.8, 0.5], dtype=torch.float64))
    assert found["users"].to_list() == [2, 1, 2]
    assert found["metric"].to_list() == ["ndcg@2", "ndcg@2", "recall@2"]


def test_recall_of_a_group_counts_its_own_relevant_items_alone() -> None:
    groups = popularity_groups(torch.tensor([9, 0, 0, 0]))  # a head, and three cold items
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    relevant = torch.tensor([[True, True, False, True], [False, True, True, True]])
    found = ranking_metrics(scores, torch.ones(2, 4, dtype=torch.bool), relevant, 2, tie_places(4, 0), groups)
    assert found["recall@2 on head items"][0] == 1
    assert found["recall@2 on head items"][1].isnan()
    torch.testing.assert_close(
        found["recall@2 on cold items"], torch.tensor([1 / 2, 1 / 3], dtype=torch.float64)
    )
