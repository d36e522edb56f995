"""The curve against its knots and between them."""

import math

import torch

from recsys_meta.models.shot_curve import KNOTS, ShotCurve


def test_the_curve_goes_through_its_knots_and_is_level_beyond() -> None:
    curve = ShotCurve(0.0)
    with torch.no_grad():
        curve.values.copy_(torch.arange(len(KNOTS)) ** 2)
    torch.testing.assert_close(curve(torch.tensor(KNOTS)), curve.values)
    torch.testing.assert_close(curve(torch.tensor([1000])), curve.values[-1:])


def test_between_knots_it_is_linear_in_the_logarithm() -> None:
    curve = ShotCurve(0.0)
    with torch.no_grad():
        curve.values[KNOTS.index(20)] = 1.0
    expected = (math.log(31) - math.log(41)) / (math.log(21) - math.log(41))
    torch.testing.assert_close(curve(torch.tensor([30])), torch.tensor([expected]))
