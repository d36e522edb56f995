"""Networks over support sets: what attention and recurrence make of padding, of order, and of nothing."""

import pytest
import torch

from recsys_meta.models.support_sets import AttentionPool, RecurrentPool, SupportTokens, attention, signal_of


def test_attention_shares_are_a_softmax_with_one_more_logit_of_0_for_nothing() -> None:
    logits = torch.tensor([[0.0, 2.0, 50.0]])
    shares = attention(logits, torch.tensor([[True, True, False]]))
    total = 1 + 1 + torch.tensor(2.0).exp()
    torch.testing.assert_close(shares, torch.tensor([[1.0, torch.tensor(2.0).exp(), 0.0]]) / total)
    assert not attention(logits, torch.zeros(1, 3, dtype=torch.bool)).any()


def test_one_head_of_attention_is_the_sum_worked_by_hand() -> None:
    pool = AttentionPool(query_dim=1, width=2, heads=1)
    with torch.no_grad():
        pool.query.weight.copy_(torch.tensor([[1.0], [0.0]]))
        pool.query.bias.zero_()
        pool.keys.weight.copy_(torch.eye(2))
        pool.keys.bias.zero_()
        pool.values.weight.copy_(torch.eye(2))
    tokens = torch.tensor([[[0.0, 4.0], [2.0**0.5, 8.0], [9.0, 9.0]]])
    found = pool(torch.ones(1, 1), tokens, torch.tensor([[True, True, False]]))
    e = torch.tensor(1.0).exp()  # logits 0 and 1, and 0 for nothing
    torch.testing.assert_close(found, torch.stack([2.0**0.5 * e, 4 + 8 * e])[None] / (2 + e))


def test_a_recurrent_pool_reads_the_examples_of_each_task_alone_and_in_order() -> None:
    torch.manual_seed(0)
    pool, tokens = RecurrentPool(4), torch.randn(3, 5, 4)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    found = pool(tokens, mask)
    torch.testing.assert_close(found[0], pool.cell(tokens[:1, [0, 2, 3]])[1][0, 0])
    torch.testing.assert_close(found[2], pool.cell(tokens[2:])[1][0, 0])
    assert not found[1].any()
    assert not torch.allclose(pool(tokens.flip(1), mask.flip(1))[0], found[0])
    assert not pool(tokens[:, :0], mask[:, :0]).any()


def test_a_token_is_0_where_nothing_stands_whatever_the_signal() -> None:
    torch.manual_seed(0)
    tokens = SupportTokens(dim=3, width=8)(
        torch.randn(1, 2, 3), torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]])
    )
    assert tokens[0, 0].any()
    assert not tokens[0, 1].any()


def test_the_signal_is_a_residual_or_the_weight_of_an_event() -> None:
    targets = torch.tensor([[3.0, 1.0, 0.0]])
    assert signal_of("squared", torch.ones(1, 3), targets).tolist() == [[2.0, 0.0, -1.0]]
    assert signal_of("softmax", torch.ones(1, 3), targets).tolist() == [[2.0, 1.0, -1.0]]


def test_heads_have_to_divide_the_width() -> None:
    with pytest.raises(ValueError, match="found width 6, heads 4"):
        AttentionPool(2, 6, 4)
