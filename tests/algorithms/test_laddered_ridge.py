"""The solve against the minimum that it stands for, and where meta-training starts."""

import pytest
import torch
from toy_world import episodes, histories, meta_train, toy_world, uneven

from recsys_meta.algorithms.laddered_ridge import LadderedRidge
from recsys_meta.baselines.als import ALS
from recsys_meta.baselines.fold_in import diagonal, with_constant
from recsys_meta.models.rating_unit import unit_of
from recsys_meta.models.ridge_solutions import ridge_solution
from recsys_meta.models.variational_factors import VariationalFactors, variational_factors

WORLD = toy_world()
TRAIN = torch.arange(120)
BATCH = episodes(WORLD, torch.arange(120, 128), implicit=False, shots=6, query=6, seed=0)


def fitted(views: int = 1) -> LadderedRidge:
    torch.manual_seed(0)
    learner = LadderedRidge(WORLD.sizes, factors=3, views=views)
    learner.fit_statistics(histories(WORLD, TRAIN, implicit=False), WORLD.catalogue)
    return learner.eval()


def test_the_state_is_the_minimum_that_the_file_states() -> None:
    learner = fitted()
    meta_train(learner, WORLD, TRAIN, implicit=False, steps=5)
    with torch.no_grad():
        codes, support = learner.encode(WORLD.catalogue), uneven(BATCH.support)
        start, found = learner._start(BATCH.users)[:, 0].double(), learner.adapt(support, BATCH.users, codes)
        vectors, ids = codes.vectors[support.items].double(), codes.ids[support.items]
        share = learner.shift_curve(support.shots)
        weight = support.mask / learner.log_noise[ids].exp().double()
        variance, precision = learner.variance[ids].double(), learner.precision().double()
        left = (support.targets - codes.bias[support.items]).double()
        left -= share[:, None] * vectors[..., -1]
    assert found["user"][:, -1].tolist() == share.tolist()
    assert learner.prior(support, BATCH.users, codes)["user"][0, -1] == learner.shift_curve.values[0]
    w = torch.cat([found["offset"][:, None], found["user"][:, :-1]], 1).double().requires_grad_()
    error = left - w[:, :1] - (vectors[..., :-1] @ w[:, 1:, None]).squeeze(2)
    unsure = (variance * w[:, None, 1:].square()).sum(2)
    objective = (weight * (error.square() + unsure)).sum() + (precision * (w - start).square()).sum()
    (slope,) = torch.autograd.grad(objective, w)
    assert slope.abs().max() < 1e-4 * objective
    assert (w - start).abs().max() > 0.1


@torch.no_grad()
def test_what_is_left_of_a_rating_tells_of_items_that_share_something() -> None:
    learner = fitted(views=2)
    learner.neighbour.zero_()
    learner.covariance.zero_()
    codes, support = learner.encode(WORLD.catalogue), uneven(BATCH.support)
    plain = learner.adapt(support, BATCH.users, codes)
    before = learner.predict(plain, codes)
    user, rated = 2, int(support.items[2, 0])
    other = next(item for item in range(30) if item not in support.items[2])
    learner.neighbour[rated + 1, 0], learner.covariance[rated + 1, 0] = other + 1, 0.3
    after = learner.predict(learner.adapt(support, BATCH.users, codes), codes)
    left = support.targets[user, 0] - before[user, rated]
    told = 0.3 * left / learner.log_noise[rated + 1].exp()
    torch.testing.assert_close(after[user, other] - before[user, other], told, rtol=1e-3, atol=1e-4)
    assert told.abs() > 0.01
    assert torch.equal(after[:, torch.arange(30) != other], before[:, torch.arange(30) != other])
    unmoved = ((support.items == rated) & support.mask).any(1).logical_not()
    assert torch.equal(after[unmoved], before[unmoved])
    assert torch.equal(learner.user_vectors(plain), torch.cat([plain["offset"][:, None], plain["user"]], 1))


