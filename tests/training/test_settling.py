"""What is decided after meta-training, by users that were not trained on."""

from collections.abc import Callable, Sequence

import pytest
import torch
from toy_world import episodes, histories, toy_world

from recsys_meta.algorithms import laddered_maml
from recsys_meta.algorithms.base import Gains, Judging
from recsys_meta.algorithms.laddered_maml import (
    _LESS,
    _OTHER_BIAS,
    _OTHER_COSINES,
    _OTHER_LOGS,
    _OTHER_TRUST,
    LadderedMAML,
    _mean_and_error,
)
from recsys_meta.tensors import EpisodeBatch
from recsys_meta.training import settling
from recsys_meta.training.settling import Judged, episode_gains, mean_of, settle, together

WORLD = toy_world()
TRAIN, HELD_OUT = torch.arange(120), torch.arange(120, 160)


def learner_with_biases(biases: torch.Tensor) -> LadderedMAML:
    """Of a prior that is popularity plus these numbers, one for each id."""
    torch.manual_seed(0)
    learner = LadderedMAML(WORLD.sizes, dim=8, dropout=0.0, unknown_share=0.0).eval()
    learner.fit_statistics(histories(WORLD, TRAIN, implicit=True), WORLD.catalogue)
    table = learner.item_bias.ids.weight
    with torch.no_grad():
        table.copy_(biases.unsqueeze(1))
        learner.factor_curve.values.zero_()
    return learner


def each(gains: Callable[[bool], Gains]) -> Judging:
    """How good learners are in each of several ways, where it is known how good they are as they stand."""

    def of_ways(adapted: bool, ways: Sequence[Callable[[], None]]) -> list[Gains]:
        found = []
        for put in ways:
            put()
            found.append(gains(adapted))
        return found

    return of_ways


def as_it_stands(learner: LadderedMAML, batches: list[EpisodeBatch], *, adapted: bool) -> Gains:
    (gains,) = episode_gains(learner, batches, [lambda: None], adapted=adapted)
    return gains


def validation():
    return [episodes(WORLD, HELD_OUT, implicit=True, shots=2, query=4, seed=1)]


def wanted_by_all() -> torch.Tensor:
    """How often each id is asked for by these very users: what no popularity of others knows as well."""
    (batch,) = validation()
    ids = WORLD.catalogue.features.ids[batch.query.items][batch.query.mask & (batch.query.targets > 0)]
    return torch.bincount(ids, minlength=WORLD.sizes.item.ids).float()


def prior_of(learner: LadderedMAML) -> torch.Tensor:
    (batch,) = validation()
    codes = learner.encode(batch.catalogue)
    return learner.predict(learner.prior(batch.support, batch.users, codes), codes)


def test_a_prior_that_serves_new_users_no_better_than_popularity_gives_way_to_it() -> None:
    noise = torch.randn(WORLD.sizes.item.ids, generator=torch.Generator().manual_seed(0))
    learner = learner_with_biases(3 * noise)
    settle([Judged(learner, validation())])
    assert learner.departure == 0
    torch.testing.assert_close(prior_of(learner), WORLD.catalogue.log_popularity.expand(len(HELD_OUT), -1))


def test_a_prior_that_serves_them_better_stays() -> None:
    learner = learner_with_biases(wanted_by_all())
    before = prior_of(learner)
    settle([Judged(learner, validation())])
    assert learner.departure == 1
    torch.testing.assert_close(prior_of(learner), before)


@pytest.mark.parametrize(("asked", "expected"), [(1, 0.0), (10, 0.5), (10_000, 0.5)])
def test_the_many_who_want_one_thing_do_not_outvote_those_who_want_many(asked: int, expected: float) -> None:
    """60 users gain .1 where half of what was learned stands beside popularity, and 30 who want 20 items lose .05."""
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    gained = torch.where(torch.arange(90) < 60, 0.1, -0.05)
    wanted = torch.where(torch.arange(90) < 60, asked, 20)

    @each
    def gains(adapted: bool) -> Gains:
        half = float(not adapted and learner.departure == 0.5)
        shots, whole = torch.ones(90, dtype=torch.int64), torch.ones(90, dtype=torch.bool)
        return Gains(half * gained, shots, torch.arange(90), wanted, whole)

    learner.settle(gains)
    assert learner.departure == expected


