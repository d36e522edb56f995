"""The whole analysis of an experiment: every metric of every treatment, guardrails, segments, and a verdict with its reasons."""

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Literal, NamedTuple

import polars as pl
from scipy import stats

from recsys_meta.ab.experiments.always_valid import looks
from recsys_meta.ab.experiments.comparing import Compared, Correction, compare, corrected, sample_ratio
from recsys_meta.ab.experiments.measuring import totals
from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.ab.experiments.moments import contrast, of_pair
from recsys_meta.tables import USER_ID

EVERYBODY = "all users"

Reading = Literal["once", "always"]

BETTER, WORSE, MIXED = "better", "worse", "mixed"
NO_DIFFERENCE, NOT_TRUSTED = "no difference shown", "not to be trusted"
KEPT, BROKEN, NOT_SHOWN = "kept", "broken", "not shown"
TOO_FEW, NO_DATA, WAIT = "too few users", "no data", "wait for the end"
CONSTANT = "constant"  # in each variant, so that there is no interval and no p-value

EFFECTS: Mapping[str, type[pl.DataType]] = {
    "treatment": pl.String,
    "segment": pl.String,  # EVERYBODY, or "region = east"
    "metric": pl.String,
    "kind": pl.String,
    "guardrail": pl.Boolean,
    "users_control": pl.Int64,
    "users_treatment": pl.Int64,
    "control_mean": pl.Float64,
    "treatment_mean": pl.Float64,
    "effect": pl.Float64,  # treatment - control
    "low": pl.Float64,  # of a test that is read once
    "high": pl.Float64,
    "relative": pl.Float64,  # effect / control
    "relative_low": pl.Float64,
    "relative_high": pl.Float64,
    "p_value": pl.Float64,
    "always_low": pl.Float64,  # of a test that may be looked at on any day; null for quantiles
    "always_high": pl.Float64,
    "always_p_value": pl.Float64,
    "reading": pl.String,  # which of the two the verdict follows: once or always
    "p_adjusted": pl.Float64,  # of that reading, over the metrics or over the segments; of a guardrail: that it is broken
    "minimum_detectable": pl.Float64,  # effect that would have been seen with the wanted power; null for quantiles
    "variance_reduction": pl.Float64,  # share that the covariate took away
    "verdict": pl.String,
}


class Rules(NamedTuple):
    """How the figures are read."""

    reading: Reading = "always"
    level: float = 0.95
    power: float = 0.8  # of the minimum detectable effect
    correction: Correction = "holm"  # over the metrics that are not guardrails
    segment_correction: Correction = "benjamini-hochberg"  # over all segments and their metrics
    min_users: int = 100  # in each variant; also of the first look
    planned_days: float = 14.0  # after so many days' worth of data the always-valid band is narrowest
    sample_ratio_alpha: float = 0.001  # a smaller p-value of the sample ratio refuses the verdict
    max_crossed_share: float = 0.01  # so does a larger share of users seen in several variants


class Analysis(NamedTuple):
    """What was found."""

    effects: pl.DataFrame  # EFFECTS
    looks: pl.DataFrame  # treatment, metric, and the columns of always_valid.looks
    sample_ratios: pl.DataFrame  # the columns of comparing.SampleRatio and "passed"
    verdicts: pl.DataFrame  # treatment, verdict, reasons (list of sentences)


