"""Tests of slates drawn from the best of each user."""

import torch

from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.adaptation.recommend import Recommended
from recsys_meta.adaptation.slates import drawn
from recsys_meta.tables import SOURCES

POLICY = PlackettLuce(1.0, exploration=0.2)
USER_KEYS, ITEM_KEYS = torch.arange(5) * 101, torch.arange(9) * 77


def pools() -> Recommended:
    """Users 4, 0 and 2: adapted, the prior with two candidates, popularity without any."""
    nowhere = -torch.inf
    return Recommended(
        rows=torch.tensor([4, 0, 2]),
        items=torch.tensor([[8, 3, 5, 1], [2, 7, -1, -1], [-1, -1, -1, -1]]),
        scores=torch.tensor([[2.0, 1.0, 0.5, 0.0], [0.3, 0.1, nowhere, nowhere], [nowhere] * 4]),
        source=torch.tensor([0, 1, 2], dtype=torch.int8),
        n_support=torch.tensor([5, 0, 0]),
        loss_before=torch.full((3,), torch.nan),
        loss_after=torch.full((3,), torch.nan),
        reason=torch.zeros(3, dtype=torch.int8),
        vectors=None,
    )


def test_a_slate_shows_items_of_the_pool_with_their_scores_and_propensities_whatever_the_source() -> None:
    best = pools()
    slates = drawn(best, POLICY, size=3, user_keys=USER_KEYS, item_keys=ITEM_KEYS, seed=1)
    assert slates.propensity is not None
    assert [SOURCES[code] for code in slates.source.tolist()] == list(SOURCES)
    assert (slates.items >= 0).sum(1).tolist() == [3, 2, 0]
    for user in range(3):
        pool = best.items[user].tolist()
        items = [item for item in slates.items[user].tolist() if item >= 0]
        places = [pool.index(item) for item in items]
        assert slates.scores[user, : len(items)].tolist() == best.scores[user][places].tolist()
        expected = POLICY.propensities(best.scores[user, None], torch.tensor([places], dtype=torch.int64))[0]
        assert slates.propensity[user, : len(items)].tolist() == expected.tolist()
        assert (slates.scores[user, len(items) :] == -torch.inf).all()


def test_a_slate_is_no_longer_than_the_pools_however_long_it_was_asked_for() -> None:
    best, keys = pools(), {"user_keys": USER_KEYS, "item_keys": ITEM_KEYS}
    slates, whole = (drawn(best, POLICY, size=size, **keys, seed=1) for size in (10**12, 4))
    assert torch.equal(slates.items, whole.items)
    assert slates.items.shape == best.items.shape


def test_a_slate_goes_with_the_user_and_the_items_and_not_with_their_rows() -> None:
    best = pools()
    slates = drawn(best, POLICY, size=3, user_keys=USER_KEYS, item_keys=ITEM_KEYS, seed=1)
    user_at, item_at = torch.tensor([3, 1, 4, 2, 0]), torch.tensor([4, 0, 8, 1, 7, 2, 6, 3, 5])
    moved = best._replace(
        rows=user_at[best.rows],
        items=item_at[best.items.clamp(min=0)].masked_fill(best.items < 0, -1),
    )
    keys = {
        "user_keys": torch.empty_like(USER_KEYS).scatter(0, user_at, USER_KEYS),
        "item_keys": torch.empty_like(ITEM_KEYS).scatter(0, item_at, ITEM_KEYS),
    }
    again = drawn(moved, POLICY, size=3, **keys, seed=1)
    shown = slates.items >= 0
    assert torch.equal(again.items[shown], item_at[slates.items[shown]])
    assert torch.equal(again.items >= 0, shown)
