"""What trials came to: counts of every way in which a night can lie, and what is needed to see it happen again."""

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERDICTS: Mapping[str, str] = {
    "lost": "the last good scores, or what was acknowledged, are gone, or a rerun does not end where it should",
    "doubled": "published twice, or a row twice",
    "half_visible": "readers see neither the whole night before nor the whole night after",
    "torn": "a reader saw parts of two nights, or went back to an older one",
    "reader_errors": "a reader met an error",
    "tracebacks": "a traceback, a panic, a death by a signal that nobody sent, or an end that says not why",
    "undetected_flips": "a turned bit was used",
    "not_finite": "something published that is not finite, or a fallback that is not counted",
    "leftovers": "files that nobody needs",
    "escaped": "something executed, escaped or unescaped",
}


_EVERY = 30.0  # seconds between two words of how far a test is


@dataclass
class Found:
    """The counts of one test, and where failing inputs are kept."""

    test: str
    seed: int
    tried: int = 0
    again: int = 0  # trials in which nothing happened to the night, drawn again
    failed: int = 0  # trials in which something went wrong
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    details: dict[str, int] = field(default_factory=dict)
    _failing: int | None = None
    _amount: int | None = None  # trials that are meant to be made: how far they are is said now and then
    _said: float = field(default_factory=time.monotonic)

    def did(self, trials: int = 1) -> None:
        """Counts trials that were made."""
        self.tried += trials
        if self._amount is not None and time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            print(
                f"{self.test}: {self.tried:,} of this process's {self._amount:,}", file=sys.stderr, flush=True
            )

    def note(self, detail: str, amount: int = 1) -> None:
        """Counts what is worth knowing and no fault."""
        self.details[detail] = self.details.get(detail, 0) + amount

    def fault(self, verdict: str, number: int, words: str, *evidence: Path | tuple[str, bytes]) -> None:
        """Counts a fault of trial ``number``, says it, and keeps what led to it."""
        self.verdicts[verdict] += 1
        kept = []
        if self._failing != number:
            self._failing = number
            self.failed += 1
            if self.failed <= 20:
                kept = [_kept(self.test, number, thing) for thing in evidence]
        where = f" (kept: {', '.join(map(str, kept))})" if kept else ""
        again = f"--seed {self.seed} --only {self.test} --trial {number}"
        print(
            f"{self.test} {number}: {verdict}: {words}{where} (again: {again})", file=sys.stderr, flush=True
        )

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes over what another process found."""
        self.tried, self.again = self.tried + row["tried"], self.again + row["again"]
        self.failed += row["failed"]
        for mine, theirs in ((self.verdicts, row["verdicts"]), (self.details, row["details"])):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count


def _kept(test: str, number: int, thing: Path | tuple[str, bytes]) -> Path:
    """A copy outside of the folder that trials are made in."""
    folder = Path(tempfile.gettempdir()) / "recsys-meta-torture"
    name = thing.name if isinstance(thing, Path) else thing[0]
    target = folder / f"{test}-{number}-{name}"
    folder.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    if isinstance(thing, tuple):
        target.write_bytes(thing[1])
    elif thing.is_dir():
        shutil.copytree(thing, target, symlinks=True)
    else:
        shutil.copyfile(thing, target)
    return target
