"""What the documents say about the code holds: links resolve, lines define what is named, settings are those there are."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.loading import described
from pipelines.settings import EvaluateSettings, NightSettings

LONGEST = 150  # lines of a page that is read from top to bottom


@pytest.fixture(scope="session")
def generate(repository) -> SimpleNamespace:
    """docs/generate.py, which writes what follows from the code."""
    return SimpleNamespace(**runpy.run_path(str(repository / "docs" / "generate.py")))


@pytest.fixture(scope="session")
def documents(generate, repository) -> dict[Path, str]:
    """The documents and their texts, without blocks of code."""
    found = {file: file.read_text() for file in generate.documents()}
    assert {"architecture.md", "configuration.md", "own-data.md", "evaluation.md", "algorithms.md"} <= {
        file.name for file in found
    }
    return {file: re.sub(r"```.*?```", "", text, flags=re.DOTALL) for file, text in found.items()}


def headings(text: str) -> set[str]:
    """The anchors of a Markdown text, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_relative_link_resolves(generate, documents):
    checked = 0
    for file, text in documents.items():
        for link in generate.LINK.finditer(text):
            path, anchor = link["path"], link["anchor"]
            if path.startswith(("http://", "https://", "mailto:")):
                continue
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), f"{file.name}: {link[0]}"
            if anchor and target.suffix == ".md":
                assert anchor in headings(target.read_text()), f"{file.name}: {link[0]}"
            checked += 1
    assert checked > 50


def test_every_line_that_a_link_names_defines_what_the_link_says(generate, documents):
    linked = 0
    for file, text in documents.items():
        for found, right in zip(
            generate.LINK.finditer(text),
            generate.LINK.finditer(generate.with_lines(file, text)),
            strict=True,
        ):
            assert found[0] == right[0], f"{file.name}: {found[0]} is out of date; `make docs` rewrites it"
            linked += bool(re.fullmatch(r"L\d+", found["anchor"] or ""))
    assert linked > 20


def test_a_line_is_found_by_its_name_alone(generate, tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "ONE = 1\nTWO: int = 2\n\n\nclass Three:\n    def four(self):\n        pass\n\n\ndef four():\n    pass\n"
    )
    lines = {name: generate.line_of(file, name) for name in ("ONE", "TWO", "Three", "Three.four", "four")}
    assert lines == {"ONE": 1, "TWO": 2, "Three": 5, "Three.four": 6, "four": 10}
    with pytest.raises(LookupError, match="defines no five"):
        generate.line_of(file, "five")
    page = tmp_path / "page.md"
    assert (
        generate.with_lines(page, "[`four`](some.py#L1), [five](some.py)")
        == "[`four`](some.py#L10), [five](some.py)"
    )


def test_the_page_of_settings_is_what_the_settings_say(generate, repository):
    page = (repository / "docs" / "configuration.md").read_text()
    _, marker, tables = page.partition(generate.MARKER)
    assert marker
    assert tables == "\n" + generate.configuration_tables(), (
        "docs/configuration.md is out of date; `make docs` rewrites it"
    )


@pytest.mark.parametrize("story", [NightSettings, EvaluateSettings])
def test_every_setting_stands_on_the_page(story, repository):
    page = (repository / "docs" / "configuration.md").read_text()
    for key, description in described(story):
        assert f"| `{key.rpartition('.')[2]}` |" in page
        assert description.rpartition(" [")[0].replace("|", "\\|") in page


def test_every_exit_code_stands_on_the_page(repository):
    from recsys_meta.cli import STATUSES

    page = (repository / "docs" / "configuration.md").read_text()
    for code, status in STATUSES.items():
        assert f"| {code} | `{status}` |" in page


def test_pages_stay_short(generate):
    for file in generate.documents():
        if file.parent.name == "docs" and file.name != "configuration.md":
            assert len(file.read_text().splitlines()) <= LONGEST, file.name


def test_the_picture_is_legible_in_light_and_dark(repository):
    picture = (repository / "docs" / "architecture.svg").read_text()
    assert "prefers-color-scheme: dark" in picture
    assert set(re.findall(r'class="(\w+)"', picture)) <= set(re.findall(r"\.(\w+)[ ,]", picture))
    assert "<title" in picture
