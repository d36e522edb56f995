"""MAML on an MLP of two hidden layers, compiled: task after task in the cache, with the gradient through all steps.

The mathematics stands at the head of inner_loop.c. Against the same in torch, which is written out and batched over users,
meta-training takes a fifth to two fifths of the time, because small products and what lies between them never leave the cache.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recsys_meta.native.library import Kernels
from recsys_meta.tensors import Examples

LOSSES = ("squared", "absolute", "logistic")  # in the order of the source

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
_INPUTS = (
    *("vectors", "base", "item_bias", "support_items", "query_items", "support_mask", "query_mask"),
    *("support_targets", "query_targets", "constant", "user_square", "weight", "bias", "last", "last_bias"),
    *("rates", "pulls"),
)
_LEARNED = (
    *("vectors", "base", "item_bias", "constant", "user_square", "weight", "bias", "last", "last_bias"),
    *("rates", "pulls"),
)
_STATE = ("moved", "shift", "weight_out", "bias_out", "last_out", "last_bias_out")


class _Episodes(ctypes.Structure):
    _fields_ = (
        *((name, _LONG) for name in ("tasks", "support", "query", "width", "first", "second", "steps")),
        *((name, _LONG) for name in ("loss", "first_order")),
        *(
            (name, _POINTER)
            for name in (*_INPUTS, "value", *(f"_{name}" for name in _LEARNED), *_STATE, "room")
        ),
    )


class Start(NamedTuple):
    """Where the inner loops of T users start from, over a catalogue of I items; H and J units in the hidden layers."""

    vectors: Tensor  # [I, F]
    base: Tensor  # [I, H]: what the shared first layer makes of each item
    item_bias: Tensor  # [I]
    constant: Tensor  # [T, H]: what it adds for each user, its bias included
    user_square: Tensor  # [T]: the squared length of the user's input to the first layer
    weight: Tensor  # [H, J]: the second layer, transposed
    bias: Tensor  # [J]
    last: Tensor  # [J]
    last_bias: Tensor  # [1]
    rates: Tensor  # [T, K, 6]: step sizes of both layers' weight and bias, and of the last one's
    pulls: Tensor  # [K]: how strongly a step pulls back to the start


class Adapted(NamedTuple):
    """The weights of T users after K steps."""

    moved: Tensor  # [T, S, H]: coefficients of the support set's inputs in the first layer; 0 where padded
    shift: Tensor  # [T, H]: added to the first layer's bias
    weight: Tensor  # [T, J, H]
    bias: Tensor  # [T, J]
    last: Tensor  # [T, J]
    last_bias: Tensor  # [T]


def meta_loss(
    compiled: Kernels, start: Start, support: Examples, query: Examples, *, loss: str, first_order: bool
) -> Tensor:
    """The mean over tasks of the query loss after K steps; differentiable once by all of ``start``."""
    value: Tensor = _MetaLoss.apply(  # type: ignore[no-untyped-call]
        compiled, support, query, loss, first_order, *_wide(start)
    )
    return value


def adapted(compiled: Kernels, start: Start, support: Examples, *, loss: str) -> Adapted:
    """The weights after K steps, without gradient."""
    wide = Start(*(tensor.detach() for tensor in _wide(start)))
    tasks, units, upper = len(wide.constant), start.base.shape[1], start.weight.shape[1]
    sizes = (wide.base.shape[1], wide.weight.shape[1])
    state = {
        "moved": wide.base.new_zeros(*support.items.shape, sizes[0]),
        "shift": wide.base.new_empty(tasks, sizes[0]),
        "weight_out": wide.base.new_empty(tasks, *sizes),
        "bias_out": wide.base.new_empty(tasks, sizes[1]),
        "last_out": wide.base.new_empty(tasks, sizes[1]),
        "last_bias_out": wide.base.new_empty(tasks),
    }
    nothing = Examples(*(field[:, :0] for field in support))
    _run(compiled, wide, support, nothing, loss, first_order=False, results=state)
    return Adapted(
        state["moved"][:, :, :units],
        state["shift"][:, :units],
        state["weight_out"][:, :units, :upper].mT,
        state["bias_out"][:, :upper],
        state["last_out"][:, :upper],
        state["last_bias_out"],
    )


class _MetaLoss(torch.autograd.Function):
    """Value and gradient in one go: the way back needs what the way there left in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        compiled: Kernels,
        support: Examples,
        query: Examples,
        loss: str,
        first_order: bool,
        *tensors: Tensor,
    ) -> Tensor:
        start = Start(*tensors)
        value = start.base.new_zeros(1)
        # Of the layout that the loop writes: the second layer comes as a view of its transpose.
        gradients = {
            f"_{name}": torch.zeros_like(tensor, memory_format=torch.contiguous_format)
            for name, tensor in start._asdict().items()
        }
        _run(
            compiled,
            start,
            support,
            query,
            loss,
            first_order=first_order,
            results={"value": value, **gradients},
        )
        ctx.save_for_backward(*gradients.values())
        return value.squeeze(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = outputs
        return None, None, None, None, None, *(gradient * saved for saved in ctx.saved_tensors)


def _run(
    compiled: Kernels,
    start: Start,
    support: Examples,
    query: Examples,
    loss: str,
    *,
    first_order: bool,
    results: dict[str, Tensor],
) -> None:
    dtype = start.base.dtype
    inputs = {name: tensor.contiguous() for name, tensor in start._asdict().items()}
    for role, examples in (("support", support), ("query", query)):
        inputs |= {
            f"{role}_items": examples.items.contiguous(),
            f"{role}_mask": examples.mask.contiguous(),
            f"{role}_targets": examples.targets.to(dtype).contiguous(),
        }
    tasks, steps, _ = start.rates.shape
    episodes = _Episodes(
        tasks=tasks,
        support=support.items.shape[1],
        query=query.items.shape[1],
        width=start.vectors.shape[1],
        first=start.base.shape[1],
        second=start.weight.shape[1],
        steps=steps,
        loss=LOSSES.index(loss),
        first_order=first_order,
        **{name: tensor.data_ptr() for name, tensor in (inputs | results).items()},
    )
    run, room_of = compiled.inner_loops[dtype]
    room = torch.empty(room_of(ctypes.byref(episodes)), dtype=dtype)
    episodes.room = room.data_ptr()
    run(ctypes.byref(episodes))


def _wide(start: Start) -> Start:
    """The same with columns of zeros up to a multiple of the vector width."""
    lanes = 64 // start.base.element_size()

    def padded(tensor: Tensor, dims: int) -> Tensor:
        pads: list[int] = []
        for size in reversed(tensor.shape[-dims:]):
            pads += [0, -size % lanes]
        return nn.functional.pad(tensor, pads) if any(pads) else tensor

    return start._replace(
        vectors=padded(start.vectors, 1),
        base=padded(start.base, 1),
        constant=padded(start.constant, 1),
        weight=padded(start.weight, 2),
        bias=padded(start.bias, 1),
        last=padded(start.last, 1),
    )
