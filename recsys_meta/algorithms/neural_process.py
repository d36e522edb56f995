"""An attentive neural process: a support set becomes a latent variable and a summary, which modulate a network shared by all.

H. Kim et al.: Attentive Neural Processes, ICLR 2019; conditioning for recommendation as by X. Lin, J. Wu, C. Zhou, S. Pan,
Y. Cao, B. Wang: Task-adaptive Neural Process for User Cold-Start Recommendation, WWW 2021 (TaNP). With z_j a token per example
(see ``hypernetwork``) and m_t = sum_j z_j / (1 + n_t)

    latent path          q(l | support) = N(mu(m_t), sigma(m_t)^2)
    deterministic path   r_t = attention over {z_j}, asked by what is known of the user
    score(i)             b_i + MLP(v_i, user; layers modulated by FiLM of (l, r_t)) + sum over heads, j of a_ij c_j
    meta-loss            E L_query(l), l ~ q(l | support and query), + weight KL(q(l | support and query) || q(l | support))

a_ij is the attention of item i to the support set (ANP's cross-attention). FiLM (Perez et al. 2018) scales and shifts what
enters each ReLU, which is to scale the rows of a weight and to shift a bias, so the head is MeLU's and its layers are never
adapted. At test time l is the mean of q(l | support).

What differs: cross-attention gives a score per example and head and not an input of the MLP, so that a catalogue can be scored;
TaNP's pool of task embeddings (its clustering of tasks) is left out; the KL has a weight, since the loss is a mean over
the query set; sigma is between 0.1 and 1 (as in ANP's code). The state of a user without support is the same function of an
empty set.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer
from recsys_meta.models.heads import MLPHead, Weights
from recsys_meta.models.support_sets import AttentionPool, SupportTokens, attention, signal_of
from recsys_meta.tensors import EpisodeBatch, Examples, Features, ItemCodes, Sizes

_LOGITS = 2**22  # computed at a time when a catalogue is scored: 16 MB


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Tensor  # [T, L]
    deviation: Tensor  # [T, L]


class NeuralProcess(Scorer):
    """Conditioning on the support set in one pass.

    Args:
        sizes: features of users and items to provide for.
        width: W, of tokens and of the summary; a multiple of ``heads``.
        latent: L, columns of the latent variable.
        heads: of both attentions.
        kl_weight: of the KL divergence beside the mean query loss.
        settings: of ``Scorer``; the head is an MLP.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "hidden": (16,), "width": 16, "latent": 4},
        {"loss": "softmax", "dim": 8, "hidden": (16,), "width": 16, "latent": 4},
    )

    def __init__(
        self,
        sizes: Sizes,
        *,
        head: Literal["mlp"] = "mlp",
        width: int = 64,
        latent: int = 16,
        heads: int = 4,
        kl_weight: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(sizes, head=head, **settings)
        if not isinstance(self.head, MLPHead):
            raise ValueError(f"found head {head}; a neural process modulates the layers of an mlp")
        self.heads = heads
        self.kl_weight = kl_weight
        dim = self.item_encoder.width
        self.tokens = SupportTokens(dim, width)
        self.latent_path = nn.Linear(width, 2 * latent)
        self.pool = AttentionPool(self.head.user_encoder.width, width, heads)
        self.queries = nn.Linear(dim, width, bias=False)
        self.keys = nn.Linear(width, width)
        self.contributions = nn.Linear(width, heads)
        self.film = nn.ModuleDict()
        for n, layer in enumerate(self.head.layers[:-1]):
            assert isinstance(layer, nn.Linear)
            film = nn.Linear(latent + width, 2 * layer.out_features)
            nn.init.normal_(film.weight, std=0.1 * (latent + width) ** -0.5)
            nn.init.zeros_(film.bias)
            self.film[str(n)] = film

    def read(self, support: Examples, users: Features, items: ItemCodes) -> Tensor:
        """The tokens, [T, S, W]; what is new in a rating is its difference from item bias and offset."""
        assert isinstance(self.head, MLPHead)
        expected = items.bias[support.items]
        if self.head.layers[-1].bias is not None:
            expected = expected + self.head.offset_parameter()
        signal = signal_of(self.loss, expected, support.targets)
        tokens: Tensor = self.tokens(items.vectors[support.items], signal, support.mask)
        return tokens

    def latent(self, tokens: Tensor, shots: Tensor) -> Gaussian:
        """q(l | examples). tokens: [T, S, W]; shots: [T]."""
        mean, spread = self.latent_path(tokens.sum(1) / (1 + shots[:, None])).chunk(2, dim=1)
        return Gaussian(mean, 0.1 + 0.9 * torch.sigmoid(spread))

    def state(self, latent: Tensor, tokens: Tensor, support: Examples, users: Features) -> TaskState:
        """What ``predict`` reads: "condition" [T, L + W], "user" [T, F_user], "keys" [T, S, W], "values" [T, S, heads] and
        "examples" [T, S], 1 or 0.
        """
        assert isinstance(self.head, MLPHead)
        user = self.head.user_encoder(users)
        summary = self.pool(user, tokens, support.mask)
        return {
            "condition": torch.cat([latent, summary], dim=1),
            "user": user,
            "keys": self.keys(tokens),
            "values": self.contributions(tokens),
            "examples": support.mask.to(latent.dtype),
        }

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """See ``state``; the latent variable at its mean."""
        tokens = self.read(support, users, items)
        return self.state(self.latent(tokens, support.shots).mean, tokens, support, users)

    def prior(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """The state given no example."""
        return self.adapt(support.emptied(), users, items)

    def modulated(self, state: TaskState) -> Weights:
        """The weights of the head for T tasks: rows scaled and biases shifted."""
        assert isinstance(self.head, MLPHead)
        weights = {"user": state["user"]}
        for n, layer in enumerate(self.head.layers):
            for kind, shared in layer.named_parameters():
                weights[f"{kind}_{n}"] = shared.expand(len(state["user"]), *shared.shape)
        for layer_name, film in self.film.items():
            scale, shift = film(state["condition"]).chunk(2, dim=1)
            weight, bias = f"weight_{layer_name}", f"bias_{layer_name}"
            weights[weight] = (1 + scale)[:, :, None] * weights[weight]
            weights[bias] = (1 + scale) * weights[bias] + shift
        return weights

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        """[T, I], or [T, Q] with ``index``."""
        scores = self.head.scores(self.modulated(state), items.vectors, items.bias, index)
        queries: Tensor = self.queries(items.vectors)  # [I, W]
        if index is not None:
            return scores + self.attended(state, queries[index])
        tasks, examples, _ = state["keys"].shape
        block = max(1, _LOGITS // max(1, tasks * self.heads * examples))
        return scores + torch.cat([self.attended(state, some) for some in torch.split(queries, block)], dim=1)

    def attended(self, state: TaskState, queries: Tensor) -> Tensor:
        """What cross-attention adds to the scores, [T, N]. queries: of the same items for all tasks, [N, W], or [T, N, W]."""
        each = queries.shape[-1] // self.heads
        keys, queries = (x.reshape(*x.shape[:-1], self.heads, each) for x in (state["keys"], queries))
        logits = torch.einsum("nhd,tshd->thns" if queries.dim() == 3 else "tnhd,tshd->thns", queries, keys)
        shares = attention(logits * each**-0.5, (state["examples"] > 0)[:, None, None])
        return torch.einsum("thns,tsh->tn", shares, state["values"])

    def contenders(self, state: TaskState, items: ItemCodes, least: Tensor) -> Tensor:
        """[T, I]: nothing is ruled out early."""
        return self.predict(state, items)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Query loss under a draw given support and query (in evaluation mode under the mean), and the KL; a scalar."""
        support, query, users, catalogue, *_ = episodes
        items = self.encode(catalogue)
        tokens, of_query = (self.read(examples, users, items) for examples in (support, query))
        guess = self.latent(tokens, support.shots)
        informed = self.latent(torch.cat([tokens, of_query], dim=1), support.shots + query.shots)
        drawn = informed.mean
        if self.training:
            drawn = drawn + informed.deviation * torch.randn_like(drawn)
        loss = self.task_loss(self.state(drawn, tokens, support, users), query, items, support)
        return (loss + self.kl_weight * divergence(informed, guess)).mean()

    def user_vectors(self, state: TaskState) -> Tensor:
        """[T, L + W + F_user]: what the network is modulated by and reads of the user; the attended examples are no vector."""
        return torch.cat([state["condition"], state["user"]], dim=1)


def divergence(one: Gaussian, other: Gaussian) -> Tensor:
    """KL(one || other), [T]."""
    ratio = (one.deviation / other.deviation).square()
    distance = ((one.mean - other.mean) / other.deviation).square()
    return ((ratio + distance - 1 - ratio.log()) / 2).sum(1)
