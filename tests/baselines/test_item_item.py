"""Incidence, ItemKNN, EASE and their blends: small cases by hand, dense references, and what a blend is fitted on."""

import pytest
import torch
from torch import Tensor

from recsys_meta.baselines.ease import EASE, EASEPopularity
from recsys_meta.baselines.item_item import ItemItem, PopularityBlend
from recsys_meta.baselines.item_knn import ItemKNN, ItemKNNPopularity
from recsys_meta.models import incidence as incidences
from recsys_meta.models.incidence import choices_of, incidence, largest_of_rows, nearest_items, sparse_product
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, Sizes

IDS = 9  # of the vocabulary, the unknown included


def features(ids: Tensor) -> Features:
    nothing = torch.zeros(len(ids), 0)
    return Features(ids, nothing.long(), (), nothing, nothing)


def catalogue(ids: Tensor) -> Catalogue:
    """log popularity grows with the row."""
    return Catalogue(features(ids), torch.arange(len(ids)).log1p(), torch.ones(len(ids), dtype=torch.bool))


def sizes(ids: int = IDS) -> Sizes:
    return Sizes(FeatureSizes(), FeatureSizes(ids=ids))


def choices(users: int = 40, seed: int = 0) -> Histories:
    """Rows of a catalogue of 10, some of them twice by the same user, some with a value of 0."""
    draw = torch.Generator().manual_seed(seed)
    return Histories(
        torch.randint(10, (users * 4,), generator=draw),
        torch.randint(3, (users * 4,), generator=draw).float(),
        torch.zeros(0, dtype=torch.int64),
        torch.arange(0, users * 4 + 1, 4),
    )


def some_catalogue() -> Catalogue:
    """Rows in another order than ids; rows 3 and 7 are unknown to the vocabulary."""
    return catalogue(torch.tensor([5, 2, 8, 0, 1, 4, 3, 0, 6, 7]))


def dense(histories: Histories, items: Catalogue) -> Tensor:
    """[U, ids]: who chose what, by a loop."""
    chosen = torch.zeros(len(histories.offsets) - 1, IDS)
    for user, row, value in zip(histories.owners(), histories.items, histories.values, strict=True):
        if value > 0 and items.features.ids[row] > 0:
            chosen[user, items.features.ids[row]] = 1
    return chosen


def scores(learner: ItemItem, items: Catalogue, rows: list[int]) -> Tensor:
    codes = learner.encode(items)
    index = torch.tensor([rows], dtype=torch.int64)
    support = Examples(index, torch.ones(index.shape), torch.ones(index.shape, dtype=torch.bool))
    return learner.predict(learner.adapt(support, features(torch.zeros(1, dtype=torch.int64)), codes), codes)[
        0
    ]


def test_incidence_counts_a_choice_once_and_the_unknown_item_never() -> None:
    made = incidence(choices(), some_catalogue(), IDS)
    torch.testing.assert_close(made.to_dense(), dense(choices(), some_catalogue()))
    assert incidence(choices(0), some_catalogue(), IDS).to_dense().shape == (0, IDS)


def test_the_choices_of_each_user_are_those_of_the_incidence_and_how_often_it_made_them() -> None:
    made = choices_of(choices(), some_catalogue(), IDS)
    for user, whole in enumerate(dense(choices(), some_catalogue())):
        ids, times = made.take(torch.tensor([user])).values.unbind(1)
        assert torch.equal(ids, whole.nonzero().squeeze(1))
        mine = choices().take(torch.tensor([user]))
        chosen = some_catalogue().features.ids[mine.items[mine.values > 0]].tolist()
        assert times.tolist() == [chosen.count(number) for number in ids.tolist()]
    assert made.values[:, 1].max() > 1
    assert len(choices_of(choices(0), some_catalogue(), IDS).lengths) == 0


def test_a_product_of_sparse_matrices_is_that_of_the_dense_ones() -> None:
    made, expected = incidence(choices(), some_catalogue(), IDS), dense(choices(), some_catalogue())
    torch.testing.assert_close(sparse_product(made.T, made), expected.T @ expected)


@pytest.mark.parametrize("most", [1, 4, 9])
def test_the_largest_of_sparse_rows_are_those_of_the_dense_ones_and_other_columns_fill_up(most: int) -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.rand(40, 9, generator=draw) * (
        torch.rand(40, 1, generator=draw) > torch.rand(40, 9, generator=draw)
    )
    values, columns = largest_of_rows(table.to_sparse(), most)
    torch.testing.assert_close(values.sort(descending=True).values, table.topk(most).values)
    torch.testing.assert_close(table.gather(1, columns), values)
    assert (columns.sort().values.diff() > 0).all()  # no column twice


@pytest.mark.parametrize("sparse", [0, 10**9])  # looked for in sparse rows, and in dense ones
def test_the_nearest_items_are_those_of_the_table_of_pairs(
    sparse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incidences, "_SPARSE", sparse)
    table = dense(choices(), some_catalogue())
    made = incidence(choices(), some_catalogue(), IDS)
    rows, weight = torch.arange(1, IDS, 2), torch.rand(IDS, generator=torch.Generator().manual_seed(0)) + 0.1
    expected = ((table.T @ table) * weight[:, None] * weight).fill_diagonal_(0)[rows]
    values, items = nearest_items(made, rows, 3, row_weight=weight[rows], weight=weight)
    torch.testing.assert_close(values.sort(descending=True).values, expected.topk(3).values)
    torch.testing.assert_close(expected.gather(1, items), values)