def analyse(
    moves: Mapping[str, pl.DataFrame],
    metrics: Sequence[Metric],
    control: str,
    shares: Mapping[str, float],
    rules: Rules,
    *,
    crossed_share: float = 0.0,
    segments: pl.DataFrame | None = None,
) -> Analysis:
    """Compares every other variant of ``shares`` with control.

    moves: for each metric by its name what ``measuring.steps`` gives. shares: of the users, as they were meant to fall to the
    variants. crossed_share: of the users, seen in several variants. segments: USER_ID and columns to break figures down by.
    """
    effects, pages, ratios, verdicts = [], [], [], []
    first = next(iter(moves.values()))
    counts = dict(first.filter(pl.col("entry") > 0).group_by("variant").len().iter_rows())
    for treatment in (variant for variant in shares if variant != control):
        ratio = sample_ratio(counts, control, treatment, shares)
        passed = ratio.p_value >= rules.sample_ratio_alpha
        rows, seen = _effects(moves, metrics, control, treatment, rules, EVERYBODY, shares)
        rows = _judged(rows, metrics, rules.correction, rules)
        parts = [
            row
            for name, some in _segments(moves, segments)
            for row in _effects(
                some, [m for m in metrics if not m.guards], control, treatment, rules, name, shares
            )[0]
        ]
        parts = _judged(parts, metrics, rules.segment_correction, rules)
        verdict, reasons = _verdict(rows, metrics, rules, ratio.p_value, passed, crossed_share)
        effects += [
            {**row, "verdict": NOT_TRUSTED}
            if verdict == NOT_TRUSTED and row["verdict"] not in (TOO_FEW, NO_DATA, CONSTANT)
            else row
            for row in (*rows, *parts)
        ]
        pages.append(seen)
        ratios.append({**ratio._asdict(), "passed": passed})
        verdicts.append({"treatment": treatment, "verdict": verdict, "reasons": reasons})
    return Analysis(
        pl.DataFrame(effects, schema=EFFECTS),
        pl.concat(pages, how="diagonal"),
        pl.DataFrame(ratios),
        pl.DataFrame(verdicts),
    )


def _segments(
    moves: Mapping[str, pl.DataFrame], segments: pl.DataFrame | None
) -> list[tuple[str, dict[str, pl.DataFrame]]]:
    """The name of each segment and its part of the rows; users of whom nothing is known are a segment too."""
    if segments is None:
        return []
    found = []
    first = next(iter(moves.values()))
    people = first.select(USER_ID).unique().join(segments, on=USER_ID, how="left").with_columns(
        pl.exclude(USER_ID).cast(pl.String).fill_null("not known")
    )  # fmt: skip
    for column in (name for name in segments.columns if name != USER_ID):
        for value in people[column].unique().sort():
            some = people.filter(pl.col(column) == value).select(USER_ID)
            found.append(
                (
                    f"{column} = {value}",
                    {name: table.join(some, on=USER_ID, how="semi") for name, table in moves.items()},
                )
            )
    return found


def _effects(
    moves: Mapping[str, pl.DataFrame],
    metrics: Sequence[Metric],
    control: str,
    treatment: str,
    rules: Rules,
    segment: str,
    shares: Mapping[str, float],
) -> tuple[list[dict[str, object]], pl.DataFrame]:
    """One row of EFFECTS per metric and the looks; without the verdict, but with what a guardrail's is made of."""
    rows: list[dict[str, object]] = []
    pages = [pl.DataFrame(schema={"treatment": pl.String, "metric": pl.String})]
    for metric in metrics:
        table = moves[metric.name]
        users = totals(table)
        once = compare(users, metric, control, treatment, level=rules.level)
        row: dict[str, object] = {
            "treatment": treatment,
            "segment": segment,
            "metric": metric.name,
            "kind": metric.kind,
            "guardrail": metric.guards,
            **_renamed(once),
            "reading": "once" if metric.kind == "quantile" else rules.reading,
        }
        if metric.kind != "quantile" and once.p_value is not None:
            row |= _second_look(users, metric, control, treatment, rules)
            seen = looks(
                table,
                control,
                treatment,
                level=rules.level,
                planned_days=rules.planned_days,
                first_look_users=rules.min_users,
            )
            if seen.height:
                last = seen.row(-1, named=True)
                row |= {f"always_{name}": last[name] for name in ("low", "high", "p_value")}
                if rules.reading == "always":
                    half = (last["high"] - last["low"]) / 2.0
                    row["minimum_detectable"] = half + float(stats.norm.ppf(rules.power)) * last["error"]
                pages.append(seen.with_columns(treatment=pl.lit(treatment), metric=pl.lit(metric.name)).select(
                    "treatment", "metric", *seen.columns
                ))  # fmt: skip
        if metric.margin is not None and (once.constant or once.p_value is not None):
            row |= _guardrail(table, users, metric, once, control, treatment, rules)
        rows.append(row)
    return rows, pl.concat(pages, how="diagonal_relaxed")


def _renamed(once: Compared) -> dict[str, object]:
    found = once._asdict()
    found["control_mean"], found["treatment_mean"] = found.pop("control"), found.pop("treatment")
    return found


