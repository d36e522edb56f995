"""Heads: the small last part of a scorer that the inner loop adapts. ``start`` is for T tasks, ``score``
for one of them.

Letters: T tasks, N items, I items of a catalogue, S support examples, F columns of an item code, H hidden units.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsys_meta.models.encoders import FeatureEncoder
from recsys_meta.native import Network, Shelf, fits, inner_loop, kernels, plain_scores
from recsys_meta.tensors import Features, FeatureSizes

Weights = dict[str, Tensor]
"""Names to weights. Of T tasks every tensor begins with T; of one task that dimension is gone."""

Pullback = Callable[[Tensor], Weights]
"""The derivative by the scores, [T, N] -> the derivative by the adapted weights."""


class Spanned(NamedTuple):
    """What a first layer sees of items, where its change lies in the span of the support set."""

    base: Tensor  # [T, N, H] or [N, H]: the item half of the first layer, as it was before adaptation
    gram: Tensor  # [T, N, S]: products with the support set's item vectors


Inputs = Tensor | Spanned
"""What a head reads of N items: their vectors, [N, F] or [T, N, F], or what stands for them."""


# Items scored at a time by an MLP: their products with the support sets of 256 users stay within a core's cache.
_BLOCK = 512


class Head(nn.Module, ABC):
    """A scorer as a function of its weights. ``adapted`` names the weights that an inner loop moves."""

    adapted: tuple[str, ...]

    @abstractmethod
    def start(self, users: Features) -> Weights:
        """theta: the weights that adaptation of these T users starts from, constants of the user included."""

    @abstractmethod
    def offset_parameter(self) -> nn.Parameter:
        """The parameter added to every score. Raises ValueError in a head built without an offset."""

    @abstractmethod
    def score(self, weights: Weights, vectors: Tensor, bias: Tensor) -> Tensor:
        """Scores of N items for one task, the plain way. vectors: [N, F], bias: [N] -> [N]."""

    @abstractmethod
    def rated(self, weights: Weights, inputs: Inputs, bias: Tensor) -> tuple[Tensor, Pullback]:
        """Scores of T tasks, [T, N], and the way back from them, written out: no second graph is needed."""

    def inputs(self, weights: Weights, vectors: Tensor, index: Tensor | None = None) -> Inputs:
        """What stays the same of items while weights move. vectors: [I, F] -> of all items, or of those at
        ``index`` [T, N]; [T, N, F] -> of each task's own.
        """
        return vectors if index is None else vectors[index]

    def scores(
        self,
        weights: Weights,
        vectors: Tensor,
        bias: Tensor,
        index: Tensor | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        """Scores for T tasks, of the same N items (vectors: [N, F], bias: [N]), of those among them at
        ``index`` [T, N], or of their own ([T, N, F], [T, N]): [T, N].

        ``least``, [T]: in the place of a score that is certainly below, something else below may be given.
        """
        bias = bias if index is None else bias[index]
        return self.rated(weights, self.inputs(weights, vectors, index), bias)[0]


class LinearHead(Head):
    """score = bias_item + offset_user + user . item, the user vector starting at u_0 + what is known of the
    user.

    Args:
        user_sizes: features of the users.
        dim: columns of an item code.
        offset: whether there is a user offset (senseless under a loss that shifts do not change).
    """

    def __init__(self, user_sizes: FeatureSizes, dim: int, *, offset: bool, spread: float = 0.1) -> None:
        super().__init__()
        self.user_0 = nn.Parameter(torch.randn(dim) * spread)
        self.user_encoder = FeatureEncoder(user_sizes, dim, spread=spread)
        self.offset = nn.Parameter(torch.zeros(())) if offset else None
        self.user_offset = FeatureEncoder(user_sizes, 1, spread=0.0) if offset else None
        self.adapted = ("user", "offset") if offset else ("user",)

    def start(self, users: Features) -> Weights:
        """{"user": [T, F], "offset": [T]}."""
        weights = {"user": self.user_0 + self.user_encoder(users)}
        if self.offset is not None and self.user_offset is not None:
            weights["offset"] = self.offset + self.user_offset(users).squeeze(1)
        return weights

    def offset_parameter(self) -> nn.Parameter:
        """The offset shared by all users."""
        if self.offset is None:
            raise ValueError("this linear head was built without an offset")
        return self.offset

    def score(self, weights: Weights, vectors: Tensor, bias: Tensor) -> Tensor:
        """[N, F], [N] -> [N]."""
        scores = bias + vectors @ weights["user"]
        return scores + weights["offset"] if "offset" in weights else scores

    def rated(self, weights: Weights, inputs: Inputs, bias: Tensor) -> tuple[Tensor, Pullback]:
        """Scores as one product; the way back is another: residuals @ vectors."""
        assert isinstance(inputs, Tensor)
        vectors, user, offset = inputs, weights["user"], weights.get("offset")
        if vectors.dim() == 2:
            scores = torch.addmm(bias, user, vectors.T)
        else:
            scores = bias + torch.bmm(vectors, user.unsqueeze(-1)).squeeze(-1)

        def pullback(residuals: Tensor) -> Weights:
            if vectors.dim() == 2:
                gradient = {"user": residuals @ vectors}
            else:
                gradient = {"user": torch.bmm(residuals.unsqueeze(-2), vectors).squeeze(-2)}
            return gradient if offset is None else gradient | {"offset": residuals.sum(-1)}

        return scores if offset is None else scores + offset.unsqueeze(-1), pullback


class MLPHead(Head):
    """MeLU's decision layers (Lee et al. 2019, eq. 3): [item code; user code] -> ReLU layers -> 1, all of
    them adapted.

    The first layer is split into its item and its user half, so that the user half is computed once per
    user and nothing is concatenated. The item bias is added to the output: with it at 0 this is MeLU's
    scorer. ``offset`` says whether the last layer has a bias (senseless under a loss that shifts do not
    change).

    Weights of T tasks take one of two forms. Whole, as ``start`` gives them: "weight_0" is [T, H, F + F_user].
    Spanned, as ``spanned`` makes them: gradient steps move the first layer by sum_j m_j x_j^T alone, x_j being
    the support inputs [e_j; u], so "weight_0" holds the coefficients m, [T, S, H], and no fast first layer is
    ever formed:

        x_r . W' = x_r . W + sum_j (x_r . x_j) m_j        x_r . x_j = e_r . e_j + |u|^2
    """

    def __init__(
        self,
        user_sizes: FeatureSizes,
        dim: int,
        *,
        offset: bool,
        user_dim: int = 32,
        hidden: Sequence[int] = (64, 64),
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        self.user_encoder = FeatureEncoder(user_sizes, user_dim, combination="concatenation", spread=spread)
        if not hidden:
            raise ValueError("an MLP head needs one hidden layer at least; for none there is the linear head")
        widths = [dim + self.user_encoder.width, *hidden, 1]
        self.item_width = dim
        last = len(widths) - 2
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=offset or n < last) for n, (a, b) in enumerate(pairwise(widths))
        )
        self.adapted = tuple(
            f"{kind}_{n}" for n, layer in enumerate(self.layers) for kind, _ in layer.named_parameters()
        )

    def start(self, users: Features) -> Weights:
        """Shared layers, each [T, out, in] (views, no copies), beside "user": [T, F_user], which is not
        adapted.
        """
        tasks = len(users.ids)
        weights = {"user": self.user_encoder(users)}
        for n, layer in enumerate(self.layers):
            for kind, shared in layer.named_parameters():
                weights[f"{kind}_{n}"] = shared.expand(tasks, *shared.shape)
        return weights

    def offset_parameter(self) -> nn.Parameter:
        """The bias of the last layer."""
        bias = dict(self.layers[-1].named_parameters()).get("bias")
        if bias is None:
            raise ValueError("this MLP head was built without an offset")
        return bias

    @property
    def first_layer(self) -> Tensor:
        """The shared weight of the first layer, [H, F + F_user]."""
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def spanned(
        self, weights: Weights, vectors: Tensor, index: Tensor, *, first_order: bool = False
    ) -> Weights:
        """The weights of a start, to be moved in the span of the support set: the items at ``index`` [T, S] of
        vectors [I, F].

        Without second derivatives a change is a constant: x_j is detached, x_r is not.
        """
        user, support = weights["user"], vectors[index]
        return weights | {
            "weight_0": support.new_zeros(*support.shape[:2], self.first_layer.shape[0]),
            "support": support.detach() if first_order else support,
            "support_items": index.clone(),
            "support_user": (user.detach() if first_order else user).clone(),  # a state holds nothing twice
        }

    def compiled_start(
        self, users: Features, vectors: Tensor, item_bias: Tensor, rates: Tensor, pulls: Tensor
    ) -> inner_loop.Start:
        """The start of these T users as the compiled inner loop takes it. Of a head with two hidden layers."""
        user = self.user_encoder(users)
        (_, bias_0), (weight_1, bias_1), (weight_2, bias_2) = (layer.parameters() for layer in self.layers)
        first = self.first_layer
        return inner_loop.Start(
            vectors=vectors,
            base=vectors @ first[:, : self.item_width].T,
            item_bias=item_bias,
            constant=torch.addmm(bias_0, user, first[:, self.item_width :].T),
            user_square=(user * user).sum(1),
            weight=weight_1.T,
            bias=bias_1,
            last=weight_2.squeeze(0),
            last_bias=bias_2,
            rates=rates,
            pulls=pulls,
        )

    def after(self, weights: Weights, adapted: inner_loop.Adapted) -> Weights:
        """Spanned weights after the compiled inner loop."""
        return weights | {
            "weight_0": adapted.moved,
            "bias_0": weights["bias_0"] + adapted.shift,
            "weight_1": adapted.weight,
            "bias_1": adapted.bias,
            "weight_2": adapted.last.unsqueeze(1),
            "bias_2": adapted.last_bias.unsqueeze(1),
        }

    def whole(self, weights: Weights) -> Weights:
        """The same weights, the first layer formed."""
        if "support" not in weights:
            return weights
        support, user, moved = weights["support"], weights["support_user"], weights["weight_0"]
        change = torch.cat([moved.mT @ support, moved.sum(1).unsqueeze(2) * user.unsqueeze(1)], dim=2)
        kept = {name: weight for name, weight in weights.items() if not name.startswith("support")}
        return kept | {"weight_0": self.first_layer + change}

    def score(self, weights: Weights, vectors: Tensor, bias: Tensor) -> Tensor:
        """[N, F], [N] -> [N]. Of whole weights."""
        first = weights["weight_0"]  # [H, F + F_user]
        constant = first[:, self.item_width :] @ weights["user"] + weights["bias_0"]
        x = vectors @ first[:, : self.item_width].T + constant  # [N, H]
        for n in range(1, len(self.layers)):
            x = torch.relu(x) @ weights[f"weight_{n}"].T
            if f"bias_{n}" in weights:
                x = x + weights[f"bias_{n}"]
        return x.squeeze(-1) + bias

    def inputs(self, weights: Weights, vectors: Tensor, index: Tensor | None = None) -> Inputs:
        """Of spanned weights: the first layer's item half, once per item or per example, whichever are fewer, and the Gram
        matrix.
        """
        if "support" not in weights:
            return super().inputs(weights, vectors, index)
        shared = self.first_layer[:, : self.item_width].T
        if index is None:
            base = vectors @ shared
        elif index.numel() < len(vectors):
            vectors = vectors[index]
            base = vectors @ shared
        else:
            base, vectors = (vectors @ shared)[index], vectors[index]
        return Spanned(base, vectors @ weights["support"].mT)

    def scores(
        self,
        weights: Weights,
        vectors: Tensor,
        bias: Tensor,
        index: Tensor | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        """As of every head. Where no gradient is asked for, a catalogue is scored block by block and user by user, so
        that what lies between the layers stays in the cache: by a compiled kernel where there is one, else by torch.
        """
        if index is not None or vectors.dim() == 3 or torch.is_grad_enabled() or not vectors.is_cpu:
            return super().scores(weights, vectors, bias, index)
        network, shelf_of = self.unrolled(weights)
        compiled = kernels() if fits(network) else None
        scorer = None if compiled is None else compiled.scorer(network, least)
        scores = vectors.new_empty(len(network.final), len(vectors))
        for start in range(0, len(vectors), _BLOCK):
            block = slice(start, start + _BLOCK)
            shelf = shelf_of(vectors[block], bias[block])
            if scorer is None:
                scores[:, block] = plain_scores(network, shelf)
            else:
                scorer(shelf, scores[:, block])
        return scores

    def unrolled(self, weights: Weights) -> tuple[Network, Callable[[Tensor, Tensor], Shelf]]:
        """The MLPs of T users as the kernel takes them, and what they see of items, whose vectors are [N, F] and biases [N]:
        products with the support set of whoever has them, or the vectors themselves, whichever is less work.
        """
        last = len(self.layers) - 1
        final_bias = weights.get(f"bias_{last}")
        hidden = [(weights[f"weight_{n}"], weights[f"bias_{n}"]) for n in range(1, last)]
        final = weights[f"weight_{last}"].squeeze(1)
        top = (self.constant(weights), hidden, final, None if final_bias is None else final_bias.squeeze(1))
        tasks, units, width = len(final), len(self.first_layer), self.item_width
        if "support" in weights:
            used = (weights["weight_0"] != 0).any(2)  # not the padding
            items, places = torch.unique(weights["support_items"][used], return_inverse=True)
            if len(items) * width + len(places) * units < tasks * width * units:
                # An item stands in many support sets: any one of them has its vector, whose products are needed once.
                one = torch.empty_like(items).scatter_(0, places, torch.arange(len(places)))
                support = weights["support"][used][one]
                offsets = torch.cat([places.new_zeros(1), used.sum(1).cumsum(0)])
                network = Network(places, offsets, weights["weight_0"][used], *top)
                shared = self.first_layer[:, :width].T
                return network, lambda vectors, bias: Shelf(support @ vectors.T, vectors @ shared, bias)
        own = self.whole(weights)["weight_0"][:, :, :width].mT.reshape(tasks * width, units)
        columns = torch.arange(width).repeat(tasks)
        network = Network(columns, torch.arange(0, tasks * width + 1, width), own, *top)
        return network, lambda vectors, bias: Shelf(vectors.T.contiguous(), None, bias)

    def constant(self, weights: Weights) -> Tensor:
        """What the first layer gives to all items of a user alike, [T, H]."""
        first, user = weights["weight_0"], weights["user"]
        if "support" not in weights:
            return (first[:, :, self.item_width :] @ user.unsqueeze(2)).squeeze(2) + weights["bias_0"]
        moved = (user * weights["support_user"]).sum(1, keepdim=True) * first.sum(1)
        return user @ self.first_layer[:, self.item_width :].T + moved + weights["bias_0"]

    def entered(self, weights: Weights, inputs: Inputs) -> Tensor:
        """What leaves the first layer, [T, N, H]."""
        first, constant = weights["weight_0"], self.constant(weights).unsqueeze(1)
        if isinstance(inputs, Spanned):
            return inputs.base + constant + inputs.gram @ first
        return inputs @ first[:, :, : self.item_width].mT + constant

    def rated(self, weights: Weights, inputs: Inputs, bias: Tensor) -> tuple[Tensor, Pullback]:
        """The layers forwards, and backwards by the chain rule."""
        x = self.entered(weights, inputs)
        hidden = []  # [T, N, H] behind each layer but the last
        for n in range(1, len(self.layers)):
            hidden.append(torch.relu(x))
            x = hidden[-1] @ weights[f"weight_{n}"].mT
            if f"bias_{n}" in weights:
                x = x + weights[f"bias_{n}"].unsqueeze(1)

        def pullback(residuals: Tensor) -> Weights:
            gradient = {}
            delta = residuals.unsqueeze(2)  # [T, N, units]: the derivative by what leaves layer n
            for n in range(len(self.layers) - 1, 0, -1):
                gradient[f"weight_{n}"] = delta.mT @ hidden[n - 1]
                if f"bias_{n}" in weights:
                    gradient[f"bias_{n}"] = delta.sum(1)
                # The sign of what a ReLU let through is its derivative; a mask of booleans takes several times as long.
                delta = delta @ weights[f"weight_{n}"] * hidden[n - 1].detach().sign()
            gradient["bias_0"] = delta.sum(1)
            if isinstance(inputs, Spanned):
                gradient["weight_0"] = delta
            else:
                of_user = gradient["bias_0"].unsqueeze(2) * weights["user"].unsqueeze(1)
                gradient["weight_0"] = torch.cat([delta.mT @ inputs, of_user], dim=2)
            return gradient

        return x.squeeze(2) + bias, pullback
