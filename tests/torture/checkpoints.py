"""Kill -9 while a checkpoint is saved: the fit goes on from what it had saved, and ends in the weights of an undisturbed one."""

import importlib.util
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from torture.children import Child, Ended, Mark, answer
from torture.counts import Found
from torture.grounds import Grounds

from recsys_meta.training import checkpoints

_DRAWS = 50
_MOMENTS = ("write", "fsync", "rename", "second rename")


def checkpoint_kills(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """Fits that save after every step, killed in the middle of a save, one after the other until each is done.

    Half of the kills come by the clock, half at a place of the save: with the file half written, before it is forced to
    disk, before each of the renames. A fit that was not killed while it saved is drawn again.
    """
    fits = _killed_fit()
    tiny = fits.tiny_world()
    undisturbed = grounds.folder / "undisturbed"
    took = float(answer(partial(_undisturbed, fits, tiny, undisturbed)))
    place, saved = 0, 0
    folder = grounds.folder / "fit-0"
    for number in numbers:
        chance = grounds.chance("checkpoint_kills", number)
        for _ in range(_DRAWS):
            killed, ended, resumed, now = _killed_fit_once(fits, tiny, folder, number, chance, took)
            _judge_resumption(number, found, folder, saved, resumed)
            saved = max(saved, now)
            if ended.code not in (0, -signal.SIGKILL):
                found.fault("lost", number, f"the fit ended by itself: {ended}", folder)
            if ended.code != -signal.SIGKILL:
                _judge_end(number, found, fits, undisturbed, folder)
                place, saved = place + 1, 0
                folder = grounds.folder / f"fit-{place}"
            if killed:
                break
            found.again += 1
        else:
            raise RuntimeError(f"checkpoint_kills {number}: {_DRAWS} fits were not killed while they saved")
        found.did(1)
    _, ended, resumed, _ = _killed_fit_once(fits, tiny, folder, None, Random(0), took)
    _judge_resumption(numbers[-1], found, folder, saved, resumed)
    if ended.code != 0:
        found.fault("lost", numbers[-1], f"the fit ended by itself: {ended}", folder)
    _judge_end(numbers[-1], found, fits, undisturbed, folder)
    found.note("fits", place + 1)


def _judge_resumption(number: int, found: Found, folder: Path, saved: int, resumed: int | None) -> None:
    """It goes on from what was saved, or from what was being saved; ``resumed``: None where it never came so far."""
    if resumed is not None and resumed not in (saved, saved + 1):
        found.fault("lost", number, f"saved after step {saved}, went on from step {resumed}", folder)


def _judge_end(number: int, found: Found, fits: ModuleType, undisturbed: Path, folder: Path) -> None:
    def equal() -> bool:
        one, other = (checkpoints.read_sealed(place / checkpoints.LAST) for place in (undisturbed, folder))
        return bool(fits.same(one, other))

    if not answer(equal):
        found.fault("lost", number, "the weights are not those of an undisturbed fit", folder)


def _undisturbed(fits: ModuleType, tiny: ModuleType, folder: Path) -> float:
    """Seconds that a save takes."""
    seconds: list[float] = []
    original = checkpoints.write_sealed

    def timed(checkpoint: dict[str, Any], path: Path) -> None:
        began = time.monotonic()
        original(checkpoint, path)
        seconds.append(time.monotonic() - began)

    checkpoints.write_sealed = timed
    fits.one_fit(tiny, folder, save_every=0.0)
    return sorted(seconds)[len(seconds) // 2]


def _killed_fit_once(
    fits: ModuleType, tiny: ModuleType, folder: Path, number: int | None, chance: Random, took: float
) -> tuple[bool, Ended, int | None, int]:
    """Whether it was killed while it saved, how it ended, the step it went on from and the last one it had saved."""
    fatal = chance.randint(1, 4)  # whose save
    moment = None if number is None or number % 2 else chance.choice(_MOMENTS)
    with Mark() as mark:

        def act() -> int:
            _tell(mark, fatal, moment, chance)
            fits.one_fit(tiny, folder, save_every=0.0)
            return 0

        child = Child(act)
        mark.hear_only()
        heard = b""
        if number is not None and number % 2:
            begun = b"begun %d\n" % fatal
            while begun not in heard and (more := mark.heard()):
                heard += more
            if begun in heard:
                time.sleep(chance.uniform(0, 1.2 * took))
                child.kill()
        ended = child.ended()
        while more := mark.heard():
            heard += more
    said = heard.decode().splitlines()
    begun_saves, done = (sum(line.startswith(word) for line in said) for word in ("begun", "saved"))
    steps = [int(line.split()[1]) for line in said if line.startswith("saved")]
    resumed = next((int(line.split()[1]) for line in said if line.startswith("resumed")), None)
    return (
        ended.code == -signal.SIGKILL and begun_saves > done,
        ended,
        resumed,
        max(steps, default=0),
    )


def _tell(mark: Mark, fatal: int, moment: str | None, chance: Random) -> None:
    """Lets this process say what it resumes from and saves, and die at a moment of its ``fatal``-th save."""
    resumable, write_sealed = checkpoints.Keeper.resumable, checkpoints.write_sealed
    saves = 0

    def resumed(keeper: checkpoints.Keeper) -> Path | None:
        path = resumable(keeper)
        mark.say(b"resumed %d\n" % (0 if path is None else keeper.steps))
        return path

    def told(checkpoint: dict[str, Any], path: Path) -> None:
        nonlocal saves
        saves += 1
        mark.say(b"begun %d\n" % saves)
        if saves == fatal and moment is not None:
            _die_at(moment, chance)
        write_sealed(checkpoint, path)
        mark.say(b"saved %d\n" % checkpoint["global_step"])

    checkpoints.Keeper.resumable = resumed  # type: ignore[method-assign]
    checkpoints.write_sealed = told


def _die_at(moment: str, chance: Random) -> None:
    """From here on the process dies at this moment of a save."""
    original_open, renames = Path.open, 0
    original_replace = Path.replace

    def die(*_: object) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == (2 if moment == "second rename" else 1) or not target.exists():
            die()
        return original_replace(path, target)

    class HalfWritten:
        """A file of which only the beginning is written."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "HalfWritten":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            if len(data) <= 32:
                self.file.write(data)
                return
            self.file.write(data[: chance.randrange(len(data))])
            self.file.flush()
            die()

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = original_open(path, mode, *arguments, **options)
        return HalfWritten(file) if mode == "wb" else file

    match moment:
        case "write":
            Path.open = opened  # type: ignore[method-assign]
        case "fsync":
            os.fsync = die
        case _:
            Path.replace = replace  # type: ignore[method-assign]


def _killed_fit() -> ModuleType:
    """The fits that tests of training kill; their file cannot be imported by its name."""
    place = Path(__file__).parents[1] / "training" / "killed_fit.py"
    spec = importlib.util.spec_from_file_location("killed_fit", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
