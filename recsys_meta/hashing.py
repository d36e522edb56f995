"""Random numbers that depend on a counter and nothing else, splitmix64 on tensors, and the chances of what is drawn by them."""

import torch
from torch import Tensor

# The constants of splitmix64 (Steele, Lea & Flood 2014) as signed integers; int64 products wrap around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mixed(counter: Tensor) -> Tensor:
    """The splitmix64 output of each counter: int64 in, int64 of the same shape out, a bijection."""
    bits = counter + _GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def hashed(*numbers: int) -> Tensor:
    """One hash of several integers (a seed, an epoch), whose order matters; a scalar int64 tensor."""
    bits = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        bits = mixed(bits ^ number)
    return bits


def uniform(bits: Tensor) -> Tensor:
    """Mixed bits as numbers of [0, 1), float64, from the upper 53 bits."""
    return _shifted(bits, 11).double() * 2.0**-53


def generator(*numbers: int) -> torch.Generator:
    """A generator whose draws are given by these integers alone."""
    return torch.Generator().manual_seed(int(_shifted(hashed(*numbers), 1)))


def inclusion_chances(weights: Tensor, size: int) -> Tensor:
    """min(1, c * weights) with the c that makes them sum to ``size``; 1 for all above 0 where these are no more than that."""
    if int((weights > 0).sum()) <= size:
        return (weights > 0).to(weights.dtype)
    falling = weights.sort(descending=True).values
    left = falling.flip(0).cumsum(0).flip(0)  # what all from here on weigh together
    scales = (size - torch.arange(len(falling), device=weights.device)) / left
    # The first ones, each of which would be drawn more than once.
    certain = int((scales * falling > 1)[:size].sum())
    return (scales[certain] * weights).clamp(max=1.0)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right; torch's own drags the sign along."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
