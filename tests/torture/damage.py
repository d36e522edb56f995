"""Damaged files: turned bits in what a night keeps, and mangled tables at its door."""

import gzip
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import polars as pl
from torture.children import answered
from torture.counts import Found
from torture.grounds import TONIGHT, Grounds, seen

from pipelines import learning
from recsys_meta import ingest, store
from recsys_meta.store.manifest import MANIFEST
from recsys_meta.tables import ITEM_ID, USER_ID, VALUE
from recsys_meta.training.bundle import BundleError, load_bundle
from recsys_meta.training.checkpoints import LAST, DamagedCheckpoint, read_sealed

_TOGETHER = 200  # inputs that share a child
_WHOLE_NIGHTS = 40  # one in so many goes through a whole night

_KNOWN = (store.Damaged, BundleError, DamagedCheckpoint)


# ---- bits


def flips(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """One bit of a published file, its manifest, the pointer to it, a bundle or a checkpoint is turned: found before use.

    One in forty is turned anywhere in a workspace that is about to publish, and meets a whole night.
    """
    checkpoint = _unfinished_training(grounds)
    grounds.restore()
    if (ended := grounds.night(grounds.trial, TONIGHT)).code != 0:
        raise RuntimeError(f"the night whose bits are to be turned failed: {ended}")
    alone = [number for number in numbers if number % _WHOLE_NIGHTS]
    for some in (alone[start : start + _TOGETHER] for start in range(0, len(alone), _TOGETHER)):
        chances = [grounds.chance("flips", number) for number in some]
        used, ended = answered(partial(_turned_and_used, grounds.trial, checkpoint, chances))
        if used is None:
            raise RuntimeError(f"the child that turns bits died: {ended}")
        found.did(len(some))
        for place, what, words in used:
            verdict = "undetected_flips" if words == "used" else "tracebacks"
            found.fault(verdict, some[place], f"{what}: {words}")
        found.note("found before use", len(some) - len(used))
    if (now := seen(grounds.trial)).digest != grounds.after:
        raise RuntimeError(f"the bits were not all turned back: {now}")
    for number in numbers:
        if number % _WHOLE_NIGHTS == 0:
            _flip_before_a_night(grounds, number, found)


def _unfinished_training(grounds: Grounds) -> Path:
    """The last checkpoint of tonight's training, killed before its bundle was written; a finished one keeps none."""
    grounds.restore()
    grounds.night(grounds.trial, TONIGHT, first=partial(_die_at, learning, "save_bundle"))
    [left] = grounds.trial.rglob(LAST)
    return Path(shutil.copy(left, grounds.folder / LAST))


def _die_at(module: ModuleType, name: str) -> None:
    setattr(module, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


def _turned_and_used(
    workspace: Path, checkpoint: Path, chances: Sequence[Random]
) -> list[tuple[int, str, str]]:
    """Turns bits, one at a time, each back again; those that were used, or led to an error nobody foresaw."""
    run = store.Workspace(workspace).latest_run()
    assert run is not None
    [model] = [path for path in (workspace / "models").iterdir() if _published_with(run) == path.name]
    pointer, bundle = workspace / "scores.duckdb", model / "bundle"

    def published() -> object:
        return store.read_scores(pointer)

    uses: list[tuple[Path, Callable[[], object]]] = [
        (pointer, store.Workspace(workspace).latest_run),
        *((run.published / name, published) for name in (MANIFEST, "scores.duckdb")),
        *((path, partial(load_bundle, bundle)) for path in sorted(bundle.rglob("*")) if path.is_file()),
        (checkpoint, partial(read_sealed, checkpoint)),
    ]
    wrong = []
    for place, chance in enumerate(chances):
        path, use = chance.choice(uses)
        with _bit_turned(path, chance):
            try:
                use()
                words = "used"
            except _KNOWN:
                continue
            except BaseException as error:
                words = f"{type(error).__name__}: {error}"
        wrong.append((place, path.name, words))
    return wrong


def _published_with(run: store.RunFolder) -> str:
    return run.manifest().record["model_version"]


class _bit_turned:  # noqa: N801 - a context manager
    """One bit of a file, or of where a link leads, is another one; afterwards it is as before."""

    def __init__(self, path: Path, chance: Random) -> None:
        self.path, self.chance = path, chance

    def __enter__(self) -> None:
        self.link = os.fsencode(self.path.readlink()) if self.path.is_symlink() else None
        self.data = self.path.read_bytes() if self.link is None else self.link
        turned = bytearray(self.data)
        turned[self.chance.randrange(len(turned))] ^= 1 << self.chance.randrange(8)
        self._write(bytes(turned))

    def __exit__(self, *_: object) -> None:
        self._write(self.data)

    def _write(self, data: bytes) -> None:
        if self.link is None:
            self.path.write_bytes(data)
        else:
            self.path.unlink()
            self.path.symlink_to(os.fsdecode(data))


def _flip_before_a_night(grounds: Grounds, number: int, found: Found) -> None:
    """Anywhere in a workspace where tonight is adapted, but not published."""
    chance = grounds.chance("flips", number)
    ready = grounds.folder / "ready"
    if not ready.exists():
        grounds.restore()
        ended = grounds.start(grounds.trial, TONIGHT, verb="adapt").ended()
        if ended.code != 0:
            raise RuntimeError(f"the night that was to be adapted failed: {ended}")
        shutil.copytree(grounds.trial, ready, symlinks=True)
    shutil.rmtree(grounds.trial)
    shutil.copytree(ready, grounds.trial, symlinks=True)
    files = sorted(
        path
        for path in grounds.trial.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.name != ".lock"
    )
    # Files of one name are many: first which kind, then which one.
    kind = chance.choice(sorted({path.name for path in files}))
    path = chance.choice([path for path in files if path.name == kind])
    if not path.is_symlink() and path.stat().st_size == 0:
        return
    _bit_turned(path, chance).__enter__()
    what = path.relative_to(grounds.trial)
    ended = grounds.night(grounds.trial, TONIGHT)
    found.did(1)
    found.note("before whole nights")
    if ended.fault:
        found.fault("tracebacks", number, f"{what}: {ended.fault}: {ended}", grounds.trial)
    if ended.code == 0:
        now = seen(grounds.trial)
        if now.digest is None:
            found.fault("lost", number, f"{what}: {now.words}", grounds.trial)
        elif now.digest != grounds.after and not _said(ended.err):
            found.fault("undetected_flips", number, f"{what}: another night was published", grounds.trial)
    else:
        found.note("nights refused")


def _said(err: str) -> bool:
    """Whether a night that came out otherwise says that something was damaged."""
    return " WARNING " in err


# ---- tables


def mangled(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """Damaged tables are rejected with a reason, or read with their bad rows in quarantine: bytes changed, cut, doubled and put
    in, in CSV, in Parquet and in packed files. One in forty meets a whole night.
    """
    whole = {
        name: bytes.fromhex(data)
        for name, data in answered(partial(_whole_tables, grounds.ratings, grounds.items))[0].items()
    }
    progress = grounds.folder / "progress"
    left = [number for number in numbers if number % _WHOLE_NIGHTS]
    while left:
        some, left = left[:_TOGETHER], left[_TOGETHER:]
        progress.write_text(str(some[0]))
        told, ended = answered(partial(_read_mangled, grounds, whole, some, progress))
        if told is None:  # it died: by which input?
            number = int(progress.read_text())
            name, data = _mangled_table(whole, grounds.chance("mangled", number))
            found.fault("tracebacks", number, f"{name}: reading it killed the process: {ended}", (name, data))
            left = [later for later in some if later > number] + left
            told = {"faults": [], "read": 0, "tried": some.index(number) + 1}
        found.did(told["tried"])
        found.note("read, some with rows in quarantine", told["read"])
        found.note("refused with a reason", told["tried"] - told["read"] - len(told["faults"]))
        for number, words in told["faults"]:
            found.fault("tracebacks", number, words, _mangled_table(whole, grounds.chance("mangled", number)))
    for number in numbers:
        if number % _WHOLE_NIGHTS == 0:
            _mangled_night(grounds, whole, number, found)


def _whole_tables(ratings: Path, items: Path) -> dict[str, str]:
    """The tables in every form they may come in, as hexadecimal digits."""
    import io

    whole = {"ratings.csv": ratings.read_bytes(), "items.csv": items.read_bytes()}
    ratings_table = pl.read_csv(ratings, try_parse_dates=True)
    items_table = pl.read_csv(items).with_columns(
        pl.col("tags").str.split("|"),
        pl.col("look").str.strip_chars("[]").str.split(", ").cast(pl.List(pl.Float32)),
    )
    for name, table in (("ratings.parquet", ratings_table), ("items.parquet", items_table)):
        buffer = io.BytesIO()
        table.write_parquet(buffer)
        whole[name] = buffer.getvalue()
    return {name: data.hex() for name, data in whole.items()}


def _mangled_table(whole: Mapping[str, bytes], chance: Random) -> tuple[str, bytes]:
    """A name and the content of a damaged file."""
    name = chance.choice(sorted(whole))
    data = whole[name]
    packed = chance.random() < 0.1
    if packed and chance.random() < 0.5:
        return f"{name}.gz", mangle(gzip.compress(data, mtime=0), chance)
    data = mangle(data, chance)
    return (f"{name}.gz", gzip.compress(data, mtime=0)) if packed else (name, data)


_STRANGE = (
    b"\x00",
    b'"',
    b"\xff\xfe",
    b",,,",
    b"\n",
    b"\r",
    b"nan",
    b"-inf",
    b"1e999",
    b"PAR1",
    b"=cmd()",
    "é\u202e".encode(),
    b"9" * 40,
    b"0001-01-01T00:00:00Z",
)


def mangle(whole: bytes, chance: Random) -> bytes:
    """One to three damages: bytes changed, a cut, a piece twice or left out, a piece of another kind put in."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if place < len(data):
                data[place] = chance.randrange(256)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = data[place : place + chance.randrange(200)]
            case 3:
                del data[place : place + chance.randrange(200)]
            case 4:  # the foot of a Parquet file is where its structure is
                place = max(0, len(data) - chance.randrange(1, 2000))
                data[place : place + 1] = bytes([chance.randrange(256)])
            case _:
                data[place:place] = chance.choice(_STRANGE)
    return bytes(data)


def _read_mangled(
    grounds: Grounds, whole: Mapping[str, bytes], numbers: Sequence[int], progress: Path
) -> dict[str, Any]:
    faults, read = [], 0
    for number in numbers:
        progress.write_text(str(number))
        chance = grounds.chance("mangled", number)
        name, data = _mangled_table(whole, chance)
        path = grounds.folder / name
        path.write_bytes(data)
        words = reading_fault(path, share=chance.choice((0.01, 0.5, 1.0)))
        path.unlink()
        if words is None:
            read += 1
        elif words:
            faults.append((number, f"{name}: {words}"))
    return {"faults": faults, "read": read, "tried": len(numbers)}


def reading_fault(path: Path, share: float) -> str | None:
    """What is wrong with how a damaged table is met; empty where it is refused with a reason, None where it is read well."""
    try:
        if path.name.startswith("ratings"):
            checked = ingest.read_interactions(
                ingest.Source(path), user_id="who", item_id="what", value="stars", timestamp="at", value_range=(1, 5),
                max_quarantined_share=share,
            )  # fmt: skip
        else:
            checked = ingest.read_features(
                ingest.Source(path), id_column="what", id_name=ITEM_ID, categorical=("kind",), multi=("tags",),
                numbers=("price",), vectors=("look",), max_quarantined_share=share,
            )  # fmt: skip
    except ingest.InputError as error:
        return (
            "" if path.name in str(error) and len(str(error)) > len(str(path)) + 10 else f"no reason: {error}"
        )
    except BaseException as error:  # a panic of polars is no Exception
        return f"{type(error).__name__}: {error}"
    return "; ".join(_unsound(checked)) or None


def _unsound(checked: ingest.Checked) -> Iterator[str]:
    table, quarantine, counts = checked
    if quarantine["reason"].null_count() or quarantine["row"].null_count():
        yield "a row in quarantine without a reason or a place"
    if VALUE in table.columns:
        if not table[VALUE].is_finite().all() or not table[VALUE].is_between(1, 5).all():
            yield "a value that is not finite, or out of range, was kept"
        told = ("rows_kept", "rows_quarantined", "exact_duplicates", "merged_duplicates")
        if counts["rows_read"] != sum(counts[name] for name in told):
            yield f"rows got lost: {counts}"
        if table.select(USER_ID, ITEM_ID).null_count().sum_horizontal().item():
            yield "a row without an id was kept"
    elif table["price"].is_infinite().any() or table["look"].explode().is_infinite().any():
        yield "a feature that is infinite was kept"


def _mangled_night(grounds: Grounds, whole: Mapping[str, bytes], number: int, found: Found) -> None:
    chance = grounds.chance("mangled", number)
    name, data = _mangled_table(whole, chance)
    path = grounds.folder / name
    path.write_bytes(data)
    share = chance.choice((0.01, 0.5, 1.0))
    grounds.restore()
    table = "ratings" if name.startswith("ratings") else "items"
    ended = grounds.night(
        grounds.trial, TONIGHT, "--max_quarantined_share", str(share), "--gates.max_fallen_share", "1",
        **{table: path},
    )  # fmt: skip
    found.did(1)
    found.note("whole nights")
    if ended.fault:
        found.fault("tracebacks", number, f"{name}: {ended.fault}: {ended}", (name, data))
    now = seen(grounds.trial)
    if now.digest is None:
        found.fault("lost", number, f"{name}: {now.words}", (name, data))
    elif ended.code != 0 and now.digest != grounds.before:
        found.fault(
            "half_visible", number, f"{name}: refused, and yet something else is in force", (name, data)
        )
    if now.twice or now.not_finite:
        found.fault("not_finite", number, f"{name}: published {now}", (name, data))
    path.unlink()
