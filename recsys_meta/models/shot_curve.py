"""A learned number for every number of shots: linear in log(1 + shots) between a few knots."""

import torch
from torch import Tensor, nn

KNOTS = (0, 1, 2, 3, 5, 8, 13, 20, 40, 100)  # shots; beyond the last the curve is level


class ShotCurve(nn.Module):
    """shots [T] -> [T].

    Args:
        start: the value at every knot before anything is learned.
    """

    places: Tensor  # [knots]: log(1 + shots)

    def __init__(self, start: float) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(KNOTS).log1p(), persistent=False)
        self.values = nn.Parameter(torch.full((len(KNOTS),), start))

    def forward(self, shots: Tensor) -> Tensor:
        """The value at each number of shots, [T]."""
        where = shots.to(self.places.dtype).log1p().clamp(max=self.places[-1])
        left = (torch.searchsorted(self.places, where, right=True) - 1).clamp(max=len(self.places) - 2)
        share = (where - self.places[left]) / (self.places[left + 1] - self.places[left])
        return torch.lerp(self.values[left], self.values[left + 1], share)
