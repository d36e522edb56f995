"""An experiment: exposures and outcomes in, one verdict on every treatment out, with its reasons."""

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import polars as pl

from pipelines.inputs import interactions_of, keep_quarantine, set_aside, source_of, told_aside
from pipelines.outcomes import NothingToDo
from pipelines.printable import printable
from pipelines.settings import ExperimentSettings, MetricSettings, OutcomeSettings
from recsys_meta import __version__, ingest, store
from recsys_meta.ab.experiments.analysis import EVERYBODY, Analysis, Reading, Rules, analyse
from recsys_meta.ab.experiments.measuring import Daily, before, daily, steps, totals
from recsys_meta.ab.experiments.metrics import EXPOSURES, Metric
from recsys_meta.ab.experiments.population import Population, population
from recsys_meta.ab.experiments.reassignment import FalseAlarms, false_alarms, rows_of
from recsys_meta.reports.experiment import (
    Told,
    aa_markdown,
    deciding_interval,
    experiment_markdown,
    experiment_page,
)
from recsys_meta.store.atomic import write_bytes_atomically
from recsys_meta.store.experiments import EXPERIMENTS_FILE, write_experiment
from recsys_meta.tables import INSTANT, USER_ID, in_width

log = logging.getLogger(__name__)

Summary = dict[str, Any]


class Tables(NamedTuple):
    """What was read and kept, with ids of one type, and what was set aside."""

    exposures: pl.DataFrame
    outcomes: pl.DataFrame
    interactions: pl.DataFrame | None  # for covariates
    users: pl.DataFrame | None  # USER_ID and the segments
    quarantine: pl.DataFrame


class Measured(NamedTuple):
    """Who took part, and what every user did on every day."""

    people: Population
    rows: Daily
    metrics: tuple[Metric, ...]
    moves: dict[str, pl.DataFrame]  # of each metric, what measuring.steps gives
    shares: dict[str, float]
    segments: pl.DataFrame | None
    first: datetime  # exposure
    last: datetime  # row that tells how far the data reach: of measuring.Daily
    reading: Reading
    quarantine: pl.DataFrame


def experiment(settings: ExperimentSettings, fingerprint: str) -> Summary:
    """Reads, measures, compares, writes and prints; gives the verdicts. With aa: what random splits say of the analysis."""
    measured = measure(settings)
    if settings.aa:
        return check(settings, fingerprint, measured)
    rules = rules_of(settings, measured.reading)
    people = measured.people
    found = analyse(
        measured.moves,
        measured.metrics,
        settings.control,
        measured.shares,
        rules,
        crossed_share=people.crossed / people.seen,
        segments=measured.segments,
    )
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"experiment-{fingerprint[:8]}"):
        return write(settings, fingerprint, measured, found, workspace)


def check(settings: ExperimentSettings, fingerprint: str, measured: Measured) -> Summary:
    """Splits the users at random again and again, writes and prints how often the analysis saw a difference."""
    alarms: list[FalseAlarms] = []
    for metric in measured.metrics:
        if metric.kind == "quantile":
            log.info("%s: left out, a quantile has no sums to split", metric.name)
            continue
        users = totals(measured.moves[metric.name])
        below = metric.per if metric.kind == "ratio" else EXPOSURES
        alarms += false_alarms(
            users,
            metric,
            rows=rows_of(users, measured.rows.rows, metric, below),
            share=1.0 - measured.shares[settings.control] / sum(measured.shares.values()),
            draws=settings.aa_draws,
            level=settings.level,
            seed=settings.seed,
        )
    table = pl.DataFrame(alarms, schema=FalseAlarms._fields, orient="row")
    text = aa_markdown(table, settings.level) + told_aside(measured.quarantine)
    workspace = store.Workspace(settings.workspace)
    with workspace.lock(f"experiment-{fingerprint[:8]}"):
        folder = workspace.root / "experiments" / fingerprint[:8]
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / "aa.md", text.encode())
        keep_quarantine(folder, measured.quarantine)
        write_experiment(workspace.root / EXPERIMENTS_FILE, fingerprint[:8], {"experiment_aa": table})
    print(printable(text))
    return aa_summary(settings, measured, table)


