"""Children of a process that has imported everything and run nothing: what they came to, and what they said.

A trial costs the night, not its imports, and no thread is lost in a fork.
"""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from recsys_meta import cli

LONGEST = 300.0  # seconds: whatever takes longer hangs
CLEAR = frozenset(cli.STATUSES) - {1}  # exit codes that say what went wrong; 1 is what nobody foresaw


class Ended(NamedTuple):
    """How a child ended."""

    code: int  # below 0: the signal
    out: str
    err: str

    @property
    def summary(self) -> Mapping[str, Any]:
        """The last line on stdout; empty where it is no JSON object."""
        try:
            found = json.loads((self.out.splitlines() or [""])[-1])
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def fault(self) -> str:
        """Why this is no way for a command to end; empty where it is one."""
        if "Traceback (most recent call last)" in self.err:
            return "a traceback"
        if self.code != 0 and self.code not in CLEAR:
            return f"exit code {self.code}"
        if not self.summary:
            return "the last line on stdout is no JSON object"
        if self.code != 0 and not (self.summary.get("exit_code") == self.code and self.summary.get("reason")):
            return "the last line on stdout does not say why"
        return ""

    def __str__(self) -> str:
        return f"exit code {self.code}; stdout {self.out[-800:]!r}; stderr {self.err[-3000:]!r}"


class Child:
    """A forked process that acts and ends with the exit code that acting gives; 70 where it raises.

    Its stdout and stderr are pipes: a limit on the size of files does not stop it from speaking. ``aloud``: its stderr is ours.
    """

    def __init__(self, act: Callable[[], int], *, aloud: bool = False) -> None:
        pipes = [os.pipe() for _ in range(1 if aloud else 2)]
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                for descriptor, (reading, writing) in zip((1, 2), pipes, strict=False):
                    os.dup2(writing, descriptor)
                    os.close(reading)
                    os.close(writing)
                code = act()
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(code)
        for _, writing in pipes:
            os.close(writing)
        self._pipes = [reading for reading, _ in pipes]

    def kill(self) -> None:
        """Kill -9. Its pid is its own until ``ended`` has waited for it, even where it was faster than this."""
        os.kill(self.pid, signal.SIGKILL)

    def ended(self, longest: float = LONGEST) -> Ended:
        """Waits for it. Raises TimeoutError, with the child killed, where it takes too long."""
        said: dict[int, bytearray] = {pipe: bytearray() for pipe in self._pipes}
        deadline, late = time.monotonic() + longest, False
        while self._pipes:
            left = max(0.0, min(deadline - time.monotonic(), 1e6))
            ready, _, _ = select.select(self._pipes, [], [], left)
            if not ready:
                late = True
                self.kill()
                deadline = time.monotonic() + 10
            for pipe in ready:
                data = os.read(pipe, 1 << 16)
                said[pipe] += data
                if not data:
                    os.close(pipe)
                    self._pipes.remove(pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = [*(bytes(text).decode(errors="replace") for text in said.values()), ""][:2]
        if late:
            raise TimeoutError(f"a child did not end within {longest:.0f} s; stderr {err[-2000:]!r}")
        return Ended(code, out, err)


class Mark:
    """A pipe on which a child says that it has come somewhere; both ends are closed in whoever does not use them."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._reading)
        self.hear_only()

    def say(self, word: bytes = b".") -> None:
        """In the child."""
        os.write(self._writing, word)

    def hear_only(self) -> None:
        """In the parent, once the child is made: its end is then the end of the pipe."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def heard(self, longest: float = LONGEST) -> bytes:
        """What was said, at most 64 KiB of it; nothing where the child has ended or takes too long."""
        ready, _, _ = select.select([self._reading], [], [], longest)
        return os.read(self._reading, 1 << 16) if ready else b""

    def fileno(self) -> int:
        """Of the reading end."""
        return self._reading


def answered(act: Callable[[], Any], longest: float = LONGEST) -> tuple[Any, Ended]:
    """What acting gives, in a child, by way of JSON, and what the child said else; None where it died."""

    def tell() -> int:
        given = json.dumps(act())
        print(f"\n{given}", flush=True)
        return 0

    ended = Child(tell).ended(longest)
    if ended.code != 0:
        return None, ended
    said, _, given = ended.out.rstrip("\n").rpartition("\n")
    return json.loads(given), ended._replace(out=said)


def answer(act: Callable[[], Any], longest: float = LONGEST) -> Any:
    """What acting gives, in a child. Raises RuntimeError where it fails."""
    given, ended = answered(act, longest)
    if ended.code != 0:
        raise RuntimeError(f"a child that was to answer failed: {ended}")
    return given
