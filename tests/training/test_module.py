"""Tests of the Lightning module by itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from recsys_meta.algorithms.maml import MAML
from recsys_meta.tensors import EpisodeBatch, Examples, FeatureSizes, Sizes
from recsys_meta.training.module import MetaLearning


def logged(module: MetaLearning, episodes: EpisodeBatch) -> dict[str, float]:
    """What a validation step logs."""
    values: dict[str, float] = {}
    module.log = lambda name, value, **_: values.__setitem__(name, float(value))  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        module.eval().validation_step(episodes, 0)
    return values


def test_the_validation_loss_is_the_meta_loss_of_maml_and_the_prior_loss_that_of_its_start(
    tiny: SimpleNamespace,
) -> None:
    learner = MAML(Sizes(FeatureSizes(), FeatureSizes(ids=13)), dim=4, loss="squared", num_steps=2)
    episodes = tiny.validation[0]
    values = logged(MetaLearning(learner, total_steps=1), episodes)
    assert values["validation_loss"] == pytest.approx(learner.meta_loss(episodes).item())
    unsupported = episodes._replace(support=episodes.support.emptied())
    assert values["prior_loss"] == pytest.approx(learner.meta_loss(unsupported).item())
    assert values["prior_loss"] != values["validation_loss"]


def test_a_user_whose_inner_loop_is_not_finite_is_judged_by_the_prior_as_at_night(
    tiny: SimpleNamespace,
) -> None:
    class Fragile(tiny.Learner):  # type: ignore[misc, name-defined]
        def adapt(self, support: Examples, *rest: Any) -> dict[str, Tensor]:
            state = super().adapt(support, *rest)["user"]
            broken = (torch.arange(len(state)) == 0) & support.mask.any(1)
            return {"user": state.masked_fill(broken.unsqueeze(1), torch.nan)}

    values = logged(MetaLearning(Fragile(tiny.SIZES), total_steps=1), tiny.validation[0])
    whole = logged(MetaLearning(tiny.Learner(tiny.SIZES), total_steps=1), tiny.validation[0])
    assert values["prior_loss"] == pytest.approx(whole["prior_loss"])
    assert torch.tensor(values["validation_loss"]).isfinite()
    assert values["validation_loss"] != pytest.approx(whole["validation_loss"])


def test_a_learner_may_say_which_of_its_weights_decay(tiny: SimpleNamespace) -> None:
    class Grouped(tiny.Learner):  # type: ignore[misc, name-defined]
        def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
            return [
                {"params": [self.vectors], "weight_decay": weight_decay},
                {"params": [self.start], "weight_decay": 0.0, "lr": 0.5},
            ]

    settings: dict[str, Any] = {
        "outer_lr": 0.1,
        "weight_decay": 0.3,
        "schedule": "constant",
        "total_steps": 9,
    }
    grouped: Any = MetaLearning(Grouped(tiny.SIZES), **settings).configure_optimizers()
    assert [group["weight_decay"] for group in grouped.param_groups] == [0.3, 0.0]
    assert [group["lr"] for group in grouped.param_groups] == [0.1, 0.5]
    plain: Any = MetaLearning(tiny.Learner(tiny.SIZES), **settings).configure_optimizers()
    assert [group["weight_decay"] for group in plain.param_groups] == [0.3]
    assert sum(len(group["params"]) for group in plain.param_groups) == 2


def test_one_cycle_rises_to_the_outer_step_size_and_ends_far_below_it(tiny: SimpleNamespace) -> None:
    module = MetaLearning(tiny.Learner(tiny.SIZES), outer_lr=0.1, schedule="one_cycle", total_steps=20)
    configured: Any = module.configure_optimizers()
    cycle = configured["lr_scheduler"]["scheduler"]
    assert isinstance(cycle, OneCycleLR)
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(20):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        cycle.step()
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert rates[0] < 0.01
    assert rates[-1] < 0.001


def test_the_average_follows_the_weights_and_copies_the_buffers(tiny: SimpleNamespace) -> None:
    learner = tiny.Learner(tiny.SIZES)
    module = MetaLearning(learner, total_steps=9, average=0.5)
    assert module.averaged is not None
    assert not any(weight.requires_grad for weight in module.averaged.parameters())
    before = learner.start.detach().clone()
    with torch.no_grad():
        learner.start += 1.0
        learner.bias += 2.0
    module.steps = 1000
    module.move_average()
    assert torch.allclose(module.averaged.start, before + 0.5)  # type: ignore[arg-type, operator]
    assert torch.equal(module.averaged.bias, learner.bias)  # type: ignore[arg-type]
    assert module.judged is module.averaged