def aa_summary(settings: ExperimentSettings, measured: Measured, table: pl.DataFrame) -> Summary:
    """What the last line says."""
    rates: dict[str, Summary] = {}
    for row in table.iter_rows(named=True):
        figures = {name: row[name] for name in ("rate", "rate_low", "rate_high", "uniform_p_value")}
        rates.setdefault(row["metric"], {})[row["analysis"].replace(" ", "_")] = figures
    return {
        "experiment": settings.experiment,
        "expected_rate": round(1.0 - settings.level, 10),
        "draws": settings.aa_draws,
        "users": measured.people.users.height,
        "rows_quarantined": measured.quarantine.height,
        "false_positives": rates,
    }


def measure(settings: ExperimentSettings) -> Measured:
    """Reads and checks every table, and adds up what every user did.

    Raises ingest.InputError on what cannot be used, or where nobody saw one variant alone, and NothingToDo where nobody was
    exposed.
    """
    metrics = tuple(metric_of(metric) for metric in settings.metrics)
    tables = read(settings, metrics)
    exposures, outcomes, interactions = tables.exposures, tables.outcomes, tables.interactions
    until = None
    if settings.planned_end is not None:
        end = settings.planned_end
        until = datetime(end.year, end.month, end.day, tzinfo=UTC) + timedelta(days=1)
        exposures = exposures.filter(pl.col("exposed_at") < until)
    if exposures.is_empty():
        raise NothingToDo(
            f"{settings.exposures.path}: nobody was exposed {f'before {until}' if until else ''}".rstrip()
        )
    shares = shares_of(settings, exposures)
    people = population(exposures, crossed=settings.crossed)
    if people.users.is_empty():
        raise ingest.InputError(
            f"{settings.exposures.path}: column {settings.exposures.variant!r}: {people.crossed:,} of {people.seen:,} users were"
            " exposed to more than one variant, and crossed: exclude leaves them out; expected users of one variant alone (or"
            " crossed: first)"
        )
    rows = daily(people, exposures, outcomes, until=until, window=settings.window)
    covariates = before(people, metrics, interactions, outcomes, over=settings.pre_period)
    moves = {metric.name: steps(people, rows.rows, metric, covariates.get(metric.name)) for metric in metrics}
    first, last = moment(exposures["exposed_at"].min()), rows.last or moment(exposures["exposed_at"].max())
    reached = settings.planned_end is not None and last.date() >= settings.planned_end
    log.info(
        "%s users, %s seen in several variants, read %s",
        people.users.height,
        people.crossed,
        "once" if reached else "on any day",
    )
    return Measured(
        people,
        rows,
        metrics,
        moves,
        shares,
        tables.users,
        first,
        last,
        "once" if reached else "always",
        tables.quarantine,
    )


def read(settings: ExperimentSettings, metrics: tuple[Metric, ...]) -> Tables:
    """Exposures, outcomes, interactions and users, and what was set aside."""
    shown, share = settings.exposures, settings.max_quarantined_share
    exposures = ingest.read_exposures(
        source_of(shown),
        name=settings.experiment,
        experiment=shown.experiment,
        user_id=shown.user_id,
        variant=shown.variant,
        exposed_at=shown.exposed_at,
        time_unit=shown.time_unit,
        max_quarantined_share=share,
    )
    log.info("%s: %s", shown.path, exposures.counts)
    outcomes = read_outcomes(
        settings.outcomes, frozenset().union(*(metric.sources for metric in metrics)) - {EXPOSURES}, share
    )
    checked = [exposures, outcomes]
    interactions = users = None
    given = settings.interactions
    if given is not None and any(metric.covariate in ("interactions", "value") for metric in metrics):
        found = interactions_of(given, share, None, duplicates="keep")
        checked.append(found)
        interactions = same_ids(found.table, exposures.table, "interactions")
    if settings.users is not None and settings.segments:
        known = ingest.read_features(
            source_of(settings.users),
            id_column=settings.users.id,
            id_name=USER_ID,
            categorical=settings.users.categorical,
            max_quarantined_share=share,
        )
        checked.append(known)
        users = same_ids(known.table.select(USER_ID, *settings.segments), exposures.table, "users")
    return Tables(
        exposures.table,
        same_ids(outcomes.table, exposures.table, "outcomes"),
        interactions,
        users,
        pl.concat([table.quarantine for table in checked]),
    )


