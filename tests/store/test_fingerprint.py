"""Fingerprints are equal exactly when what they name is equal."""

import hashlib
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.store import file_fingerprint, fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(PLAIN, PLAIN)
def test_equal_values_and_only_these_have_equal_fingerprints(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == _same(one, other)


def _same(one: Any, other: Any) -> bool:
    """Equality as JSON sees it: 1, 1.0 and True differ, the order of keys does not count."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other)


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=5))
def test_the_order_of_keys_does_not_count(value: dict[str, int]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


def test_a_fingerprint_is_the_same_in_every_process_and_on_every_day() -> None:
    value = {"path": Path("a/b"), "night": date(2026, 11, 22), "at": datetime(2026, 11, 22, tzinfo=UTC)}
    value |= {"window": timedelta(days=2), "steps": (1, 2.5), "name": "é"}
    assert fingerprint(value) == fingerprint(value | {"steps": [1, 2.5]})
    assert fingerprint({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:16]
    code = "from recsys_meta.store.fingerprint import fingerprint; print(fingerprint({'b': [None, 'é'], 'a': 0.1}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint({"a": 0.1, "b": [None, "é"]})


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {2, 3}}, object(), b"bytes"])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="fingerprint"):
        fingerprint(value)


def test_files_are_known_by_content_and_order_and_not_by_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a").write_bytes(b"a" * 3_000_000)
        (tmp_path / place / "b").write_bytes(b"b")
    here, there = tmp_path / "here", tmp_path / "there"
    assert file_fingerprint([here / "a", here / "b"]) == file_fingerprint([there / "a", there / "b"])
    assert file_fingerprint([here]) == file_fingerprint([there / "a", there / "b"])
    assert file_fingerprint([here / "b", here / "a"]) != file_fingerprint([there / "a", there / "b"])
    (there / "a").write_bytes(b"a" * 2_999_999 + b"b")
    assert file_fingerprint([here]) != file_fingerprint([there])


def test_a_missing_file_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_fingerprint([tmp_path / "absent"])
