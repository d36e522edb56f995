"""What befalls a night from outside: kills, a full disk, another night, readers all the while."""

import json
import os
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import duckdb
from file_changes import at_each_change
from torture.children import Child, Ended, Mark
from torture.counts import Found
from torture.grounds import TONIGHT, Aftermath, Grounds, seen, temporary, tree

_DRAWS = 50  # attempts at a trial before something is wrong with the harness
_DISK_FULL = 74
_NIGHTS_READ = 3  # published while readers read, at least


def kills(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """Kill -9, every other time inside publish: by the clock, or right before a change of the file system.

    A night that ended before it was killed is drawn again; one that ended badly by itself is a fault.
    """
    for number in numbers:
        chance = grounds.chance("kills", number)
        for _ in range(_DRAWS):
            grounds.restore()
            killed, ended = _killed(grounds, number, chance)
            if killed:
                found.did(1)
                found.note("inside publish", number % 2)
                _judge(grounds, number, found)
                break
            found.again += 1
            if ended.code != 0:
                found.fault("tracebacks", number, f"unasked: {ended}", grounds.trial)
                break
        else:
            raise RuntimeError(f"kills {number}: {_DRAWS} nights ended before they could be killed")


def _killed(grounds: Grounds, number: int, chance: Random) -> tuple[bool, Ended]:
    """Whether the night was killed where it was meant to be."""
    if number % 4 == 3:
        moment = chance.randrange(grounds.changes)

        def die(place: int, change: str) -> None:
            if place == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        child = grounds.start(grounds.trial, TONIGHT, before_publish=lambda: at_each_change(die))
        ended = child.ended()
        return ended.code == -signal.SIGKILL, ended
    with Mark() as mark:
        child = grounds.start(grounds.trial, TONIGHT, before_publish=mark.say)
        mark.hear_only()
        if number % 2:
            if not mark.heard():  # it ended before it published
                return False, child.ended()
            time.sleep(chance.uniform(0, grounds.in_publish))
        else:
            time.sleep(chance.uniform(0, grounds.until_publish))
        child.kill()
        ended = child.ended()
    return ended.code == -signal.SIGKILL, ended


def full_disks(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """The disk is full at a random byte: of a file (RLIMIT_FSIZE) or, every other time where this user may mount, of all
    files together (a small tmpfs).

    Only nights that met the limit count; the others are drawn again.
    """
    for number in numbers:
        chance = grounds.chance("full_disks", number)
        for _ in range(_DRAWS):
            if number % 2 and _may_mount(grounds.folder / "disk"):
                hit = _on_a_small_disk(grounds, number, chance, found)
            else:
                hit = _with_small_files(grounds, number, chance, found)
            if hit:
                break
        else:
            raise RuntimeError(f"full_disks {number}: no limit was met in {_DRAWS} nights")


def _with_small_files(grounds: Grounds, number: int, chance: Random, found: Found) -> bool:
    """Whether the limit was met."""
    grounds.restore()
    limit = int(grounds.largest ** chance.random())  # as often small as large: every kind of file is met
    ended = grounds.night(grounds.trial, TONIGHT, first=partial(_limit_files_to, limit))
    if ended.code == 0:
        _in_force(grounds, number, found, (grounds.after,), f"no file above {limit} bytes")
        found.again += 1
        return False
    found.note("by the size of a file")
    _after_full_disk(grounds, number, ended, found, f"no file above {limit} bytes")
    return True


def _on_a_small_disk(grounds: Grounds, number: int, chance: Random, found: Found) -> bool:
    disk = grounds.folder / "disk"
    disk.mkdir(exist_ok=True)
    before, trial = grounds.trial, disk / "trial"
    size = int(chance.uniform(*grounds.sizes))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "torture", str(disk)], check=True)
    try:
        grounds.trial = trial
        try:
            grounds.restore()
        except OSError:  # not even what was there has a place
            found.again += 1
            return False
        ended = grounds.night(trial, TONIGHT)
        if ended.code == 0:
            _in_force(grounds, number, found, (grounds.after,), f"a disk of {size} bytes")
            found.again += 1
            return False
        found.note("by the size of the disk")
        found.did(1)
        _judge_full_disk(grounds, number, ended, found, f"a disk of {size} bytes")
        subprocess.run(["mount", "-o", "remount,size=100%", str(disk)], check=True)
        _judge(grounds, number, found, (grounds.before,))
        return True
    finally:
        grounds.trial = before
        subprocess.run(["umount", str(disk)], check=True)