def read_outcomes(
    given: OutcomeSettings, metrics: frozenset[str], max_quarantined_share: float
) -> ingest.Checked:
    """The outcomes of these metrics."""
    checked = ingest.read_outcomes(
        source_of(given),
        metrics=metrics,
        called=given.called,
        user_id=given.user_id,
        metric=given.metric,
        value=given.value,
        occurred_at=given.occurred_at,
        time_unit=given.time_unit,
        max_quarantined_share=max_quarantined_share,
    )
    log.info("%s: %s", given.path, checked.counts)
    return checked


def same_ids(table: pl.DataFrame, exposures: pl.DataFrame, name: str) -> pl.DataFrame:
    """The table with its users in the type of the exposures'. Raises InputError where one side is text and the other is not, or
    where an id does not fit.
    """
    try:
        return table.with_columns(in_width(table[USER_ID], exposures.schema[USER_ID], "the exposures"))
    except ValueError as error:
        raise ingest.InputError(f"{name}: {error}") from error


def metric_of(settings: MetricSettings) -> Metric:
    """The metric that the settings describe."""
    return Metric(
        settings.name,
        settings.outcome or settings.name,
        settings.kind,
        settings.aggregate,
        settings.per,
        settings.quantile,
        settings.covariate,
        settings.better == "lower",
        settings.guardrail,
    )


def rules_of(settings: ExperimentSettings, reading: Reading) -> Rules:
    """How the figures are read."""
    return Rules(
        reading,
        settings.level,
        settings.power,
        settings.correction,
        settings.segment_correction,
        settings.min_users,
        settings.planned_days,
        settings.sample_ratio_alpha,
        settings.max_crossed_share,
    )


def shares_of(settings: ExperimentSettings, exposures: pl.DataFrame) -> dict[str, float]:
    """The shares meant for the variants. Raises InputError for variants that were not meant, or were not found."""
    found: list[str] = exposures["variant"].unique().sort().to_list()
    where = f"{settings.exposures.path}: column {settings.exposures.variant!r}"
    if settings.control not in found:
        raise ingest.InputError(
            f"{where}: control {settings.control!r} was not found (found: {', '.join(found)})"
        )
    if settings.shares is None:
        if len(found) < 2:
            raise ingest.InputError(f"{where}: found {found[0]!r} alone; expected a variant beside control")
        return dict.fromkeys(found, 1.0)
    strange = sorted(set(found) - set(settings.shares))
    if strange:
        raise ingest.InputError(
            f"{where}: found {', '.join(strange)}; expected {', '.join(settings.shares)} as in shares"
        )
    return dict(settings.shares)


def write(
    settings: ExperimentSettings,
    fingerprint: str,
    measured: Measured,
    found: Analysis,
    workspace: store.Workspace,
) -> Summary:
    """Writes files and rows, prints the Markdown; gives the summary."""
    folder = workspace.root / "experiments" / fingerprint[:8]
    folder.mkdir(parents=True, exist_ok=True)
    title = settings.experiment or "Experiment"
    text = experiment_markdown(title, found) + told_aside(measured.quarantine)
    summary = summary_of(settings, measured, found)
    found.effects.write_parquet(folder / "effects.parquet")
    found.looks.write_parquet(folder / "looks.parquet")
    keep_quarantine(folder, measured.quarantine)
    write_bytes_atomically(folder / "tables.md", text.encode())
    page = experiment_page(
        Told(title, facts_of(settings, measured), settings.control, measured.metrics, settings.level, found)
    )
    write_bytes_atomically(folder / "report.html", page.encode())
    write_bytes_atomically(folder / "result.json", json.dumps(summary, indent=1, default=str).encode())
    write_experiment(
        workspace.root / EXPERIMENTS_FILE,
        fingerprint[:8],
        {
            "experiments": records_of(settings, measured, found),
            "experiment_effects": found.effects,
            "experiment_looks": found.looks,
        },
    )
    print(printable(text))
    print(f"{folder / 'report.html'}\n")
    return summary


