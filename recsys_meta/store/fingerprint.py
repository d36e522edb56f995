"""Fingerprints: short names for a setting or for the content of files, equal exactly when these are equal."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path, PurePath

# 64 bits: among the runs of a century two equal ones have odds below 1e-10, and a run_id stays readable.
DIGITS = 16


def fingerprint(value: object) -> str:
    """The first ``DIGITS`` hex digits of the sha256 of ``value`` as canonical JSON.

    Takes None, booleans, numbers, strings, paths, dates, time spans, and lists, tuples and mappings of these;
    the order of a mapping does not count, its keys are strings. Raises TypeError for anything else.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:DIGITS]


def file_fingerprint(paths: Iterable[Path]) -> str:
    """One fingerprint of the sizes and contents of these files, in this order.

    A folder stands for all files in it, sorted by name. Where the files lie does not count. Read as a stream.
    Raises OSError where one cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint([[file.stat().st_size, sha256_of(file)] for file in files])


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: object) -> object:
    """The same value in what JSON knows."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            if odd := [key for key in value if not isinstance(key, str)]:
                raise TypeError(f"a fingerprint needs string keys, found {odd[0]!r}")
            return {key: _plain(content) for key, content in value.items()}
        case list() | tuple():
            return [_plain(content) for content in value]
        case PurePath():
            return value.as_posix()
        case date():  # datetime too
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
    raise TypeError(f"a fingerprint knows no {type(value).__name__}: {value!r}")
