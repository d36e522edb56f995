"""The command line: parses, calls a story, prints what it gave; the last line on stdout is one JSON object.

Heavy imports stand inside the commands, so that help comes at once.
"""

import argparse
import importlib
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pipelines.outcomes import ConfigError
from pipelines.printable import printable
from recsys_meta import __version__

STATUSES: Mapping[int, str] = {
    1: "failed",
    2: "config error",
    3: "data error",
    4: "refused",
    74: "machine error",
    75: "already running",
    99: "nothing to do",
    130: "interrupted",
}


class Verb(NamedTuple):
    """A command that runs a story."""

    module: str
    function: str
    settings: str  # the class in pipelines.settings
    help: str


VERBS: Mapping[str, Verb] = {
    "nightly": Verb("pipelines.nightly", "nightly", "NightSettings", "read, train or reuse, adapt and publish: the whole night"),
    "validate": Verb("pipelines.nightly", "validate", "NightSettings", "read and check the inputs, and stop there"),
    "train": Verb("pipelines.nightly", "train", "NightSettings", "read, and meta-train the learner into a bundle"),
    "adapt": Verb("pipelines.nightly", "adapt", "NightSettings", "adapt the trained learner to every requested user"),
    "publish": Verb("pipelines.nightly", "publish", "NightSettings", "publish what was adapted"),
    "evaluate": Verb("pipelines.evaluate", "evaluate", "EvaluateSettings", "judge learners and baselines at every shot count"),
    "tune": Verb("pipelines.tune", "tune", "TuneSettings", "choose settings on validation users, as many trials for each"),
    "nights": Verb("pipelines.nights", "nights", "NightsSettings", "nights in a row: warm starts beside training anew and never"),
    "simulate": Verb("pipelines.simulated_month", "simulate", "SimulateSettings", "a month of two policies whose truth is known"),
    "ab": Verb("pipelines.experiment_analysis", "experiment", "ExperimentSettings", "an experiment: did a variant do better?"),
    "interleave": Verb("pipelines.interleaving", "interleave", "InterleaveSettings", "two rankings merged: which is preferred?"),
    "power": Verb("pipelines.experiment_power", "power", "PowerSettings", "before an experiment: users and days for a lift"),
    "suite": Verb("pipelines.suite", "suite", "SuiteSettings", "run several evaluations, and rank learners over all of them"),
    "ope": Verb("pipelines.ab_analysis", "ope", "OffPolicySettings", "value a policy from the logged actions of another"),
}  # fmt: skip