def _second_look(
    users: pl.DataFrame, metric: Metric, control: str, treatment: str, rules: Rules
) -> dict[str, object]:
    """What the standard error says beside the interval."""
    found = contrast(*of_pair(users, control, treatment))
    critical = float(stats.t.isf((1.0 - rules.level) / 2.0, found.degrees))
    return {
        "minimum_detectable": (critical + float(stats.norm.ppf(rules.power))) * float(found.error),
        "variance_reduction": None if metric.covariate is None else float(found.reduction),
    }


def _guardrail(
    table: pl.DataFrame,
    users: pl.DataFrame,
    metric: Metric,
    once: Compared,
    control: str,
    treatment: str,
    rules: Rules,
) -> dict[str, object]:
    """Whether treatment is shown to be within the margin, or beyond it: treatment - (1 -+ margin) control, by the same interval.

    Each side is a one-sided test at (1 - level) / 2. Guardrails are no members of a family: all of them have to be kept.
    Of a metric that is constant in each variant there is no interval, and the difference itself decides.
    """
    assert metric.margin is not None
    sign = -1.0 if metric.lower_is_better else 1.0
    height = 1.0 if (once.control or 0.0) >= 0.0 else -1.0  # below zero, worse lies further from it
    share = 1.0 - sign * height * metric.margin
    if once.constant:
        assert once.control is not None
        assert once.treatment is not None
        edge = share * once.control
        beyond = sign * (once.treatment - edge) < 0.0 and not isclose(once.treatment, edge)
        return {"within": not beyond, "beyond": beyond}
    if metric.kind == "quantile":
        if once.relative_low is None or once.relative_high is None:
            return {"within": False, "beyond": False}
        edges = sorted((sign * once.relative_low, sign * once.relative_high))
        return {"within": edges[0] > -metric.margin, "beyond": edges[1] < -metric.margin}
    if rules.reading == "once":
        found = contrast(*of_pair(users, control, treatment), share)
        low, high = (float(edge) for edge in found.interval(rules.level))
    else:
        seen = looks(
            table,
            control,
            treatment,
            level=rules.level,
            planned_days=rules.planned_days,
            first_look_users=rules.min_users,
            share=share,
        )
        if seen.is_empty():
            return {"within": False, "beyond": False}
        low, high = seen["low"][-1], seen["high"][-1]
    low, high = sorted((sign * low, sign * high))
    return {"within": low > 0.0, "beyond": high < 0.0}


def _judged(
    rows: list[dict[str, object]], metrics: Sequence[Metric], correction: Correction, rules: Rules
) -> list[dict[str, object]]:
    """The rows with p_adjusted and the verdict on each metric."""
    lower = {metric.name: metric.lower_is_better for metric in metrics}

    def enough(row: dict[str, object]) -> bool:
        return min(_int(row["users_control"]), _int(row["users_treatment"])) >= _least_users(rules)

    def p_of(row: dict[str, object]) -> float | None:
        if row["guardrail"] or not enough(row) or (row["kind"] == "quantile" and rules.reading == "always"):
            return None
        found = row.get("p_value" if row["reading"] == "once" else "always_p_value")
        return found if isinstance(found, float) else None

    adjusted = corrected([p_of(row) for row in rows], correction, 1.0 - rules.level)
    judged = []
    for row, p in zip(rows, adjusted, strict=True):
        within, beyond = bool(row.pop("within", False)), bool(row.pop("beyond", False))
        constant = bool(row.pop("constant"))
        if not enough(row):
            verdict = TOO_FEW
        elif constant:
            verdict = (BROKEN if beyond else KEPT) if row["guardrail"] else CONSTANT
        elif row["p_value"] is None:
            verdict = NO_DATA
        elif row["kind"] == "quantile" and rules.reading == "always":
            verdict = WAIT
        elif row["guardrail"]:
            verdict = KEPT if within else BROKEN if beyond else NOT_SHOWN
        elif p is None or p >= 1.0 - rules.level:
            verdict = NO_DIFFERENCE
        else:
            verdict = BETTER if (_float(row["effect"]) > 0.0) != lower[str(row["metric"])] else WORSE
        judged.append({**row, "p_adjusted": p, "verdict": verdict})
    return judged


