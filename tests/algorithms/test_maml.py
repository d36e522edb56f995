"""MAML's gradients against finite differences and against a clean loop over users, in float64."""

import pytest
import torch
from double_precision import (
    assert_the_meta_gradient_is_exact,
    batch_of,
    double_world,
    learner_of,
    meta_gradient,
)
from torch import Tensor
from toy_world import ToyWorld, episodes

from recsys_meta.algorithms.maml import FOMAML, MAML
from recsys_meta.algorithms.scorer import excluded_from_pool
from recsys_meta.models.heads import MLPHead
from recsys_meta.models.losses import LossName, Pool, Scored, task_loss
from recsys_meta.tensors import EpisodeBatch, Examples, ItemCodes


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "squared"},
        {"loss": "logistic"},
        {"loss": "softmax"},
        {"loss": "sampled_softmax"},
        {"loss": "bpr"},
        {"loss": "squared", "step_sizes": "per_step"},
        {"loss": "squared", "head": "mlp", "hidden": (4, 4)},
        {"loss": "softmax", "head": "mlp", "hidden": (4,)},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_the_meta_gradient_equals_finite_differences_in_every_parameter(settings, num_steps, world) -> None:
    learner = learner_of(MAML, world, num_steps=num_steps, **settings)
    batch = batch_of(world, learner)
    assert_the_meta_gradient_is_exact(learner, batch)


def clean_loop_loss(learner: MAML, batch: EpisodeBatch, *, first_order: bool) -> Tensor:
    """The meta-loss written user by user with autograd.grad, as one would on paper."""
    codes = learner.encode(batch.catalogue)
    start = learner.head.start(batch.users)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(batch.users.ids)):
        theta = {name: weight[t] for name, weight in start.items()}
        phi = dict(theta)
        shots = int(batch.support.mask[t].sum())
        for k in range(learner.num_steps if shots else 0):
            names = learner.head.adapted
            loss = one_users_loss(learner, phi, batch.support, t, codes, excluded=[])
            gradient = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=not first_order)
            for name, g in zip(names, gradient, strict=True):
                pull = learner.pull[k - 1] * (phi[name] - theta[name]) if k else 0.0
                phi = phi | {
                    name: phi[name] - shots**learner.shot_power * learner.step_size[name][k] * (g + pull)
                }
        positives = batch.support.mask[t] & (batch.support.targets[t] > 0)
        excluded = batch.support.items[t][positives].tolist()
        total = total + one_users_loss(learner, phi, batch.query, t, codes, excluded=excluded)
    return total / len(batch.users.ids)


def one_users_loss(
    learner: MAML, phi: dict[str, Tensor], examples: Examples, t: int, codes: ItemCodes, excluded: list[int]
) -> Tensor:
    kept = examples.mask[t]
    items, targets = examples.items[t][kept], examples.targets[t][kept]
    scores = learner.head.score(phi, codes.vectors[items], codes.bias[items])
    proposal = learner.tempering * codes.log_popularity[items]
    everything = learner.head.score(phi, codes.vectors, codes.bias)
    pool_kept = torch.tensor([i not in excluded for i in range(len(codes.bias))])
    pool = Pool(everything, torch.ones_like(kept[kept]), ~pool_kept)
    return task_loss(learner.loss, Scored(scores, targets, torch.ones_like(kept[kept]), proposal), pool)