_EXIT_CODES = "exit codes: 0 done" + "".join(f", {code} {status}" for code, status in STATUSES.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    try:
        return _ran(arguments)
    except BrokenPipeError:
        # Of stdout, which even the last line could not be written to: whoever read it has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 74


def _ran(arguments: Sequence[str] | None) -> int:
    try:
        args, rest = _parser().parse_known_args(arguments)
        with _logging(quiet=args.quiet):
            own = OWN_VERBS.get(args.verb)
            code = own(args, rest) if own else _story(VERBS[args.verb], args, rest)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return _ended(130, "interrupted; the same command continues")
    except BaseException as error:
        # A PanicException of polars is no Exception: let out, it would end the command without its last line.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        code = _exit_code(error)
        reason = printable(str(error) or type(error).__name__)
        if code == 1:
            traceback.print_exc()
        else:
            print(reason, file=sys.stderr)
        return _ended(code, reason, getattr(error, "details", {}))


def _story(verb: Verb, args: argparse.Namespace, rest: Sequence[str]) -> int:
    from pipelines.starting import importing, share_one_heap

    share_one_heap()
    with importing():
        from pipelines import settings
        from pipelines.loading import as_yaml, load

    overrides = _overrides(rest)
    if getattr(args, "aa", None) is not None:
        overrides.append(("aa", args.aa))
    loaded = load(getattr(settings, verb.settings), args.config, overrides, os.environ)
    if args.print_config:
        print(as_yaml(loaded.settings, comments=args.print_config == "comments"), end="")
        return 0

    with importing():
        from pipelines.construction import check_classes

        story: Callable[..., Any] = getattr(importlib.import_module(verb.module), verb.function)
    check_classes(loaded)
    summary = story(loaded.settings, loaded.fingerprint)
    _print_json(summary._asdict() if hasattr(summary, "_asdict") else summary)
    return 0


def _runs(args: argparse.Namespace, rest: Sequence[str]) -> int:
    workspace = _workspace(args, rest)

    from recsys_meta import store

    table = store.runs(store.Workspace(workspace))
    if args.json:
        _print_json({"workspace": workspace, "runs": table.to_dicts()})
        return 0
    rows = [[_cell(name, value) for name, value in row.items()] for row in table.to_dicts()]
    widths = [max(map(len, column)) for column in zip(table.columns, *rows, strict=True)]
    for row in [table.columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    latest = next((row["run_id"] for row in table.to_dicts() if row["is_latest"]), None)
    _print_json({"workspace": workspace, "runs": table.height, "latest": latest})
    return 0


def _rollback(args: argparse.Namespace, rest: Sequence[str]) -> int:
    workspace = _workspace(args, rest)

    from recsys_meta import store

    if not (workspace / "runs").is_dir():
        raise ConfigError([f"command line: {workspace} is no workspace: nothing was ever published there"])
    done = store.rollback(store.Workspace(workspace), args.to, dry_run=args.dry_run)
    before = f"before: {done.before}" if done.before else "before: nothing that could be read"
    print(f"{'would be in force' if args.dry_run else 'in force'}: {done.run_id} ({before})")
    for run_id in done.skipped:
        print(f"passed over, damaged: {run_id}")
    status = "would roll back" if args.dry_run else "rolled back"
    _print_json({"status": status, "workspace": workspace, **done._asdict()})
    return 0


def _doctor(args: argparse.Namespace, rest: Sequence[str]) -> int:
    workspace = _workspace(args, rest)
    from pipelines.starting import importing

    with importing():
        from pipelines.doctor import doctor
        from pipelines.loading import load
        from pipelines.settings import NightSettings
        from recsys_meta import store

    night = load(NightSettings, args.config, _overrides(rest), os.environ).settings if args.config else None
    findings = doctor(store.Workspace(workspace), night, fix=args.fix)
    for finding in findings:
        print(printable(f"{finding.level:<8} {finding.check:<12} {finding.said}"))
        if finding.advice:
            print(f"{'':<21} -> {printable(finding.advice)}")
    counts = {
        f"{level}s": sum(finding.level == level for finding in findings) for level in ("error", "warning")
    }
    details = {"workspace": workspace, **counts, "findings": [finding._asdict() for finding in findings]}
    if counts["errors"]:
        return _ended(3, f"{counts['errors']} errors, {counts['warnings']} warnings", details)
    _print_json({"status": "healthy", **details})
    return 0


def _workspace(args: argparse.Namespace, rest: Sequence[str]) -> Path:
    """The workspace of a command that is given it, or a config that names it; given both, the former."""
    if args.workspace is None and not args.config:
        raise ConfigError([f"command line: {args.verb} needs either --workspace or --config"])
    if rest and not args.config:
        raise ConfigError([f"command line: {' '.join(rest)} is not understood beside --workspace"])
    if args.workspace is None:
        from pipelines.loading import load
        from pipelines.settings import NightSettings

        workspace = load(NightSettings, args.config, _overrides(rest), os.environ).settings.workspace
    else:
        workspace = args.workspace.expanduser()
    if not workspace.is_dir():
        raise ConfigError([f"command line: there is no workspace {workspace}"])
    return Path(workspace)


OWN_VERBS: Mapping[str, Callable[[argparse.Namespace, Sequence[str]], int]] = {
    "runs": _runs,
    "rollback": _rollback,
    "doctor": _doctor,
}


def _cell(name: str, value: object) -> str:
    if name == "finished_at":
        return f"{value:%Y-%m-%d %H:%M:%SZ}"
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:,}" if isinstance(value, int) else str(value)


# Parsing ------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Tells a wrong command line as the loader tells a wrong config; lists the settings in the help of a verb."""

    settings: str | None = None

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"command line: {message}", self.format_usage().strip()])

    def format_help(self) -> str:
        text = super().format_help()
        if self.settings is None:
            return text
        from pipelines import settings
        from pipelines.loading import described

        lines = [f"  --{key:<36} {sentence}" for key, sentence in described(getattr(settings, self.settings))]
        return "\n".join(
            [text, "settings, in a config or as --key value; the default stands in brackets:", *lines, ""]
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="recsys-meta",
        description="Every user is a task: recommendations for users with little history or none.",
        epilog=f"{_EXIT_CODES}. Logs go to stderr; the last line on stdout is one JSON object.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name, verb in VERBS.items():
        command = verbs.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        command.settings = verb.settings
        _add_config(command)
        command.add_argument(
            "--print_config",
            "--print-config",
            nargs="?",
            const="plain",
            choices=("plain", "comments"),
            help="print the settings as they would be used, and stop; with comments: each under its description",
        )
        if name == "ab":  # the one setting that is said without a value
            command.add_argument("--aa", nargs="?", const="true", metavar="true", help=argparse.SUPPRESS)
    runs = _own(verbs, "runs", "list the published runs of a workspace")
    runs.add_argument("--json", action="store_true", help="print the list as JSON")
    rollback = _own(
        verbs, "rollback", "put an earlier published run in force again, the newest that is intact"
    )
    rollback.add_argument(
        "--to", metavar="RUN_ID", help="that run, instead of the one before the run in force"
    )
    rollback.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="say what would be done, and change nothing"
    )
    doctor = _own(
        verbs, "doctor", "say what is the matter with a workspace; with a config, with its data set too"
    )
    doctor.add_argument(
        "--fix",
        action="store_true",
        help="remove what killed commands left behind and put links back that a copy has followed, and nothing else",
    )
    return parser


