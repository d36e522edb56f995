"""Interleaving: two rankings in, one list for each user out; then outcomes in, and which of the two users prefer out."""

import json
import logging
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipelines.inputs import keep_quarantine, set_aside, source_of, union
from pipelines.outcomes import NothingToDo
from pipelines.printable import printable
from pipelines.settings import InterleavedSettings, InterleaveSettings, RankingSettings
from recsys_meta import __version__, ingest, store
from recsys_meta.ab.experiments.preference import (
    Credited,
    Draws,
    Judged,
    Preference,
    Rules,
    credited,
    draws,
    judged,
    looks,
    preferences,
    preferred,
)
from recsys_meta.ab.interleaving import interleaved
from recsys_meta.episodes import user_keys
from recsys_meta.reports.interleaving import Told, interleaving_markdown, interleaving_page, merged_markdown
from recsys_meta.store.atomic import replace_file_atomically, write_bytes_atomically
from recsys_meta.store.experiments import EXPERIMENTS_FILE, write_experiment
from recsys_meta.store.table_files import write_tables
from recsys_meta.tables import INSTANT, INTERLEAVED, ITEM_ID, TEAMS, USER_ID, in_width

log = logging.getLogger(__name__)

Summary = dict[str, Any]

LISTS = "interleaved"  # the folder with one folder for each day, their DuckDB files, and the table in them


class Found(NamedTuple):
    """Everything that an analysis has."""

    lists: pl.DataFrame  # tables.INTERLEAVED
    done: Credited
    users: pl.DataFrame  # of preference.preferences
    preference: Preference
    looks: pl.DataFrame
    drawn: Draws
    rules: Rules
    judged: Judged
    last: datetime  # row on an item of a list in force; without any, the day of the last list
    quarantine: pl.DataFrame


def interleave(settings: InterleaveSettings, fingerprint: str) -> Summary:
    """Without outcomes: merges, writes and says what was merged. With them: reads, judges, writes; gives the verdict."""
    workspace = store.Workspace(settings.workspace)
    if settings.outcomes is None:
        with workspace.lock(f"interleave-{fingerprint[:8]}"):
            return merge(settings)
    found = analysed(settings)
    with workspace.lock(f"interleaving-{fingerprint[:8]}"):
        return write(settings, fingerprint, found)


# Merging ------------------------------------------------------------------------------------------------------------


def merge(settings: InterleaveSettings) -> Summary:
    """The lists of one day, in the place of those of that day. For the holder of the workspace's lock."""
    assert settings.a is not None
    assert settings.b is not None
    first, second = (ranking_of(given, settings) for given in (settings.a, settings.b))
    tables = [first.table, alike(second.table, first.table, settings.b.path, settings.a.path)]
    for table, given in zip(tables, (settings.a, settings.b), strict=True):
        if table.is_empty():
            raise NothingToDo(f"{given.path}: there is no ranking of any user")
    users = union(*(table[USER_ID] for table in tables))
    day = settings.day or datetime.now(UTC).date()
    rows = interleaved(
        tables[0],
        tables[1],
        users,
        user_keys(users),
        size=settings.positions,
        day=day.toordinal(),
        seed=settings.seed,
        method=settings.method,
        credit_shared=settings.credit_shared,
    ).select(pl.lit(day).alias("day"), pl.all())
    quarantine = pl.concat([first.quarantine, second.quarantine])
    folder = settings.workspace / LISTS / f"{day}"
    write_tables(
        folder, f"{LISTS}.duckdb", {LISTS: rows.select(INTERLEAVED.keys()), "quarantine": quarantine}
    )
    summary = merged_summary(settings, day, tables, rows, quarantine)
    print(printable(merged_markdown(settings.name, summary)))
    print(f"{folder / f'{LISTS}.parquet'}\n")
    return summary


def ranking_of(given: RankingSettings, settings: InterleaveSettings) -> ingest.Checked:
    """One of the rankings."""
    checked = ingest.read_ranking(
        source_of(given),
        user_id=given.user_id,
        item_id=given.item_id,
        score=None if given.rank is not None else given.score or "score",
        rank=given.rank,
        max_quarantined_share=settings.max_quarantined_share,
    )
    log.info("%s: %s", given.path, checked.counts)
    return checked


