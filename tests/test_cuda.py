"""The same on a GPU as on the CPU: meta-loss, meta-gradient, states and lists. Runs where there is a GPU."""

import copy
from typing import Any

import polars as pl
import pytest
import torch

from recsys_meta.adaptation.judging import judge_ranking, judge_rating
from recsys_meta.adaptation.recommend import joined, recommend
from recsys_meta.algorithms.maml import MAML
from recsys_meta.episodes import head
from recsys_meta.evaluation.breakdown import popularity_groups
from tests import toy_world

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SETTINGS: list[dict[str, Any]] = [
    {"loss": "softmax", "dim": 16, "num_steps": 3},
    {"loss": "squared", "dim": 16},
    {"loss": "squared", "head": "mlp", "dim": 16, "hidden": (16, 8), "step_sizes": "per_step"},
]


def pair(settings: dict[str, Any]) -> tuple[MAML, MAML, toy_world.ToyWorld]:
    """One learner twice: on the CPU, and on the GPU."""
    world = toy_world.toy_world()
    torch.manual_seed(0)
    here = MAML(world.sizes, **(settings | {"unknown_share": 0.0})).eval()
    return here, copy.deepcopy(here).cuda(), world


@pytest.mark.parametrize("settings", SETTINGS)
def test_meta_loss_and_meta_gradient_agree(settings: dict[str, Any]) -> None:
    here, there, world = pair(settings)
    implicit = settings["loss"] == "softmax"
    batch = toy_world.episodes(world, torch.arange(32), implicit=implicit, shots=5, query=4, seed=1)
    losses = [here.meta_loss(batch), there.meta_loss(batch.to("cuda")).cpu()]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    for loss in losses:
        torch.autograd.backward(loss)
    on_gpu = dict(there.named_parameters())
    for name, parameter in here.named_parameters():
        if parameter.grad is not None:
            gradient = on_gpu[name].grad
            assert gradient is not None
            assert torch.allclose(gradient.cpu(), parameter.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("excluding", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
def test_lists_agree(settings: dict[str, Any], excluding: bool) -> None:
    here, there, world = pair(settings)
    rows = torch.arange(50)
    histories = toy_world.histories(world, rows, implicit=settings["loss"] == "softmax")
    lists = [
        joined(
            list(
                recommend(
                    learner,
                    histories,
                    world.users.take(rows),
                    world.catalogue,
                    rows=rows,
                    consumed=histories if excluding else None,
                    top_k=5,
                    batch_size=16,
                    tile_size=11,
                    device=device,
                )
            )
        )
        for learner, device in ((here, "cpu"), (there, "cuda"))
    ]
    for cpu, gpu in zip(*(one.scores for one in lists), strict=True):
        assert torch.allclose(cpu, gpu, rtol=1e-4, atol=1e-4)
    assert (
        lists[0].items == lists[1].items
    ).float().mean() > 0.95  # scores within rounding may change places


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_judgements_agree_on_groups_of_items_too(settings: dict[str, Any]) -> None:
    here, there, world = pair(settings)
    rows, implicit = torch.arange(40), settings["loss"] == "softmax"
    data = toy_world.histories(world, rows, implicit=implicit)
    groups = popularity_groups(torch.bincount(data.items, minlength=toy_world.NUM_ITEMS))
    judge = judge_ranking if implicit else judge_rating
    pages = [
        judge(
            learner,
            head(data, 4),
            data,
            world.users.take(rows),
            world.catalogue.to(device),
            user_ids=pl.Series(rows.numpy()),
            shots=(0, 3),
            groups=groups,
        )
        for learner, device in ((here, "cpu"), (there, "cuda"))
    ]
    values = [page.sort("user_id", "shot", "metric")["value"] for page in pages]
    assert values[0].is_nan().equals(values[1].is_nan())  # nobody was asked for items of the group
    assert (values[0] - values[1]).fill_nan(0.0).abs().mean() < 0.01