@pytest.mark.parametrize("loss", ["squared", "softmax", "sampled_softmax"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_the_batched_path_equals_a_clean_loop_over_users(cls, head, loss, world) -> None:
    learner = learner_of(cls, world, head=head, loss=loss, num_steps=3, hidden=(4,))
    batch = batch_of(world, learner)
    batched_loss = learner.meta_loss(batch)
    gradient = meta_gradient(learner, batch)
    learner.zero_grad()
    loop_loss = clean_loop_loss(learner, batch, first_order=cls.first_order)
    loop_loss.backward()
    torch.testing.assert_close(batched_loss, loop_loss, rtol=1e-10, atol=1e-12)
    for name, parameter in learner.named_parameters():
        if parameter.numel():
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [
        *({"loss": loss} for loss in LossName.__args__),
        *({"loss": loss, "head": "mlp", "hidden": (4, 3)} for loss in LossName.__args__),
        *(
            {"loss": loss, "head": "mlp", "hidden": (4, 3), "step_sizes": "per_step", "num_negatives": 2}
            for loss in LossName.__args__
        ),
        {"loss": "squared", "head": "mlp", "hidden": (4,), "step_sizes": "fixed"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_the_written_out_inner_gradient_equals_the_generic_path(cls, settings, num_steps, world) -> None:
    learner = learner_of(cls, world, num_steps=num_steps, **settings)
    eligible = (
        torch.arange(len(world.catalogue.eligible)) % 4 > 0
    )  # some support items are no longer eligible
    batch = batch_of(world, learner)._replace(catalogue=world.catalogue._replace(eligible=eligible))

    def losses() -> tuple[Tensor, Tensor]:
        codes = learner.encode(batch.catalogue)
        written = learner.adapt(batch.support, batch.users, codes)
        theta, shelf = learner.head.start(batch.users), learner.shelf(codes)
        generic = torch.func.vmap(learner.inner_loop, in_dims=(0, 0, None))(theta, batch.support, shelf)
        whole = learner.head.whole(written) if isinstance(learner.head, MLPHead) else written
        torch.testing.assert_close(whole, generic, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            learner.predict(written, codes), learner.predict(generic, codes), rtol=1e-10, atol=1e-12
        )
        return tuple(
            learner.task_loss(s, batch.query, codes, batch.support).mean() for s in (written, generic)
        )

    parameters = [p for p in learner.parameters() if p.numel() and p.requires_grad]
    gradients = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in losses()
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_the_dual_form_is_taken_where_it_is_exact_and_the_smaller_one(world) -> None:
    def spanned(shots: int, **settings) -> bool:
        learner = learner_of(MAML, world, head="mlp", hidden=(4,), **settings)
        batch = episodes(world, torch.arange(3), implicit=False, shots=shots, query=2, seed=2, negatives=0)
        codes = learner.encode(world.catalogue)
        states = [how(batch.support, batch.users, codes) for how in (learner.adapt, learner.prior)]
        assert states[0].keys() == states[1].keys()
        assert len({learner.user_vectors(state).shape for state in states}) == 1
        return "support" in states[0]

    assert spanned(15, step_sizes="per_step")
    assert spanned(15, step_sizes="fixed")
    assert not spanned(16, step_sizes="per_step")  # longer than an item code of 5 features times 3
    assert not spanned(15, step_sizes="per_entry")
    assert not spanned(15, step_sizes="per_step", loss="softmax")


def test_first_order_has_the_same_loss_but_another_gradient(world) -> None:
    second, first = (learner_of(cls, world, loss="squared", num_steps=3) for cls in (MAML, FOMAML))
    batch = batch_of(world, second)
    torch.testing.assert_close(first.meta_loss(batch), second.meta_loss(batch))
    a, b = (meta_gradient(learner, batch)["item_encoder.ids.weight"] for learner in (first, second))
    assert (a - b).norm() > 1e-3 * b.norm()


def test_one_step_on_squared_error_matches_the_sum_worked_by_hand(world) -> None:
    learner = MAML(
        world.sizes, dim=2, num_steps=1, step_size=0.1, shot_power=0.0, step_sizes="fixed"
    ).double()
    codes = ItemCodes(
        torch.tensor([1, 2]),
        torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64),
        torch.tensor([0.5, -0.5], dtype=torch.float64),
        torch.ones(2, dtype=torch.bool),
    )
    with torch.no_grad():
        for parameter in learner.head.parameters():
            parameter.zero_()
    support = Examples(
        torch.tensor([[0, 1]]),
        torch.tensor([[4.0, 2.0]], dtype=torch.float64),
        torch.ones(1, 2, dtype=torch.bool),
    )
    state = learner.adapt(support, world.users.take(torch.tensor([0])), codes)
    # residuals 0.5 - 4 = -3.5 and -0.5 - 2 = -2.5; gradient = mean of 2 * residual * input
    torch.testing.assert_close(state["user"][0], torch.tensor([0.6, 0.5], dtype=torch.float64))
    torch.testing.assert_close(state["offset"][0], torch.tensor(0.6, dtype=torch.float64))
    expected = torch.tensor([[0.5 + 0.6 + 0.6, -0.5 + 0.6 + 0.6 + 1.0]], dtype=torch.float64)
    torch.testing.assert_close(learner.predict(state, codes), expected)


def test_items_excluded_from_the_pool_are_the_positives_of_each_task() -> None:
    eligible = torch.tensor([True, False, True, True])
    codes = ItemCodes(torch.arange(4), torch.zeros(4, 1), torch.zeros(4), eligible)
    examples = Examples(
        torch.tensor([[0, 1, 3], [2, 3, 0]]),
        torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 1.0]]),
        torch.tensor([[True, True, True], [True, True, False]]),
    )
    assert excluded_from_pool(codes, 3, examples).tolist() == [[True, False, False], [False, True, True]]


def test_an_unknown_head_is_refused(world) -> None:
    with pytest.raises(ValueError, match="expected linear or mlp"):
        MAML(world.sizes, head="tree")  # type: ignore[arg-type]
