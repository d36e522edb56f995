"""Builds the C kernels on first use, keeps them in the user's cache, and calls them with tensors.

Where there is no compiler, or the scorer that it built does not answer as torch does, ``kernels()`` is None and the callers
take their plain path: slower, the same lists. Measured gains stand in docs/benchmarks.md ("The engine").
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recsys_meta.tensors import Ragged

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.c")  # includes the others
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared")
_LANES = 16  # floats of the widest register that kernels.c knows
_MAX_WIDTH = 1024

_FLOATS = ctypes.POINTER(ctypes.c_float)


class Network(NamedTuple):
    """The MLPs of T users: float32, on the CPU.

    The first layer of user t is a sum over some rows, of which items have their values: it takes item i to
    base[i] + constant[t] + sum_p moves[p] * rows[places[p], i], p running from offsets[t] to offsets[t + 1]. A ReLU stands
    behind every layer but the last.
    """

    places: Tensor  # [P] int64
    offsets: Tensor  # [T + 1] int64
    moves: Tensor  # [P, H_0]
    constant: Tensor  # [T, H_0]
    layers: Sequence[tuple[Tensor, Tensor]]  # ([T, H_n, H_n-1], [T, H_n]) of the second hidden layer and on
    final: Tensor  # [T, H_last]
    final_bias: Tensor | None  # [T]


class Shelf(NamedTuple):
    """What the first layers see of N items."""

    rows: Tensor  # [M, N]
    base: Tensor | None  # [N, H_0]: the part that is the same for all users
    bias: Tensor  # [N]: added to the scores


class _CNetwork(ctypes.Structure):
    _fields_ = (
        ("depth", ctypes.c_long),
        ("widths", ctypes.POINTER(ctypes.c_long)),
        ("base", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("moves", ctypes.c_void_p),
        ("weights", ctypes.POINTER(ctypes.c_void_p)),
        ("biases", ctypes.POINTER(ctypes.c_void_p)),
        ("final", ctypes.c_void_p),
        ("final_bias", ctypes.c_void_p),
        ("item_bias", ctypes.c_void_p),
        ("halves", ctypes.c_void_p),
        ("reach", ctypes.c_void_p),
        ("blur", ctypes.c_void_p),
        ("size", ctypes.c_void_p),
        ("least", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("users", ctypes.c_long),
        ("items", ctypes.c_long),
        ("rows_stride", ctypes.c_long),
        ("stride", ctypes.c_long),
    )


class Kernels:
    """The compiled loops. Calls release the interpreter's lock, so threads may split users among them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._mlp_scores = library.mlp_scores
        self._mlp_scores.argtypes = [ctypes.POINTER(_CNetwork), ctypes.c_void_p]
        self._mlp_scores.restype = None
        self._merge = library.merge
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self._merge.argtypes = [
            *(pointer, number, number, number),
            *(pointer, pointer, number, pointer, pointer, pointer, number),
            *(pointer, number, pointer),
        ]
        self._merge.restype = None
        self.prefilters: bool = bool(library.prefilters())
        self.inner_loops: dict[torch.dtype, tuple[Callable[[Any], None], Callable[[Any], int]]] = {}
        for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
            run, room = library[f"episodes_run_{name}"], library[f"room_{name}"]
            run.restype, room.restype = None, number
            run.argtypes = room.argtypes = [pointer]
            self.inner_loops[dtype] = run, room

    def scorer(self, network: Network, least: Tensor | None = None) -> Callable[[Shelf, Tensor], None]:
        """Shelf of N items, out [T, N] -> writes the scores of each user; ``out`` may be columns of a wider tensor.

        With ``least``, [T], two hidden layers and a processor that has bf16 products, a score certainly below that of its
        user is not computed to the end: the second layer in bf16 and a bound on what its rounding can do rule it out, and
        the lowest float stands in its place. All other scores are what they are without ``least``, to the bit.
        """
        widths = [_padded(network.moves.shape[1]), *(_padded(bias.shape[1]) for _, bias in network.layers)]
        weights = [
            _wide(weight.mT, height, width)
            for (weight, _), height, width in zip(network.layers, widths, widths[1:], strict=False)
        ]
        constants = [network.constant, *(bias for _, bias in network.layers)]
        biases = [_wide(bias, width) for bias, width in zip(constants, widths, strict=True)]
        moves, final = _wide(network.moves, widths[0]), _wide(network.final, widths[-1])
        users = len(final)
        final_bias = (
            final.new_zeros(users) if network.final_bias is None else network.final_bias
        ).contiguous()
        places, offsets = network.places.contiguous(), network.offsets.contiguous()
        longest = int(offsets.diff().max()) if users else 0
        halves = reach = blur = size = None
        if least is not None and self.prefilters and len(weights) == 1 and bool((least > -torch.inf).any()):
            rounded = weights[0].bfloat16()
            halves = rounded.reshape(users, -1, 2, widths[1]).mT.contiguous()  # [T, H_0 / 2, H_1, 2]
            reach, blur = (
                torch.bmm(some.abs(), final.abs().unsqueeze(2)).squeeze(2).contiguous()
                for some in (weights[0], weights[0] - rounded)
            )
            size = (final * biases[1]).abs().sum(1) + final_bias.abs()
            least = least.float().contiguous()

        def scores(shelf: Shelf, out: Tensor) -> None:
            rows, bias = shelf.rows.contiguous(), shelf.bias.contiguous()
            base = None if shelf.base is None else _wide(shelf.base, widths[0])
            self._mlp_scores(
                _CNetwork(
                    depth=len(widths),
                    widths=(ctypes.c_long * len(widths))(*widths),
                    base=None if base is None else base.data_ptr(),
                    rows=rows.data_ptr(),
                    places=places.data_ptr(),
                    offsets=offsets.data_ptr(),
                    moves=moves.data_ptr(),
                    weights=(ctypes.c_void_p * max(len(weights), 1))(*(w.data_ptr() for w in weights)),
                    biases=(ctypes.c_void_p * len(biases))(*(b.data_ptr() for b in biases)),
                    final=final.data_ptr(),
                    final_bias=final_bias.data_ptr(),
                    item_bias=bias.data_ptr(),
                    halves=None if halves is None else halves.data_ptr(),
                    reach=None if reach is None else reach.data_ptr(),
                    blur=None if blur is None else blur.data_ptr(),
                    size=None if size is None else size.data_ptr(),
                    least=None if least is None else least.data_ptr(),
                    scores=out.data_ptr(),
                    users=users,
                    items=len(bias),
                    rows_stride=rows.shape[1],
                    stride=out.stride(0),
                ),
                (ctypes.c_void_p * max(longest, 1))(),
            )

        return scores

    def merge(
        self,
        heaps: Tensor,
        sound: Tensor,
        scores: Tensor,
        *,
        low: Tensor,
        usable: Tensor | None,
        unwanted: Ragged,
        cursor: Tensor,
        start: int,
    ) -> None:
        """Takes a tile of scores into the best k of each user, and notes whose scores are not finite.

        Args:
            heaps: [T, k] int64 keys, heaps with the least on top; changed.
            sound: [T] bool; set to False where a usable score is not finite; changed.
            scores: [T, N] float32, or [1, N] for all users alike.
            low: [N] int64, the low halves of the items' keys.
            usable: [N] bool, or [T, N]; None: all.
            unwanted: T lists of the places of unwanted items, ascending within a user.
            cursor: [T] int64, how far they have been read; changed.
            start: the place of the first of the N items.
        """
        scores, low = scores.float().contiguous(), low.contiguous()
        usable = None if usable is None else usable.contiguous()
        values, offsets = (field.contiguous() for field in unwanted)
        items = scores.shape[1]
        by_user = 0 if usable is None or usable.dim() == 1 else items
        self._merge(
            *(scores.data_ptr(), len(heaps), items, 0 if len(scores) == 1 else items),
            *(low.data_ptr(), None if usable is None else usable.data_ptr(), by_user),
            *(values.data_ptr(), offsets.data_ptr(), cursor.data_ptr(), start),
            *(heaps.data_ptr(), heaps.shape[1], sound.data_ptr()),
        )


