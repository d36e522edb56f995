"""Policies that draw slates at random, and the exact probability of everything that they show.

R. L. Plackett, The Analysis of Permutations, Applied Statistics 24 (1975); R. D. Luce, Individual Choice Behavior (1959); drawn
by the Gumbel top-k of W. Kool, H. van Hoof & M. Welling, Stochastic Beams and Where to Find Them, ICML 2019. With scores s over a
pool of candidates, temperature tau and exploration share e, the item at each position is drawn given the items above it:

    p(i | above) = (1 - e) exp(s_i / tau) / sum_{j in pool without above} exp(s_j / tau) + e / |pool without above|

so a slate is as probable as the product of its propensities. tau = 0 is the order of the scores; e = 1 is a slate at random.

One pass draws it exactly, although a coin decides at each position: the perturbed scores s_i / tau + Gumbel are the arrivals of
exponential clocks, which have no memory. Whichever items chance has taken away, the next arrival among those that are left
follows the softmax over them; and the next of a random order is uniform among them. So two orders are drawn at once, and each
position takes the first untaken item of the one or the other.

Letters: T users, N candidates of a pool, k positions of a slate.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_meta.hashing import hashed, mixed, uniform

# What the draws of one seed are for.
_CLOCKS, _CHANCE, _COINS, _REPEATS = range(4)

# Below this, scores over temperature leave the range of doubles for scores that float32 can hold; at it, the smallest difference
# of two of them decides already. So nothing colder is computed: it would be the same policy.
_COLDEST = 1e-200


class Slates(NamedTuple):
    """What T users are shown, in order."""

    places: Tensor  # [T, k] int64: columns of the pool; -1 where no candidate was left
    propensity: Tensor  # [T, k] float64: probability of the item at its position given those above it; 0 where there is none


class Marginals(NamedTuple):
    """Estimates of how probable each candidate is at each position, whatever stands above it."""

    probability: Tensor  # [T, k, N] float64; summed over the positions: of being in the slate at all
    standard_error: Tensor  # [T, k, N] float64: of the estimate


@dataclass(frozen=True)
class PlackettLuce:
    """Slates drawn without replacement, position by position, by a softmax over the scores that are left.

    Args:
        temperature: in units of the scores; 0: always the best that is left, equals in the order of their columns. However small,
            above 0 equals are as probable as each other.
        exploration: share of the positions at which every candidate that is left is as probable.

    Raises ValueError where the temperature is negative or not finite, or the share not within 0..1.
    """

    temperature: float = 1.0
    exploration: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is a finite number, 0 or above; found {self.temperature}")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration is a share, 0 to 1; found {self.exploration}")

    def draw(self, scores: Tensor, size: int, *, users: Tensor, items: Tensor, seed: int) -> Slates:
        """One slate for each user. A user's slate depends on its scores, its key, the keys of its items, and the seed.

        Neither the other users nor, at a temperature above 0, the order of the columns matter.

        Args:
            scores: [T, N]; minus infinity where there is no candidate.
            size: k; users with fewer candidates get shorter slates.
            users: [T] int64: a key of each user, as ``episodes.user_keys`` gives them.
            items: [N] or [T, N] int64: a key of each candidate.
            seed: of the night.

        Raises ValueError where a score is neither finite nor minus infinity, or ``size`` is below 1.
        """
        if size < 1:
            raise ValueError(f"size is at least 1; found {size}")
        scores = _checked(scores)
        candidates = scores > -torch.inf
        places = self._by_score(scores, size, _bits(users, items, seed, _CLOCKS))
        if self.exploration > 0:
            chance = uniform(_bits(users, items, seed, _CHANCE)).masked_fill(~candidates, -1.0)
            coins = uniform(_bits(users, torch.arange(places.shape[1]), seed, _COINS)) < self.exploration
            places = _taken_in_turn(places, _first(chance, size), coins)
        positions = torch.arange(places.shape[1])
        places = places.masked_fill(positions >= candidates.sum(1, keepdim=True), -1)
        places = torch.nn.functional.pad(places, (0, size - places.shape[1]), value=-1)
        return Slates(places, self._propensities(scores, places))

    def propensities(self, scores: Tensor, places: Tensor) -> Tensor:
        """How probable the items of given slates are at their positions, given those above them, [T, k] float64.

        An item that is no candidate has probability 0 (its place is -1, or its score minus infinity) and takes nothing
        from those below it.

        Raises ValueError where a score is neither finite nor minus infinity, or a slate has an item twice or from beyond
        the pool.
        """
        if places.numel() and not -1 <= int(places.min()) <= int(places.max()) < scores.shape[1]:
            raise ValueError(
                f"places {int(places.min())}..{int(places.max())} found in a pool of {scores.shape[1]}; expected -1 and up"
            )
        ordered = places.sort(dim=1).values
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
        if twice.any():
            raise ValueError(f"slate {int(twice.nonzero()[0])} has an item twice; expected each item once")
        return self._propensities(_checked(scores), places)

    def next_shown(self, scores: Tensor, above: Tensor) -> Tensor:
        """How probable each candidate is at the next position, [T, N] float64; 0 for all where none is left.

        above: [T, N] bool: what stands above it.
        """
        left = _checked(scores).masked_fill(above, -torch.inf)
        candidates = left > -torch.inf
        if self.temperature == 0:
            best = torch.zeros_like(left).scatter(1, left.argmax(1, keepdim=True), 1.0)  # the first of equals
        else:
            best = _logits(left, self.temperature).softmax(1)
        chosen = (1 - self.exploration) * best + self.exploration / candidates.sum(1, keepdim=True).double()
        return chosen.masked_fill(~candidates, 0.0)

    def marginals(self, scores: Tensor, size: int, *, users: Tensor, draws: int, seed: int) -> Marginals:
        """Estimates for every candidate and position, as means over drawn slates of what is known exactly given the items above.

        No candidate is estimated never to be shown, and the error is smaller than that of counted slates.

        Args:
            scores: [T, N]; minus infinity where there is no candidate.
            size: k.
            users: [T] int64: a key of each user; an estimate does not depend on who else is there.
            draws: slates, 2 or more.
            seed: of the slates.
        """
        if draws < 2:
            raise ValueError(f"draws are 2 or more, for an error to be told; found {draws}")
        num_users, num_items = scores.shape
        total = torch.zeros(num_users, size, num_items, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for number in range(draws):
            repeat = int(hashed(seed, _REPEATS, number))
            slates = self.draw(scores, size, users=users, items=torch.arange(num_items), seed=repeat)
            above = torch.zeros(
                num_users, num_items + 1, dtype=torch.bool
            )  # the last column: of no candidate
            for position in range(size):
                likely = self.next_shown(scores, above[:, :-1])
                total[:, position] += likely
                squares[:, position] += likely**2
                above.scatter_(1, slates.places[:, position, None] % (num_items + 1), True)
        mean = total / draws
        variance = (squares / draws - mean**2).clamp(min=0) * draws / (draws - 1)
        return Marginals(mean, (variance / draws).sqrt())

    def _by_score(self, scores: Tensor, size: int, bits: Tensor) -> Tensor:
        """The order that the scores give, perturbed, as far as a slate can need it: [T, at most k]."""
        if self.temperature == 0:
            return scores.argsort(dim=1, descending=True, stable=True)[:, :size]
        # An exponential variable, never 0: uniform numbers come in steps of 2^-53.
        arrival = (-torch.log1p(-uniform(bits))).clamp(min=2.0**-54)
        clocks = -arrival.log()
        # Far below the best, a clock is less than the last digit of its logit: equals are then told apart by the clocks alone.
        by_clock = clocks.argsort(dim=1, descending=True)
        keys = (_logits(scores, self.temperature) + clocks).gather(1, by_clock)
        return by_clock.gather(1, keys.argsort(dim=1, descending=True, stable=True)[:, :size])

    def _propensities(self, scores: Tensor, places: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf)  # the last column: of no candidate
        columns = places % padded.shape[1]
        listed = padded.gather(1, columns) > -torch.inf  # [T, k]
        above = listed.cumsum(1) - listed.long()
        if self.temperature == 0:
            best = _is_first_left(padded, columns)
        else:
            best = self._softmax_of_left(padded.gather(1, columns), padded.scatter(1, columns, -torch.inf))
        chance = 1.0 / ((scores > -torch.inf).sum(1, keepdim=True) - above).double()
        both = (1 - self.exploration) * best + self.exploration * chance
        return both.masked_fill(~listed, 0.0)

    def _softmax_of_left(self, shown: Tensor, beyond: Tensor) -> Tensor:
        """The softmax of each shown score over itself, those below it and those beyond the slate, [T, k].

        From the end upwards, so that nothing is subtracted, and always counted from the best that is left: far below the best
        of all, equals would differ by less than the last digit.
        """
        heat = max(self.temperature, _COLDEST)
        best = torch.empty_like(shown)
        top = beyond.amax(1)
        mass = ((beyond - _finite(top).unsqueeze(1)) / heat).exp().sum(1)  # in units of that of the best left
        for position in reversed(range(shown.shape[1])):
            now = shown[:, position]
            below, top = top, torch.maximum(top, now)
            mine = ((now - _finite(top)) / heat).exp()
            mass = mass * ((below - _finite(top)) / heat).exp() + mine
            best[:, position] = mine / mass
        return best


def _finite(top: Tensor) -> Tensor:
    """The same, and 0 where there is no candidate."""
    return top.masked_fill(top == -torch.inf, 0.0)


def _checked(scores: Tensor) -> Tensor:
    scores = scores.double()
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(
            f"scores are [users, candidates], one candidate at least; found {list(scores.shape)}"
        )
    if (scores.isnan() | (scores == torch.inf)).any():
        raise ValueError("a score is NaN or infinite; expected numbers, and minus infinity for no candidate")
    return scores


def _logits(scores: Tensor, temperature: float) -> Tensor:
    """Scores over the temperature, the best of each user being 0."""
    logits: Tensor = (scores - scores.amax(1, keepdim=True)) / max(temperature, _COLDEST)
    return logits.masked_fill(scores == -torch.inf, -torch.inf)


def _bits(users: Tensor, items: Tensor, seed: int, purpose: int) -> Tensor:
    """Independent random bits of every user and item: of their keys, the seed and the purpose alone."""
    return mixed(mixed(users ^ hashed(seed, purpose)).unsqueeze(1) + mixed(items))


def _first(keys: Tensor, size: int) -> Tensor:
    """The columns of the largest keys, largest first."""
    return keys.topk(min(size, keys.shape[1]), dim=1).indices


def _taken_in_turn(by_score: Tensor, by_chance: Tensor, coins: Tensor) -> Tensor:
    """At each position the first untaken item of the one order or, where the coin says so, of the other. All [T, k]."""
    taken = torch.empty_like(by_score)
    untaken = [torch.ones_like(by_score, dtype=torch.bool) for _ in range(2)]
    for position in range(by_score.shape[1]):
        score, chance = (
            order.gather(1, free.int().argmax(1, keepdim=True))
            for order, free in zip((by_score, by_chance), untaken, strict=True)
        )
        taken[:, position, None] = now = torch.where(coins[:, position, None], chance, score)
        untaken = [free & (order != now) for order, free in zip((by_score, by_chance), untaken, strict=True)]
    return taken


def _is_first_left(scores: Tensor, columns: Tensor) -> Tensor:
    """Whether each item is the best of those not above it, 1.0 or 0.0; equals in the order of their columns."""
    positions = torch.arange(columns.shape[1]).expand_as(columns)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1]).expand_as(order))
    mine = rank.gather(1, columns)  # [T, k]
    nowhere = torch.full_like(order, columns.shape[1])
    position = nowhere.scatter(1, mine, positions)  # of each rank; k: not in the slate
    last = position.cummax(1).values  # of an item and all that are better: its own where they stand above it
    return (last.gather(1, mine) == positions).double()