def facts_of(settings: ExperimentSettings, measured: Measured) -> dict[str, str]:
    """What stands under the title of the page."""
    people = measured.people
    rule = "left out" if settings.crossed == "exclude" else "kept with the variant seen first"
    end = f" (planned end: {settings.planned_end})" if settings.planned_end is not None else ""
    reading = (
        "once, at the planned end"
        if measured.reading == "once"
        else "on any day: always-valid intervals decide"
    )
    return {
        "control": settings.control,
        "users": f"{people.users.height:,}; {people.crossed:,} seen in several variants, {rule}",
        "days": f"{measured.first:%Y-%m-%d} to {measured.last:%Y-%m-%d}{end}",
        "read": reading,
        "not counted": f"{measured.rows.before_exposure:,} outcomes before the first exposure, {measured.rows.too_late:,} after"
        f" the end or the window, {measured.rows.of_others:,} rows of users who take no part",
        "set aside": set_aside(measured.quarantine),
        "correction": f"{settings.correction} over the metrics, {settings.segment_correction} over segments",
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def records_of(settings: ExperimentSettings, measured: Measured, found: Analysis) -> pl.DataFrame:
    """One row per treatment, as the table ``experiments`` has it."""
    ratios = found.sample_ratios.drop("passed").rename({"p_value": "sample_ratio_p_value"})
    return found.verdicts.join(ratios, on="treatment", maintain_order="left").with_columns(
        experiment=pl.lit(settings.experiment, pl.String),
        control=pl.lit(settings.control),
        reading=pl.lit(measured.reading),
        first_exposure=pl.lit(measured.first, INSTANT),
        last_row=pl.lit(measured.last, INSTANT),
        users_crossed=pl.lit(measured.people.crossed, pl.Int64),
        rows_before_exposure=pl.lit(measured.rows.before_exposure, pl.Int64),
        finished_at=pl.lit(datetime.now(UTC), INSTANT),
        version=pl.lit(__version__),
    )


def summary_of(settings: ExperimentSettings, measured: Measured, found: Analysis) -> Summary:
    """What the last line says."""
    treatments: Summary = {}
    ratios = {row["treatment"]: row for row in found.sample_ratios.iter_rows(named=True)}
    for row in found.verdicts.iter_rows(named=True):
        name = row["treatment"]
        mine = found.effects.filter((pl.col("treatment") == name) & (pl.col("segment") == EVERYBODY))
        treatments[name] = {
            "verdict": row["verdict"],
            "reasons": row["reasons"],
            "sample_ratio_p_value": ratios[name]["p_value"],
            "metrics": {effect["metric"]: metric_summary(effect) for effect in mine.iter_rows(named=True)},
        }
    users = measured.people.users.group_by("variant").len().sort("variant")
    return {
        "experiment": settings.experiment,
        "control": settings.control,
        "reading": measured.reading,
        "days": (measured.last.date() - measured.first.date()).days + 1,
        "users": dict(users.iter_rows()),
        "users_crossed": measured.people.crossed,
        "outcomes_before_exposure": measured.rows.before_exposure,
        "rows_quarantined": measured.quarantine.height,
        "treatments": treatments,
    }


def metric_summary(effect: dict[str, Any]) -> Summary:
    """One metric of one treatment; the interval is the one that decides."""
    low, high = deciding_interval(effect)
    names = ("verdict", "effect", "relative", "p_adjusted", "minimum_detectable", "variance_reduction")
    return {"control": effect["control_mean"], "low": low, "high": high} | {
        name: effect[name] for name in names
    }


def moment(found: Any) -> datetime:
    """The least or largest time of a column that holds one."""
    assert isinstance(found, datetime)
    return found
