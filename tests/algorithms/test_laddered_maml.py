"""Where the laddered meta-learner starts, and what it is kept from seeing."""

import pytest
import torch
from torch.nn.functional import softplus
from toy_world import episodes, histories, toy_world

from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.episodes import unique_items
from recsys_meta.models.losses import LossName
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Histories

WORLD = toy_world()
TRAIN = torch.arange(120)


EVENTS = histories(WORLD, TRAIN, implicit=True)


def fitted(rows: torch.Tensor = TRAIN, events: Histories = EVENTS) -> LadderedMAML:
    torch.manual_seed(0)
    learner = LadderedMAML(WORLD.sizes, dim=8, dropout=0.0, unknown_share=0.0)
    learner.fit_statistics(events.take(rows), WORLD.catalogue)
    return learner


def of_the_first_user(shots: int = 3) -> EpisodeBatch:
    """So many of its four choices, and the last one, which is asked for."""
    chosen = EVENTS.take(torch.tensor([0])).items[None]
    examples = Examples(chosen, torch.ones(chosen.shape), torch.ones(chosen.shape, dtype=torch.bool))
    support, query = (
        Examples(*(part[:, cut] for part in examples)) for cut in (slice(shots), slice(3, None))
    )
    users = WORLD.users.take(torch.tensor([0]))
    return EpisodeBatch(support, query, users, WORLD.catalogue, counted=torch.tensor([0]))


def test_without_meta_training_and_history_it_is_popularity() -> None:
    learner = fitted().eval()
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0)
    prior = learner.predict(learner.prior(batch.support, batch.users, codes), codes)
    torch.testing.assert_close(prior, WORLD.catalogue.log_popularity.expand(4, -1))


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_without_history_a_score_is_that_of_evidence_of_nothing(share: float) -> None:
    learner = fitted().eval()
    with torch.no_grad():
        for weight in learner.parameters():
            weight.add_(0.1)
        learner.learned_curve.values.fill_(share)
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0)
    state = learner.prior(batch.support, batch.users, codes)
    adapted = learner.adapt(batch.support.emptied(), batch.users, codes)
    torch.testing.assert_close(learner.predict(state, codes), learner.predict(adapted, codes))
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in adapted.items()}


def test_the_same_items_have_the_same_scores_in_whatever_order_they_stand() -> None:
    learner = fitted().eval()
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0)
    state = learner.adapt(batch.support, batch.users, codes)
    scores = learner.predict(state, codes)
    for some in (torch.arange(2, 9), torch.arange(0, 20, 3), torch.arange(9).flip(0), torch.arange(0)):
        torch.testing.assert_close(learner.predict(state, codes.take(some)), scores[:, some])
        of_some = scores.gather(1, some.expand(4, -1))
        torch.testing.assert_close(learner.predict(state, codes, some.expand(4, -1)), of_some)


def test_tasks_that_start_alike_have_the_loss_and_the_steps_that_each_would_have_alone() -> None:
    learner = fitted().eval()
    with torch.no_grad():
        for weight in learner.parameters():
            weight.add_(0.1)
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0)
    alike = batch.users.take(torch.zeros(4, dtype=torch.int64))
    start, adapted = learner.prior(batch.support, alike, codes), learner.adapt(batch.support, alike, codes)
    with_gradient = learner.task_loss(start, batch.query, codes)
    stepped = learner.adapt(batch.support, alike, codes)
    with torch.no_grad():
        torch.testing.assert_close(learner.task_loss(start, batch.query, codes), with_gradient)
        torch.testing.assert_close(learner.adapt(batch.support, alike, codes), stepped)
        for user in range(4):
            one = Examples(*(field[user : user + 1] for field in batch.support))
            alone = learner.adapt(one, alike.take(torch.tensor([user])), codes)
            torch.testing.assert_close(alone["user"], adapted["user"][user : user + 1])
    assert not torch.equal(adapted["user"][0], adapted["user"][1])


