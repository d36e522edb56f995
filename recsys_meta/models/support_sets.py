"""Networks that read a support set: a token per example, and ways to make one vector of the tokens of a task.

Letters: T tasks, S support examples, F columns of an item code, W width of a token. A task without examples gives 0.
"""

import torch
from torch import Tensor, nn

from recsys_meta.models.losses import RATING_LOSSES, LossName


class SupportTokens(nn.Module):
    """What each example says: relu(A [v; s v; s] + c) of its item code v and its signal s.

    Args:
        dim: F.
        width: W.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(2 * dim + 1, width)

    def forward(self, vectors: Tensor, signal: Tensor, mask: Tensor) -> Tensor:
        """vectors: [T, S, F]; signal, mask: [T, S] -> [T, S, W]; 0 where padded."""
        signal = torch.where(mask, signal, 0.0).unsqueeze(2)
        tokens = torch.relu(self.layer(torch.cat([vectors, signal * vectors, signal], dim=2)))
        return tokens * mask.unsqueeze(2)


class AttentionPool(nn.Module):
    """Multi-head attention of one query per task over its tokens (Vaswani et al. 2017; as pooling: Lee et al. 2019).

    Beside the tokens there is nothing, with a logit and a value of 0: without examples the result is 0, and many examples
    outweigh it.

    Args:
        query_dim: columns of a query.
        width: W, a multiple of ``heads``.
        heads: attended to independently.
    """

    def __init__(self, query_dim: int, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"found width {width}, heads {heads}; expected a multiple of the heads")
        self.heads = heads
        self.query = nn.Linear(query_dim, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """query: [T, Q]; tokens: [T, S, W]; mask: [T, S] -> [T, W]."""
        tasks, examples, width = tokens.shape
        shape = (tasks, examples, self.heads, width // self.heads)
        query = self.query(query).reshape(tasks, 1, *shape[2:])
        logits = (query * self.keys(tokens).reshape(shape)).sum(3) / shape[3] ** 0.5  # [T, S, heads]
        shares = attention(logits.mT, mask.unsqueeze(1)).mT
        values: Tensor = self.values(tokens)
        return (shares.unsqueeze(3) * values.reshape(shape)).sum(1).flatten(1)


class RecurrentPool(nn.Module):
    """The last state of a gated recurrent unit (Cho et al. 2014) that reads the tokens in their order.

    Args:
        width: W, of tokens and of the state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRU(width, width, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens: [T, S, W]; mask: [T, S] -> [T, W]."""
        # Examples first, in their order, then the padding; one more column, so that there is always one.
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
        ordered = tokens.gather(1, order.unsqueeze(2).expand_as(tokens))
        states, _ = self.cell(nn.functional.pad(ordered, (0, 0, 0, 1)))
        shots = mask.sum(1)
        last: Tensor = states[torch.arange(len(tokens), device=tokens.device), (shots - 1).clamp(min=0)]
        return last * (shots > 0).unsqueeze(1)


def attention(logits: Tensor, mask: Tensor) -> Tensor:
    """Shares of the last dimension by softmax, together below 1: nothing has a logit of 0. mask: what may be attended to."""
    logits = nn.functional.pad(logits.masked_fill(~mask, -torch.inf), (1, 0))
    return logits.softmax(-1)[..., 1:]


def signal_of(loss: LossName, scores: Tensor, targets: Tensor) -> Tensor:
    """What is new in each example: the residual of a rating, or 1 and more for an event by its weight, -1 for a sampled
    negative. All [T, S].
    """
    if loss in RATING_LOSSES:
        return targets - scores
    return torch.where(targets > 0, torch.log2(1 + targets.clamp(min=0)), -1.0)
