"""Tests of the compiled inner loop: the same meta-loss, gradients and states as the plain path, and as finite differences."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_meta.algorithms import maml
from recsys_meta.algorithms.maml import FOMAML, MAML
from recsys_meta.native import inner_loop, kernels
from recsys_meta.tensors import Catalogue, EpisodeBatch, Examples, Features, FeatureSizes, ItemCodes, Sizes

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler here: there is only the plain path")

TASKS, SUPPORT, QUERY, ITEMS = 5, 9, 4, 30
SIZES = Sizes(FeatureSizes(ids=TASKS + 1, numbers=2), FeatureSizes(ids=ITEMS + 1, numbers=3))


def features(rows: int, numbers: int, dtype: torch.dtype) -> Features:
    nothing = torch.zeros(rows, 0, dtype=dtype)
    return Features(
        torch.arange(1, rows + 1), nothing.long(), (), torch.randn(rows, numbers, dtype=dtype), nothing
    )


def episodes(dtype: torch.dtype) -> EpisodeBatch:
    """Tasks of all lengths: full, with gaps in the mask, of one example, without support, without query."""
    torch.manual_seed(3)

    def examples(width: int) -> Examples:
        return Examples(
            torch.randint(ITEMS, (TASKS, width)),
            torch.randint(6, (TASKS, width)).to(dtype),
            torch.rand(TASKS, width) < 0.7,
        )

    support, query = examples(SUPPORT), examples(QUERY)
    support.mask[0] = True
    support.mask[1, 1:] = False
    support.mask[2] = False
    query.mask[3] = False
    catalogue = Catalogue(
        features(ITEMS, 3, dtype), torch.rand(ITEMS, dtype=dtype), torch.ones(ITEMS, dtype=torch.bool)
    )
    return EpisodeBatch(support, query, features(TASKS, 2, dtype), catalogue)


def learner(cls: type[MAML], dtype: torch.dtype, **settings: Any) -> MAML:
    torch.manual_seed(1)
    defaults = {"head": "mlp", "dim": 6, "hidden": (20, 12), "step_sizes": "per_step", "pull": 0.1}
    made = cls(SIZES, **(defaults | {"step_size": 0.05, "unknown_share": 0.0} | settings)).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():  # away from zeros, where mistakes hide
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def meta_gradient(made: MAML, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
    made.zero_grad()
    loss = made.meta_loss(batch)
    torch.autograd.backward(loss)
    return loss.detach(), {
        name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None and p.numel()
    }


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Switches the compiled path off."""
    return lambda: monkeypatch.setattr(maml, "kernels", lambda: None)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize(("cls", "loss"), [*product((MAML, FOMAML), inner_loop.LOSSES)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_meta_loss_and_meta_gradient_are_those_of_the_plain_path(
    cls: type[MAML], loss: str, num_steps: int, dtype: torch.dtype, tolerance: float, plain: Any
) -> None:
    made, batch = learner(cls, dtype, loss=loss, num_steps=num_steps), episodes(dtype)
    value, gradients = meta_gradient(made, batch)
    plain()
    expected, wanted = meta_gradient(made, batch)
    assert abs(value - expected) <= tolerance * expected.abs()
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).norm() <= tolerance * gradient.norm().clamp(min=1e-3), name


@pytest.mark.parametrize("hidden", [(20, 12), (32, 16)], ids=["padded", "as wide as vectors"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_meta_gradient_is_that_of_finite_differences(num_steps: int, hidden: tuple[int, int]) -> None:
    made = learner(MAML, torch.float64, num_steps=num_steps, hidden=hidden)
    batch = episodes(torch.float64)
    _, gradients = meta_gradient(made, batch)
    chance = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad or parameter.numel() == 0:
            continue
        direction = torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                losses.append(float(made.meta_loss(batch)))
                parameter.sub_(step * direction)
        slope = float((gradients[name] * direction).sum())
        assert slope == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("loss", inner_loop.LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_states_are_those_of_the_plain_path(
    loss: str, dtype: torch.dtype, tolerance: float, plain: Any
) -> None:
    made, batch = learner(MAML, dtype, loss=loss, num_steps=3), episodes(dtype)
    with torch.no_grad():
        items = made.encode(batch.catalogue)
        state = made.adapt(batch.support, batch.users, items)
        plain()
        wanted = made.adapt(batch.support, batch.users, items)
    assert state.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert state[name].shape == weight.shape
        assert (state[name] - weight).abs().max() <= tolerance * weight.abs().max().clamp(min=1.0), name


def test_the_upstream_gradient_is_applied() -> None:
    made, batch = learner(MAML, torch.float64), episodes(torch.float64)
    _, once = meta_gradient(made, batch)
    made.zero_grad()
    torch.autograd.backward(3.0 * made.meta_loss(batch))
    for name, parameter in made.named_parameters():
        if name in once:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, 3.0 * once[name], rtol=1e-12)


def test_a_task_alone_has_its_share_of_the_loss_of_all() -> None:
    made, batch = learner(MAML, torch.float64), episodes(torch.float64)
    together = float(made.meta_loss(batch).detach())
    alone = []
    for task in range(TASKS):
        rows = torch.tensor([task])
        support, query = (Examples(*(field[rows] for field in part)) for part in (batch.support, batch.query))
        single = EpisodeBatch(support, query, batch.users.take(rows), batch.catalogue)
        alone.append(float(made.meta_loss(single).detach()))
    assert together == pytest.approx(sum(alone) / TASKS, rel=1e-12)


def test_what_is_not_finite_is_not_hidden() -> None:
    made, batch = learner(MAML, torch.float32), episodes(torch.float32)
    batch.support.targets[0, 0] = torch.nan
    assert made.meta_loss(batch).isnan()
    with torch.no_grad():
        items = made.encode(batch.catalogue)
        state = made.adapt(batch.support, batch.users, items)
    assert not state["weight_1"][0].isfinite().all()
    assert state["weight_1"][1:].isfinite().all()


def test_other_losses_heads_depths_and_variants_take_the_plain_path() -> None:
    class Variant(MAML):
        def scale(self, shots: Tensor) -> Tensor:
            return super().scale(shots)

    def codes(dtype: torch.dtype) -> ItemCodes:
        vectors = torch.zeros(2, 3, dtype=dtype)
        return ItemCodes(torch.zeros(2).long(), vectors, vectors[:, 0], torch.ones(2, dtype=torch.bool))

    for made in (
        learner(MAML, torch.float32, loss="bpr"),
        learner(MAML, torch.float32, hidden=(8,)),
        learner(MAML, torch.float32, hidden=(8, 8, 8)),
        learner(MAML, torch.float32, step_sizes="per_entry"),
        learner(MAML, torch.float32, head="linear"),
        learner(Variant, torch.float32),
    ):
        assert made.compiled(codes(torch.float32)) is None
    assert learner(MAML, torch.bfloat16).compiled(codes(torch.bfloat16)) is None
    assert learner(MAML, torch.float32).compiled(codes(torch.float32)) is not None
