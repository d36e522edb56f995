"""A learned number for every number of shots: linear in log(1 + shots) between a few knots."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

KNOTS = (0, 1, 2, 3, 5, 8, 13, 20, 40, 100)  # shots; beyond the last the curve is level
_REACH = 0.8  # of what is learned at a knot, in log(1 + shots)


class ShotCurve(nn.Module):
    """shots [T] -> [T].

    In training a knot moves with its neighbours: what is learned of 13 shots says something of 20 too, of which there may be few
    examples. Each passes its gradient on to all, the less the further apart in log(1 + shots); the curve may still take any form.

    Args:
        start: the value at every knot before anything is learned, or one for each.
    """

    places: Tensor  # [knots]: log(1 + shots)
    shares: Tensor  # [knots, knots]: what of its gradient each knot (row) gives to the others; rows sum to 1

    def __init__(self, start: float | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(KNOTS).log1p(), persistent=False)
        near = (-((self.places[:, None] - self.places) / _REACH).square() / 2).exp()
        self.register_buffer("shares", near / near.sum(1, keepdim=True), persistent=False)
        self.values = nn.Parameter(torch.tensor(start).expand(len(KNOTS)).clone())

    def forward(self, shots: Tensor) -> Tensor:
        """The value at each number of shots, [T]."""
        values: Tensor = self.values
        if self.training and values.requires_grad:
            shared = self.shares @ values
            # The values as they are, with the gradient of the shared ones.
            values = shared + (values - shared).detach()
        where = shots.to(self.places.dtype).log1p().clamp(max=self.places[-1])
        left = (torch.searchsorted(self.places, where, right=True) - 1).clamp(max=len(self.places) - 2)
        share = (where - self.places[left]) / (self.places[left + 1] - self.places[left])
        return torch.lerp(values[left], values[left + 1], share)
