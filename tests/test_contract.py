"""The laws that every algorithm and every baseline keeps, in one suite that finds them by walking the packages."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator

import pytest
import safetensors.torch
import torch
from toy_world import (
    NUM_ITEMS,
    ToyWorld,
    episodes,
    histories,
    meta_train,
    one,
    padded,
    query_losses,
    toy_world,
    uneven,
)

import recsys_meta.algorithms
import recsys_meta.baselines
from recsys_meta.algorithms.base import Learner
from recsys_meta.tensors import EpisodeBatch, ItemCodes, Sizes

TRAIN, TEST = torch.arange(0, 120), torch.arange(120, 160)
RATING_LOSSES = ("squared", "absolute")


def learner_classes() -> Iterator[type[Learner]]:
    """Every concrete learner of the two packages, each once."""
    for package in (recsys_meta.algorithms, recsys_meta.baselines):
        for module_info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            module = importlib.import_module(module_info.name)
            for _, member in inspect.getmembers(module, inspect.isclass):
                mine = member.__module__ == module.__name__
                if mine and issubclass(member, Learner) and not inspect.isabstract(member):
                    yield member


CASES = [
    pytest.param(cls, settings, id=f"{cls.__name__}-{'-'.join(map(str, settings.values())) or 'default'}")
    for cls in learner_classes()
    for settings in cls.contract_settings
]


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return toy_world()


def implicit(learner: Learner) -> bool:
    """Whether the learner ranks events rather than predicting ratings."""
    return getattr(learner, "loss", "squared") not in RATING_LOSSES


def ready(cls: type[Learner], settings: dict, world: ToyWorld, seed: int = 0) -> Learner:
    """The learner with its statistics fitted, not meta-trained, in evaluation mode."""
    torch.manual_seed(seed)
    learner = cls(world.sizes, **settings)
    learner.fit_statistics(histories(world, TRAIN, implicit=implicit(learner)), world.catalogue)
    return learner.eval()


def batch_for(learner: Learner, world: ToyWorld, seed: int = 3, shots: int = 5) -> EpisodeBatch:
    return episodes(
        world, TEST, implicit=implicit(learner), shots=shots, query=6, seed=seed, negatives=learner.negatives
    )


def scores_of(learner: Learner, batch: EpisodeBatch, codes: ItemCodes) -> torch.Tensor:
    return learner.predict(learner.adapt(batch.support, batch.users, codes), codes)


def test_the_suite_sees_the_learners() -> None:
    assert {"MAML", "FOMAML", "Popularity", "ItemMean"} <= {cls.__name__ for cls in learner_classes()}


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_a_batch_answers_as_each_of_its_users_alone(cls, settings, world) -> None:
    learner = ready(cls, settings, world)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world)
    support = padded(uneven(batch.support), width=3, junk_item=NUM_ITEMS - 1)
    together = learner.predict(learner.adapt(support, batch.users, codes), codes)
    for task in range(0, len(TEST), 7):
        alone = learner.adapt(one(support, task), batch.users.take(torch.tensor([task])), codes)
        torch.testing.assert_close(learner.predict(alone, codes)[0], together[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_the_order_of_the_support_set_does_not_matter(cls, settings, world) -> None:
    if cls.order_matters:
        pytest.skip(cls.order_matters)
    learner = ready(cls, settings, world)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world)
    turned = torch.randperm(batch.support.items.shape[1], generator=torch.Generator().manual_seed(1))
    shuffled = batch.support._make(part[:, turned] for part in batch.support)
    torch.testing.assert_close(
        scores_of(learner, batch._replace(support=shuffled), codes),
        scores_of(learner, batch, codes),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_a_user_with_no_history_gets_the_finite_prior(cls, settings, world) -> None:
    learner = ready(cls, settings, world)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world)
    prior = learner.prior(batch.support, batch.users, codes)
    nothing = learner.adapt(batch.support._make(part[:, :0] for part in batch.support), batch.users, codes)
    scores = learner.predict(prior, codes)
    assert scores.shape == (len(TEST), NUM_ITEMS)
    assert scores.isfinite().all()
    torch.testing.assert_close(learner.predict(nothing, codes), scores)
    assert not learner.task_loss(prior, batch.query.emptied(), codes).any()


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_what_adaptation_finds_can_be_weighed_several_times(cls, settings, world) -> None:
    """Settling finds it once and weighs it in many ways."""
    learner = ready(cls, settings, world)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world)
    evidence = learner.evidence(batch.support, batch.users, codes)
    adapted = learner.predict(learner.adapt(batch.support, batch.users, codes), codes)
    for _ in range(2):
        torch.testing.assert_close(learner.predict(learner.weighed(evidence), codes), adapted, rtol=0, atol=0)


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_scores_at_an_index_are_those_of_the_whole_row(cls, settings, world) -> None:
    learner = ready(cls, settings, world)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world)
    state = learner.adapt(batch.support, batch.users, codes)
    whole = learner.predict(state, codes)
    torch.testing.assert_close(
        learner.predict(state, codes, batch.query.items), whole.gather(1, batch.query.items)
    )
    tile = codes.take(slice(5, 17))
    torch.testing.assert_close(learner.predict(state, tile), whole[:, 5:17])


@pytest.mark.parametrize(("cls", "settings"), CASES)
def test_the_meta_loss_reaches_every_meta_parameter(cls, settings, world) -> None:
    learner = ready(cls, settings, world)
    if not learner.meta_trained:
        assert not [name for name, p in learner.named_parameters() if p.requires_grad]
        return
    # A few steps first: at the very start some zeros are by construction (a bias of zero times a weight of zero).
    meta_train(learner, world, TRAIN, implicit=implicit(learner), steps=3)
    learner.zero_grad()
    learner.meta_loss(batch_for(learner, world)).backward()
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad and parameter.numel():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("cls", "settings"), CASES)
def test_an_item_that_stands_for_three_counts_in_training_as_if_it_stood_there_three_times(
    cls, settings, world
) -> None:
    """Where a catalogue is a drawn part of one."""
    learner = ready(cls, settings, world)
    if not learner.meta_trained or not learner.whole_catalogue:
        return
    meta_train(learner, world, TRAIN, implicit=True, steps=3)
    learner.eval()
    batch = episodes(world, TEST[:3], implicit=True, shots=5, query=6, seed=3)
    chosen = torch.cat([batch.support.items.flatten(), batch.query.items.flatten()])
    others = (torch.bincount(chosen, minlength=NUM_ITEMS) == 0).nonzero().squeeze(1)
    found = []
    for catalogue in (
        batch.catalogue.take(torch.cat([torch.arange(NUM_ITEMS), others, others])),
        batch.catalogue._replace(log_weight=torch.zeros(NUM_ITEMS).index_fill(0, others, math.log(3))),
        batch.catalogue,
    ):
        learner.zero_grad()
        loss = learner.meta_loss(batch._replace(catalogue=catalogue))
        loss.backward()
        slopes = {
            name: weight.grad.clone()
            for name, weight in learner.named_parameters()
            if weight.grad is not None
        }
        found.append((loss.detach(), slopes))
    (thrice, slopes), (weighed, of_weighed), (once, _) = found
    torch.testing.assert_close(weighed, thrice)
    assert abs(float(once - thrice)) > 1e-4
    for name, slope in slopes.items():
        torch.testing.assert_close(of_weighed[name], slope, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("cls", "settings"), CASES)
def test_meta_training_makes_adaptation_beat_the_prior_on_users_never_seen(cls, settings, world) -> None:
    learner = ready(cls, settings, world)
    if learner.meta_trained:
        meta_train(learner, world, TRAIN, implicit=implicit(learner), steps=120)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world, shots=10)
    adapted = query_losses(learner, batch, codes, adapted=True)
    prior = query_losses(learner, batch, codes, adapted=False)
    gain = prior - adapted
    if learner.meta_trained:  # beyond three standard errors of the mean over users
        assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5
    else:
        assert gain.mean() >= 0


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_a_learner_and_its_task_states_survive_the_store(cls, settings, world, tmp_path) -> None:
    learner = ready(cls, settings, world)
    codes = learner.encode(world.catalogue)
    batch = batch_for(learner, world)
    state = learner.adapt(batch.support, batch.users, codes)
    before = learner.predict(state, codes)
    weights = {name: tensor.contiguous() for name, tensor in learner.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "state.safetensors")
    torch.manual_seed(77)
    again = cls(world.sizes, **settings)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    again.eval()
    codes = again.encode(world.catalogue)
    torch.testing.assert_close(
        again.predict(safetensors.torch.load_file(tmp_path / "state.safetensors"), codes), before
    )
    torch.testing.assert_close(scores_of(again, batch, codes), before)
    assert len(again.user_vectors(state)) == len(TEST)


@pytest.mark.parametrize(("cls", "settings"), CASES)
@torch.no_grad()
def test_a_learner_that_goes_on_from_another_scores_as_that_one_also_where_vocabularies_have_grown(
    cls, settings, world
) -> None:
    earlier = ready(cls, settings, world)
    if not earlier.meta_trained:
        pytest.skip("nothing of it is meta-learned")
    with torch.enable_grad():
        meta_train(earlier, world, TRAIN, implicit=implicit(earlier), steps=5)
    user, item = world.sizes
    grown = world._replace(
        sizes=Sizes(
            user._replace(categorical=(user.categorical[0] + 2,)),
            item._replace(
                ids=item.ids + 3, categorical=(item.categorical[0] + 1,), multi=(item.multi[0] + 2,)
            ),
        )
    )
    later = ready(cls, settings, grown, seed=5)
    fresh = {name: weight.clone() for name, weight in later.named_parameters()}
    later.continue_from(earlier.state_dict())
    batch = batch_for(earlier, world)
    expected = scores_of(earlier, batch, earlier.encode(world.catalogue))
    torch.testing.assert_close(scores_of(later, batch, later.encode(world.catalogue)), expected)
    for name, weight in later.named_parameters():  # what is new starts as fresh rows do
        rows = len(earlier.get_parameter(name)) if weight.dim() else 0
        if rows:
            assert torch.equal(weight[rows:], fresh[name][rows:]), name
    with pytest.raises(ValueError, match="expected the beginning of"):
        earlier.continue_from(later.state_dict())
    with pytest.raises(ValueError, match="found nothing"):
        later.continue_from({})
