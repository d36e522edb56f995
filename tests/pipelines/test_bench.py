"""The bench, made small: what it compares is the same, and every figure that it promises is there."""

import json

import pytest
import torch

from pipelines import bench
from pipelines.bench_loops import MeLU, loop_loss, loop_top
from recsys_meta.adaptation.recommend import recommend
from recsys_meta.algorithms.maml import FOMAML, MAML
from recsys_meta.episodes import RandomSplits, collate
from recsys_meta.tensors import EpisodeBatch

FIGURES = {
    *("train_1_step", "train_5_steps", "train_1_step_256", "train_5_steps_256"),
    *("score_3706", "score_50000", "matmul_share"),
    *("night_slope", "memory_growth", "overhead_share", "default_users_per_second"),
}


@pytest.fixture(autouse=True)
def threads():
    """The bench runs on one thread; others go on as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_the_loop_has_the_loss_and_the_gradient_of_the_engine(cls):
    world = bench.synthetic(6, 50, typical=4, query=3)
    (batch,) = RandomSplits(*world[:3], shots=None, query_size=3, batch_size=6).epoch(0)
    learner = bench.melu(cls, world.sizes, 3)
    model = MeLU(learner)
    loss = loop_loss(model, batch, num_steps=3, step_size=bench.STEP_SIZE, first_order=cls.first_order)
    engine = learner.meta_loss(batch)
    torch.testing.assert_close(engine, loss, rtol=1e-5, atol=1e-6)
    layers = [p for name, p in learner.named_parameters() if name.startswith("head.layers")]
    torch.testing.assert_close(
        torch.autograd.grad(engine, layers),
        torch.autograd.grad(loss, list(model.layers)),
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_loop_lists_what_the_engine_lists():
    world = bench.synthetic(4, 60, typical=4)
    learner = bench.melu(MAML, world.sizes, 2).eval()
    model = MeLU(learner)
    with torch.no_grad():
        vectors = model.items(world.catalogue.features.categorical)
    some = collate(world.histories, torch.arange(4))
    looped = loop_top(
        model,
        vectors,
        EpisodeBatch(some, some, world.users, world.catalogue),
        num_steps=2,
        step_size=bench.STEP_SIZE,
        top_k=5,
    )
    (answer,) = recommend(
        learner,
        world.histories,
        world.users,
        world.catalogue,
        rows=torch.arange(4),
        consumed=world.histories,
        top_k=5,
    )
    assert answer.items[answer.rows.argsort()].tolist() == looped.tolist()


def test_every_figure_is_there(capsys):
    effort = bench.Effort(
        repeats=1,
        training_users=40,
        night_users=(40,),
        default_night=(40, 60),
        items=(150, 200),
        scored_users=(8, 8),
        looped_users=(2, 2),
        data_rows=2_000,
    )
    figures = bench.main(effort)
    wanted = {name.replace("3706", "150").replace("50000", "200") for name in FIGURES}
    assert wanted <= set(figures) <= wanted | {"torchopt_1_step", "torchopt_5_steps"}
    assert all(
        figures[name] > 0
        for name in wanted
        if name.startswith(("train", "score", "matmul", "overhead", "default"))
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum(" rows/s " in line or " users/s " in line for line in lines) == 6  # in and out
    assert json.loads(lines[-1]).keys() == figures.keys()