def _own(verbs: Any, name: str, sentence: str) -> _Parser:
    """A command about a workspace rather than a story."""
    command: _Parser = verbs.add_parser(name, help=sentence, description=sentence, allow_abbrev=False)
    _add_config(command)
    command.add_argument("--workspace", type=Path, help="the workspace, instead of a config that names it")
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of settings; given again, the later file changes what the earlier one says",
    )
    command.add_argument("--quiet", action="store_true", help="log warnings and errors only")


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """What argparse left over: --dotted.key=value, or --dotted.key value."""
    overrides, problems = [], []
    words = iter(rest)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            problems.append(f"command line: {word!r} is not understood; expected --key value")
            continue
        if not equals:
            found = next(words, None)
            if found is None or found.startswith("--"):
                problems.append(f"command line: --{key} needs a value")
                continue
            value = found
        overrides.append((key, value))
    if problems:
        raise ConfigError(problems)
    return overrides


# Saying -------------------------------------------------------------------------------------------------------------


class _Printable(logging.Formatter):
    """Lines that cannot drive the terminal they are read in."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _logging(*, quiet: bool) -> Iterator[None]:
    """Logs and warnings to stderr while a command runs; a program that calls ``main`` keeps its own logging."""
    formatter = _Printable("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root, houses = logging.getLogger(), [logging.getLogger(name) for name in ("recsys_meta", "pipelines")]
    levels = [house.level for house in houses]
    root.addHandler(handler)
    for house in houses:
        house.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for house, level in zip(houses, levels, strict=True):
            house.setLevel(level)
        root.removeHandler(handler)


def _exit_code(error: BaseException) -> int:
    """The code that the error itself carries; ingest's says only that the data cannot be used, and the machine's nothing."""
    ingest = sys.modules.get("recsys_meta.ingest")
    if ingest is not None and isinstance(error, ingest.InputError):
        return 3
    return 74 if _of_the_machine(error) else int(getattr(error, "exit_code", 1))


def _of_the_machine(error: BaseException) -> bool:
    """Whether the machine refused (a full disk, no rights, no memory): the message says all, a traceback nothing more."""
    if isinstance(error, OSError | MemoryError):
        return True
    duckdb = sys.modules.get("duckdb")
    # A checkpoint that the disk refuses is fatal to DuckDB.
    refusals = (
        () if duckdb is None else (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException)
    )
    if isinstance(error, refusals):
        return True
    if "torch" not in sys.modules:
        return False
    from recsys_meta.adaptation.recommend import out_of_memory

    return out_of_memory(error)


def _ended(code: int, reason: str, details: Mapping[str, Any] | None = None) -> int:
    _print_json({"status": STATUSES[code], "exit_code": code, "reason": reason, **(details or {})})
    return code


def _print_json(summary: Mapping[str, Any]) -> None:
    print(json.dumps(_finite(summary), default=str), flush=True)


def _finite(value: Any) -> Any:
    """The same without the numbers that JSON does not know: null in their place."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(content) for key, content in value.items()}
    return [_finite(content) for content in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