@pytest.mark.parametrize("shots", [2, 3])
@pytest.mark.parametrize("repeats", [0, 2])
def test_a_training_user_is_judged_as_if_it_had_never_been_counted(shots: int, repeats: int) -> None:
    batch = of_the_first_user(shots)  # what it chose between the two sets was counted as well
    again = EVENTS.items[3].repeat(repeats)  # it made the choice that is asked for so often besides
    events = Histories(
        torch.cat([again, EVENTS.items]),
        torch.cat([torch.ones(repeats), EVENTS.values]),
        EVENTS.times[:0],
        torch.cat([EVENTS.offsets[:1], EVENTS.offsets[1:] + repeats]),
    )
    counts, own = (
        torch.bincount(some.items, minlength=len(WORLD.catalogue.eligible))
        for some in (events, events.take(torch.tensor([0])))
    )
    with_it, without_it = (
        WORLD.catalogue._replace(log_popularity=n.float().log1p(), hindsight=True)
        for n in (counts, counts - own)
    )
    seen, unseen = fitted(events=events), fitted(TRAIN[1:], events)
    with torch.no_grad():
        for learner in (seen, unseen):
            # Of these the folds see to it: tests/models/test_implicit_factors.py, test_episode_regression.py
            learner.factor_curve.values.zero_()
            learner.lift_curve.values.zero_()
            learner.popularity_weight.fill_(0.8)
            learner.bias_curve.values.fill_(1.5)
    codes = unseen.encode(without_it)
    state = unseen.adapt(batch.support, batch.users, codes)
    never_counted = unseen.task_loss(state, batch.query, codes, batch.support).mean()
    # The inner loop's normalizer is over all items: of these few a little is seen by their popularity.
    judged = seen.meta_loss(batch._replace(catalogue=with_it))
    torch.testing.assert_close(judged, never_counted, rtol=2e-3, atol=0.0)
    codes = seen.encode(with_it)
    leaking = seen.task_loss(seen.adapt(batch.support, batch.users, codes), batch.query, codes, batch.support)
    assert leaking.mean() < never_counted - 0.02
    # As of a moment popularity is of before: what it asks for is not counted, and nothing is taken away.
    before = with_it._replace(hindsight=False)
    assert seen.meta_loss(batch._replace(catalogue=before)) < judged - 0.01
    # And of who was not counted there is nothing to take away.
    stranger = batch._replace(catalogue=without_it, counted=None)
    torch.testing.assert_close(unseen.meta_loss(stranger), never_counted)


@pytest.mark.parametrize("largest", [0, 6000])
@pytest.mark.parametrize("left_out", [False, True])
def test_what_is_said_of_some_items_is_what_is_said_of_them_among_all(largest: int, left_out: bool) -> None:
    torch.manual_seed(0)
    learner = LadderedMAML(WORLD.sizes, dim=4, largest=largest, neighbours=9, regressed=20)
    learner.fit_statistics(EVENTS, WORLD.catalogue)
    items = learner.encode(WORLD.catalogue)
    rows = torch.arange(6)
    batch = episodes(WORLD, rows, implicit=True, shots=3, query=4, seed=0)
    own, counted = None, None
    among = items.ids[torch.cat([batch.support.items, batch.query.items], 1)].unique()
    if left_out:
        own, counted = torch.zeros(6, learner.vocabulary), rows
        for examples in (batch.support, batch.query):
            own.scatter_(1, items.ids[examples.items], 1.0)
    whole = learner.ladder(batch.support, items, own, counted)
    some = learner.ladder(batch.support, items, None if own is None else own[:, among], counted, among)
    assert len(among) < learner.vocabulary
    for part in ("cosines", "logs", "lift", "factors"):
        torch.testing.assert_close(some[part], whole[part][:, among], msg=part)
        assert some[part].abs().max() > 0
    assert torch.equal(some["shots"], whole["shots"])


@pytest.mark.parametrize("loss", ["sampled_softmax", "bpr", "logistic"])
def test_the_meta_loss_reads_nothing_of_items_that_a_batch_does_not_mention(loss: LossName) -> None:
    torch.manual_seed(0)
    learner = LadderedMAML(WORLD.sizes, dim=4, dropout=0.0, unknown_share=0.0, loss=loss)
    learner.fit_statistics(EVENTS, WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0, negatives=2)
    batch = batch._replace(catalogue=WORLD.catalogue._replace(hindsight=True), counted=TRAIN[:4])
    compact = batch._replace(
        **dict(zip(("support", "query", "catalogue"), unique_items(*batch[:2], batch.catalogue), strict=True))
    )
    assert len(compact.catalogue.eligible) < len(batch.catalogue.eligible)
    whole, part = learner.meta_loss(batch), learner.meta_loss(compact)
    torch.testing.assert_close(part, whole)
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    of_whole, of_part = (
        torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for loss in (whole, part)
    )
    assert sum(bool(gradient.any()) for gradient in of_part) > 5
    for one, other in zip(of_whole, of_part, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_refitting_moves_the_counts_and_nothing_else() -> None:
    learner = fitted(TRAIN[:60])
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.refit_statistics(EVENTS, WORLD.catalogue)
    moved = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    of_factors = {"implicit.factor", "implicit.precision", "implicit.spread"}
    of_regression = {f"regression.whole.{name}" for name in ("weight", "share")}
    counts = {"cooccurrence.occurrences", "cooccurrence.pairs"}
    assert moved == {f"known.{name}" for name in counts | of_factors | of_regression}


def test_a_user_weighs_as_many_examples_as_ndcg_counts() -> None:
    learner = fitted().eval()
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=20, seed=0)
    state = learner.adapt(batch.support, batch.users, codes)
    few = batch.query._replace(mask=batch.query.mask & (torch.arange(20) < 10))
    plain = super(LadderedMAML, learner).task_loss
    torch.testing.assert_close(learner.task_loss(state, few, codes), plain(state, few, codes))
    torch.testing.assert_close(
        learner.task_loss(state, batch.query, codes), 2 * plain(state, batch.query, codes)
    )


