"""Reptile's meta-gradient against the displacement of plain gradient descent, user by user."""

import pytest
import torch
from double_precision import batch_of, double_world, learner_of, meta_gradient
from toy_world import ToyWorld

from recsys_meta.algorithms.reptile import Reptile
from recsys_meta.tensors import EpisodeBatch, Examples, ItemCodes


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return double_world()


def descent(
    learner: Reptile, batch: EpisodeBatch, codes: ItemCodes, t: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Where K steps lead user t, with everything in them, and the gradient by the item biases, summed over the steps."""
    examples = Examples(
        *(torch.cat([a[t : t + 1], b[t : t + 1]], 1) for a, b in zip(*batch[:2], strict=True))
    )
    phi = {name: w[t : t + 1].detach() for name, w in learner.head.start(batch.users).items()}
    of_bias = torch.zeros_like(codes.bias)
    for _ in range(learner.num_steps):
        phi = {name: w.requires_grad_() for name, w in phi.items()}
        bias = codes.bias.detach().requires_grad_()
        loss = learner.task_loss(
            phi, examples, codes._replace(bias=bias, vectors=codes.vectors.detach())
        ).sum()
        *slopes, slope = torch.autograd.grad(loss, [*phi.values(), bias])
        of_bias = of_bias + slope
        steps = zip(phi.items(), slopes, strict=True)
        phi = {name: (w - learner.step_size[name][0] * s).detach() for (name, w), s in steps}
    return phi, of_bias


@pytest.mark.parametrize("loss", ["squared", "softmax", "bpr"])
def test_the_meta_gradient_is_the_way_back_from_where_the_steps_lead(loss: str, world: ToyWorld) -> None:
    learner = learner_of(Reptile, world, loss=loss, num_steps=4, step_size=0.2)
    with torch.no_grad():
        learner.shot_power.zero_()
        learner.pull.zero_()
        for sizes in learner.step_size.values():
            sizes.fill_(0.2)
    batch = batch_of(world, learner)
    gradient = meta_gradient(learner, batch)
    codes = learner.encode(world.catalogue)
    theta = learner.head.start(batch.users)
    ends, of_bias = zip(*(descent(learner, batch, codes, t) for t in range(5)), strict=True)
    for name, parameter in (("user", "head.user_0"), ("offset", "head.offset")):
        if name in theta:
            phi = torch.cat([end[name] for end in ends])
            expected = (theta[name] - phi).mean(0) / (0.2 * 4)
            torch.testing.assert_close(gradient[parameter], expected.detach(), rtol=1e-9, atol=1e-12)
    expected = torch.stack(of_bias).mean(0) / 4 @ world.catalogue.log_popularity
    torch.testing.assert_close(gradient["popularity_weight"], expected, rtol=1e-9, atol=1e-12)


def test_adaptation_is_plain_gradient_descent_with_settings_that_nothing_learns(world: ToyWorld) -> None:
    learner = Reptile(world.sizes, dim=3, step_size=0.2)
    learned = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert not [name for name in learned if name.startswith(("step_size", "shot_power", "pull"))]
    with pytest.raises(ValueError, match="found settings step_sizes"):
        Reptile(world.sizes, step_sizes="per_entry")
