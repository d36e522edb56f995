"""Inputs of hostile origin, one case each: what is built in a folder, the command that meets it, and how it has to end.

``CASES`` is for every test that drives the command line: ``case.build(folder)`` writes the input into an empty folder and
gives the arguments of ``recsys-meta``; ``fault(case, folder, ended)`` says what is wrong with how the command ended, or None.
Beside the folder lies a file that no command may read, change or publish (``place``).
"""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import duckdb
import polars as pl

SECRET = "the-canary-sings"
_SECRET_FILE = f"user_id,item_id\n{SECRET},1\n"

DONE, CONFIG, DATA = 0, 2, 3

# Marks of what would be active where a page or a terminal showed it as it is.
SCRIPT = "<script>alert(1)</script>"
BREAKOUT = "</script><img src=x onerror=alert(1)><!--<script>"
FORMULAS = (
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://x")',
)
INJECTIONS = (
    "'; DROP TABLE scores; --",
    '"; DROP TABLE scores; --',
    "1 OR 1=1",
    "$1",
    "@table",
    "../../etc/passwd",
    "a\x00b",
    "\x1b[2J\x1b]0;owned\x07",
    "line\nbreak",
    "\u202etxt.exe",
    "x" * 10_000,
)


class Case(NamedTuple):
    """One input, and how the command that meets it has to end."""

    name: str
    build: Callable[[Path], list[str]]
    code: int
    words: tuple[str, ...] = ()  # that the reason has to say
    check: Callable[[Path], None] = lambda folder: None  # what must hold besides; raises AssertionError


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def place(root: Path) -> Path:
    """An empty folder to build a case in; the file that must stay untouched and unread lies beside it."""
    folder = root / "case"
    folder.mkdir()
    (root / "secret.csv").write_text(_SECRET_FILE)
    return folder


def fault(case: Case, folder: Path, ended: Ended) -> str | None:
    """What is wrong with how the command ended and what it left; None where all is as it has to be."""
    if "Traceback" in ended.err:
        return f"a traceback: {ended.err[-2000:]}"
    if ended.code != case.code:
        return f"ended with {ended.code}, expected {case.code}: {ended.err[-1000:]}"
    last = json.loads(ended.out.splitlines()[-1])
    if case.code and last["exit_code"] != case.code:
        return f"the last line says {last}"
    missing = [words for words in case.words if words not in ended.err]
    if missing:
        return f"nothing is said of {missing}: {ended.err[-1000:]}"
    if any(mark in ended.out + ended.err for mark in ("\x1b", "\x07", "\x00")):
        return "what is printed drives the terminal"
    beside = {path.name for path in folder.parent.iterdir()}
    if beside != {folder.name, "secret.csv"} or (folder.parent / "secret.csv").read_text() != _SECRET_FILE:
        return f"something outside of the folder has changed: {sorted(beside)}"
    if SECRET in ended.out + ended.err or any(
        SECRET.encode() in file.read_bytes()
        for file in (folder / "workspace").rglob("*")
        if file.is_file() and not file.is_symlink()
    ):
        return "what lies outside of the folder was read"
    try:
        case.check(folder)
    except AssertionError as error:
        return f"not as it has to be: {error}"
    return None


# ---- configs


def _config(folder: Path, text: str, verb: str = "validate") -> list[str]:
    (folder / "night.yaml").write_text(text)
    return [verb, "--config", str(folder / "night.yaml")]


_PLAIN = "workspace: workspace\nrun_date: 2026-10-30\ntop_k: 2\ncold: {below: 4}\n"
_POPULARITY = "learner: recsys_meta.baselines.popularity.Popularity\n"
_CLICKS = "interactions: {path: clicks.csv, user_id: user_id, item_id: item_id}\n"


def _yaml(text: str) -> Callable[[Path], list[str]]:
    return lambda folder: _config(_clicks(folder), text)


def _setting(line: str, verb: str = "validate", workspace: str = "workspace") -> Callable[[Path], list[str]]:
    plain = _PLAIN.replace("workspace: workspace", f"workspace: {workspace}")
    return lambda folder: _config(_clicks(folder), plain + _CLICKS + line + "\n", verb)


def _clicks(
    folder: Path, users: Sequence[str] = (), items: Sequence[str] = (), name: str = "clicks.csv"
) -> Path:
    """Thirty users, of whom twelve are cold, and eight items; ids of one's own come first."""
    _table(users, items).write_csv(folder / name)
    return folder


