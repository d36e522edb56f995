"""Metrics against scikit-learn, torchmetrics, and cases worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from recsys_meta.evaluation.metrics import (
    absolute_errors,
    multi_hot,
    ranking_metrics,
    rated_ndcg,
    squared_errors,
    tie_places,
    top_items,
)


def world(users: int, items: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores without ties, candidates, relevance and the places of the shuffle."""
    draw = torch.Generator().manual_seed(seed)
    # Above 0: torchmetrics counts no hit at a score of 0 or less.
    scores = torch.stack([1 + torch.randperm(items, generator=draw) for _ in range(users)]).float() / items
    candidates = torch.rand(users, items, generator=draw) < 0.8
    candidates[:, 0] = True
    relevant = torch.rand(users, items, generator=draw) < 0.1
    return scores, candidates, relevant, tie_places(items, seed)


def test_errors_are_means_over_the_rated_items_of_each_user() -> None:
    predictions = torch.tensor([[1.0, 5.0, 99.0], [3.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    targets = torch.tensor([[2.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert absolute_errors(predictions, targets, mask)[:2].tolist() == [2.0, 0.0]
    assert squared_errors(predictions, targets, mask)[:2].tolist() == [5.0, 0.0]
    assert absolute_errors(predictions, targets, mask)[2].isnan()
    assert squared_errors(predictions, targets, mask)[2].isnan()


def test_padding_does_not_mark_the_item_whose_row_it_borrows() -> None:
    index = torch.tensor([[0, 2], [2, 0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert multi_hot(index, mask, 3).tolist() == [[True, False, True], [False, False, True]]


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_rankings_agree_with_torchmetrics(k: int) -> None:
    scores, candidates, relevant, places = world(users=40, items=50, seed=k)
    found = ranking_metrics(scores, candidates, relevant, k, places)
    oracles = {
        f"ndcg@{k}": retrieval_normalized_dcg,
        f"recall@{k}": retrieval_recall,
        f"hit_rate@{k}": retrieval_hit_rate,
        f"mrr@{k}": retrieval_reciprocal_rank,
    }
    assert set(found) == set(oracles)
    judged = 0
    for user in range(len(scores)):
        kept = candidates[user]
        row, target = scores[user][kept], relevant[user][kept]
        for name, oracle in oracles.items():
            value = found[name][user].item()
            if not target.any():
                assert math.isnan(value)
                continue
            judged += 1
            expected = oracle(row, target, top_k=min(k, len(row))).item()
            assert value == pytest.approx(expected, abs=1e-6)
    assert judged > 100


@pytest.mark.parametrize("gain", ["linear", "exponential"])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_rated_ndcg_agrees_with_scikit_learn(gain: str, k: int) -> None:
    draw = torch.Generator().manual_seed(k)
    scores = torch.stack([torch.randperm(20, generator=draw) for _ in range(30)]).float()
    ratings = torch.randint(1, 6, (30, 20), generator=draw).float()
    lengths = torch.randint(2, 21, (30,), generator=draw)
    mask = torch.arange(20) < lengths[:, None]
    found = rated_ndcg(
        scores,
        ratings,
        mask,
        k,
        "exponential" if gain == "exponential" else "linear",
        torch.arange(20).expand(30, 20),
    )
    for user, length in enumerate(lengths.tolist()):
        gains = ratings[user, :length]
        gains = 2**gains - 1 if gain == "exponential" else gains
        expected = ndcg_score(gains[None].numpy(), scores[user, :length][None].numpy(), k=k)
        assert found[user].item() == pytest.approx(expected, abs=1e-6)


def test_a_ranking_worked_out_by_hand() -> None:
    # Ranked: item 3, 1, 0, 4 (2 is no candidate); relevant: 1, 4 and the item that is no candidate.
    scores = torch.tensor([[0.5, 0.7, 1.0, 0.9, 0.1]])
    candidates = torch.tensor([[True, True, False, True, True]])
    relevant = torch.tensor([[False, True, True, False, True]])
    found = ranking_metrics(scores, candidates, relevant, 3, tie_places(5, 0))
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg@3"].item() == pytest.approx(1 / math.log2(3) / ideal)
    assert found["recall@3"].item() == 0.5
    assert found["hit_rate@3"].item() == 1.0
    assert found["mrr@3"].item() == 0.5


def test_a_rated_ndcg_worked_out_by_hand() -> None:
    scores, ratings = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    mask, places = torch.ones(1, 3, dtype=torch.bool), torch.arange(3)[None]
    linear = rated_ndcg(scores, ratings, mask, 2, "linear", places)
    exponential = rated_ndcg(scores, ratings, mask, 2, "exponential", places)
    assert linear.item() == pytest.approx((2 + 1 / math.log2(3)) / (3 + 2 / math.log2(3)))
    assert exponential.item() == pytest.approx((3 + 1 / math.log2(3)) / (7 + 3 / math.log2(3)))


def test_a_list_longer_than_the_catalogue_is_no_error() -> None:
    scores, everything = torch.tensor([[2.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    found = ranking_metrics(scores, everything, everything, 10, tie_places(2, 0))
    assert {name: value.item() for name, value in found.items()} == {
        "ndcg@10": 1.0,
        "recall@10": 1.0,
        "hit_rate@10": 1.0,
        "mrr@10": 1.0,
    }


def test_however_long_a_list_is_asked_for_nothing_is_laid_out_by_it() -> None:
    scores, candidates, relevant, places = world(4, 30, 0)
    found, whole = (ranking_metrics(scores, candidates, relevant, k, places) for k in (10**12, 30))
    for mine, its in zip(found.values(), whole.values(), strict=True):
        assert torch.equal(mine.nan_to_num(-1.0), its.nan_to_num(-1.0))
    rated = [
        rated_ndcg(scores, relevant.float(), candidates, k, "linear", places.expand(4, 30))
        for k in (10**12, 30)
    ]
    assert torch.equal(rated[0].nan_to_num(-1.0), rated[1].nan_to_num(-1.0))


def test_users_who_cannot_be_judged_are_nan_by_every_metric() -> None:
    scores, nobody = torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.bool)
    for values in ranking_metrics(scores, ~nobody, nobody, 2, tie_places(4, 0)).values():
        assert values.isnan().all()
    places = torch.arange(4).expand(2, 4)
    assert rated_ndcg(scores, torch.zeros(2, 4), ~nobody, 2, "linear", places).isnan().all()
    assert rated_ndcg(scores, torch.ones(2, 4), nobody, 2, "exponential", places).isnan().all()


def test_what_cannot_be_ranked_is_refused() -> None:
    everything = torch.ones(1, 2, dtype=torch.bool)
    broken = torch.tensor([[float("nan"), 1.0]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_items(broken, everything, 1, tie_places(2, 0))
    assert top_items(broken, everything & ~broken.isnan(), 1, tie_places(2, 0)).tolist() == [[1]]
    with pytest.raises(ValueError, match="score that is not finite"):
        rated_ndcg(broken, torch.ones(1, 2), everything, 1, "linear", torch.arange(2)[None])
    with pytest.raises(ValueError, match=r"rating of -2\.0"):
        rated_ndcg(
            torch.ones(1, 2), torch.tensor([[-2.0, 1.0]]), everything, 1, "linear", torch.arange(2)[None]
        )


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), levels=st.integers(1, 4), k=st.integers(1, 12))
def test_ties_go_by_the_shuffle_and_never_by_input_order(seed: int, levels: int, k: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (3, 12), generator=draw).float()
    candidates = torch.rand(3, 12, generator=draw) < 0.7
    relevant = torch.rand(3, 12, generator=draw) < 0.5
    places = tie_places(12, seed)
    turned = torch.randperm(12, generator=draw)  # the same items, fed in another order
    top = top_items(scores, candidates, k, places)
    again = turned[
        top_items(scores[:, turned], candidates[:, turned], k, places[turned])
    ]  # -1 gives some item
    listed = top >= 0
    assert torch.equal(top[listed], again[listed])
    assert torch.equal(listed.sum(1), candidates.sum(1).clamp(max=k))
    key = scores.double() - places / 100  # the rule, written as one number
    for user in range(3):
        rows = candidates[user].nonzero()[:, 0]
        expected = rows[key[user][rows].argsort(descending=True)][:k]
        assert top[user][listed[user]].tolist() == expected.tolist()
    ratings = relevant.float()
    mine = rated_ndcg(scores, ratings, candidates, k, "linear", places.expand(3, 12))
    other = rated_ndcg(
        scores[:, turned],
        ratings[:, turned],
        candidates[:, turned],
        k,
        "linear",
        places[turned].expand(3, 12),
    )
    torch.testing.assert_close(mine, other, equal_nan=True)


def test_tied_scores_are_worth_what_chance_is_worth() -> None:
    relevant = torch.zeros(1, 40, dtype=torch.bool)
    relevant[0, :4] = True  # first in input order: an unshuffled ranking would find them all
    shuffles = [
        ranking_metrics(torch.zeros(1, 40), torch.ones_like(relevant), relevant, 10, tie_places(40, seed))
        for seed in range(400)
    ]
    recall = torch.cat([found["recall@10"] for found in shuffles]).mean()
    assert recall.item() == pytest.approx(10 / 40, abs=0.03)
