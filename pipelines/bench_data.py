"""How fast data goes in and out: rows per second of wall time, files and disk included, on synthetic interactions."""

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import polars as pl
import torch
from torch import Tensor

from recsys_meta import store
from recsys_meta.episodes import collate, group
from recsys_meta.ingest import Source, read_interactions
from recsys_meta.tables import ADAPTED, INSTANT, ITEM_ID, QUARANTINE, USER_ID
from recsys_meta.tensors import Histories

EACH = 20  # interactions of a user, in the mean
LISTED = 10  # items of a published list
PARTS = 50  # as many as a night of a million users has
COLLATED = (32, 256)  # users of a batch

R = TypeVar("R")


def rates_of_data(rows: int) -> None:
    """Prints a line for each way from a file of so many rows to batches, and from lists to a published file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interactions.parquet"
        write_interactions(path, rows)
        table = timed(
            f"{rows:,} rows of Parquet to a checked table",
            rows,
            lambda: read_interactions(Source(path), value="rating", timestamp="timestamp").table,
        )
        histories = timed(
            "a checked table to offsets",
            table.height,
            lambda: group(table, table[USER_ID].unique().sort(), table[ITEM_ID].unique().sort()),
        )
        users = len(histories.lengths)
        order = torch.randperm(users, generator=torch.Generator().manual_seed(0))
        for size in COLLATED:
            work = partial(collated, histories, order, size)
            timed(f"collated, {size} users a batch", users, work, unit="users")
        write_and_publish(store.Workspace(Path(folder) / "workspace"), rows)


def timed(what: str, count: int, work: Callable[[], R], *, unit: str = "rows") -> R:
    """What the work gives; prints its rate."""
    began = time.monotonic()
    result = work()
    seconds = time.monotonic() - began
    print(f"{what:<50}{count / seconds:,.0f} {unit}/s ({seconds:.2f} s)")
    return result


def write_interactions(path: Path, rows: int) -> None:
    """Ratings in no order, of users and items known by integers."""
    chance = torch.Generator().manual_seed(0)
    columns = {
        USER_ID: torch.randint(max(rows // EACH, 1), (rows,), generator=chance),
        ITEM_ID: (torch.rand(rows, generator=chance).square() * 50_000).long(),
        "rating": torch.randint(1, 6, (rows,), generator=chance).float(),
        "timestamp": 1_700_000_000 + torch.randint(80_000_000, (rows,), generator=chance),
    }
    pl.DataFrame({name: column.numpy() for name, column in columns.items()}).write_parquet(path)


def collated(histories: Histories, order: Tensor, size: int) -> None:
    """Every user once, in batches."""
    for start in range(0, len(order), size):
        collate(histories, order[start : start + size])


def write_and_publish(workspace: store.Workspace, rows: int) -> None:
    """Lists into parts, and the parts into a checked DuckDB file."""
    run, made_at = workspace.run("bench"), datetime(2026, 11, 24, tzinfo=UTC)
    users = max(rows // LISTED, PARTS)
    size = users // PARTS
    with workspace.lock(run.run_id):
        run.begin("bench")
        frames = [
            (lists(range(number * size, (number + 1) * size), made_at), statuses(number * size, size))
            for number in range(PARTS)
        ]

        def write() -> None:
            for number, (scores, status) in enumerate(frames):
                run.write_part("scores", number, scores)
                run.write_part("user_status", number, status)
                run.finish_shard(number, {})

        timed(f"rows of scores into {PARTS} parts, durably", PARTS * size * LISTED, write)
        record = store.RunRecord(
            run_id=run.run_id,
            run_date=made_at.date(),
            status="published",
            started_at=made_at,
            finished_at=made_at,
            model_version="bench",
            model_fingerprint="",
            config_fingerprint="",
            data_fingerprint="",
            seed=0,
            versions={},
            counts={},
            metrics={},
            seconds={},
            gates=[],
            policy=store.DETERMINISTIC,
            expires_at=None,
        )
        timed(
            "parts into a checked DuckDB file",
            PARTS * size * LISTED,
            lambda: store.publish(
                workspace,
                run,
                run_record=record,
                quarantine=pl.DataFrame(schema=dict(QUARANTINE)),
                requested=pl.int_range(PARTS * size, eager=True),
                top_k=LISTED,
            ),
        )


def lists(users: range, made_at: datetime) -> pl.DataFrame:
    """The rows of ``scores`` of these users."""
    rank = pl.int_range(1, LISTED + 1, dtype=pl.Int32)
    return (
        pl.DataFrame({USER_ID: pl.int_range(users.start, users.stop, eager=True)})
        .with_columns(rank.implode().alias("rank"))
        .explode("rank")
        .with_columns(
            ((pl.col(USER_ID) * 7919 + pl.col("rank") * 31) % 50_000).alias(ITEM_ID),
            (1 / (pl.col("rank") + pl.col(USER_ID) % 97 / 97)).cast(pl.Float32).alias("score"),
            run_id=pl.lit("bench"),
            propensity=pl.lit(1.0),
            source=pl.lit(ADAPTED),
            n_support=pl.lit(EACH, pl.Int32),
            model_version=pl.lit("bench"),
            generated_at=pl.lit(made_at, INSTANT),
        )
    )


def statuses(first: int, count: int) -> pl.DataFrame:
    """The rows of ``user_status`` of so many users."""
    return pl.DataFrame({USER_ID: pl.int_range(first, first + count, eager=True)}).with_columns(
        source=pl.lit(ADAPTED),
        n_support=pl.lit(EACH, pl.Int32),
        support_loss_before=pl.lit(1.0, pl.Float32),
        support_loss_after=pl.lit(0.5, pl.Float32),
        reason=pl.lit(None, pl.String),
    )