def merged_summary(
    settings: InterleaveSettings,
    day: date,
    tables: list[pl.DataFrame],
    rows: pl.DataFrame,
    quarantine: pl.DataFrame,
) -> Summary:
    """What the last line says of lists that were merged."""
    ids = [table[USER_ID].unique() for table in tables]
    both = int(ids[0].is_in(ids[1].implode()).sum())
    teams = dict(rows["team"].value_counts().iter_rows())
    top = rows.filter(pl.col("position") == 1)["team"].null_count()
    return {
        "day": day,
        "method": settings.method,
        "positions": settings.positions,
        "users": rows[USER_ID].n_unique(),
        "users_of_a_alone": len(ids[0]) - both,
        "users_of_b_alone": len(ids[1]) - both,
        "rows": rows.height,
        "rows_a": teams.get(TEAMS[0], 0),
        "rows_b": teams.get(TEAMS[1], 0),
        "rows_of_neither": teams.get(None, 0),
        "first_items_of_neither": top,
        "rows_quarantined": quarantine.height,
    }


# Analysing ----------------------------------------------------------------------------------------------------------


def analysed(settings: InterleaveSettings) -> Found:
    """Reads and checks lists and outcomes, credits, and judges.

    Raises ingest.InputError on what cannot be used, and NothingToDo where nobody was shown anything, or did anything.
    """
    lists, outcomes, quarantine = read(settings)
    until = None
    if settings.planned_end is not None:
        end = settings.planned_end
        until = datetime(end.year, end.month, end.day, tzinfo=UTC) + timedelta(days=1)
        lists = lists.filter(pl.col("day") <= end)
    if lists.is_empty():
        raise NothingToDo("nobody was shown a merged list" + (f" before {until}" if until else ""))
    if outcomes.is_empty():
        raise NothingToDo(f"there are no outcomes {settings.outcome!r}")
    done = credited(lists, outcomes, until=until)
    log.info("%s outcomes on lists, %s on other items", done.outcomes, done.not_listed)
    reached = (
        settings.planned_end is not None
        and done.last is not None
        and done.last.date() >= settings.planned_end
    )
    rules = Rules(
        "once" if reached else "always",
        settings.level,
        settings.power,
        settings.min_users,
        settings.planned_days,
        settings.draws_alpha,
    )
    users, drawn = preferences(done.rows), draws(lists)
    found = preferred(users, rules.level)
    seen = looks(
        done.rows, level=rules.level, planned_days=rules.planned_days, first_look_users=rules.min_users
    )
    listed = lists["day"].max()
    assert isinstance(listed, date)
    last = done.last or datetime(listed.year, listed.month, listed.day, tzinfo=UTC)
    verdict = judged(found, seen, drawn, rules)
    return Found(lists, done, users, found, seen, drawn, rules, verdict, last, quarantine)


def read(settings: InterleaveSettings) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Lists, outcomes with ids of the same types, and what was set aside."""
    shown, done, share = settings.interleaved, settings.outcomes, settings.max_quarantined_share
    assert done is not None
    if shown is None:
        everything = settings.workspace / LISTS / "*" / f"{LISTS}.parquet"
        shown = InterleavedSettings(path=everything)
    lists = ingest.read_interleaved(
        source_of(shown),
        day=shown.day,
        user_id=shown.user_id,
        item_id=shown.item_id,
        position=shown.position,
        team=shown.team,
        max_quarantined_share=share,
    )
    log.info("%s: %s", shown.path, lists.counts)
    outcomes = ingest.read_outcomes(
        source_of(done),
        metrics={settings.outcome},
        called=done.called,
        user_id=done.user_id,
        metric=done.metric,
        value=done.value,
        occurred_at=done.occurred_at,
        item_id=done.item_id,
        time_unit=done.time_unit,
        max_quarantined_share=share,
    )
    log.info("%s: %s", done.path, outcomes.counts)
    table = alike(outcomes.table, lists.table, done.path, shown.path)
    return lists.table, table, pl.concat([lists.quarantine, outcomes.quarantine])


def alike(table: pl.DataFrame, like: pl.DataFrame, path: Path, of: Path) -> pl.DataFrame:
    """The table with its ids in the types of another. Raises InputError as ``in_width`` does, with the path."""
    try:
        return table.with_columns(
            in_width(table[name], like.schema[name], str(of)) for name in (USER_ID, ITEM_ID)
        )
    except ValueError as error:
        raise ingest.InputError(f"{path}: {error}") from error


def write(settings: InterleaveSettings, fingerprint: str, found: Found) -> Summary:
    """Writes files and rows, prints the Markdown; gives the summary. For the holder of the workspace's lock."""
    folder = settings.workspace / "interleaving" / fingerprint[:8]
    folder.mkdir(parents=True, exist_ok=True)
    told = Told(
        settings.name, facts_of(settings, found), found.preference, found.looks, found.judged, found.rules
    )
    text, summary = interleaving_markdown(told), summary_of(settings, found)
    for name, table in (("users", found.users), ("looks", found.looks)):
        with replace_file_atomically(folder / f"{name}.parquet") as temporary:
            table.write_parquet(temporary)
    keep_quarantine(folder, found.quarantine)
    write_bytes_atomically(folder / "tables.md", text.encode())
    write_bytes_atomically(folder / "report.html", interleaving_page(told).encode())
    write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1, default=str).encode())
    write_experiment(
        settings.workspace / EXPERIMENTS_FILE,
        fingerprint[:8],
        {"interleavings": record_of(settings, found), "interleaving_looks": found.looks},
    )
    print(printable(text))
    print(f"{folder / 'report.html'}\n")
    return summary


