"""What a softmax over many items normalizes over where users are served."""

import pytest
import torch
from toy_world import NUM_ITEMS, episodes, toy_world

from recsys_meta.algorithms import scorer
from recsys_meta.algorithms.maml import MAML
from recsys_meta.algorithms.ridge import Ridge
from recsys_meta.algorithms.scorer import Scorer, part_of
from recsys_meta.tensors import ItemCodes

WORLD = toy_world()


def codes(count: int, ids: torch.Tensor | None = None) -> ItemCodes:
    """Items of which the first are by far the most popular."""
    popularity = (torch.arange(count) + 1.0).reciprocal().mul(10_000).log1p()
    bias = torch.randn(count, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(1, count + 1) if ids is None else ids
    return ItemCodes(ids, torch.zeros(count, 2), bias, torch.ones(count, dtype=torch.bool), popularity)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "_MOST_ITEMS", 20)
    monkeypatch.setattr(scorer, "_PART", 40)


@pytest.mark.usefixtures("parts")
def test_a_part_sums_to_the_whole_on_average_and_always_holds_what_is_popular() -> None:
    sums, sizes = [], []
    for number in range(2_000):
        part = part_of(codes(200, torch.arange(200) * 2_000 + number + 1), 0.75)
        assert part.log_weight is not None
        weights = part.log_weight.exp()
        assert torch.equal(part.log_popularity[:5], codes(200).log_popularity[:5])
        assert torch.equal(weights[:5], torch.ones(5))
        sums.append((weights * part.bias.exp()).sum())
        sizes.append(len(part.ids))
    of_parts = torch.stack(sums).double()
    error = of_parts.std() / len(of_parts) ** 0.5
    assert abs(of_parts.mean() - codes(200).bias.exp().sum()) < 4 * error
    assert 0.005 < of_parts.std() / of_parts.mean() < 0.5
    assert sum(sizes) / len(sizes) == pytest.approx(40, abs=0.5)


@pytest.mark.usefixtures("parts")
def test_the_part_is_the_same_at_every_look_and_nothing_is_drawn_of_few_items_or_of_a_part() -> None:
    whole, few = codes(200), codes(20)
    part = part_of(whole, 0.75)
    assert torch.equal(part_of(whole, 0.75).ids, part.ids)
    # An id keeps its number: of a catalogue in another order the same ones are drawn.
    turned = part_of(whole.take(torch.arange(199, -1, -1)), 0.75)
    assert torch.equal(turned.ids.flip(0), part.ids)
    assert part_of(few, 0.75) is few
    assert part_of(part, 0.75) is part
    assert part_of(whole._replace(log_popularity=None), 0.75).log_weight is None
    # Items without an id are drawn one by one, not all of them or none.
    unknown = part_of(codes(200, torch.zeros(200, dtype=torch.int64)), 0.75)
    assert 20 < len(unknown.ids) < 80


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(MAML, {}), (MAML, {"head": "mlp", "hidden": (8,), "num_steps": 2}), (Ridge, {})],
)
@torch.no_grad()
def test_steps_of_serving_normalize_over_a_part_alone(
    cls: type[Scorer], settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    learner = cls(WORLD.sizes, loss="softmax", dim=8, **settings).eval()
    batch = episodes(WORLD, torch.arange(6), implicit=True, shots=4, query=4, seed=0)

    def adapted() -> torch.Tensor:
        items = learner.encode(batch.catalogue)
        return learner.predict(learner.adapt(batch.support, batch.users, items), items)

    whole = adapted()
    monkeypatch.setattr(scorer, "_MOST_ITEMS", NUM_ITEMS - 1)
    monkeypatch.setattr(scorer, "_PART", NUM_ITEMS)  # all of them, each standing for itself
    torch.testing.assert_close(adapted(), whole)
    monkeypatch.setattr(scorer, "_PART", NUM_ITEMS // 2)
    items = learner.encode(batch.catalogue)
    learned = whole - learner.predict(learner.prior(batch.support, batch.users, items), items)
    assert 0 < (adapted() - whole).abs().mean() < 0.5 * learned.abs().mean()
    shelf = learner.shelf(learner.encode(batch.catalogue))
    assert len(shelf.part.ids) < len(shelf.pool.ids) == int(batch.catalogue.eligible.sum())
    with torch.enable_grad():  # of training its sampler decides
        assert learner.shelf(learner.encode(batch.catalogue)).part.log_weight is None
