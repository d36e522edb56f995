"""Input of hostile origin: every case of the corpus is refused in one clear error, or harmless."""

import ast
from pathlib import Path

import pytest
from abuse_corpus import CASES, Case, Ended, fault, place

from recsys_meta.cli import main


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_nothing_is_executed_escaped_or_shown_as_it_is(case: Case, tmp_path: Path, capsys, monkeypatch):
    folder = place(tmp_path)
    arguments = case.build(folder)
    capsys.readouterr()
    monkeypatch.chdir(folder)
    code = main(arguments)
    captured = capsys.readouterr()
    assert fault(case, folder, Ended(code, captured.out, captured.err)) is None


def test_every_case_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)


def test_no_command_exports_csv(repository):
    """A cell that begins like a formula is one only where a spreadsheet opens it: nothing here writes such a file.

    Whoever adds an export has to neutralise ``= + - @``, tab and carriage return, and to change this test.
    """
    writers = {"write_csv", "sink_csv", "to_csv", "writer", "DictWriter"}
    for package in ("recsys_meta", "pipelines"):
        for file in (repository / package).rglob("*.py"):
            named = {
                node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
            }
            assert not named & writers, file
        for file in (repository / package).rglob("*.sql"):
            assert "FORMAT CSV" not in file.read_text().upper(), file
