"""Off-policy evaluations in words, tables and pictures: Markdown, and one self-contained page with the verdict on top."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from recsys_meta.ab.off_policy import OffPolicy
from recsys_meta.ab.verdict import AGREEMENT
from recsys_meta.reports.page import figure, html_page, section, table

ANSWER, OTHER, LOGGED = "#1f5fa8", "#9a9a9a", "#c8590c"
_COLOURS = {"trustworthy": "#e2f1e2", "doubtful": "#fdf1d3", "not identified": "#fbe6e0"}
_WIDTH = 620  # pixels of a chart
_WEIGHTS_NOTE = "target over logging probability; where the lower picture lies far to the right of the upper, few rows decide"


class Told(NamedTuple):
    """One analysis as it is told."""

    name: str
    target: OffPolicy
    against: OffPolicy | None
    differences: pl.DataFrame | None  # target minus against
    quarantined: int  # rows set aside


def headline(found: OffPolicy) -> str:
    """What the logs say about the policy, in one sentence."""
    name, answer = found.policy.name, found.answer
    logged = f"what was shown earned {_number(found.diagnostics.logged_value)}"
    if found.diagnostics.origin == "none":
        return (
            f"Without propensities the logs do not identify what {name!r} would earn: {AGREEMENT}; {logged}."
        )
    if answer is None and found.verdict.answers:
        return f"{_unanswered(found.answers)}, so what {name!r} would earn is not said; {logged}."
    if answer is None:
        return f"These logs do not identify what {name!r} would earn: no estimate is an answer; {logged}."
    return (
        f"{name!r} would earn {_number(answer['value'])} per {found.unit} ({answer['level']:.0%} interval {_interval(answer)},"
        f" by {answer['estimator']}); {logged}."
    )


def difference_headline(told: Told) -> str | None:
    """Which of two policies is better, in one sentence; None where there is only one."""
    if told.differences is None or told.against is None:
        return None
    left, right = told.target.policy.name, told.against.policy.name
    chosen = told.differences.filter("is_answer")
    if chosen.is_empty() and told.target.verdict.answers and told.against.verdict.answers:
        both = [name for name in told.target.answers if name in told.against.answers]
        return f"{_unanswered(both)}, so whether {left!r} is better than {right!r} is not said."
    if chosen.is_empty():
        return f"Whether {left!r} is better than {right!r} is not identified by these logs."
    row = chosen.row(0, named=True)
    words = "cannot be told from"
    if row["low"] is not None and row["low"] > 0:
        words = "is better than"
    elif row["high"] is not None and row["high"] < 0:
        words = "is worse than"
    interval = f"{row['level']:.0%} interval {_interval(row)}, paired"
    return f"{left!r} {words} {right!r}: difference {row['value']:+.6g} ({interval})."


def _unanswered(answers: Sequence[str]) -> str:
    """What is said where the logs are good enough and the estimators are not those that are given as an answer."""
    return f"None of the estimators asked for is given as an answer (those that are: {', '.join(answers)})"


# Markdown -----------------------------------------------------------------------------------------------------------


def markdown(analyses: Sequence[Told]) -> str:
    """Verdict, diagnostics and estimates of every analysis."""
    lines: list[str] = []
    for told in analyses:
        for found in (told.target, told.against):
            if found is not None:
                lines += [f"## {told.name}: {found.policy.name}", "", *_told(found), ""]
        sentence = difference_headline(told)
        if sentence is not None and told.differences is not None:
            lines += [f"## {told.name}: the difference", "", f"**{sentence}**", ""]
            lines += [*_estimate_lines(told.differences), ""]
        if told.quarantined:
            lines += [f"{told.quarantined:,} rows were set aside (quarantine.parquet).", ""]
    return "\n".join(lines)


def _told(found: OffPolicy) -> list[str]:
    lines = [f"**{found.verdict.word}.** {headline(found)}", ""]
    lines += [f"- {reason}" for reason in found.verdict.reasons]
    lines += ["", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts_of(found)]
    return [*lines, "", *_estimate_lines(found.estimates)]


def _estimate_lines(estimates: pl.DataFrame) -> list[str]:
    lines = ["| estimator | value | interval | kind | setting | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in estimates.iter_rows(named=True):
        name = f"**{row['estimator']}**" if row["is_answer"] else row["estimator"]
        kind = f"{row['interval']} {row['level']:.0%}"
        cells = [name, _number(row["value"]), _interval(row), kind, _setting(row), row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def facts_of(found: OffPolicy) -> list[tuple[str, str]]:
    """The diagnostics that are always said beside the estimates."""
    seen, overlap = found.diagnostics, found.diagnostics.overlap
    units = "users" if seen.clustered else f"{found.unit}s, each counted as a user"
    note = f" ({found.policy.note})" if found.policy.note else ""
    behind = f"{seen.rewarded_rows:,} rewarded of {seen.rows:,} {found.unit}s; {seen.rewarded_users:,} of {seen.users:,} {units}"
    facts = [
        ("policies compared", f"{found.policy.name}{note} against what was logged"),
        ("propensities", seen.origin),
        ("behind the number", behind),
        ("share of the policy with support", "not known" if seen.support is None else f"{seen.support:.2%}"),
    ]
    if overlap is None:
        return [*facts, ("rows that match the policy", f"{seen.matches:,.1f}")]
    bounds = f"{_bound(overlap.mean_weight_low)} to {_bound(overlap.mean_weight_high)}"
    return [
        *facts,
        ("mean weight (should be 1)", f"{overlap.mean_weight:.4f} ({bounds})"),
        ("effective sample size", f"{overlap.effective_rows:,.1f} of {seen.rows:,} {found.unit}s"),
        ("effective rewarded rows", f"{overlap.effective_rewarded_rows:,.1f} of {seen.rewarded_rows:,}"),
        ("largest weight", f"{overlap.largest_weight:,.2f}, {overlap.largest_share:.1%} of all weight"),
    ]


# The page -----------------------------------------------------------------------------------------------------------


def off_policy_page(title: str, facts: Mapping[str, str], analyses: Sequence[Told]) -> str:
    """The page: verdicts in words, then a forest of the estimates and the weights of each analysis."""
    charts: dict[str, alt.TopLevelMixin] = {}
    sections = ["".join(_box(told, found) for told in analyses for found in _both(told))]
    for number, told in enumerate(analyses):
        for place, found in enumerate(_both(told)):
            name = f"{told.name}: {found.policy.name}"
            charts[f"forest{number}{place}"] = forest(
                found.estimates, found.unit, found.diagnostics.logged_value
            )
            sections.append(section(name, figure(f"forest{number}{place}"), _forest_note(found)))
            sections.append(_fact_table(found))
            sections.append(estimate_table(found.estimates))
            if len(found.weights) > 1:
                charts[f"weights{number}{place}"] = weight_chart(found.weights)
                sections.append(section(f"{name}, weights", figure(f"weights{number}{place}"), _WEIGHTS_NOTE))
        if told.differences is not None:
            charts[f"difference{number}"] = forest(told.differences, told.target.unit)
            note = difference_headline(told) or ""
            sections.append(section(f"{told.name}: the difference", figure(f"difference{number}"), note))
            sections.append(estimate_table(told.differences))
    return html_page(title, facts, sections, charts)


def forest(
    estimates: pl.DataFrame, unit: str, logged: float | None = None
) -> alt.LayerChart | alt.FacetChart:
    """A line per estimator with its interval; the answer in colour; what was logged (or no difference) as a vertical line."""
    mark = 0.0 if logged is None else logged
    rows = estimates.drop_nulls("value").with_columns(
        role=pl.when("is_answer").then(pl.lit("answer")).otherwise(pl.lit("other")),
        low_shown=pl.col("low").fill_null(pl.col("value")),
        high_shown=pl.col("high").fill_null(pl.col("value")),
    )
    order = rows["estimator"].to_list()
    edges = [mark, *rows["low_shown"].to_list(), *rows["high_shown"].to_list()]
    low, high = min(edges), max(edges)
    pad = 0.03 * (high - low) or 1.0
    x_scale = alt.Scale(domain=[low - pad, high + pad], nice=False, zero=False)
    title = (
        f"reward per logged {unit}" if logged is not None else f"difference of the reward per logged {unit}"
    )
    base = alt.Chart(alt.InlineData(rows.to_dicts())).encode(
        y=alt.Y("estimator:N", sort=order, title=None, axis=alt.Axis(labelFontSize=13, labelLimit=250)),
        color=alt.Color(
            "role:N", legend=None, scale=alt.Scale(domain=["answer", "other"], range=[ANSWER, OTHER])
        ),
    )
    rule = base.mark_rule(strokeWidth=2.5).encode(
        x=alt.X("low_shown:Q", title=title, scale=x_scale, axis=alt.Axis(labelFontSize=12, tickCount=7)),
        x2="high_shown:Q",
    )
    dot = base.mark_circle(size=90, opacity=1).encode(
        x=alt.X("value:Q", scale=x_scale),
        tooltip=[
            alt.Tooltip("estimator:N"), alt.Tooltip("value:Q", format=".6f"), alt.Tooltip("low:Q", format=".6f"),
            alt.Tooltip("high:Q", format=".6f"), alt.Tooltip("note:N"),
        ],
    )  # fmt: skip
    line = alt.Chart(alt.InlineData([{"at": mark}])).mark_rule(
        strokeDash=[5, 4], color=LOGGED, strokeWidth=1.5
    )
    return alt.layer(line.encode(x=alt.X("at:Q", scale=x_scale)), rule, dot).properties(
        width=_WIDTH, height=alt.Step(26)
    )


def weight_chart(weights: pl.DataFrame) -> alt.VConcatChart:
    """How many rows have which weight, and which weights the sum is made of."""
    total = int(weights["rows"].sum())
    bins = weights.filter(pl.col("high") > 0).with_columns(
        of_rows=pl.col("rows") / total, of_weight=pl.col("share")
    )
    data = alt.InlineData(bins.to_dicts())
    charts = [
        alt.Chart(data)
        .mark_bar(color=colour)
        .encode(
            x=alt.X(
                "low:Q",
                scale=alt.Scale(type="log", nice=False),
                title=axis,
                axis=alt.Axis(labelFontSize=12, tickCount=6, format="~g"),
            ),
            x2="high:Q",
            y=alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format="%", labelFontSize=12, tickCount=4)),
            y2=alt.datum(0),
            tooltip=[alt.Tooltip("low:Q", format=".4g"), alt.Tooltip("high:Q", format=".4g"), "rows:Q",
                     alt.Tooltip("share:Q", format=".2%")],
        )
        .properties(width=_WIDTH, height=90)
        for field, title, colour, axis in (
            ("of_rows", "of the rows", OTHER, None),
            ("of_weight", "of the weight", ANSWER, "weight"),
        )
    ]  # fmt: skip
    return alt.vconcat(*charts)


def estimate_table(estimates: pl.DataFrame) -> str:
    """Estimates with their intervals and what these do not know."""
    body = []
    strong = None
    for row in estimates.iter_rows(named=True):
        if row["is_answer"]:
            strong = row["estimator"]
        interval = f"{_interval(row)}<small>{row['interval']} {row['level']:.0%}</small>"
        note = f"<div style='white-space:normal;text-align:left'>{escape(row['note'])}</div>"
        cells = [(_number(row["value"]), ""), (interval, ""), (_setting(row), ""), (note, "")]
        body.append((row["estimator"], cells))
    return table(["", "value", "interval", "setting", "what the interval does not know"], body, strong=strong)


def _box(told: Told, found: OffPolicy) -> str:
    """The verdict on a coloured ground, with its reasons."""
    colour = _COLOURS[found.verdict.word]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in found.verdict.reasons)
    sentence = difference_headline(told) if found is told.target else None
    more = f"<p>{escape(sentence)}</p>" if sentence else ""
    word = f"<b>{escape(told.name)}: {escape(found.verdict.word)}.</b>"
    return (
        f'<div style="background:{colour};padding:.6em 1em;margin:.8em 0">{word}'
        f" {escape(headline(found))}{more}<ul style='margin:.4em 0 0'>{reasons}</ul></div>"
    )


def _fact_table(found: OffPolicy) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts_of(found))
    return f"<dl>{facts}</dl>"


def _forest_note(found: OffPolicy) -> str:
    said = "not identified: none of these is an answer" if found.answer is None else "in colour the answer"
    if found.answer is None and found.verdict.answers:
        said = "none of these is given as an answer"
    return f"{said}; dashed: what was logged earned {_number(found.diagnostics.logged_value)}"


def _both(told: Told) -> list[OffPolicy]:
    return [told.target] if told.against is None else [told.target, told.against]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _bound(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.4g}" if abs(value) != float("inf") else "no bound"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_bound(row['low'])} to {_bound(row['high'])}"


def _setting(row: Mapping[str, Any]) -> str:
    return "" if row["setting"] is None else f"{row['setting']:.4g}"
