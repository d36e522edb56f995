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


def test_in_training_a_knot_moves_with_its_neighbours_and_the_far_ones_little() -> None:
    curve = ShotCurve(0.0)
    with torch.no_grad():
        curve.values.copy_(torch.arange(len(KNOTS)) ** 2)
    served = curve.eval()(torch.tensor(KNOTS))
    torch.testing.assert_close(curve.train()(torch.tensor(KNOTS)), served)  # the values are what they are
    curve(torch.tensor([13])).sum().backward()
    gradient = curve.values.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.sum(), torch.tensor(1.0))
    at = KNOTS.index(13)
    assert gradient.argmax() == at
    assert gradient[at + 1] > 0.5 * gradient[at]
    assert gradient[0] < 0.02 * gradient[at]


def test_a_knot_that_no_example_speaks_of_follows_its_neighbours() -> None:
    wanted = torch.tensor(KNOTS).log1p().sin()
    seen = torch.tensor(KNOTS) != 8
    curve = ShotCurve(0.0)
    optimizer = torch.optim.Adam(curve.parameters(), lr=0.03)
    for _ in range(2000):
        optimizer.zero_grad()
        (curve(torch.tensor(KNOTS)) - wanted).square()[seen].sum().backward()
        optimizer.step()
    learned = curve.values.detach()
    assert (learned - wanted)[seen].abs().max() < 0.1
    assert 0.5 < learned[~seen] < 1.0  # of its neighbours .98 and .48