def test_with_history_it_does_not_matter_how_little_stands_beside_popularity() -> None:
    noise = torch.randn(WORLD.sizes.item.ids, generator=torch.Generator().manual_seed(0))
    learner, (batch,) = learner_with_biases(3 * noise), validation()
    codes = learner.encode(batch.catalogue)
    before = learner.predict(learner.adapt(batch.support, batch.users, codes), codes)
    for share in (0.0, 0.5):
        learner.departure.fill_(share)
        torch.testing.assert_close(
            learner.predict(learner.adapt(batch.support, batch.users, codes), codes), before
        )


def test_a_few_users_settle_nothing() -> None:
    learner = learner_with_biases(wanted_by_all())
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    few = [episodes(WORLD, HELD_OUT[:19], implicit=True, shots=2, query=4, seed=1)]
    settle([Judged(learner, few)])
    moved = [name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])]
    # Without history it is popularity, unless enough users gain, with history three quarters of what is usual.
    assert moved == ["departure", "learned_curve.values"]
    assert learner.departure == 0
    assert learner.learned_curve.values.tolist() == [1.0] + [0.25] * 9
    learner = learner_with_biases(wanted_by_all())
    settle([Judged(learner, few, in_time=True)])
    assert learner.learned_curve.values.tolist() == [1.0] * 10


@pytest.mark.parametrize(
    ("users", "plain", "lost", "shares"),
    [
        (299, True, 0.0, [0.25, 0.25, 0.25]),
        (300, True, 0.0, [1.0, 1.0, 0.25]),
        (299, False, 0.0, [1.0, 1.0, 1.0]),  # lists, or queries later in time
        (299, True, 0.1, [0.25, 1.0, 0.25]),
    ],
)
def test_what_was_learned_stands_alone_where_enough_users_settle_it_or_lose_without_it(
    users: int, plain: bool, lost: float, shares: list[float]
) -> None:
    """Each has two episodes of few shots and of some, in which it loses, and 40 of them one of many."""
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    shots = torch.cat([torch.full((2 * users,), 3), torch.full((2 * users,), 10), torch.full((40,), 30)])
    who = torch.cat([torch.arange(users).repeat(4), torch.arange(40)])

    @each
    def gains(adapted: bool) -> Gains:
        losing = (shots == 10) & (learner.learned_curve.values[5] < 1)
        values = torch.where(losing, -lost, 0.0)
        return Gains(values, shots, who, torch.full_like(who, 5), torch.full(who.shape, plain))

    learner.settle(gains)
    few, some, many = shares
    assert learner.learned_curve.values.tolist() == [1.0] + [few] * 4 + [some] * 2 + [many] * 3


def test_a_share_of_what_was_learned_is_one_of_its_scores() -> None:
    noise = torch.randn(WORLD.sizes.item.ids, generator=torch.Generator().manual_seed(0))
    learner, (batch,) = learner_with_biases(noise), validation()
    with torch.no_grad():
        for number, name in enumerate(("linear_curve", "log_curve", "lift_curve", "factor_curve")):
            getattr(learner, name).values.fill_(0.3 * number - 0.4)
    codes = learner.encode(batch.catalogue)

    def scores() -> torch.Tensor:
        return learner.predict(learner.adapt(batch.support, batch.users, codes), codes).detach()

    learned = scores()
    learner.learned_curve.values.data.fill_(0.25)
    found = scores()
    known, shots = learner.known, (batch.support.mask & (batch.support.targets > 0)).sum(1)
    ids = codes.ids[batch.support.items]
    liked = batch.support.mask & (batch.support.targets > 0) & (ids > 0)
    assert shots.tolist() == [2] * len(HELD_OUT)
    usual = {name: float(curve.values[2]) for name, curve in learner.usual.items()}  # the knot of two shots
    cosines = known.cooccurrence.cosines(ids, liked)
    of_vocabulary = (
        usual["log_curve"] * torch.log1p(learner.log_kappa.exp() * cosines)
        + usual["lift_curve"] * known.regression.scores(ids, liked)
        + usual["factor_curve"] * known.implicit.scores(ids, liked)
    ).detach()
    expected = usual["bias_curve"] * codes.log_popularity + of_vocabulary[:, codes.ids]
    torch.testing.assert_close(found, learned / 4 + 3 * expected / 4)
    assert not torch.allclose(found, learned)