@torch.no_grad()
def test_many_of_a_series_say_together_what_the_posterior_says() -> None:
    """Of items alike, with no factors, of whose ratings as much is left: noise 1, R 0.5 between any two."""
    learner = LadderedRidge(WORLD.sizes, factors=2, views=1).eval()
    learner.log_precision.fill_(20.0)
    learner.log_offset_precision.fill_(20.0)
    ids = torch.arange(1, 21)
    learner.neighbour[ids, :20], learner.covariance[ids, :20] = ids.int().expand(20, 20), 0.5
    learner.covariance[ids, torch.arange(20)] = 0.0
    codes = learner.encode(WORLD.catalogue)
    for rated in (1, 5, 19):
        items = torch.arange(rated)[None]
        support = BATCH.support._replace(
            items=items, targets=codes.bias[items] + 1.0, mask=torch.ones(1, rated, dtype=torch.bool)
        )
        user = BATCH.users.take(torch.tensor([0]))
        found = learner.predict(learner.adapt(support, user, codes), codes)[0, 19] - codes.bias[19]
        shared = torch.full((rated, rated), 0.5).fill_diagonal_(0.0) + torch.eye(rated)
        expected = 0.5 * torch.linalg.solve(shared, torch.ones(rated)).sum()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def variational_factors_of_the_toy() -> VariationalFactors:
    events = histories(WORLD, TRAIN, implicit=False)
    return variational_factors(
        events.owners(),
        len(TRAIN),
        WORLD.catalogue.features.ids[events.items],
        WORLD.sizes.item.ids,
        events.values,
        factors=3,
        rounds=15,
    )


@torch.no_grad()
def test_without_doubts_and_meta_training_it_is_the_fold_in_of_als() -> None:
    learner = fitted()
    learner.variance.zero_()
    learner.shift_curve.values.zero_()
    codes = learner.encode(WORLD.catalogue)
    found = learner.adapt(BATCH.support, BATCH.users, codes)
    vectors = with_constant(codes.vectors[:, :-1])
    left = BATCH.support.targets - codes.bias[BATCH.support.items]
    noise, precision = learner.log_noise[0].exp(), learner.precision()[0]
    ridge = diagonal(float(precision[0] * noise), float(precision[1] * noise), vectors)
    expected = ridge_solution(vectors[BATCH.support.items], left, BATCH.support.mask, ridge)
    torch.testing.assert_close(
        torch.cat([found["offset"][:, None], found["user"][:, :-1]], 1), expected, rtol=1e-3, atol=1e-4
    )


@torch.no_grad()
def test_without_history_an_item_is_worth_what_its_raters_give_it() -> None:
    learner = fitted()
    codes = learner.encode(WORLD.catalogue)
    found = variational_factors_of_the_toy()
    scores = learner.predict(learner.prior(BATCH.support, BATCH.users, codes), codes)
    torch.testing.assert_close(scores, (found.mean + found.marginal_bias)[codes.ids].expand(len(scores), -1))
    assert (found.marginal_bias - found.bias).abs().max() > 0.01


@torch.no_grad()
def test_items_in_doubt_move_a_user_less() -> None:
    learner = fitted()
    codes = learner.encode(WORLD.catalogue)
    before = learner.adapt(BATCH.support, BATCH.users, codes)["user"].norm(dim=1)
    learner.variance.mul_(10)
    assert (learner.adapt(BATCH.support, BATCH.users, codes)["user"].norm(dim=1) < before).all()