@functools.cache
def kernels() -> Kernels | None:
    """The kernels of this machine, built if need be; None where that is not possible, or RECSYS_META_NATIVE is 0."""
    if os.environ.get("RECSYS_META_NATIVE", "1") == "0":
        return None
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    try:
        built = Kernels(ctypes.CDLL(str(_built(compiler))))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        log.info("no compiled kernels, scoring takes its plain path: %s", error)
        return None
    if not _answers_as_torch(built):
        log.warning("the compiled kernels do not answer as torch does; scoring takes its plain path")
        return None
    return built


def _built(compiler: str | None) -> Path:
    """The library for this source and this processor, from the cache or newly made. Raises OSError where it cannot be."""
    sources = b"".join(path.read_bytes() for path in sorted(_SOURCE.parent.glob("*.c")))
    mark = hashlib.sha256(sources + " ".join(_FLAGS).encode() + _processor().encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys_meta"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid()
    except OSError:
        writable = False
    if not writable:  # for this process alone
        folder = Path(tempfile.mkdtemp(prefix="recsys_meta-"))
    library = folder / f"kernels-{mark[:16]}.so"
    if library.exists():
        return library
    if compiler is None:
        raise OSError("no C compiler found")
    with tempfile.TemporaryDirectory(dir=folder) as workshop:
        made = Path(workshop) / library.name
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if ended.returncode:
            raise OSError(f"{compiler} failed: {ended.stderr.strip()[-300:]}")
        made.replace(library)  # another process may have been faster: both are the same
    return library


def _processor() -> str:
    """What the machine can do: a cache may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return "\n".join([platform.machine(), *known])


def _answers_as_torch(built: Kernels) -> bool:
    """Whether a small network comes out as torch computes it."""
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    users, items, hidden = 3, 20, (20, 70)
    network = Network(
        places=torch.tensor([1, 3, 0]),
        offsets=torch.tensor([0, 2, 2, 3]),
        moves=drawn(3, hidden[0]),
        constant=drawn(users, hidden[0]),
        layers=[(drawn(users, hidden[1], hidden[0]), drawn(users, hidden[1]))],
        final=drawn(users, hidden[1]),
        final_bias=drawn(users),
    )
    shelf = Shelf(rows=drawn(4, items), base=drawn(items, hidden[0]), bias=drawn(items))
    found, expected = torch.zeros(users, items), plain_scores(network, shelf)
    built.scorer(network)(shelf, found)
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


def plain_scores(network: Network, shelf: Shelf) -> Tensor:
    """What ``Kernels.scorer`` computes, [T, N], in torch: to be read, and to be compared with."""
    scores = []
    for t in range(len(network.final)):
        own = slice(int(network.offsets[t]), int(network.offsets[t + 1]))
        x = shelf.rows[network.places[own]].T @ network.moves[own] + network.constant[t]
        x = torch.relu(x if shelf.base is None else x + shelf.base)
        for weight, bias in network.layers:
            x = torch.relu(nn.functional.linear(x, weight[t], bias[t]))
        scores.append(torch.addmv(shelf.bias, x, network.final[t]))
    scored = torch.stack(scores)
    return scored if network.final_bias is None else scored + network.final_bias.unsqueeze(1)


def fits(network: Network) -> bool:
    """Whether the kernels take it: float32, hidden layers of at most 1,024 units."""
    widths = [network.moves.shape[1], *(bias.shape[1] for _, bias in network.layers)]
    return network.moves.dtype == torch.float32 and max(map(_padded, widths)) <= _MAX_WIDTH


def _padded(width: int) -> int:
    return -(-width // _LANES) * _LANES


def _wide(tensor: Tensor, *shape: int) -> Tensor:
    """The tensor with its last dimensions padded by zeros to this shape, laid out row by row."""
    pads: list[int] = []
    for have, want in zip(reversed(tensor.shape), reversed(shape), strict=False):
        pads += [0, want - have]
    return nn.functional.pad(tensor, pads).contiguous() if any(pads) else tensor.contiguous()
