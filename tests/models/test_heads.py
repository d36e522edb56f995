"""The MLP head: a catalogue scored block by block against the plain product, in both forms of its weights."""

import pytest
import torch
from torch import Tensor

from recsys_meta.models.heads import MLPHead, Weights
from recsys_meta.tensors import Features, FeatureSizes

TASKS, SUPPORT, ITEMS, WIDTH = 7, 9, 2500, 16  # more items than stand in a block


def moved(form: str, dtype: torch.dtype, support_items: Tensor) -> tuple[MLPHead, Weights, Tensor, Tensor]:
    """A head, weights away from the start, and a catalogue. One task moved nowhere, another by padded support."""
    torch.manual_seed(0)
    head = MLPHead(FeatureSizes(categorical=(5,)), WIDTH, offset=True, user_dim=4, hidden=(8, 6)).to(dtype)
    nothing = torch.zeros(TASKS, 0)
    users = Features(
        torch.zeros(TASKS, dtype=torch.int64), torch.randint(5, (TASKS, 1)), (), nothing, nothing
    )
    vectors, bias = torch.randn(ITEMS, WIDTH, dtype=dtype), torch.randn(ITEMS, dtype=dtype)
    with torch.no_grad():
        weights = head.spanned(head.start(users), vectors, support_items)
        for name in head.adapted:
            weights[name] = weights[name] + 0.1 * torch.randn_like(weights[name])
        weights["weight_0"][0] = 0.0
        weights["weight_0"][1, 3:] = 0.0
    return head, weights if form == "spanned" else head.whole(weights), vectors, bias


@pytest.mark.parametrize("popular", [2, ITEMS], ids=["few items met by all", "own items"])
@pytest.mark.parametrize("form", ["spanned", "whole"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_catalogue_scored_in_blocks_equals_every_task_alone(form, dtype, tolerance, popular) -> None:
    support_items = torch.randint(popular, (TASKS, SUPPORT), generator=torch.Generator().manual_seed(1))
    head, weights, vectors, bias = moved(form, dtype, support_items)
    with torch.no_grad():
        blocks = head.scores(weights, vectors, bias)
        whole = head.whole(weights)
        alone = torch.stack(
            [
                head.score({name: weight[t] for name, weight in whole.items()}, vectors, bias)
                for t in range(TASKS)
            ]
        )
    assert (blocks - alone).abs().max() <= tolerance * alone.abs().max()
    with_gradient = head.scores(weights, vectors, bias)
    assert (with_gradient - alone).abs().max() <= tolerance * alone.abs().max()


def test_first_order_weights_span_the_same_layer_from_constants() -> None:
    index = torch.zeros(TASKS, SUPPORT, dtype=torch.int64)
    head, weights, vectors, _ = moved("spanned", torch.float32, index)
    vectors.requires_grad_()
    assert head.spanned(weights, vectors, index)["support"].requires_grad
    assert not head.spanned(weights, vectors, index, first_order=True)["support"].requires_grad