def of_view(name: str, weight: torch.Tensor, columns: slice) -> torch.Tensor:
    if name in ("log_precision", "log_offset_precision"):
        return weight[columns.start // 3 :][:1]
    linear = name in ("item_encoder.numbers.weight", "item_encoder.vectors.weight", "head.user_0")
    linear |= name.startswith("head.user_encoder") and name.split(".")[2] in ("numbers", "vectors")
    if linear:
        return weight[columns]
    return weight[:, columns] if weight.dim() == 2 and weight.shape[1] == 9 else weight


def test_the_score_is_the_mean_of_what_each_view_says_alone() -> None:
    learner = fitted(views=3)
    meta_train(learner, WORLD, TRAIN, implicit=False, steps=5)
    support = uneven(BATCH.support)
    alone = []
    with torch.no_grad():
        for view in range(3):
            columns = slice(3 * view, 3 * view + 3)
            one = LadderedRidge(WORLD.sizes, factors=3, views=1).eval()
            one.load_state_dict({name: of_view(name, w, columns) for name, w in learner.state_dict().items()})
            codes = one.encode(WORLD.catalogue)
            alone.append(one.predict(one.adapt(support, BATCH.users, codes), codes))
        codes = learner.encode(WORLD.catalogue)
        found = learner.predict(learner.adapt(support, BATCH.users, codes), codes)
    torch.testing.assert_close(found, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_changes_of_items_have_their_price() -> None:
    learner = fitted()
    free = learner.meta_loss(BATCH)
    with torch.no_grad():
        learner.item_bias.ids.weight[0] = 2.0  # the unknown, which stands in no episode
    torch.testing.assert_close(learner.meta_loss(BATCH) - free, torch.tensor(4 * learner.stay))


def scaled(learner: LadderedRidge, times: float) -> torch.Tensor:
    """Scores after a few steps on ratings so many times as large, told of a support set and of nothing."""
    torch.manual_seed(0)
    data = histories(WORLD, TRAIN, implicit=False)
    learner.fit_statistics(data._replace(values=times * data.values), WORLD.catalogue)
    adam = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 0.01)
    for seed in range(3):
        batch = episodes(WORLD, TRAIN, implicit=False, shots=5, query=6, seed=seed)
        some = (part._replace(targets=times * part.targets) for part in (batch.support, batch.query))
        adam.zero_grad()
        learner.meta_loss(batch._replace(**dict(zip(("support", "query"), some, strict=True)))).backward()
        adam.step()
    learner.eval()
    with torch.no_grad():
        codes, support = learner.encode(WORLD.catalogue), BATCH.support
        support = support._replace(targets=times * support.targets)
        states = (
            learner.adapt(support, BATCH.users, codes),
            learner.prior(support, BATCH.users, codes),
        )
        return torch.stack([learner.predict(state, codes) for state in states])


@pytest.mark.parametrize(("times", "tolerance"), [(64.0, 0.0), (0.25, 0.0), (100.0, 0.05), (1e-4, 0.05)])
def test_what_is_predicted_has_the_unit_of_the_ratings(times: float, tolerance: float) -> None:
    torch.manual_seed(0)
    once, often = (scaled(LadderedRidge(WORLD.sizes, factors=3, views=2), factor) for factor in (1.0, times))
    if tolerance:  # the unit is a power of two
        assert float((often / times - once).abs().mean()) < tolerance * float(once.std())
    else:
        assert torch.equal(often / times, once)


@torch.no_grad()
@pytest.mark.parametrize("times", [64.0, 0.25])
def test_als_too_predicts_in_the_unit_of_the_ratings(times: float) -> None:
    data, scores = histories(WORLD, TRAIN, implicit=False), []
    for factor in (1.0, times):
        learner = ALS(WORLD.sizes, factors=3, ridge=1.0)
        learner.fit_statistics(data._replace(values=factor * data.values), WORLD.catalogue)
        codes = learner.encode(WORLD.catalogue)
        support = BATCH.support._replace(targets=factor * BATCH.support.targets)
        scores.append(learner.predict(learner.adapt(support, BATCH.users, codes), codes))
    assert torch.equal(scores[1] / times, scores[0])


def test_the_unit_is_the_power_of_two_nearest_to_the_spread() -> None:
    for spread, unit in ((1.1, 1), (1.5, 2), (0.6, 0.5), (26.0, 32), (22.0, 16)):
        assert float(unit_of(torch.tensor([-spread, spread]))) == unit
    for alike in ([3.0, 3.0], [3.0]):
        assert float(unit_of(torch.tensor(alike))) == 1


@torch.no_grad()
@pytest.mark.parametrize("users", [1, 40])
def test_ratings_that_are_all_the_same_are_foretold(users: int) -> None:
    learner = LadderedRidge(WORLD.sizes, factors=3, views=2).eval()
    data = histories(WORLD, torch.arange(users), implicit=False)
    learner.fit_statistics(data._replace(values=torch.full_like(data.values, 3.0)), WORLD.catalogue)
    codes = learner.encode(WORLD.catalogue)
    scores = learner.predict(learner.prior(BATCH.support, BATCH.users, codes), codes)
    torch.testing.assert_close(scores, torch.full_like(scores, 3.0), rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_warm_start_goes_on_in_the_unit_of_the_earlier_one() -> None:
    earlier, later = fitted(views=2), LadderedRidge(WORLD.sizes, factors=3, views=2).eval()
    data = histories(WORLD, TRAIN, implicit=False)
    later.fit_statistics(data._replace(values=4 * data.values), WORLD.catalogue)
    assert float(later.unit) == 4 * float(earlier.unit)
    known = len(later.factor) - 4
    state = {
        name: value[:known] if value.dim() and len(value) == len(later.factor) else value
        for name, value in earlier.state_dict().items()
    }
    later.continue_from(state)
    assert later.unit == earlier.unit
    for name in ("factor", "start_bias", "marginal_shift"):  # of new items, four times as much
        torch.testing.assert_close(
            getattr(later, name)[known:], 4 * getattr(earlier, name)[known:], rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(later.variance[known:], 16 * earlier.variance[known:], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_warm_start_keeps_what_known_items_share_and_takes_up_what_new_ones_do() -> None:
    earlier, later = fitted(views=2), fitted(views=2)
    known = len(later.factor) - 4
    state = {name: value.clone() for name, value in earlier.state_dict().items()}
    for name in ("factor", "variance", "start_bias", "marginal_shift", "neighbour", "covariance"):
        state[name] = state[name][:known]
    state["neighbour"][5, :2], state["covariance"][5, :2] = torch.tensor([7, 8]), torch.tensor([0.5, -0.4])
    state["covariance"][5, 2:] = 0.0
    later.covariance.zero_()
    later.neighbour[5, :2], later.covariance[5, :2] = torch.tensor([known + 1, 9]), torch.tensor([0.45, 0.6])
    later.continue_from(state)
    held = later.covariance[5] != 0
    assert later.neighbour[5][held].tolist() == [7, known + 1, 8]
    torch.testing.assert_close(later.covariance[5][held], torch.tensor([0.5, 0.45, -0.4]))


@torch.no_grad()
def test_a_warm_start_turns_each_view_of_new_items_as_the_earlier_one_lies() -> None:
    earlier, later = fitted(views=2), fitted(views=2)
    turns = [
        torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(n)))[0] for n in (1, 2)
    ]
    later.factor.copy_(later.factor @ torch.block_diag(*turns))
    known = len(later.factor) - 4
    state = {
        name: value[:known] if value.dim() and len(value) == len(later.factor) else value
        for name, value in earlier.state_dict().items()
    }
    later.continue_from(state)
    torch.testing.assert_close(later.factor[known:], earlier.factor[known:], rtol=1e-3, atol=1e-4)
    assert earlier.factor[known:].abs().max() > 0.1


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_first_ratings_count_less_where_they_say_little_of_the_later_ones(drift: float) -> None:
    learner = fitted()
    before = learner.precision().detach().clone()
    optimizer = torch.optim.AdamW(learner.parameter_groups(0.0), lr=0.003)
    learner.train()
    for step in range(60):
        rows = TRAIN[torch.randperm(120, generator=torch.Generator().manual_seed(step))[:32]]
        batch = episodes(WORLD, rows, implicit=False, shots=4, query=6, seed=step)
        # How high somebody rates at first is one thing, how high later another.
        mood = torch.randn(32, 1, generator=torch.Generator().manual_seed(1000 + step))
        support = batch.support._replace(targets=batch.support.targets + drift * mood)
        optimizer.zero_grad()
        learner.meta_loss(batch._replace(support=support)).backward()
        optimizer.step()
    offsets, factors = (learner.precision() / before)[0].split([1, 3])
    if drift:
        assert offsets > 2
    else:
        assert 0.5 < offsets < 1.5
    assert (factors.log().abs() < 0.25).all()
