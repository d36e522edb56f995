"""The sanity checks find what they are for, and let honest figures pass."""

import polars as pl
import pytest
import torch

from recsys_meta.evaluation.sanity import (
    SanityError,
    beyond_strangers,
    check_adapts,
    check_batch_size,
    check_disjoint,
    check_later,
    check_oracle,
    check_shuffled_labels,
    mean_of_shuffles,
    shuffled_labels,
)
from recsys_meta.tables import USER_ID
from recsys_meta.tensors import Histories


def histories(rows: list[list[int]], values: list[float] | None = None) -> Histories:
    items = [item for row in rows for item in row]
    return Histories(
        torch.tensor(items, dtype=torch.int64),
        torch.ones(len(items)) if values is None else torch.tensor(values),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([0, *(sum(map(len, rows[: n + 1])) for n in range(len(rows)))]),
    )


def judged(metric: str, shots: dict[str, list[float]]) -> pl.DataFrame:
    return pl.concat(
        pl.DataFrame(
            {
                "learner": "learner",
                USER_ID: range(len(values)),
                "draw": 0,
                "shot": shot,
                "metric": metric,
                "value": values,
            }
        )
        for shot, values in shots.items()
    )


def test_an_item_may_stand_in_the_support_of_one_task_and_the_query_of_another() -> None:
    check_disjoint(histories([[0, 1], [2]]), histories([[2], [0, 1]]))
    check_disjoint(histories([[]]), histories([[]]))


def test_an_item_in_support_and_query_of_one_task_is_found() -> None:
    with pytest.raises(SanityError, match=r"1 support examples .* in 1 tasks \(first: row 1\)"):
        check_disjoint(histories([[0, 1], [2, 3]]), histories([[2], [3, 1]]))
    with pytest.raises(SanityError, match="2 support sets stand against 1 query sets"):
        check_disjoint(histories([[0], [1]]), histories([[1]]))


@pytest.mark.parametrize(
    ("metric", "perfect", "less"), [("ndcg@10", 1.0, 0.99), ("hit_rate@5", 1.0, 0.9), ("mse", 0.0, 0.1)]
)
def test_an_oracle_has_to_be_perfect(metric: str, perfect: float, less: float) -> None:
    check_oracle(judged(metric, {"0": [perfect, perfect, float("nan")]}))
    with pytest.raises(SanityError, match="an oracle has"):
        check_oracle(judged(metric, {"0": [perfect, less]}))


def test_shuffled_labels_keep_the_tasks_and_all_that_was_observed() -> None:
    rated = histories([[0, 1], [2, 3, 4]], [1.0, 2.0, 3.0, 4.0, 5.0])
    shuffled = shuffled_labels(rated, 0)
    assert shuffled.items.tolist() == rated.items.tolist()
    assert shuffled.values.tolist() != rated.values.tolist()
    assert sorted(shuffled.values.tolist()) == rated.values.tolist()
    clicks = shuffled_labels(histories([[0, 1], [2, 3, 4]]), 0)
    assert clicks.items.tolist() != [0, 1, 2, 3, 4]
    assert sorted(clicks.items.tolist()) == [0, 1, 2, 3, 4]
    assert clicks.offsets.tolist() == [0, 2, 5]


def test_a_gain_from_shuffled_labels_is_a_leak() -> None:
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)) / 100
    values = (0.8 + noise).tolist()

    def check(metric: str, change: float) -> None:
        adapted = judged(metric, {"5": [value + change for value in values]})
        check_shuffled_labels(adapted, judged(metric, {"5": values}))

    check("mae", 0.2)
    check("mae", -0.01)  # within 2 %
    with pytest.raises(SanityError, match=r"mae at shot 5 differs by -0\.1000"):
        check("mae", -0.1)
    with pytest.raises(SanityError, match="ndcg@10 at shot 5"):
        check("ndcg@10", 0.1)


def test_several_shuffles_are_averaged_task_by_task() -> None:
    nan = float("nan")
    pages = [judged("mae", {"1": values}) for values in ([0.1, 0.5, nan], [0.3, nan, nan])]
    mean = mean_of_shuffles(pages)
    assert mean.columns == pages[0].columns
    assert mean.drop("value").equals(pages[0].drop("value"))
    assert mean["value"].to_list()[:2] == pytest.approx([0.2, 0.5])
    assert mean["value"].is_nan().to_list() == [False, False, True]