def test_without_validation_users_everything_stays() -> None:
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    settle([Judged(learner, [])])
    assert learner.departure == 1


def test_the_gain_is_ndcg_of_the_candidates_that_are_left() -> None:
    noise = torch.randn(WORLD.sizes.item.ids, generator=torch.Generator().manual_seed(0))
    learner, (batch,) = learner_with_biases(noise), validation()
    scores = prior_of(learner)[0]
    scores[batch.support.items[0][batch.support.mask[0]]] = -torch.inf
    scores[~batch.catalogue.eligible] = -torch.inf
    relevant = set(batch.query.items[0][batch.query.mask[0] & (batch.query.targets[0] > 0)].tolist())
    discounts = (1 / torch.arange(2.0, 12.0).log2()).tolist()
    top = scores.argsort(descending=True)[:10].tolist()
    found = sum(discount for discount, item in zip(discounts, top, strict=True) if item in relevant)
    expected = found / sum(discounts[: len(relevant)])
    assert float(as_it_stands(learner, [batch], adapted=False)[0][0]) == pytest.approx(expected)


def test_the_gains_in_several_ways_are_those_of_each_and_the_last_one_stays() -> None:
    noise = torch.randn(WORLD.sizes.item.ids, generator=torch.Generator().manual_seed(0))
    learner = learner_with_biases(noise)

    def trust(kept: float, cosines: float, learned: float) -> Callable[[], None]:
        def put() -> None:
            learner.kept_curve.values.data.fill_(kept)
            learner.log_curve.values.data.fill_(cosines)
            learner.learned_curve.values.data.fill_(learned)

        return put

    ways = [trust(1.0, 0.7, 1.0), trust(0.0, 3.0, 1.0), trust(0.5, -3.0, 0.25)]
    in_turn = episode_gains(learner, validation(), ways, adapted=True)
    assert learner.log_curve.values.tolist() == [-3.0] * 10
    assert len({found.values.sum().item() for found in in_turn}) == 3
    for put, found in zip(ways, in_turn, strict=True):
        put()
        alone = as_it_stands(learner, validation(), adapted=True)
        for column, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(column, expected, rtol=0, atol=0)


def test_what_adaptation_finds_is_found_once_where_there_is_room(monkeypatch) -> None:
    """And what is settled by it is the same as without."""
    evidence, found = LadderedMAML.evidence, []

    def counted(self, support, users, items):
        found.append(support)
        return evidence(self, support, users, items)

    monkeypatch.setattr(LadderedMAML, "evidence", counted)

    def settled(room: int) -> tuple[dict[str, torch.Tensor], int]:
        monkeypatch.setattr(settling, "_ROOM", room)
        learner = trusting(-1.0)
        found.clear()
        settle([Judged(learner, validation(), validation())])
        return learner.state_dict(), len(found)

    kept, anew = settled(2**30), settled(0)
    assert kept[1] == 2  # batches
    assert anew[1] > 10
    assert float(kept[0]["factor_curve.values"].max()) > -1.0  # something was settled
    for name, value in kept[0].items():
        assert torch.equal(value, anew[0][name]), name


def test_the_gain_of_a_list_is_ndcg_of_what_it_lists() -> None:
    """Wherever the rest of the catalogue stands."""
    noise = torch.randn(WORLD.sizes.item.ids, generator=torch.Generator().manual_seed(0))
    learner = learner_with_biases(noise)
    batch = episodes(WORLD, HELD_OUT, implicit=True, shots=2, query=4, seed=1, negatives=2)
    batch = batch._replace(
        support=batch.support._replace(mask=batch.support.mask & (batch.support.targets > 0))
    )
    codes = learner.encode(batch.catalogue)
    scores = learner.predict(learner.prior(batch.support, batch.users, codes), codes)[0].detach()
    items, targets = batch.query.items[0], batch.query.targets[0]
    wanted = {int(item) for item, target in zip(items, targets, strict=True) if target > 0}
    listed = sorted(set(items.tolist()), key=lambda item: -float(scores[item]))
    discounts = (1 / torch.arange(2.0, 7.0).log2()).tolist()
    found = sum(discount for discount, item in zip(discounts, listed, strict=False) if item in wanted)
    gained = float(as_it_stands(learner, [batch], adapted=False)[0][0])
    assert gained == pytest.approx(found / sum(discounts[: len(wanted)]))


