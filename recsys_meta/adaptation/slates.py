"""What a policy makes of the best of each user: a slate drawn from them, with the propensity of everything shown."""

import torch
from torch import Tensor

from recsys_meta.ab.slate_policies import PlackettLuce
from recsys_meta.adaptation.recommend import Recommended


def drawn(
    pool: Recommended, policy: PlackettLuce, *, size: int, user_keys: Tensor, item_keys: Tensor, seed: int
) -> Recommended:
    """The same users with slates in the place of their pools; scores no longer fall with the rank.

    Who is served by the prior or by popularity gets a slate drawn from those scores, with propensities as exact.

    Args:
        pool: lists as long as the pool that is drawn from.
        policy: what draws.
        size: items shown; no more than a pool holds.
        user_keys: [U] int64, by the row of the user.
        item_keys: [I] int64, by the row of the catalogue.
        seed: of the night.
    """
    absent = pool.items < 0
    scores = pool.scores.masked_fill(absent, -torch.inf)
    keys = item_keys[pool.items.clamp(min=0)]
    size = min(size, scores.shape[1])
    slates = policy.draw(scores, size, users=user_keys[pool.rows], items=keys, seed=seed)
    shown = slates.places >= 0
    places = slates.places.clamp(min=0)
    return pool._replace(
        items=pool.items.gather(1, places).masked_fill(~shown, -1),
        scores=pool.scores.gather(1, places).masked_fill(~shown, -torch.inf),
        propensity=slates.propensity,
    )
