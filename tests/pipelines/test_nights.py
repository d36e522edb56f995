"""Nights in a row under three regimes, on a small world whose fashion changes from day to day."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipelines.loading import load
from pipelines.nights import REGIMES, days_of, nights
from pipelines.outcomes import ConfigError
from pipelines.settings import NightsSettings
from recsys_meta.reports.nights import nights_picture, nights_table, totals_table

CONFIG = """
workspace: workspace
first: 2026-03-03
last: 2026-03-05
interactions: {path: clicks.parquet, timestamp: at}
cold: {below: 4}
candidates: {seen_within: 2d}
item_windows: [24h]
learner: {class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: softmax, dim: 4, num_steps: 2}}
training:
  {max_epochs: 2, warm_epochs: 1, batch_size: 16, validation_share: 0.2, split: moment,
  moments: {every: 1d, over: 4d, horizon: 1d}  # back to when those who are warm by now were new
  }
bootstrap_draws: 50
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rows = []
    for day in range(6):
        for user in range(60):
            for turn in range(1 + (user % 3 == 0)):
                at = datetime(2026, 3, 1 + day, 1 + (user + turn) % 22, tzinfo=UTC)
                rows.append((user, 2 * day + (user * 7 + turn * 3) % 9, at))
    pl.DataFrame(rows, schema=["user_id", "item_id", "at"], orient="row").write_parquet(
        tmp_path / "clicks.parquet"
    )
    (tmp_path / "nights.yaml").write_text(CONFIG)
    return tmp_path


def test_every_night_is_judged_on_its_next_day_under_every_regime(world: Path, capsys) -> None:
    loaded = load(NightsSettings, [world / "nights.yaml"], [("cold.below", "6")])
    found = nights(loaded.settings, loaded.fingerprint)
    (folder,) = (world / "workspace" / "nights").iterdir()
    rows = pl.read_parquet(folder / "nights.parquet")
    assert rows.height == 9
    assert rows["ndcg"].is_between(0.0, 1.0).all()
    first = rows.filter(night=date(2026, 3, 3))
    assert first["ndcg"].n_unique() == 1  # one model serves them all
    never = rows.filter(regime="never").sort("night")
    assert never["train_seconds"].to_list()[1:] == [0, 0]
    assert never["promoted"].to_list() == [True, None, None]
    warm, scratch = (
        rows.filter(regime=name).sort("night")["epochs"].to_list() for name in ("warm", "scratch")
    )
    assert warm[1:] == [1, 1]
    assert scratch[1:] == [2, 2]
    assert [total["regime"] for total in found["regimes"]] == list(REGIMES)
    assert found["nights"] == 3
    again = nights(
        loaded.settings, loaded.fingerprint
    )  # nothing is trained twice, and what it cost is remembered
    for one, other in zip(found["regimes"], again["regimes"], strict=True):
        assert one | {"gate_seconds": 0} == other | {"gate_seconds": 0}
    assert json.loads((folder / "result.json").read_text())["nights"] == 3
    assert (folder / "nights.svg").read_text().startswith("<svg")
    assert "| 2026-03-05 |" in capsys.readouterr().out


def test_nights_stand_in_order(world: Path) -> None:
    with pytest.raises(ConfigError, match="two nights at least"):
        load(NightsSettings, [world / "nights.yaml"], [("last", "2026-03-03")])
    loaded = load(NightsSettings, [world / "nights.yaml"])
    assert list(days_of(loaded.settings)) == [date(2026, 3, 3) + timedelta(days=n) for n in range(3)]


def test_tables_and_picture_say_what_was_kept_and_what_it_cost() -> None:
    rows = pl.DataFrame(
        [
            {
                "night": date(2026, 3, day),
                "regime": name,
                "ndcg": 0.1 * day,
                "cpu_seconds": 5.0,
                "promoted": kept,
                "users": 7,
            }
            for day, kept in ((1, True), (2, False))
            for name in ("warm", "never")
        ]
    )
    assert "| 2026-03-02 | 7 | 0.2000* | 0.2000* | 5 | 5 |" in nights_table(rows, ("warm", "never"))
    assert "difference to never" in nights_picture(rows, ("warm", "never"), "never")
    total = {
        "regime": "warm",
        "ndcg": 0.2,
        "low": 0.1,
        "high": 0.3,
        "ndcg_over_nights": 0.25,
        "train_seconds": 9.0,
    }
    total |= {"cpu_seconds": 8.0, "gate_seconds": 1.0, "kept": 1}
    for by in ("users", "nights"):
        total |= {f"difference_by_{by}": 0.01, f"low_by_{by}": -0.01, f"high_by_{by}": 0.03}
    assert "+0.0100 (-0.0100 to +0.0300)" in totals_table([total])
    alone = total | dict.fromkeys(("low", "high", "low_by_nights", "high_by_nights"))
    assert "| 0.2000 (no interval) |" in totals_table([alone])
    assert "+0.0100 (no interval)" in totals_table([alone])
