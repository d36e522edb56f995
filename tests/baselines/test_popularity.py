"""Popularity: the counts of the catalogue at hand, for everybody."""

import torch

from recsys_meta.baselines.popularity import Popularity
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Sizes


def features(rows: int) -> Features:
    nothing = torch.zeros(rows, 0)
    return Features(torch.zeros(rows, dtype=torch.int64), nothing.long(), (), nothing, nothing)


def catalogue(counts: list[float], eligible: list[bool] | None = None) -> Catalogue:
    kept = [True] * len(counts) if eligible is None else eligible
    return Catalogue(features(len(counts)), torch.tensor(counts).log1p(), torch.tensor(kept))


def examples(items: list[list[int]], mask: list[list[bool]] | None = None) -> Examples:
    index = torch.tensor(items)
    standing = torch.ones_like(index, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Examples(index, standing.float(), standing)


POPULARITY = Popularity(Sizes(FeatureSizes(), FeatureSizes()))


def test_everybody_is_scored_by_the_counts_as_of_the_moment() -> None:
    support = examples([[0], [1]])
    for counts in ([4.0, 0.0, 9.0], [1.0, 7.0, 2.0]):  # the same learner on two moments
        codes = POPULARITY.encode(catalogue(counts))
        scores = POPULARITY.predict(POPULARITY.adapt(support, features(2), codes), codes)
        torch.testing.assert_close(scores, torch.tensor([counts, counts]).log1p())


def test_the_loss_is_the_share_among_what_can_still_be_recommended() -> None:
    codes = POPULARITY.encode(catalogue([1.0, 3.0, 7.0, 99.0], [True, True, True, False]))
    query, excluded = examples([[0], [0]]), examples([[2, 0], [0, 0]], [[True, False], [False, False]])
    state = POPULARITY.adapt(query, features(2), codes)
    losses = POPULARITY.task_loss(state, query, codes, excluded)
    shares = torch.tensor(
        [2 / (2 + 4), 2 / (2 + 4 + 8)]
    )  # item 3 is not eligible, item 2 is excluded for the first
    torch.testing.assert_close(losses, -shares.log())


def test_padding_excludes_nothing_and_a_negative_stays_in_the_normalizer() -> None:
    codes = POPULARITY.encode(catalogue([1.0, 3.0]))
    query = examples([[0]])
    padded = examples([[0, 0]], [[False, False]])
    negative = Examples(torch.tensor([[1]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    state = POPULARITY.adapt(query, features(1), codes)
    expected = POPULARITY.task_loss(state, query, codes)
    torch.testing.assert_close(expected, -torch.tensor([2 / 6]).log())
    torch.testing.assert_close(POPULARITY.task_loss(state, query, codes, padded), expected)
    torch.testing.assert_close(POPULARITY.task_loss(state, query, codes, negative), expected)