def trusting(trust: float) -> LadderedMAML:
    """A learner that has learned to trust iALS so much, at any number of shots."""
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    with torch.no_grad():
        learner.factor_curve.values.fill_(trust)
    return learner


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_of_the_trust_in_factors_stays_what_serves_users_not_trained_on(sign: float) -> None:
    learner = trusting(sign * 5)
    settle([Judged(learner, validation())])
    few, many = learner.factor_curve.values[1:5], learner.factor_curve.values[5:]
    times, plus = best_of(trusting(sign * 5), _OTHER_TRUST, "factor_curve")
    assert few.tolist() == [times * sign * 5 + plus] * 4
    assert many.tolist() == [sign * 5] * 5  # of which these episodes, of two shots, say nothing
    if sign < 0:  # what users did not choose is no recommendation
        assert times < 1


def test_users_not_trained_on_may_raise_the_trust_in_the_regression() -> None:
    def indifferent() -> LadderedMAML:
        learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
        with torch.no_grad():
            for curve in (learner.bias_curve, learner.log_curve, learner.lift_curve):
                curve.values.fill_(0.0)
        learner.known.implicit.spread.fill_(1e9)  # or more trust in iALS, which is settled before, would do
        return learner

    settled = indifferent()
    settle([Judged(settled, validation())])
    times, plus = best_of(indifferent(), _OTHER_TRUST, "lift_curve")
    assert times == 1
    assert plus > 0
    assert settled.lift_curve.values[1:5].tolist() == [plus] * 4


@pytest.mark.parametrize(
    ("few_gain", "many_gain", "raised"), [(0.1, -0.05, False), (0.1, 0.05, True), (-0.05, 0.1, False)]
)
def test_trust_is_raised_where_those_who_want_one_thing_and_those_who_want_many_both_gain(
    few_gain: float, many_gain: float, raised: bool
) -> None:
    """60 users who want one item, and 30 who want twenty, gain or lose where the regression counts more."""
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    learned = learner.lift_curve.values.detach().clone()
    few = torch.arange(90) < 60
    gained, wanted = torch.where(few, few_gain, many_gain), torch.where(few, 1, 20)

    @each
    def gains(adapted: bool) -> Gains:
        more = float(adapted and learner.lift_curve.values[1] == learned[1] + 1.0)
        shots, plain = torch.ones(90, dtype=torch.int64), torch.zeros(90, dtype=torch.bool)
        return Gains(more * gained, shots, torch.arange(90), wanted, plain)

    learner.settle(gains)
    expected = learned.clone()
    expected[1:5] += float(raised)
    torch.testing.assert_close(learner.lift_curve.values.detach(), expected)


def best_of(
    learner: LadderedMAML, others: tuple[tuple[float, float], ...], curve: str
) -> tuple[float, float]:
    """What gains most beyond its standard error over the curve as learned: worked out once more, from the gains alone."""
    values = getattr(learner, curve).values
    learned, best, most = values.detach().clone(), (1.0, 0.0), 0.0
    kept = as_it_stands(learner, validation(), adapted=True)[0]
    for times, plus in others:
        values.data = times * learned + plus
        gain = as_it_stands(learner, validation(), adapted=True)[0] - kept
        beyond = float(gain.mean() - gain.std(correction=0) / len(gain) ** 0.5)
        if beyond > most:
            best, most = (times, plus), beyond
    values.data = learned
    return best