def _after_full_disk(grounds: Grounds, number: int, ended: Ended, found: Found, words: str) -> None:
    found.did(1)
    _judge_full_disk(grounds, number, ended, found, words)
    _judge(grounds, number, found, (grounds.before,))


def _judge_full_disk(grounds: Grounds, number: int, ended: Ended, found: Found, words: str) -> None:
    if ended.fault or ended.code != _DISK_FULL:
        found.fault(
            "tracebacks", number, f"{words}: {ended.fault or 'not the exit code of a full disk'}: {ended}"
        )
    if left := temporary(grounds.trial):
        found.fault("leftovers", number, f"{words}: {left}", grounds.trial)


def pairs(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """Two nights at once race for the lock; who has it waits, reading or about to publish, until the other has ended.

    Exactly one publishes, and the other leaves with 75.
    """
    for number in numbers:
        grounds.restore()
        publishing = number % 2 == 1
        with Mark() as inside, Mark() as gate:

            def wait(inside: Mark = inside, gate: Mark = gate) -> None:
                gate.hear_only()
                inside.say()
                gate.heard()

            before = (None, wait) if publishing else (wait, None)
            children = [
                grounds.start(grounds.trial, TONIGHT, before_read=before[0], before_publish=before[1])
                for _ in range(2)
            ]
            inside.hear_only()
            _await_one(children, inside)
            gate.hear_only()  # whoever waits goes on
            ended = sorted((child.ended() for child in children), key=lambda one: one.code)
        found.did(1)
        codes = [one.code for one in ended]
        for one in ended:
            if one.fault:
                found.fault("tracebacks", number, f"{one.fault}: {one}")
        if codes != [0, 75]:
            found.fault(
                "doubled" if codes == [0, 0] else "lost", number, f"exit codes {codes}", grounds.trial
            )
        now = seen(grounds.trial)
        if now.published != 1:
            found.fault("doubled", number, f"{now.published} publications of one run", grounds.trial)
        _in_force(grounds, number, found, (grounds.after,), "two at once")
        _compare_trees(grounds, number, found)


def _await_one(children: Sequence[Child], inside: Mark, longest: float = 60.0) -> None:
    """Until one of the children has ended, or both are where only one may be."""
    descriptors = [os.pidfd_open(child.pid) for child in children]
    heard, deadline = 0, time.monotonic() + longest
    listened = [*descriptors, inside.fileno()]
    try:
        while heard < len(children) and (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select(listened, [], [], left)
            if set(ready) & set(descriptors):
                return
            if ready:
                said = os.read(inside.fileno(), 16)
                heard += len(said)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def readers(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """Readers all the while that nights are published, one after the other."""
    grounds.restore()
    if (ended := grounds.night(grounds.trial, TONIGHT)).code != 0:
        raise RuntimeError(f"the night before the readers come failed: {ended}")
    pointer, nights = grounds.trial / "scores.duckdb", 0
    with Mark() as stop:
        children = [
            Child(partial(_read_until, stop, pointer, grounds.chance("readers", number)))
            for number in numbers
        ]
        ends = time.monotonic() + grounds.reading
        while time.monotonic() < ends or nights < _NIGHTS_READ:
            nights += 1
            ended = grounds.night(grounds.trial, TONIGHT + timedelta(days=nights))
            if ended.code != 0:
                found.fault("lost", nights, f"a night that readers look at failed: {ended}", grounds.trial)
        stop.hear_only()
        reports = [child.ended() for child in children]
    found.note("publishes while they read", nights)
    contents: dict[str, set[str]] = {}
    for number, ended in zip(numbers, reports, strict=True):
        found.did(1)
        if ended.code != 0 or not ended.summary:
            found.fault("reader_errors", number, f"a reader died: {ended}")
            continue
        found.note("reads", ended.summary["reads"])
        for verdict in ("reader_errors", "torn"):
            for words in ended.summary[verdict]:
                found.fault(verdict, number, words)
        if not ended.summary["reads"]:
            found.fault("reader_errors", number, "not one read")
        for run_id, content in ended.summary["contents"]:
            contents.setdefault(run_id, set()).add(content)
    for run_id, different in contents.items():
        if len(different) > 1:
            found.fault("torn", 0, f"readers saw {len(different)} contents of {run_id}: {different}")
    found.note("versions seen", len(contents))


_READ = (
    "SELECT min(run_id), max(run_id), count(*), count(DISTINCT user_id), bit_xor(hash(user_id, item_id, rank, score)),"
    " (SELECT count(*) FROM user_status), (SELECT count(*) FROM latest_user_lists),"
    " (SELECT max(run_id) FROM runs) FROM scores"
)


def _read_until(stop: Mark, pointer: Path, chance: Random) -> int:
    """One reader: opens what is in force as any dashboard does, again and again; prints what it saw."""
    stop.hear_only()
    saw: dict[str, Any] = {"reads": 0, "reader_errors": [], "torn": [], "contents": []}
    newest, contents = "", set()
    while not select.select([stop.fileno()], [], [], chance.uniform(0, 0.2))[0]:
        try:
            with closing(duckdb.connect(str(pointer), read_only=True)) as connection:
                [row] = connection.execute(_READ).fetchall()
                if chance.random() < 0.2:  # keeps it open while another night is published
                    time.sleep(chance.uniform(0, 1.0))
                    if connection.execute(_READ).fetchall() != [row]:
                        saw["torn"].append(f"another answer from the same file: {row}")
        except Exception as error:
            saw["reader_errors"].append(f"{type(error).__name__}: {error}")
            continue
        first, last, rows, users, _, served, lists, newest_run = row
        saw["reads"] += 1
        if first != last or rows != 3 * users or not users == served == lists or newest_run != first:
            saw["torn"].append(f"parts: {row}")
        if first < newest:
            saw["torn"].append(f"backwards: {first} after {newest}")
        newest = max(newest, first)
        contents.add((first, str(row)))
    saw["contents"] = sorted(contents)
    print(json.dumps(saw), flush=True)
    return 0


def _judge(grounds: Grounds, number: int, found: Found, allowed: Sequence[str] = ()) -> None:
    """Readers see the whole night before or the whole night after; the same command again ends as an undisturbed night."""
    after: Aftermath = grounds.aftermath(grounds.trial)
    _judge_seen(number, found, after.seen, allowed or (grounds.before, grounds.after), grounds, "then")
    if after.ended.fault or after.ended.code != 0:
        found.fault(
            "lost",
            number,
            f"the rerun: {after.ended.fault or 'did not publish'}: {after.ended}",
            grounds.trial,
        )
    _judge_seen(number, found, after.finally_seen, (grounds.after,), grounds, "after the rerun")
    _compare_trees(grounds, number, found)


def _in_force(grounds: Grounds, number: int, found: Found, allowed: Sequence[str], words: str) -> None:
    _judge_seen(number, found, seen(grounds.trial), allowed, grounds, words)


def _judge_seen(
    number: int, found: Found, now: Any, allowed: Sequence[str], grounds: Grounds, words: str
) -> None:
    if now.digest is None:
        found.fault("lost", number, f"{words}: {now.words}", grounds.trial)
    elif now.digest not in allowed:
        known = {grounds.before: "that of the night before", grounds.after: "that of tonight"}
        content = known.get(now.digest, "neither the night before nor tonight")
        found.fault("half_visible", number, f"{words}: {content}", grounds.trial)
    if now.twice:
        found.fault("doubled", number, f"{words}: {now.twice} rows twice", grounds.trial)
    if now.not_finite:
        found.fault("not_finite", number, f"{words}: {now.not_finite} numbers", grounds.trial)


def _compare_trees(grounds: Grounds, number: int, found: Found) -> None:
    """What lies in the workspace is what lies there after an undisturbed night."""
    now: Counter[str] = tree(grounds.trial)
    if now != grounds.tree:
        words = f"too much {sorted((now - grounds.tree).elements())}, too little {sorted((grounds.tree - now).elements())}"
        found.fault("leftovers", number, words, grounds.trial)


def _limit_files_to(size: int) -> None:
    """Lets every write beyond this many bytes of a file fail, as a full disk does."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@cache
def _may_mount(place: Path) -> bool:
    """Whether this user may mount a tmpfs here."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "torture", str(place)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except OSError:
        return False
    if mounted:
        subprocess.run(["umount", str(place)], check=True)
    return mounted
