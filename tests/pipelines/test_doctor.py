"""The doctor: what it says of a data set and of a model on it, how it ends, and that it changes nothing."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from recsys_meta.cli import main

MAML = "{class_path: recsys_meta.algorithms.maml.MAML, init_args: {dim: 4, num_steps: 1}}"
POPULARITY = "recsys_meta.baselines.popularity.Popularity"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Forty users, of whom ten are cold, thirty-five items, and a config that publishes in a second."""
    rows = [
        (
            f"u{user}",
            (user * 3 + step * step) % 35,
            1 + (user * step) % 5,
            START + timedelta(hours=5 * step + user),
        )
        for user in range(40)
        for step in range(3 if user < 10 else 12)
    ]
    clicks = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "at"], orient="row")
    clicks.unique(["user_id", "item_id"], maintain_order=True).write_parquet(tmp_path / "clicks.parquet")
    items = pl.DataFrame({"item_id": range(35)}).with_columns(
        weight=(pl.col("item_id") * 7 % 11).cast(pl.Float32)
    )
    items.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "night.yaml").write_text(
        "workspace: workspace\nrun_date: 2026-02-01\n"
        "interactions: {path: clicks.parquet, value: rating, timestamp: at}\n"
        "items: {path: items.parquet, id: item_id, numbers: [weight]}\n"
        f"cold: {{below: 6}}\ntop_k: 3\nlearner: {MAML}\ntraining: {{max_epochs: 1, validation_share: 0.5}}\n"
    )
    return tmp_path


def command(world: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, list[str]]:
    """Exit code, the last line, and the list that is read."""
    capsys.readouterr()
    code = main([*arguments[:1], "--config", str(world / "night.yaml"), *arguments[1:]])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, json.loads(captured.out.splitlines()[-1]), captured.out.splitlines()[:-1]


def said(report: dict, *levels: str) -> list[str]:
    return [f"{one['check']}: {one['said']}" for one in report["findings"] if one["level"] in levels]


def test_a_night_that_went_well_is_healthy(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(world, capsys, "nightly")[0] == 0
    code, report, lines = command(world, capsys, "doctor")
    assert (code, report["status"], report["errors"], report["warnings"]) == (0, "healthy", 0, 0), said(
        report, "warning", "error"
    )
    assert any(line.startswith("ok       pointer") for line in lines)
    assert "leakage: no feature gives away what is to be predicted" in said(report, "ok")
    assert any("no item on both sides, query after support" in line for line in said(report, "ok"))
    assert any(
        "30 users get scores of their own" in line or "users get scores of their own" in line
        for line in said(report, "ok")
    )


def test_a_feature_made_of_the_labels_and_a_split_that_looks_ahead_are_said(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "workspace").mkdir()
    clicks = pl.read_parquet(world / "clicks.parquet")
    means = clicks.group_by("item_id").agg(weight=pl.col("rating").mean())
    means.write_parquet(world / "items.parquet")
    code, report, lines = command(world, capsys, "doctor", "--training.split", "random")
    assert code == report["exit_code"] == 3
    (leak,) = [line for line in said(report, "error") if "leakage" in line]
    assert "items: weight explains 100.0% of the mean of its values over 35 items" in leak
    assert any("lie before a support event of their own task" in line for line in said(report, "warning"))
    assert any("-> it looks computed from the very events" in line for line in lines)


def test_a_learner_that_adapts_to_nobody_is_said(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(world, capsys, "nightly", "--learner", POPULARITY)[0] == 0
    code, report, _ = command(world, capsys, "doctor")
    assert code == 0
    warnings = said(report, "warning")
    assert any(line.startswith("fake scores") and "users get the same score" in line for line in warnings)
    assert any(
        line.startswith("scores: each of") and "one score, whomever it is shown to" in line
        for line in warnings
    )


def test_rows_that_were_set_aside_collapsed_or_guessed_are_said(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "workspace").mkdir()
    clicks = pl.read_parquet(world / "clicks.parquet").with_columns(pl.col("at").dt.replace_time_zone(None))
    nan = clicks.head(1).with_columns(item_id=pl.lit(34, pl.Int64), rating=pl.lit(None, pl.Int64))
    again = clicks.head(2)
    other = clicks.slice(2, 1).with_columns(pl.col("rating") + 1)
    pl.concat([clicks, nan, again, other]).write_parquet(world / "clicks.parquet")
    _, report, _ = command(world, capsys, "doctor")
    warnings = "\n".join(said(report, "warning"))
    assert "1 faults go to quarantine, the first in" in warnings
    assert "rating is missing" in warnings
    assert "2 rows stand there twice and are collapsed" in warnings
    assert "1 rows share user and item with others; the rule is newest" in warnings
    assert "times have no zone and are read as UTC" in warnings


def test_data_that_cannot_be_read_are_one_error(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "workspace").mkdir()
    (world / "clicks.parquet").write_bytes(b"PAR1 and then nothing")
    code, report, _ = command(world, capsys, "doctor")
    assert code == 3
    assert ["not a readable Parquet file" in line for line in said(report, "error")] == [True]


def test_a_damaged_bundle_is_said_and_leftovers_go_only_when_asked(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(world, capsys, "nightly")[0] == 0
    (bundle,) = (world / "workspace" / "models").glob("*/bundle")
    weights = (bundle / "weights.safetensors").read_bytes()
    (bundle / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    left = [world / "workspace" / ".tmp-1", bundle.parent / ".tmp-2"]
    for path in left:
        path.mkdir()
    code, report, _ = command(world, capsys, "doctor")
    assert code == 3
    assert any("weights.safetensors is not what was written" in line for line in said(report, "error"))
    assert any("2 temporary files" in line for line in said(report, "warning"))
    assert all(path.exists() for path in left)
    _, report, _ = command(world, capsys, "doctor", "--fix")
    assert "fix: removed 2 temporary files" in said(report, "ok")
    assert not any(path.exists() for path in left)
    assert bundle.exists()


def test_a_workspace_alone_will_do(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "workspace").mkdir()
    assert main(["doctor", "--workspace", str(world / "workspace")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "healthy"
    assert list((world / "workspace").iterdir()) == []
    assert main(["doctor", "--workspace", str(world / "nowhere")]) == 2