def test_a_task_that_lists_what_was_not_chosen_is_judged_by_pairs_and_the_others_as_ever() -> None:
    learner = fitted().eval()
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0, negatives=1)
    support = batch.support._replace(mask=batch.support.mask & (batch.support.targets > 0))
    state = learner.adapt(support, batch.users, codes)
    some = batch.query.mask & ((batch.query.targets > 0) | (torch.arange(4) < 2)[:, None])
    mixed = learner.task_loss(state, batch.query._replace(mask=some), codes, support)
    chosen = batch.query.mask & (batch.query.targets > 0)
    plain = learner.task_loss(state, batch.query._replace(mask=chosen), codes, support)
    torch.testing.assert_close(mixed[2:], plain[2:])
    scores, targets = learner.predict(state, codes, batch.query.items), batch.query.targets
    for task in range(2):
        positive, negative = scores[task][targets[task] > 0], scores[task][targets[task] == 0]
        pairs = softplus(negative - positive[:, None])
        torch.testing.assert_close(mixed[task], pairs.mean())
    listed = learner.task_loss(state, batch.query, codes, support)
    torch.testing.assert_close(listed[:2], mixed[:2])


def test_a_loss_that_rates_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one that ranks"):
        LadderedMAML(WORLD.sizes, loss="squared")


def test_the_loss_is_that_of_the_scores_that_are_served() -> None:
    learner = fitted().eval()
    codes = learner.encode(WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=10, seed=0)
    state = learner.adapt(batch.support, batch.users, codes)
    scores = learner.predict(state, codes).scatter(1, batch.support.items, -torch.inf)
    chances = scores.softmax(1).gather(1, batch.query.items)
    expected = -chances.pow(learner.power).mean(1).pow(1 / learner.power).log()
    torch.testing.assert_close(learner.task_loss(state, batch.query, codes, batch.support), expected)


def test_without_ids_the_state_holds_nothing_of_the_vocabulary() -> None:
    learner = LadderedMAML(WORLD.sizes, dim=8, item_ids=False).eval()
    learner.fit_statistics(EVENTS, WORLD.catalogue)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=10, seed=0)
    state = learner.adapt(batch.support, batch.users, learner.encode(WORLD.catalogue))
    assert state["affinity"].shape == (4, 1)
    assert not state["affinity"].any()
    assert not state["trust"].any()


def test_a_catalogue_of_the_past_is_served_from_what_was_counted_then() -> None:
    batch = episodes(WORLD, torch.arange(120, 124), implicit=True, shots=3, query=3, seed=0)
    then = fitted(TRAIN[:40]).eval()
    torch.manual_seed(0)
    learner = LadderedMAML(WORLD.sizes, dim=8, dropout=0.0, unknown_share=0.0)
    learner.fit_snapshots(
        [(EVENTS.take(TRAIN[:20]), WORLD.catalogue), (EVENTS.take(TRAIN[:40]), WORLD.catalogue)]
    )
    learner.fit_statistics(EVENTS, WORLD.catalogue)
    learner.eval()
    past = WORLD.catalogue._replace(snapshot=torch.tensor(1))

    def scores(of: LadderedMAML, catalogue: Catalogue) -> torch.Tensor:
        codes = of.encode(catalogue)
        return of.predict(of.adapt(batch.support, batch.users, codes), codes)

    with torch.no_grad():
        for each in (learner, then):
            each.factor_curve.values.fill_(0.1)
    torch.testing.assert_close(scores(learner, past), scores(then, WORLD.catalogue))
    assert not torch.allclose(scores(learner, past), scores(learner, WORLD.catalogue))
    assert set(learner.state_dict()) == set(then.state_dict())  # no bundle carries the past


def test_without_ids_what_numbers_foretold_is_the_score_whatever_the_support() -> None:
    """Items are asked for by one of their numbers, which is not how often they were met."""
    draw = torch.Generator().manual_seed(3)
    chances = (2 * WORLD.catalogue.features.numbers[:, 0]).softmax(0)
    asked = [
        (WORLD.catalogue, torch.multinomial(chances, 20_000, True, generator=draw).bincount(minlength=30))
    ]
    without, with_ids = (LadderedMAML(WORLD.sizes, dim=8, item_ids=ids).eval() for ids in (False, True))
    for learner in (without, with_ids):
        learner.fit_statistics(EVENTS, WORLD.catalogue)
        learner.fit_forecast(asked)
    assert without.forecast.tolist() == pytest.approx([0, 2], abs=0.1)
    batch = episodes(WORLD, TRAIN[:4], implicit=True, shots=3, query=3, seed=0)
    codes = without.encode(WORLD.catalogue)
    scores = without.predict(without.adapt(batch.support, batch.users, codes), codes)
    foretold = WORLD.catalogue.log_popularity * without.forecast[0] + (
        WORLD.catalogue.features.numbers @ without.forecast[1:]
    )
    torch.testing.assert_close(scores, foretold.expand_as(scores))
    assert with_ids.departure == 1  # nothing of it
    without.fit_forecast([(WORLD.catalogue, torch.zeros(30, dtype=torch.int64))])
    assert without.forecast.tolist() == pytest.approx([0, 2], abs=0.1)  # what says nothing changes nothing
