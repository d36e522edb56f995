"""Fold-in, ALS, iALS and ridge on content: solutions against dense references, and fits that stand at their minimum."""

import pytest
import torch
from torch import Tensor

from recsys_meta.algorithms.base import Learner
from recsys_meta.baselines.als import ALS
from recsys_meta.baselines.content_ridge import ContentRidge
from recsys_meta.baselines.ials import IALS
from recsys_meta.baselines.user_bias import ItemMeanUserBias
from recsys_meta.models.ridge_solutions import ridge_by_group, ridge_solution
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, Ragged, Sizes

USERS, ITEMS = 30, 12


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def features(ids: Tensor) -> Features:
    nothing = torch.zeros(len(ids), 0)
    return Features(ids, nothing.long(), (), nothing, nothing)


def catalogue(described: Features | None = None) -> Catalogue:
    known = features(torch.arange(1, ITEMS + 1)) if described is None else described
    return Catalogue(known, torch.zeros(ITEMS), torch.ones(ITEMS, dtype=torch.bool))


def sizes() -> Sizes:
    return Sizes(FeatureSizes(), FeatureSizes(ids=ITEMS + 1))


def ratings() -> Histories:
    """Each user rates 5 different items."""
    items = torch.rand(USERS, ITEMS, generator=draw()).argsort(1)[:, :5]
    values = 3 + torch.randn(USERS * 5, generator=draw())
    return Histories(
        items.flatten(), values, torch.zeros(0, dtype=torch.int64), torch.arange(0, USERS * 5 + 1, 5)
    )


def support_of(histories: Histories) -> Examples:
    """All that each user did."""
    shape = (USERS, 5)
    mask = torch.ones(shape, dtype=torch.bool)
    return Examples(histories.items.reshape(shape), histories.values.reshape(shape), mask)


def all_scores(learner: Learner, support: Examples, items: Catalogue) -> Tensor:
    codes = learner.encode(items)
    users = features(torch.zeros(len(support.items), dtype=torch.int64))
    return learner.predict(learner.adapt(support, users, codes), codes)


@pytest.mark.parametrize("columns", [3, 16])  # solved as columns, and as examples
def test_the_ridge_solution_leaves_no_gradient_and_looks_at_no_padding(columns: int) -> None:
    vectors, targets = torch.randn(2, 6, columns, generator=draw()), torch.randn(2, 6, generator=draw())
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    root = torch.randn(columns, columns, generator=draw())
    precision = root @ root.T / columns + torch.eye(columns)
    solution = ridge_solution(vectors, targets, mask, precision).requires_grad_()
    errors = ((vectors @ solution.unsqueeze(-1)).squeeze(-1) - targets) * mask
    (errors.square().sum() + ((solution @ precision) * solution).sum()).backward()
    torch.testing.assert_close(solution.grad, torch.zeros(2, columns), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("tasks", "examples"), [(3, 0), (0, 2), (0, 0)])
def test_the_ridge_solution_of_nothing_is_zero(tasks: int, examples: int) -> None:
    empty = torch.zeros(tasks, examples)
    found = ridge_solution(torch.zeros(tasks, examples, 4), empty, empty.bool(), torch.eye(4))
    assert torch.equal(found, torch.zeros(tasks, 4))


@pytest.mark.parametrize("columns", [3, 16])
def test_solving_by_group_is_solving_each_group_alone(columns: int) -> None:
    # Some of 100 are empty, most have a few, two have hundreds: more groups and more examples than are solved at a time.
    many = 700
    groups = torch.cat([torch.randint(100, (300,), generator=draw()), torch.arange(many) % 2 + 50])
    members, targets = torch.randint(40, (len(groups),), generator=draw()), torch.ones(len(groups))
    vectors = torch.randn(40, columns, generator=draw())
    precision = torch.full((columns, columns), 0.5) + torch.eye(columns)
    found = ridge_by_group(groups, 100, vectors, members, targets, precision)
    for group in range(100):
        own = groups == group
        chosen = vectors[members[own]].double()
        alone = torch.linalg.solve(chosen.T @ chosen + precision.double(), chosen.T @ targets[own].double())
        torch.testing.assert_close(found[group], alone.float(), rtol=1e-3, atol=1e-4)


def test_where_no_group_has_an_example_all_solutions_are_zero() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    found = ridge_by_group(nothing, 3, torch.ones(2, 4), nothing, torch.zeros(0), torch.eye(4))
    assert torch.equal(found, torch.zeros(3, 4))


