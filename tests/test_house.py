"""The house itself: what the wheel holds, what the commands are, and what no file may hold."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest

PACKAGES = ("recsys_meta", "pipelines")


@pytest.fixture(scope="session")
def tracked(repository) -> list[Path]:
    """The files under version control, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (repository / name).is_file()]


@pytest.fixture(scope="session")
def project(repository) -> dict:
    """pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def wheel(repository, tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that the checkout stays as it is."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(repository / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_whole_and_nothing_else(wheel, repository):
    held = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    source = {
        file.relative_to(repository)
        for package in PACKAGES
        for file in (repository / package).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {file for file in held if file.parts[0] in PACKAGES} == source
    assert {file.suffix for file in source} == {".py", ".sql", ".typed", ".c", ".html"}
    assert all(file.parts[0].endswith(".dist-info") for file in held - source)


def test_the_wheel_publishes_a_night_of_the_users_own_files_in_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    folder = tmp_path / "empty"
    folder.mkdir()
    start = datetime(2026, 1, 1)
    lines = ["who,what,stars,at"]
    for user in range(60):
        for step in range(2 + user % 12):
            at = start + timedelta(hours=user + step)
            lines.append(
                f"u{user},{(user + step * step) % 30},{1 + (user * step) % 5},{at:%Y-%m-%dT%H:%M:%SZ}"
            )
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    (folder / "night.yaml").write_text(
        "workspace: out\n"
        "run_date: 2026-01-31\n"
        "interactions: {path: ratings.csv, user_id: who, item_id: what, value: stars, timestamp: at, value_range: [1, 5]}\n"
        "learner: {class_path: recsys_meta.algorithms.maml.MAML, init_args: {dim: 4, num_steps: 1}}\n"
        "training: {max_epochs: 1}\n"
        "cold: {below: 6}\n"
        "top_k: 3\n"
    )
    program = (
        "import sys, pipelines, recsys_meta.cli\n"
        f"assert all(str(m.__file__).startswith({str(site)!r}) for m in (pipelines, recsys_meta.cli))\n"
        "sys.exit(recsys_meta.cli.main(['nightly', '--config', 'night.yaml']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["status"] == "published"
    assert summary["rows_published"] == 3 * summary["users_requested"] > 0
    assert (folder / "out" / "scores.duckdb").exists()


def test_every_command_that_the_documents_name_exists(repository):
    targets = set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    documents = [
        repository / "README.md",
        repository / "CONTRIBUTING.md",
        *(repository / "docs").glob("*.md"),
    ]
    code = re.compile(r"^```.*?^```|`[^`\n]+`|^ {4}[^\n]+", re.MULTILINE | re.DOTALL)
    named = {
        command
        for document in documents
        for piece in code.findall(document.read_text())
        for command in re.findall(r"(?:^ *|`)make ([a-z]+)", piece, re.MULTILINE)
    }
    assert {"night", "test"} <= named <= targets
    assert "make test" in (repository / ".ci" / "run").read_text()
    assert os.access(repository / ".ci" / "run", os.X_OK)


def test_every_verb_that_the_documents_name_exists(repository):
    from recsys_meta.cli import OWN_VERBS, VERBS

    for document in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        named = set(
            re.findall(r"^ *(?:\$ )?(?:\.venv/bin/)?recsys-meta ([a-z]+)", document.read_text(), re.MULTILINE)
        )
        assert named <= {*VERBS, *OWN_VERBS}


def test_every_night_that_the_documents_show_is_a_config(repository, tmp_path):
    from pipelines.construction import check_classes
    from pipelines.loading import load
    from pipelines.settings import NightSettings

    shown = [
        block
        for document in [repository / "README.md", *(repository / "docs").glob("*.md")]
        for block in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        if "workspace:" in block and "interactions:" in block and "protocol:" not in block
    ]
    assert shown
    for number, block in enumerate(shown):
        config = tmp_path / f"{number}.yaml"
        config.write_text(block)
        check_classes(load(NightSettings, [config]))


def test_every_config_that_ships_is_a_config(repository):
    from pipelines.construction import check_classes
    from pipelines.loading import load
    from pipelines.settings import (
        EvaluateSettings,
        ExperimentSettings,
        InterleaveSettings,
        NightSettings,
        NightsSettings,
        OffPolicySettings,
        PowerSettings,
        SimulateSettings,
        SuiteSettings,
        TuneSettings,
    )

    configs = sorted((repository / "configs").glob("*.yaml"))
    assert repository / "configs" / "nightly.yaml" in configs
    for config in configs:
        if config.stem in ("ab_open_bandit", "ab_coat", "ab_simulated_month"):
            logs = load(OffPolicySettings, [config]).settings.logs.path
            assert logs.is_relative_to(repository / "workspace") or "datasets" in logs.parts
            continue
        if config.stem == "ab_interleaving":
            merged = load(InterleaveSettings, [config]).settings
            assert {merged.a.path, merged.b.path} == {repository / "workspace/simulated-month/pools.parquet"}
            continue
        if config.name.startswith("suite"):
            assert {entry.config for entry in load(SuiteSettings, [config]).settings.evaluations} <= set(
                configs
            )
            continue
        if config.name.startswith("simulate"):
            month = load(SimulateSettings, [config]).settings
            assert {month.control.config, month.treatment.config} <= set(configs)
            continue
        if config.name.startswith("tune"):  # so is this
            evaluation = config.with_name(config.name.replace("tune", "evaluate"))
            loaded = load(TuneSettings, [evaluation, config])
            assert evaluation.name in config.read_text()
        elif config.name.startswith("family"):  # given after the evaluation that its name ends on
            sets = "evaluate" if config.stem.endswith("ml100k") else "evaluate-ml1m"
            evaluation = config.with_name(config.name.replace("family", sets))
            loaded = load(EvaluateSettings, [evaluation, config])
            assert evaluation.name in config.read_text()
        else:
            kinds = {
                "evaluate": EvaluateSettings,
                "nightly": NightSettings,
                "nights": NightsSettings,
                "ab_experiment": ExperimentSettings,
                "ab_power": PowerSettings,
            }
            loaded = load(kinds[config.stem.partition("-")[0]], [config])
        check_classes(loaded)
        data = loaded.settings.interactions.path
        assert data.is_relative_to(repository / "data") or "datasets" in data.parts


def test_no_tracked_file_names_a_place_of_one_machine(tracked, repository):
    places = re.compile(
        r"(?<![\w.~*-])/(?:" + "|".join(["work", "farm", "home", "root", "Users", "tmp"]) + r")/\w"
    )
    sources = re.compile("|".join(["index" + "-url", "find" + "-links", "bash" + "_jobs"]))
    for file in tracked:
        if file.suffix in (".parquet", ".png"):
            continue
        for number, line in enumerate((repository / file).read_text().splitlines(), 1):
            assert not places.search(line), f"{file}:{number}: {line}"
            assert not sources.search(line), f"{file}:{number}: {line}"


def test_every_module_begins_with_a_sentence(tracked, repository):
    modules = [file for file in tracked if file.suffix == ".py"]
    assert modules
    for file in modules:
        sentence = ast.get_docstring(ast.parse((repository / file).read_text()))
        assert sentence, f"{file} does not say what it holds"
        assert sentence.split("\n\n")[0].rstrip("*").endswith((".", "?", "::")), f"{file}: {sentence}"


def test_the_tests_are_no_package(tracked):
    assert [file for file in tracked if file.parts[0] == "tests" and file.name == "__init__.py"] == []


def names(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-") for requirement in requirements
    }


def test_what_is_imported_is_what_is_declared(project, repository):
    distributions = {
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "tea_tasting": "tea-tasting",
        "vl_convert": "vl-convert-python",
    }
    imported = set()
    for package in PACKAGES:
        for file in (repository / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - set(PACKAGES)
    # pyarrow is what DuckDB and polars hand tables over with; neither imports it before it is needed.
    declared = names(project["project"]["dependencies"]) | names(
        project["project"]["optional-dependencies"]["tune"]
    )
    assert {distributions.get(name, name) for name in others} | {"pyarrow"} == declared


def test_everything_declared_is_pinned_exactly_and_from_nowhere_in_particular(project, repository):
    text = (repository / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins), (
        "a pin is name==version"
    )
    assert "torch==2.13.0" in pins
    declared = project["build-system"]["requires"] + project["project"]["dependencies"]
    for extra in project["project"]["optional-dependencies"].values():
        declared += extra
    assert names(declared) <= names(pins)
    assert len(names(pins)) == len(pins)