def facts_of(settings: InterleaveSettings, found: Found) -> dict[str, str]:
    """What stands under the title of the page."""
    done, lists = found.done, found.lists
    end = f" (planned end: {settings.planned_end})" if settings.planned_end is not None else ""
    once = "once, at the planned end"
    return {
        "A": told_source(settings.a),
        "B": told_source(settings.b),
        "lists": f"{lists.select(USER_ID, 'day').n_unique():,} of {lists[USER_ID].n_unique():,} users",
        "days": f"{lists['day'].min()!s} to {found.last:%Y-%m-%d}{end}",
        "read": once if found.rules.reading == "once" else "on any day: the always-valid interval decides",
        "credited": f"{settings.outcome}: {done.outcomes - done.uncredited:,} rows;"
        f" {done.uncredited:,} on items of neither team",
        "not counted": f"{done.not_listed:,} rows of {done.users_not_listed:,} users on items that their lists did not have,"
        f" {done.too_early:,} before the first list of their user, {done.too_late:,} after the end, {done.of_others:,} of users"
        " without a list",
        "set aside": set_aside(found.quarantine),
        "who picked first": f"A in {found.drawn.first_a:,} lists, B in {found.drawn.first_b:,}; of a fair coin:"
        f" p = {found.drawn.p_value:.2g}",
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def told_source(given: RankingSettings | None) -> str:
    """Where a ranking came from, where the config says it."""
    if given is None:
        return "not said"
    return given.path.name + (f", {given.where}" if given.where else "")


def record_of(settings: InterleaveSettings, found: Found) -> pl.DataFrame:
    """The row of the table ``interleavings``."""
    numbers = found.preference._asdict()
    drawn = found.drawn._asdict()
    verdict = found.judged
    row = {
        "name": settings.name,
        "outcome": settings.outcome,
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "reading": found.rules.reading,
        "first_list": found.lists["day"].min(),
        "lists": found.lists.select(USER_ID, "day").n_unique(),
        "users_with_lists": found.lists[USER_ID].n_unique(),
        **numbers,
        "deciding_low": verdict.low,
        "deciding_high": verdict.high,
        "deciding_p_value": verdict.p_value,
        "minimum_detectable": verdict.minimum_detectable,
        "first_a": drawn["first_a"],
        "first_b": drawn["first_b"],
        "draws_p_value": drawn["p_value"],
        **{name: count for name, count in found.done._asdict().items() if name not in ("rows", "last")},
        "version": __version__,
    }
    return pl.DataFrame([row]).with_columns(
        pl.col(pl.Float64).fill_nan(None),
        last_row=pl.lit(found.last, INSTANT),
        finished_at=pl.lit(datetime.now(UTC), INSTANT),
    )


def summary_of(settings: InterleaveSettings, found: Found) -> Summary:
    """What the last line says."""
    return {
        "name": settings.name,
        "verdict": found.judged.verdict,
        "reasons": found.judged.reasons,
        "reading": found.rules.reading,
        "preference": found.preference._asdict(),
        "deciding": {
            name: value
            for name, value in found.judged._asdict().items()
            if name not in ("verdict", "reasons")
        },
        "draws": found.drawn._asdict(),
        "rows": {name: count for name, count in found.done._asdict().items() if name not in ("rows", "last")},
        "rows_quarantined": found.quarantine.height,
    }