def _verdict(
    rows: Sequence[Mapping[str, object]],
    metrics: Sequence[Metric],
    rules: Rules,
    ratio_p_value: float,
    ratio_passed: bool,
    crossed_share: float,
) -> tuple[str, list[str]]:
    """The verdict on a treatment and its reasons, in sentences."""
    margins = {metric.name: metric.margin for metric in metrics}
    doubts = []
    if not ratio_passed:
        doubts.append(
            f"The users did not fall to the variants as meant (sample ratio mismatch, p = {ratio_p_value:.2g}): something"
            " chose who was counted, and every difference below may come from that."
        )
    if crossed_share > rules.max_crossed_share:
        doubts.append(
            f"{crossed_share:.1%} of the users were seen in more than one variant, more than the {rules.max_crossed_share:.1%}"
            " that max_crossed_share allows."
        )
    if all(row["verdict"] == TOO_FEW for row in rows):
        least = min(_int(rows[0]["users_control"]), _int(rows[0]["users_treatment"]))
        doubts.append(
            f"The smaller variant has {least:,} users; at least {_least_users(rules):,} are asked for."
        )
    elif all(row["verdict"] == NO_DATA and _is_zero(row) for row in rows):
        doubts.append("No user has any outcome other than 0 after its exposure.")
    elif all(row["verdict"] in (NO_DATA, CONSTANT) for row in rows):
        doubts += [_sentence(row, rules, None) for row in rows]
    told = [_sentence(row, rules, margins.get(str(row["metric"]))) for row in rows]
    if doubts:
        return NOT_TRUSTED, doubts
    found = {str(row["verdict"]) for row in rows}
    if BROKEN in found:
        return WORSE if BETTER not in found else MIXED, told
    if BETTER in found and WORSE in found:
        return MIXED, told
    if BETTER in found or WORSE in found:
        return BETTER if BETTER in found else WORSE, told
    return NO_DIFFERENCE, told


def _sentence(row: Mapping[str, object], rules: Rules, margin: float | None) -> str:
    """What is said of one metric."""
    name, verdict = str(row["metric"]), str(row["verdict"])
    change = "" if row["relative"] is None else f" {_float(row['relative']):+.1%}"
    prefix = "" if row["reading"] == "once" else "always_"
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    between = constant = ""
    if isinstance(low, float) and isinstance(high, float):
        between = f" ({_float(row['effect']):+.4g}, {rules.level:.0%} interval {low:+.4g} to {high:+.4g})"
    elif row["p_value"] is None and verdict in (KEPT, BROKEN, CONSTANT):
        between = f" ({_float(row['effect']):+.4g})"
        constant = ", constant in each arm: no interval"
    match verdict:
        case "better" | "worse":
            return (
                f"{name}:{change}{between}, {verdict}; p = {_float(row['p_adjusted']):.2g} after correction."
            )
        case "kept":
            return f"Guardrail {name}:{change}{between}, not worse by more than {margin:.1%}{constant}."
        case "broken":
            return f"Guardrail {name}:{change}{between}, worse by more than {margin:.1%}{constant}."
        case "not shown":
            return f"Guardrail {name}:{change}{between}, not shown to be within {margin:.1%}: it may be worse than that."
        case "too few users":
            return f"{name}: too few users to say anything."
        case "no data":
            what = f"Guardrail {name}" if row["guardrail"] else name
            unsaid = "whether it is kept cannot be said" if row["guardrail"] else "nothing can be compared"
            if row["effect"] is None:
                return f"{what}: what it is divided by adds up to 0 in a variant; {unsaid}."
            if _is_zero(row):
                return f"{what}: 0 for every user of both variants; {unsaid}."
            return f"{what}: there is no variance to tell an interval from; {unsaid}."
        case "constant":
            return f"{name}:{change}{between}{constant}."
        case "wait for the end":
            return f"{name}:{change}; a quantile may be read once only, at the planned end, and waits for it."
    least = row.get("minimum_detectable")
    seen = ""
    if isinstance(least, float):
        seen = f"; an effect of {least:.4g}{_of_control(least, row)} would have been seen with probability {rules.power:.0%}"
    return f"{name}:{change}{between}, no difference shown{seen}."


def _is_zero(row: Mapping[str, object]) -> bool:
    """Whether both variants have 0."""
    return row["control_mean"] == 0.0 == row["treatment_mean"]


def _least_users(rules: Rules) -> int:
    """Of each variant, for anything to be said: of one user there is no variance."""
    return max(rules.min_users, 2)


def _of_control(amount: float, row: Mapping[str, object]) -> str:
    mean = row["control_mean"]
    return f" ({amount / mean:.1%} of control)" if isinstance(mean, float) and mean > 0.0 else ""


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _float(value: object) -> float:
    assert isinstance(value, float)
    return value