def test_an_item_is_worth_the_mean_cosine_to_the_support_that_is_among_its_neighbours() -> None:
    items, chosen = some_catalogue(), dense(choices(), some_catalogue())
    norm = chosen.norm(dim=0).clamp(min=1e-9)
    cosine = (chosen.T @ chosen / norm / norm[:, None]).fill_diagonal_(0)
    learner = ItemKNN(sizes(), neighbours=3)
    learner.fit_statistics(choices(), items)
    expected = torch.zeros(10)
    for row, id_ in enumerate(items.features.ids):
        nearest = cosine[id_].topk(3).indices
        expected[row] = sum(cosine[id_, j] for j in (5, 8) if j in nearest) / 2
    torch.testing.assert_close(scores(learner, items, [0, 2]), expected)


def test_ease_weighs_what_solves_each_item_from_the_others() -> None:
    # Column i of B is the ridge regression of who chose i on who chose the other items.
    items, chosen = some_catalogue(), dense(choices(), some_catalogue()).double()
    learner = EASE(sizes(), ridge=2.0)
    learner.fit_statistics(choices(), items)
    for row, id_ in enumerate(items.features.ids.tolist()):
        others = [j for j in range(1, IDS) if j != id_]
        design = chosen[:, others]
        weights = torch.linalg.solve(
            design.T @ design + 2.0 * torch.eye(len(others)), design.T @ chosen[:, id_]
        )
        expected = sum((w for w, j in zip(weights, others, strict=True) if j in (5, 8)), torch.zeros(()))
        torch.testing.assert_close(
            scores(learner, items, [0, 2])[row], expected.float(), rtol=1e-4, atol=1e-5
        )


def test_ease_on_the_most_chosen_leaves_out_what_cannot_be_recommended_first() -> None:
    items = some_catalogue()
    items = items._replace(eligible=items.features.ids <= 4)
    learner = EASE(sizes(), ridge=2.0, most_chosen=4)
    learner.fit_statistics(choices(), items)
    found = scores(learner, items, [1, 4])  # ids 2 and 1
    assert (found[items.features.ids > 4] < 1e-5).all()
    assert (found[items.features.ids.sub(3.5).abs() < 1].abs() > 1e-3).all()
    assert (scores(learner, items, [0, 2]) < 1e-5).all()  # ids 5 and 8 tell nothing


def test_more_items_than_a_dense_inverse_can_bear_are_refused_unless_they_are_left_out() -> None:
    with pytest.raises(ValueError, match=r"found 20001 items.*most_chosen"):
        EASE(sizes(20_001))
    assert EASE(sizes(20_001), most_chosen=5).weight.shape == (6, 6)


@pytest.mark.parametrize("kind", [ItemKNN, EASE, ItemKNNPopularity, EASEPopularity])
def test_without_history_popularity_ranks(kind: type[ItemItem]) -> None:
    items = some_catalogue()
    learner = kind(sizes())
    learner.fit_statistics(choices(), items)
    assert (scores(learner, items, []).diff() > 0).all()


@pytest.mark.parametrize(("kind", "bare"), [(ItemKNNPopularity, ItemKNN), (EASEPopularity, EASE)])
def test_a_blend_adds_beta_times_log_popularity_to_what_is_fitted_to_all(
    kind: type[PopularityBlend], bare: type[ItemItem]
) -> None:
    items, learner, without = some_catalogue(), kind(sizes()), bare(sizes())
    for one in (learner, without):
        one.fit_statistics(choices(), items)
    for rows, beta in (([0], 0), ([0, 1], 0), ([0, 1, 2], 1), ([0, 1, 2, 4], 1), ([0, 1, 2, 4, 5], 2)):
        expected = scores(without, items, rows) + learner.beta[beta] * items.log_popularity
        torch.testing.assert_close(scores(learner, items, rows), expected)


def test_beta_is_large_where_only_popularity_tells_and_small_where_it_misleads() -> None:
    draw = torch.Generator().manual_seed(0)
    vocabulary = 31
    counts = torch.arange(30).float()
    items = Catalogue(features(torch.arange(1, 31)), counts.log1p(), torch.ones(30, dtype=torch.bool))
    by_popularity = torch.multinomial(counts.expand(200, 30), 6, generator=draw)
    start = torch.randint(5, (200, 1), generator=draw) * 6  # five groups of items, equally often chosen
    in_groups = start + torch.rand(200, 6, generator=draw).argsort(1)
    betas = []
    for rows in (by_popularity, in_groups):
        learner = EASEPopularity(sizes(vocabulary), ridge=10.0)
        offsets = torch.arange(0, 200 * 6 + 1, 6)
        history = Histories(rows.flatten(), torch.ones(1200), torch.zeros(0, dtype=torch.int64), offsets)
        learner.fit_statistics(history, items)
        betas.append(learner.beta)
    assert (betas[0][:3] > 10 * betas[1][:3]).all()
    assert (betas[0][3:] == betas[0][2]).all()  # nobody has more than 6 choices: as with 5 shots


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbours 0"):
        ItemKNN(sizes(), neighbours=0)
    with pytest.raises(ValueError, match=r"ridge 0\.0"):
        EASE(sizes(), ridge=0.0)