def test_als_comes_to_where_no_gradient_is_left() -> None:
    learner = ALS(sizes(), factors=2, ridge=0.5, bias_ridge=0.7, rounds=300)
    histories = ratings()
    learner.fit_statistics(histories, catalogue())
    codes = learner.encode(catalogue())
    state = learner.adapt(support_of(histories), features(torch.zeros(USERS, dtype=torch.int64)), codes)
    weights = [
        weight.clone().requires_grad_()
        for weight in (state["offset"][:, 0], state["user"], learner.item_bias[1:], learner.factor[1:])
    ]
    offset, user, bias, factor = weights
    scores = learner.mean + offset[:, None] + bias + user @ factor.T
    errors = scores[histories.owners(), histories.items] - histories.values
    penalty = 0.7 * (offset.square().sum() + bias.square().sum()) + 0.5 * (
        user.square().sum() + factor.square().sum()
    )
    (errors.square().sum() + penalty).backward()
    for weight in weights:
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.zeros_like(weight), rtol=0, atol=1e-2)
    torch.testing.assert_close(all_scores(learner, support_of(histories), catalogue()), scores.detach())


def test_ials_comes_to_where_no_gradient_is_left() -> None:
    learner = IALS(sizes(), factors=2, confidence=3.0, ridge=0.5, rounds=300)
    histories = ratings()._replace(values=torch.ones(USERS * 5))
    learner.fit_statistics(histories, catalogue())
    codes = learner.encode(catalogue())
    state = learner.adapt(support_of(histories), features(torch.zeros(USERS, dtype=torch.int64)), codes)
    user, factor = (weight.clone().requires_grad_() for weight in (state["user"], learner.factor[1:]))
    scores = user @ factor.T
    chosen = scores[histories.owners(), histories.items]
    loss = 3 * (1 - chosen).square().sum() + scores.square().sum()
    (loss + 0.5 * (user.square().sum() + factor.square().sum())).backward()
    for weight in (user, factor):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.zeros_like(weight), rtol=0, atol=1e-2)
    assert factor.abs().max() > 0.1


@pytest.mark.parametrize("learner", [ALS(sizes(), factors=2, ridge=0.5), IALS(sizes(), factors=2, ridge=0.5)])
def test_an_unknown_item_is_what_it_was_before_the_fit(learner: Learner) -> None:
    pooled = catalogue(features(torch.arange(ITEMS)))  # row 0 is unknown to the vocabulary
    learner.fit_statistics(ratings(), pooled)
    scores = all_scores(learner, support_of(ratings()).emptied(), pooled)
    torch.testing.assert_close(scores[:, 0], getattr(learner, "mean", torch.zeros(())).expand(USERS))
    assert (learner.get_buffer("factor")[0] == 0).all()


def described() -> Features:
    """Categories, lists, a number and a vector: 3 + 4 + 1 + 2 columns, rows 0 of the vocabularies unknown."""
    bags = Ragged(torch.randint(4, (2 * ITEMS,), generator=draw()), torch.arange(0, 2 * ITEMS + 1, 2))
    return Features(
        torch.arange(1, ITEMS + 1),
        torch.randint(3, (ITEMS, 1), generator=draw()),
        (bags,),
        torch.randn(ITEMS, 1, generator=draw()),
        torch.randn(ITEMS, 2, generator=draw()),
    )


CONTENT = Sizes(FeatureSizes(), FeatureSizes(ITEMS + 1, (3,), (4,), 1, 2))


def test_content_is_every_category_a_column_lists_in_shares_and_the_unknown_nothing() -> None:
    known = described()
    made = ContentRidge(CONTENT).item_vectors(catalogue(known))
    one_hot = torch.nn.functional.one_hot(known.categorical[:, 0], 3).float()
    shares = torch.nn.functional.one_hot(known.multi[0].values, 4).float().reshape(ITEMS, 2, 4).mean(1)
    one_hot[:, 0], shares[:, 0] = 0, 0
    torch.testing.assert_close(made, torch.cat([one_hot, shares, known.numbers, known.vectors], 1))


def test_hashed_content_keeps_products_in_expectation() -> None:
    known = catalogue(described())
    exact = ContentRidge(CONTENT).item_vectors(known)
    hashed = torch.stack([ContentRidge(CONTENT, width=8, seed=s).item_vectors(known) for s in range(400)])
    torch.testing.assert_close((hashed @ hashed.mT).mean(0), exact @ exact.T, rtol=0, atol=0.4)
    assert hashed.shape[2] == 8


def test_without_content_or_under_a_large_ridge_content_is_item_mean_and_user_bias() -> None:
    bare, reference = catalogue(), ItemMeanUserBias(sizes())
    for learner, items in (
        (ContentRidge(sizes()), bare),
        (ContentRidge(CONTENT, ridge=1e7), catalogue(described())),
    ):
        learner.fit_statistics(ratings(), items)
        reference.fit_statistics(ratings(), bare)
        torch.testing.assert_close(
            all_scores(learner, support_of(ratings()), items),
            all_scores(reference, support_of(ratings()), bare),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize(
    ("kind", "settings"), [(ALS, {"ridge": 0.0}), (IALS, {"confidence": 0.0}), (ContentRidge, {"width": 0})]
)
def test_settings_without_a_meaning_are_refused(kind: type[Learner], settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(sizes(), **settings)