@pytest.mark.parametrize("away", [-2.0, 0.0, 2.0])
def test_what_is_settled_is_such_that_no_other_weight_serves_users_not_trained_on_better(
    away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight after the other until nothing changes, biases among them."""
    monkeypatch.setattr(laddered_maml, "_ROUNDS", 20)
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    with torch.no_grad():
        learner.bias_curve.values += away
    learned = as_it_stands(learner, validation(), adapted=True)[0].mean()
    settle([Judged(learner, validation())])
    learner.learned_curve.values.data.fill_(1.0)  # what is usual comes in last
    others = {
        "kept_curve": _LESS,
        "factor_curve": _OTHER_TRUST,
        "lift_curve": _OTHER_TRUST,
        "bias_curve": _OTHER_BIAS,
        "log_curve": _OTHER_LOGS,
        "linear_curve": _OTHER_COSINES,
    }
    better = {name: best_of(learner, some, name) for name, some in others.items()}
    assert better == dict.fromkeys(others, (1.0, 0.0))
    found = as_it_stands(learner, validation(), adapted=True)[0].mean()
    assert found > learned if away else found >= learned
    unsaid = learner.bias_curve.values[5:]  # these episodes, of two shots, say nothing of many
    torch.testing.assert_close(unsaid, torch.full_like(unsaid, 1 + away))


@pytest.mark.parametrize(("rounds", "trusts"), [(1, False), (2, True)])
def test_what_pays_only_once_something_else_has_moved_is_found_in_the_next_round(
    rounds: int, trusts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More trust in iALS, which is asked first, is worth something where cosines count twice."""
    monkeypatch.setattr(laddered_maml, "_ROUNDS", rounds)
    learner = learner_with_biases(torch.zeros(WORLD.sizes.item.ids))
    cosines, calls = learner.log_curve.values.detach().clone(), 0

    @each
    def gains(adapted: bool) -> Gains:
        nonlocal calls
        calls += 1
        doubled = float(learner.log_curve.values[1] == 2 * cosines[1])
        gained = torch.full((90,), doubled * (1 + float(learner.factor_curve.values[1] == 1.0)))
        shots, plain = torch.ones(90, dtype=torch.int64), torch.zeros(90, dtype=torch.bool)
        return Gains(gained, shots, torch.arange(90), torch.full((90,), 5), plain)

    learner.settle(gains)
    assert (learner.log_curve.values[1:5] == 2 * cosines[1:5]).all()
    assert (learner.factor_curve.values[1:5] == float(trusts)).all()
    first = calls
    monkeypatch.setattr(laddered_maml, "_ROUNDS", 1000)  # nothing is asked any more where nothing changes
    learner.settle(gains)
    assert calls - first < 3 * first


def test_the_prior_is_judged_on_each_user_once_and_what_is_adapted_on_all_episodes() -> None:
    class Asking(LadderedMAML):
        asked: list[tuple[bool, int]] = []  # noqa: RUF012

        def settle(self, gains, fellows=()):
            self.asked.extend(
                (adapted, len(gains(adapted, [lambda: None])[0][0])) for adapted in (False, True)
            )

    torch.manual_seed(0)
    learner = Asking(WORLD.sizes, dim=8)
    learner.fit_statistics(histories(WORLD, TRAIN, implicit=True), WORLD.catalogue)
    settle([Judged(learner.eval(), validation(), validation())])
    (not_adapted, once), (adapted, twice) = learner.asked
    assert (not_adapted, adapted, twice) == (False, True, 2 * once)


def test_adaptation_that_harms_users_not_trained_on_is_not_kept() -> None:
    torch.manual_seed(0)
    learner = LadderedMAML(WORLD.sizes, dim=8, dropout=0.0, unknown_share=0.0).eval()
    learner.fit_statistics(histories(WORLD, TRAIN, implicit=True), WORLD.catalogue)
    (batch,) = validation()
    steps = learner.step_size["user"]
    with torch.no_grad():
        steps.fill_(-30.0)  # away from what was liked
    codes = learner.encode(batch.catalogue)
    harmed = learner.predict(learner.adapt(batch.support, batch.users, codes), codes)
    settle([Judged(learner, [batch])])
    kept = learner.kept_curve.values
    assert kept[1:5].tolist() == [0.0] * 4
    assert kept[5:].tolist() == [1.0] * 5  # of many shots these episodes say nothing
    state = learner.adapt(batch.support, batch.users, codes)
    theta = learner.prior(batch.support, batch.users, codes)
    torch.testing.assert_close(state["user"], theta["user"])
    assert not torch.allclose(learner.predict(state, codes), harmed)
    learner.continue_from(learner.state_dict())
    assert learner.kept_curve.values.tolist() == learner.learned_curve.values.tolist() == [1.0] * 10


def halves() -> tuple[Judged, Judged]:
    """Two learners that trust iALS differently, each judged by half of the users."""
    return tuple(
        Judged(trusting(trust), [episodes(WORLD, half, implicit=True, shots=2, query=4, seed=1)])
        for trust, half in zip((-2.0, -5.0), HELD_OUT.chunk(2)[::-1], strict=True)
    )


def test_what_is_averaged_is_settled_alike_by_the_users_of_all() -> None:
    judged = halves()
    learned = [one.learner.factor_curve.values.detach().clone() for one in judged]
    gains = {}
    for times, plus in ((1, 0), *_OTHER_TRUST):
        for one, values in zip(judged, learned, strict=True):
            one.learner.factor_curve.values.data = times * values + plus
        gains[times, plus] = torch.cat(
            [as_it_stands(one.learner, one.once, adapted=True)[0] for one in judged]
        )
    beyond = {}
    for choice, found in gains.items():
        gain = found - gains[1, 0]
        beyond[choice] = float(gain.mean() - gain.std(correction=1) / len(gain) ** 0.5)
    times, plus = max(beyond, key=beyond.__getitem__)
    assert (times, plus) != (1, 0)
    leader = halves()[0]
    settle([leader])  # by its own users alone it decides otherwise
    assert leader.learner.factor_curve.values[1] != times * learned[0][1] + plus
    judged = halves()
    settle(judged)
    for one, values in zip(judged, learned, strict=True):
        torch.testing.assert_close(one.learner.factor_curve.values[1:5], times * values[1:5] + plus)
    assert judged[0].learner.departure == judged[1].learner.departure


def test_users_of_two_learners_are_two_though_their_numbers_are_the_same() -> None:
    def of(users: list[int]) -> Gains:
        number = len(users)
        asked, plain = torch.arange(number), torch.arange(number) > 0
        return Gains(torch.ones(number), torch.zeros(number), torch.tensor(users), asked, plain)

    found = together([of([7, 9, 7]), of([]), of([9, 3])])
    assert found.users.tolist() == [0, 1, 0, 3, 2]
    assert found.values.tolist() == [1.0] * 5
    assert found.asked.tolist() == [0, 1, 2, 0, 1]
    assert found.plain.tolist() == [False, True, True, False, True]


def test_the_mean_of_learners_has_the_mean_of_their_weights() -> None:
    members = [learner_with_biases(torch.full((WORLD.sizes.item.ids,), bias)) for bias in (1.0, 2.0, 6.0)]
    with torch.no_grad():
        for member, trust in zip(members, (0.0, 0.5, 1.0), strict=True):
            member.lift_curve.values.fill_(trust)
    kept = mean_of(members)
    assert kept is members[0]
    assert kept.item_bias.ids.weight.flatten().tolist() == [3.0] * WORLD.sizes.item.ids
    assert kept.lift_curve.values.tolist() == [0.5] * 10
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    mean_of([kept])
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())


