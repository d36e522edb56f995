"""Meta-LSTM: the optimizer is learned. A recurrent network, the same for every weight, turns gradients into steps.

S. Ravi, H. Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017. For every weight of the head on its own, with
d_k = phi_k - theta_t its displacement from the start and g_k = dL_support(phi_k)

    h_{k+1} = LSTM([pre(g_k), pre(L_support(phi_k)), d_k, log(1 + n_t)], h_k)           pre: the paper's equation 5
    d_{k+1} = sigma(w_f . h_{k+1} + b_f) d_k - a sigma(w_i . h_{k+1} + b_i) g_k          d_0 = 0

As in the paper the parameters are shared by all coordinates and no derivative goes through g_k.

What differs: the cell holds the displacement d, not phi, so that to forget is to return to the prior, not to 0; the rate has a
learned scale a and knows the number of shots n_t, which is not fixed here; the gates read the state of the LSTM alone, where
the paper feeds them their own last values again; there is no batch normalization.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recsys_meta.algorithms.base import TaskState
from recsys_meta.algorithms.scorer import Scorer
from recsys_meta.models.heads import Weights
from recsys_meta.models.losses import task_loss
from recsys_meta.tensors import Examples, Features, ItemCodes, Sizes

_FORGET, _RATE = 4.0, -2.0  # b_f keeps nearly all, b_i takes a step of an eighth: the gates of plain descent
_SHARPNESS = 10.0  # p of the paper's equation 5


class MetaLSTM(Scorer):
    """The head after K steps of a learned optimizer.

    Args:
        sizes: features of users and items to provide for.
        num_steps: K.
        units: of the LSTM.
        settings: of ``Scorer``.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8, "num_steps": 3, "units": 6},
        {"loss": "softmax", "dim": 8, "num_steps": 3, "units": 6},
    )

    def __init__(self, sizes: Sizes, *, num_steps: int = 5, units: int = 16, **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.num_steps = num_steps
        self.cell = nn.LSTMCell(6, units)
        self.gates = nn.Linear(units, 2)
        nn.init.normal_(self.gates.weight, std=0.1)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([_FORGET, _RATE]))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        """T tasks at once: {name: [T, ...]}, the head's weights after K steps."""
        theta, shelf = self.head.start(users), self.shelf(items)
        inputs = self.head.inputs(theta, items.vectors, support.items)
        shots = support.shots.to(items.bias.dtype)
        change = torch.zeros_like(self.flat(theta))  # [T, P]
        state = None
        for _ in range(self.num_steps):
            phi = self.moved(theta, change)
            with torch.no_grad():
                slope = self.flat(self.written_gradient(phi, inputs, support, shelf))
                scored = self.scored(self.predict(phi, items, support.items), support, shelf)
                loss = task_loss(self.loss, scored, self.pool_of(phi, support, shelf))
                of_task = torch.cat([preprocessed(loss), shots.log1p()[:, None]], dim=1)  # [T, 3]
                of_weight = preprocessed(slope)  # [T, P, 2]
            seen = [of_weight, of_task[:, None].expand(-1, change.shape[1], -1), change[:, :, None]]
            state = self.cell(torch.cat(seen, dim=2).flatten(0, 1), state)
            forget, rate = self.gates(state[0]).sigmoid().reshape(*change.shape, 2).unbind(2)
            change = forget * change - self.log_scale.exp() * rate * slope
        return self.moved(theta, change)

    def flat(self, weights: Weights) -> Tensor:
        """The adapted weights of T tasks side by side, [T, P]."""
        return torch.cat(
            [
                weights[name].flatten(1) if weights[name].dim() > 1 else weights[name][:, None]
                for name in self.head.adapted
            ],
            dim=1,
        )

    def moved(self, theta: Weights, change: Tensor) -> Weights:
        """theta, displaced. change: [T, P]."""
        parts = torch.split(change, [theta[name][0].numel() for name in self.head.adapted], dim=1)
        named = zip(self.head.adapted, parts, strict=True)
        return theta | {name: theta[name] + part.reshape(theta[name].shape) for name, part in named}


def preprocessed(values: Tensor) -> Tensor:
    """Size and sign of numbers of any magnitude (equation 5 of the paper), one more dimension of 2."""
    floor = torch.exp(torch.tensor(-_SHARPNESS, dtype=values.dtype, device=values.device))
    large = values.abs() >= floor
    size = torch.where(large, values.abs().clamp(min=floor).log() / _SHARPNESS, -1.0)
    return torch.stack([size, torch.where(large, values.sign(), values / floor)], dim=-1)