def _table(users: Sequence[str] = (), items: Sequence[str] = ()) -> pl.DataFrame:
    who = [*users, *(f"u{number}" for number in range(len(users), 30))]
    what = [*items, *(f"i{number}" for number in range(len(items), 8))]
    rows = [
        (who[user], what[(user + step) % len(what)])
        for user in range(len(who))
        for step in range(2 if user < max(12, len(users)) else 5)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


def _beside(folder: Path) -> Path:
    return folder.parent / "secret.csv"


def _special(make: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    """A config that is no file."""

    def build(folder: Path) -> list[str]:
        make(folder / "night.yaml")
        return ["validate", "--config", str(folder / "night.yaml")]

    return build


def _workspace_file(folder: Path) -> list[str]:
    (_clicks(folder) / "workspace").write_text("not a folder")
    return _config(folder, _PLAIN + _CLICKS + _POPULARITY, "nightly")


def _linked_lock(folder: Path) -> list[str]:
    (folder / "workspace").mkdir()
    (folder / "workspace" / ".lock").symlink_to(_beside(folder))
    return _config(_clicks(folder), _PLAIN + _CLICKS + _POPULARITY, "nightly")


def _linked_pointer(folder: Path) -> list[str]:
    (folder / "workspace" / "runs").mkdir(parents=True)
    (folder / "workspace" / "scores.duckdb").symlink_to(_beside(folder))
    return ["runs", "--workspace", str(folder / "workspace")]


def _deep_manifest(folder: Path) -> list[str]:
    published = folder / "workspace" / "runs" / "r" / "publication-0001"
    published.mkdir(parents=True)
    (published / "manifest.json").write_text("[" * 100_000)
    (published.parent / "published").symlink_to(published.name)
    return ["runs", "--workspace", str(folder / "workspace")]


def _untouched_command(folder: Path) -> None:
    assert not (folder / "owned").exists(), "a command was run"


_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

_CONFIGS = (
    Case("yaml that runs a command", _yaml("workspace: !!python/object/apply:os.system ['touch owned']\n"), CONFIG,
         ("the tag tag:yaml.org,2002:python/object/apply:os.system is not read",), _untouched_command),
    Case("yaml that names a function", _yaml("workspace: !!python/name:os.system\n"), CONFIG, ("is not read",)),
    Case("yaml of a tag of one's own", _yaml("workspace: !evil {a: 1}\n"), CONFIG, ("the tag !evil is not read",)),
    Case("yaml of a thousand million laughs", _yaml(_LAUGHS), CONFIG, ("aliases are not read",)),
    Case("yaml that contains itself", _yaml("a: &a [*a]\n"), CONFIG, ("aliases are not read",)),
    Case("yaml that merges", _yaml("workspace: workspace\n<<: {top_k: 3}\n"), CONFIG, ("unknown key",)),
    Case("yaml nested a hundred thousand deep", _yaml("workspace: " + "[" * 100_000), CONFIG, ("nested too deeply",)),
    *(Case(f"arguments nested {depth} deep", _setting(
        "learner: {class_path: recsys_meta.algorithms.maml.MAML, init_args: {dim: " + "{a: " * depth + "1" + "}" * depth + "}}"
      ), CONFIG) for depth in (30, 90, 150, 250, 400)),
    Case("yaml of ten megabytes", _yaml("workspace: workspace\n" + "# nothing\n" * 1_000_000), CONFIG, ("at most",)),
    Case("yaml of binary zeros", _special(lambda file: file.write_bytes(b"\0" * 100)), CONFIG, ("night.yaml",)),
    Case("yaml that is no text", _special(lambda file: file.write_bytes(bytes(range(128, 256)))), CONFIG, ("UTF-8",)),
    Case("a config that is a folder", _special(lambda file: file.mkdir()), CONFIG, ("night.yaml",)),
    Case("a config that never ends", _special(lambda file: file.symlink_to("/dev/zero")), CONFIG, ("night.yaml",)),
    Case("a config that nobody writes to", _special(os.mkfifo), CONFIG, ("night.yaml",)),
    Case("a number of a thousand digits", _setting("seed: " + "9" * 1_000), CONFIG, ("64 bits",)),
    Case("a number of five thousand digits", _setting("top_k: " + "9" * 5_000), CONFIG, ("night.yaml",)),
    Case("more items than can be counted", _setting("training: {max_epochs: 99999999999999999999}"), CONFIG, ("64 bits",)),
    Case("a duration beyond all time", _setting("candidates: {seen_within: 999999999999999w}"), CONFIG, ("seen_within",)),
    Case("the last day there is", _yaml(_PLAIN.replace("2026-10-30", "9999-12-31") + _CLICKS), CONFIG, ("run_date",)),
    Case("a class that is a function", _setting("learner: os.system"), CONFIG, ("os.system is no learner",)),
    Case("a class of a relative path", _setting("learner: ..evil.Evil"), CONFIG, ("there is no '..evil.Evil'",)),
    Case("a class of no name", _setting("learner: .."), CONFIG, ("learner",)),
    Case("a class with a zero byte", _setting('learner: "a\\0b.C"'), CONFIG, ("learner",)),
    Case("a workspace that is a file", _workspace_file, CONFIG, ("workspace",)),
    Case("a workspace with a zero byte", _yaml('workspace: "a\\0b"\n' + _CLICKS), CONFIG, ("workspace",)),
    Case("a workspace that DuckDB reads as options", _yaml('workspace: "a?b"\n' + _CLICKS), CONFIG, ("workspace",)),
    Case("a workspace of an endless name", _setting("", "nightly", workspace="w" * 5_000), CONFIG, ("workspace",)),
    Case("a lock that leads elsewhere", _linked_lock, DATA, (".lock",)),
    Case("a pointer that leads elsewhere", _linked_pointer, DATA, ("no scores of a run in this workspace",)),
    Case("a manifest nested a hundred thousand deep", _deep_manifest, DONE, ("run r is left out",)),
)  # fmt: skip


# ---- archives and packed files


def _reading(source: str, build: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """A night that reads what was built; ``source``: the settings of the interactions."""

    def built(folder: Path) -> list[str]:
        build(folder)
        return _config(folder, f"{_PLAIN}interactions: {{{source}}}\n")

    return built


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _zip_of_link(folder: Path) -> None:
    link = zipfile.ZipInfo("clicks.csv")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(link, str(_beside(folder)))


def _zip_that_lies(declared: int) -> Callable[[Path], object]:
    """Its directory declares another size than the member has."""

    def build(folder: Path) -> None:
        content = _table().write_csv().encode()
        raw = _zip({"clicks.csv": content})
        sizes = len(content).to_bytes(4, "little")
        (folder / "a.zip").write_bytes(raw.replace(sizes, declared.to_bytes(4, "little")))

    return build


def _zip_of_unknown_packing() -> bytes:
    raw, method = bytearray(_zip({"clicks.csv": _csv()})), (97).to_bytes(2, "little")
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # of the member, and of the directory
        at = raw.index(signature) + place
        raw[at : at + 2] = method
    return bytes(raw)


def _tar(folder: Path) -> None:
    with tarfile.open(folder / "clicks.tar.gz", "w:gz") as archive:
        for name in ("../owned.csv", "/owned.csv", "clicks.csv"):
            content = _table().write_csv().encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.csv"
        archive.addfile(link)


def _zeros(megabytes: int) -> bytes:
    return b"user_id,item_id\n" + b"0,0\n" * (megabytes * 2**18)


def _folder_of_links(folder: Path) -> None:
    parts = folder / "parts"
    parts.mkdir()
    _clicks(parts)
    (parts / "other.csv").symlink_to(_beside(folder))


def _loop_of_links(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "again").symlink_to(".")
    (folder / "parts" / "self.csv").symlink_to("self.csv")


def _file(name: str, content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content())


def _csv() -> bytes:
    return _table().write_csv().encode()


def _refused(name: str, source: str, build: Callable[[Path], object], *words: str) -> Case:
    return Case(name, _reading(source, build), DATA, words)


_ZIP, _GZ, _CSV = "path: a.zip, member: clicks.csv", "path: clicks.csv.gz", "path: clicks.csv"
_ESCAPING = {"../../owned.csv": _csv(), "/owned.csv": b"x"}
_TIMES, _IN_DISGUISE = "times its packed size", "is packed, though its name does not say so"

_ARCHIVES = (
    Case("a zip whose members lead out of it", _reading(
        "path: a.zip, member: ../../owned.csv", _file("a.zip", lambda: _zip(_ESCAPING))), DONE),
    _refused("a member that lies outside of the zip", "path: a.zip, member: ../secret.csv",
             _file("a.zip", lambda: _zip({"clicks.csv": b"x"})), "the member '../secret.csv' was not found"),
    _refused("a zip with a link that leads out of it", _ZIP, _zip_of_link, "a.zip/clicks.csv"),
    _refused("a zip bomb", _ZIP, _file("a.zip", lambda: _zip({"clicks.csv": _zeros(70)})), _TIMES),
    _refused("a zip that declares four gigabytes", _ZIP, _zip_that_lies(2**32 - 2), "unpacks to more than"),
    _refused("a zip that declares less than it holds", _ZIP, _zip_that_lies(10), "damaged or cut short"),
    _refused("a zip packed in a way that is not known", _ZIP,
             _file("a.zip", _zip_of_unknown_packing), "damaged or cut short", "compression method"),
    _refused("a zip of nothing", _ZIP, _file("a.zip", lambda: b"PK"), "a.zip"),
    _refused("a tar with members that lead out of it", "path: clicks.tar.gz", _tar, "what is a '.gz' file?"),
    _refused("a gzip bomb", _GZ, _file("clicks.csv.gz", lambda: gzip.compress(_zeros(70))), _TIMES),
    _refused("a gzip bomb in a gzip file", _GZ,
             _file("clicks.csv.gz", lambda: gzip.compress(gzip.compress(_zeros(70)))), "is packed once more"),
    _refused("a gzip bomb that says it is text", _CSV,
             _file("clicks.csv", lambda: gzip.compress(_zeros(70))), _IN_DISGUISE),
    _refused("a zlib bomb that says it is text", _CSV,
             _file("clicks.csv", lambda: zlib.compress(_zeros(70))), _IN_DISGUISE),
    _refused("a folder with a link that leads out of it", "path: parts", _folder_of_links, "leads out of"),
    _refused("a glob with a link that leads out of it", "path: parts/*.csv", _folder_of_links, "leads out of"),
    _refused("links in a ring", "path: parts", _loop_of_links, "parts"),
    _refused("a table that is a pipe", _CSV, lambda folder: os.mkfifo(folder / "clicks.csv"), "clicks.csv"),
    _refused("a table that never ends", "path: /dev/zero, format: csv", lambda folder: None, "/dev/zero"),
    _refused("a path with a zero byte", 'path: "a\\0b.csv"', lambda folder: None, "not found"),
    _refused("a path of an endless name", f"path: {'x' * 5_000}.csv", lambda folder: None, "x.csv"),
)  # fmt: skip


# ---- tables, columns, queries


def _database(*statements: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        with duckdb.connect(str(folder / "clicks.duckdb")) as connection:
            connection.register("clicks", _table().to_arrow())
            connection.execute("CREATE TABLE good AS FROM clicks")
            for statement in statements:
                connection.execute(statement.format(secret=_beside(folder)))

    return build


_NASTY = 'x"; DROP TABLE good; --'


def _good_stays(folder: Path) -> None:
    with duckdb.connect(str(folder / "clicks.duckdb"), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM good").fetchall() == [(_table().height,)]


def _nothing_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} <= {
        "clicks.duckdb",
        "night.yaml",
        "workspace",
        "clicks.csv",
    }


def _columns(folder: Path) -> None:
    _table().rename({"user_id": _NASTY, "item_id": "'); DELETE FROM scores; --"}).write_csv(
        folder / "clicks.csv"
    )


def _text(source: str) -> Callable[[Path], list[str]]:
    return _reading(f"path: clicks.csv, {source}", _clicks)


_SUBQUERY = "user_id IN (SELECT user_id FROM read_csv('../secret.csv'))"
_ENCODINGS = (
    *((name, DATA) for name in ("punycode", "undefined", "zlib", "rot13", "a\0b")),
    *((name, DONE) for name in ("idna", "utf-7")),
)
_TABLE = f"path: clicks.duckdb, table: {json.dumps(_NASTY)}"
_CREATED = f"""CREATE TABLE "{_NASTY.replace('"', '""')}" AS FROM good"""
_DELETING = "'); DELETE FROM scores; --"
_SEEING = "CREATE VIEW v AS SELECT * FROM read_csv('{secret}')"
_USERS = "users: {path: clicks.csv, id: user_id, categorical: "


def _queried(name: str, query: str, words: str) -> Case:
    source = f"path: clicks.duckdb, query: {json.dumps(query)}"
    return Case(name, _reading(source, _database()), DATA, (words,), _nothing_written)


_TABLES = (
    Case("a table named like a statement", _reading(_TABLE, _database(_CREATED)), DONE, (), _good_stays),
    Case("a table that is not there and drops one", _reading(_TABLE, _database()), DATA, ("was not found",), _good_stays),
    Case("columns named like statements", _reading(
        f"{_CSV}, user_id: {json.dumps(_NASTY)}, item_id: {json.dumps(_DELETING)}", _columns), DONE),
    _refused("a view that reads another file", "path: clicks.duckdb, table: v", _database(_SEEING), "clicks.duckdb"),
    _queried("a query that reads another file", "SELECT * FROM read_text('../secret.csv')", "clicks.duckdb"),
    _queried("a query that writes a file", "SELECT 1 AS user_id) TO 'owned'; COPY (SELECT 1", "query"),
    _queried("a query that is two", "FROM good; COPY (SELECT 1) TO 'owned.csv'", "expected one SELECT"),
    _queried("a query that attaches", "ATTACH 'owned.duckdb'", "expected one SELECT"),
    _queried("a query that lifts the bans", "SET enable_external_access = true; FROM good", "expected one SELECT"),
    Case("a condition that is two statements", _text('where: "1=1; DROP TABLE x"'), DATA, ("where",)),
    Case("a condition that reads a file", _text(f"where: {json.dumps(_SUBQUERY)}"), DATA, ("holds a query",)),
    Case("a condition that is a star", _text('where: "*"'), DATA, ("where",)),
    Case("a separator of a zero byte", _text('separator: "\\0"'), DATA, ("clicks.csv",)),
    Case("a separator that is the quote", _text("separator: '\"'"), DATA, ("clicks.csv",)),
    Case("a separator that is a line end", _text('separator: "\\n"'), DATA, ("clicks.csv",)),
    Case("a quote of several characters", _text('quote: "ab"'), CONFIG, ("quote",)),
    *(Case(f"text encoded as {name}", _text(f"encoding: {json.dumps(name)}"), code) for name, code in _ENCODINGS),
    Case("one column for both ids", _text("user_id: user_id, item_id: user_id"), CONFIG, ("named twice",)),
    Case("ids of both and of time", _text("timestamp: user_id"), CONFIG, ("named twice",)),
    Case("a table of users as wide as its id", _setting(f"{_USERS}[user_id]}}"), DATA, ("declared twice",)),
    Case("a feature named like the id of the others", _setting(f"{_USERS}[item_id]}}"), DONE),
)  # fmt: skip


# ---- ids, titles, cells


def _night_of(users: Sequence[str], items: Sequence[str]) -> Callable[[Path], list[str]]:
    """A whole night, published, of these ids."""

    def build(folder: Path) -> list[str]:
        _table(users, items).write_parquet(folder / "clicks.parquet")
        titles = pl.DataFrame({"item_id": _table(users, items)["item_id"].unique()})
        titles.with_columns(title=pl.lit(SCRIPT)).write_parquet(folder / "items.parquet")
        return _config(
            folder,
            f"{_PLAIN}{_POPULARITY}exclude_consumed: false\ninteractions: {{path: clicks.parquet}}\n"
            "items: {path: items.parquet, id: item_id, categorical: [title]}\n",
            "nightly",
        )

    return build


def _comes_back(users: Sequence[str], items: Sequence[str]) -> Callable[[Path], None]:
    """Every id is published as it came."""

    def check(folder: Path) -> None:
        with duckdb.connect(str(folder / "workspace" / "scores.duckdb"), read_only=True) as connection:
            found = {user for (user,) in connection.sql("SELECT DISTINCT user_id FROM scores").fetchall()}
            shown = {item for (item,) in connection.sql("SELECT DISTINCT item_id FROM scores").fetchall()}
        assert set(users) <= found, f"lost {set(users) - found}"
        assert shown <= set(_table(users, items)["item_id"])

    return check


def _evaluation(folder: Path) -> list[str]:
    """A page that shows the title of the evaluation and a segment of its users."""
    _table().write_parquet(folder / "clicks.parquet")
    users = pl.DataFrame({"user_id": _table()["user_id"].unique(maintain_order=True)})
    users.with_columns(
        town=pl.Series([BREAKOUT if row % 2 else SCRIPT for row in range(users.height)])
    ).write_parquet(folder / "users.parquet")
    baselines = "[recsys_meta.baselines.item_knn.ItemKNN]"
    return _config(
        folder,
        f"workspace: workspace\nname: {json.dumps(BREAKOUT)}\ninteractions: {{path: clicks.parquet}}\n"
        "users: {path: users.parquet, id: user_id, categorical: [town]}\nsegments: [town]\n"
        f"learners: [recsys_meta.baselines.popularity.Popularity]\nbaselines: {baselines}\n"
        "protocol: {kind: held_out_users, share: 0.5, min_history: 4, shots: [1, 2]}\n",
        "evaluate",
    )


class _Elements(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), f"<{tag}> does something"


def _page_is_quiet(folder: Path) -> None:
    (page,) = (folder / "workspace").rglob("report.html")
    text = page.read_text()
    # Of what is said in the script of the charts nothing may look like markup, or an old comment swallows its end.
    charts = text[text.rindex('<script type="module">') :].removeprefix("<script").partition("</script>")[0]
    assert "onerror" in charts, "the segments are not on the page"
    assert "<" not in charts.partition("const charts = ")[2].partition(";\nfor ")[0]
    elements = _Elements()
    elements.feed(text[: text.index('<script type="module">')])
    assert not {"script", "img"} & set(elements.found)


_IDS = (
    Case("ids that are statements, paths and controls", _night_of(INJECTIONS, INJECTIONS[:4]), DONE, (),
         _comes_back(INJECTIONS, INJECTIONS[:4])),
    Case("ids that are formulas", _night_of(FORMULAS, FORMULAS), DONE, (), _comes_back(FORMULAS, FORMULAS)),
    Case("ids and titles that are markup", _night_of((SCRIPT, BREAKOUT), (SCRIPT, BREAKOUT)), DONE, (),
         _comes_back((SCRIPT, BREAKOUT), (SCRIPT, BREAKOUT))),
    Case("a title and segments that break out of the page", _evaluation, DONE, (), _page_is_quiet),
)  # fmt: skip


# ---- bundles


class _Runs:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.target),))


def _bundle(change: Callable[[Path, Path], None]) -> Callable[[Path], list[str]]:
    """A second night that may use the bundle of the first, which somebody has changed and sealed again."""

    def build(folder: Path) -> list[str]:
        from recsys_meta.cli import main

        arguments = _config(_clicks(folder), _PLAIN + _CLICKS + _POPULARITY, "train")
        assert main(arguments) == 0
        (bundle,) = (folder / "workspace" / "models").glob("*/bundle")
        change(bundle, folder / "owned")
        files = {
            path.relative_to(bundle).as_posix(): {"sha256": sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
            for path in bundle.rglob("*")
            if path.is_file() and path.name != "manifest.json"
        }  # fmt: skip
        (bundle / "manifest.json").write_text(json.dumps({"files": files}, indent=1, sort_keys=True))
        return ["nightly", *arguments[1:], "--training.reuse_for_days", "9", "--run_date", "2026-10-31"]

    return build


def _pickled(bundle: Path, target: Path) -> None:
    (bundle / "weights.safetensors").write_bytes(pickle.dumps(_Runs(target)))


def _with_pickle(bundle: Path, target: Path) -> None:
    (bundle / "weights.pkl").write_bytes(pickle.dumps(_Runs(target)))


def _described(**changes: object) -> Callable[[Path, Path], None]:
    def change(bundle: Path, target: Path) -> None:
        description = json.loads((bundle / "bundle.json").read_text())
        (bundle / "bundle.json").write_text(json.dumps(description | changes))

    return change


def _linked(bundle: Path, target: Path) -> None:
    shutil.copy(bundle / "weights.safetensors", target.with_name("elsewhere"))
    (bundle / "weights.safetensors").unlink()
    (bundle / "weights.safetensors").symlink_to(target.with_name("elsewhere"))


_BUNDLES = (
    Case("a bundle whose weights are a pickle", _bundle(_pickled), DATA, ("not a readable bundle",), _untouched_command),
    Case("a bundle with a pickle beside", _bundle(_with_pickle), DATA, ("weights.pkl",), _untouched_command),
    Case("a bundle of a class from elsewhere", _bundle(_described(class_path="os.system")), DATA, ("os.system",)),
    Case("a bundle of a base class", _bundle(_described(class_path="recsys_meta.algorithms.base.Learner")), DATA, ("Learner",)),
    Case("a bundle of another format", _bundle(_described(format=2)), DATA, ("bundle format 2",)),
    Case("a bundle of links", _bundle(_linked), DATA, ("neither a file nor a folder",)),
)  # fmt: skip

CASES: tuple[Case, ...] = (*_CONFIGS, *_ARCHIVES, *_TABLES, *_IDS, *_BUNDLES)
