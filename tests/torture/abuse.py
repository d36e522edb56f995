"""The corpus of hostile input (tests/abuse_corpus.py), every case through the command line in a process of its own."""

import contextlib
import io
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torture.children import Ended, answer, answered
from torture.counts import Found
from torture.grounds import Grounds

from recsys_meta import cli

_LONGEST = 60.0  # seconds of a case


def amount() -> int:
    """How many cases there are. The corpus makes tables when it is imported, which whoever forks may not: a child counts."""

    def count() -> int:
        from abuse_corpus import CASES

        return len(CASES)

    return int(answer(count))


def abused(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """Nothing is executed, escaped or shown as it is; what is refused says why."""
    for number in numbers:
        root = grounds.folder / f"abuse-{number}"
        root.mkdir()
        found.did(1)
        try:
            told, ended = answered(partial(_met, number, root), _LONGEST)
        except TimeoutError as error:
            found.fault("lost", number, f"it never ended: {error}", root)
            continue
        if told is None:
            found.fault("tracebacks", number, f"it killed the process: {ended}", root)
        elif told["fault"]:
            verdict = "tracebacks" if told["unclear"] else "escaped"
            found.fault(verdict, number, f"{told['name']}: {told['fault']}", root)
        shutil.rmtree(root)


def _met(number: int, root: Path) -> dict[str, Any]:
    """How the command line meets a case."""
    from abuse_corpus import CASES, fault, place
    from abuse_corpus import Ended as CaseEnded

    case, folder = CASES[number], place(root)
    out, err = io.StringIO(), io.StringIO()
    arguments = case.build(folder)
    os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    ended = Ended(code, out.getvalue(), err.getvalue())
    return {
        "name": case.name,
        "fault": fault(case, folder, CaseEnded(*ended)) or ended.fault,
        "unclear": bool(ended.fault),
    }