def test_of_many_shots_one_is_allowed_more_chance_than_a_single_one() -> None:
    noise = torch.randn(40, generator=torch.Generator().manual_seed(4))
    noise = (noise - noise.mean()) / noise.std(correction=0)
    prior = torch.ones(40)
    lucky = prior - 0.1 + 0.1 / 2.9 * 40**0.5 * noise  # 2.9 standard errors below
    even = (prior + 0.2).tolist()
    shots = [str(shot) for shot in range(12)]
    alone = judged("mae", {"0": lucky.tolist()}), judged("mae", {"0": prior.tolist()})
    among = (
        judged("mae", dict.fromkeys(shots, even) | {"0": lucky.tolist()}),
        judged("mae", dict.fromkeys(shots, prior.tolist())),
    )
    with pytest.raises(SanityError, match="mae at shot 0"):
        check_shuffled_labels(*alone)
    check_shuffled_labels(*among)
    check_shuffled_labels(*alone, among=12)  # the same of many learners


def test_what_serves_strangers_as_well_is_no_leak() -> None:
    noise = torch.rand(60, generator=torch.Generator().manual_seed(0)) / 100
    prior, prior_strangers = (judged("ndcg@10", {"5": (level + noise).tolist()}) for level in (0.5, 0.4))
    knows_shots, knows_strangers = (
        judged("ndcg@10", {"5": (level + noise).tolist()}) for level in (0.6, 0.5)
    )
    with pytest.raises(SanityError):
        check_shuffled_labels(knows_shots, prior)
    check_shuffled_labels(beyond_strangers(knows_shots, knows_strangers, prior_strangers), prior)
    with pytest.raises(SanityError, match=r"ndcg@10 at shot 5 differs by \+0\.1000"):
        check_shuffled_labels(beyond_strangers(knows_shots, prior_strangers, prior_strangers), prior)


def test_where_rankings_are_judged_the_items_are_shuffled_with_their_values() -> None:
    labelled = histories([[0, 1], [2, 3, 4]], [0.0, 1.0, 0.0, 1.0, 0.0])
    shuffled = shuffled_labels(labelled, 0, ranked=True)
    assert shuffled.items.tolist() != labelled.items.tolist()
    assert [item % 2 for item in shuffled.items.tolist()] == shuffled.values.tolist()


def test_who_begins_with_nothing_may_learn_from_any_labels_what_others_know_beforehand() -> None:
    noise = (torch.rand(50, generator=torch.Generator().manual_seed(0)) / 100).tolist()

    def around(middle: float) -> pl.DataFrame:
        return judged("mae", {"5": [middle + x for x in noise]})

    wise = around(0.8).with_columns(learner=pl.lit("wise"))
    with pytest.raises(SanityError):
        check_shuffled_labels(around(0.8), around(2.0))
    check_shuffled_labels(around(0.8), pl.concat([around(2.0), wise]))
    with pytest.raises(SanityError, match=r"from 0\.80"):
        check_shuffled_labels(around(0.5), pl.concat([around(2.0), wise]))


def test_a_result_that_depends_on_the_batch_size_is_found() -> None:
    values = [0.5, float("nan"), 0.25]
    asked: list[int] = []

    def steady(size: int) -> pl.DataFrame:
        asked.append(size)
        return judged("mae", {"1": values})

    check_batch_size(steady, (4, 2, 1))
    assert asked == [4, 2, 1]
    with pytest.raises(SanityError, match="2 of 3 judgements change between batches of 4 and of 2"):
        check_batch_size(lambda size: judged("mae", {"1": [size / 4, float("nan"), size / 8]}), (4, 2))
    with pytest.raises(SanityError, match="1 of 3 judgements change"):
        check_batch_size(
            lambda size: judged("mae", {"1": [0.5, 0.5 if size == 4 else float("nan"), 0.5]}), (4, 2)
        )
    with pytest.raises(ValueError, match="two or more"):
        check_batch_size(steady, (4,))


def timed(rows: list[list[int]]) -> Histories:
    """Tasks of events at these times."""
    return histories(rows)._replace(times=torch.tensor([at for row in rows for at in row], dtype=torch.int64))


def test_a_query_event_may_be_as_old_as_the_support_and_no_older() -> None:
    check_later(timed([[1, 5], [], [3]]), timed([[5, 9], [0], []]))
    with pytest.raises(SanityError, match=r"2 of 4 query events .* in 2 of 3 tasks \(first: row 0\)"):
        check_later(timed([[1, 5], [], [3]]), timed([[4, 9], [0], [2]]))


def test_scores_that_are_anybodys_or_nobodys_are_found() -> None:
    adapted, priors = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    check_adapts(adapted, priors)  # one user may well stay at the prior
    with pytest.raises(SanityError, match="1 of 2 users are not finite"):
        check_adapts(torch.tensor([[1.0, torch.nan], [2.0, 1.0]]), priors)
    with pytest.raises(SanityError, match="all 2 users get the same score for each of 2 items"):
        check_adapts(priors, adapted)
    with pytest.raises(SanityError, match="the support set changes nothing"):
        check_adapts(adapted, adapted)
