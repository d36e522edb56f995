"""Fits that are killed and taken up again until they are done, for tests of what they come to; also a script with a count.

    python tests/training/killed_fit.py FOLDER FITS

Each fit saves after every step and is killed without any farewell at random moments: in the middle of a step, before or after
a checkpoint, between the two renames of one. Prints one JSON object a fit: how often it was killed, how often it went on from
within an epoch, and whether its last checkpoint holds what that of an undisturbed fit does, every tensor bit for bit.
"""

import importlib.util
import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from recsys_meta.training.checkpoints import LAST, read_sealed
from recsys_meta.training.fitting import fit

EPOCHS = 3


def tiny_world() -> ModuleType:
    """The learner and the episodes of the tests of training; their file cannot be imported by its name."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_fit(tiny: ModuleType, folder: Path, save_every: float = 0.0) -> Any:
    """The fit, with dropout, an average of the weights and early stopping, so that all that is kept matters."""
    learner = tiny.TinyLearner(tiny.SIZES, dropout=0.2)
    return fit(
        learner,
        tiny.SeededSampler(batches=5),
        tiny.validation_episodes(),
        folder=folder,
        max_epochs=EPOCHS,
        outer_lr=0.05,
        patience=2,
        average=0.9,
        save_every=save_every,
    )


def deadly(function: Callable[..., Any], moment: int, count: list[int]) -> Callable[..., Any]:
    """The same function, before whose n-th call (all deadly ones counted together) the process ends."""

    def called(*arguments: Any, **settings: Any) -> Any:
        count[0] += 1
        if count[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)

    return called


def killed_until_done(tiny: ModuleType, folder: Path, chance: random.Random) -> dict[str, int]:
    """How often the fit in this folder was killed, and how often it went on from within an epoch, until it was done."""
    kills, within = 0, 0
    while True:
        moment = chance.randint(1, 30)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            count = [0]
            os.fsync = deadly(os.fsync, moment, count)
            Path.replace = deadly(Path.replace, moment, count)  # type: ignore[method-assign]
            tiny.TinyLearner.meta_loss = deadly(tiny.TinyLearner.meta_loss, moment, count)
            report = one_fit(tiny, folder)
            os.write(writing, b"1" if (report.resumed_step or 0) % 5 else b"0")
            os._exit(0)
        os.close(writing)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(reading, "rb") as pipe:
            within += pipe.read() == b"1"
        if ended == 0:
            return {"kills": kills, "within": within}
        if ended != -signal.SIGKILL:
            raise RuntimeError(f"the fit in {folder} ended with {ended}")
        kills += 1


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints hold the same: weights, moments of the optimizer, schedule, counts, random numbers, the best."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


if __name__ == "__main__":
    world, folder = tiny_world(), Path(sys.argv[1])
    one_fit(world, folder / "undisturbed", math.inf)
    undisturbed = read_sealed(folder / "undisturbed" / LAST)
    for number in range(int(sys.argv[2])):
        found: dict[str, Any] = killed_until_done(world, folder / str(number), random.Random(number))
        found["same"] = same(undisturbed, read_sealed(folder / str(number) / LAST))
        print(json.dumps(found), flush=True)
    os._exit(0)  # at once: to take Lightning down takes a second