def test_several_episodes_of_a_user_are_no_more_users() -> None:
    of_users = torch.randn(30, generator=torch.Generator().manual_seed(0))
    once = _mean_and_error(of_users, torch.arange(30))
    assert once == pytest.approx((float(of_users.mean()), float(of_users.std()) / 30**0.5))
    # The same eight times over says nothing more; episodes of a user that have nothing in common count as so many users.
    repeated = _mean_and_error(of_users.repeat(8), torch.arange(30).repeat(8))
    assert repeated == pytest.approx(once, rel=1e-5)
    apart = torch.randn(240, generator=torch.Generator().manual_seed(1))
    assert _mean_and_error(apart, torch.arange(30).repeat(8))[1] == pytest.approx(
        float(apart.std()) / 240**0.5, rel=0.3
    )
    assert _mean_and_error(of_users[:9].repeat(8), torch.arange(9).repeat(8)) == (0.0, 0.0)
    assert _mean_and_error(of_users[:0], torch.arange(0)) == (0.0, 0.0)


def test_an_episode_of_weight_two_counts_as_two_of_the_same_user() -> None:
    gained = torch.randn(30, generator=torch.Generator().manual_seed(0))
    weights = torch.randint(1, 4, (30,), generator=torch.Generator().manual_seed(1))
    repeated = _mean_and_error(gained.repeat_interleave(weights), torch.arange(30).repeat_interleave(weights))
    assert _mean_and_error(gained, torch.arange(30), weights) == pytest.approx(repeated, rel=1e-5)
