"""An experiment in words, tables and pictures: Markdown for the terminal, and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from recsys_meta.ab.experiments.analysis import (
    BETTER,
    BROKEN,
    EVERYBODY,
    KEPT,
    MIXED,
    NO_DIFFERENCE,
    NOT_SHOWN,
    NOT_TRUSTED,
    WORSE,
    Analysis,
)
from recsys_meta.ab.experiments.metrics import Metric
from recsys_meta.reports.page import figure, html_page, section, table

GOOD, BAD, NEUTRAL, DOUBTFUL = "#1b7f4b", "#b3361b", "#6b7280", "#a16207"
_COLOURS = {
    BETTER: GOOD,
    KEPT: GOOD,
    WORSE: BAD,
    BROKEN: BAD,
    MIXED: DOUBTFUL,
    NOT_SHOWN: DOUBTFUL,
    NOT_TRUSTED: DOUBTFUL,
}
_GROUNDS = {
    BETTER: "#e2f1e2",
    WORSE: "#fbe6e0",
    MIXED: "#fdf3d8",
    NOT_TRUSTED: "#fdf3d8",
    NO_DIFFERENCE: "#eef0f3",
}
_WIDTH = 560  # pixels of the plot of a forest
_PANEL, _PANEL_HEIGHT = 420, 190  # of one metric over the days


class Told(NamedTuple):
    """What the page tells of."""

    title: str
    facts: Mapping[str, str]  # said under the title
    control: str
    metrics: Sequence[Metric]
    level: float
    analysis: Analysis


def experiment_page(told: Told) -> str:
    """The page: verdicts in words on top, then effects, effects over the days, segments and sample ratios."""
    charts: dict[str, alt.TopLevelMixin] = {}
    sections = [verdict_box(row) for row in told.analysis.verdicts.iter_rows(named=True)]
    for number, treatment in enumerate(told.analysis.verdicts["treatment"]):
        sections += _effects(told, treatment, f"{number}", charts)
        sections += _days(told, treatment, f"{number}", charts)
        sections += _segments(told, treatment, f"{number}", charts)
    note = "a small p says that something chose who was counted"
    sections.append(section("Users", ratio_table(told.analysis.sample_ratios), note))
    return html_page(told.title, told.facts, sections, charts)


def _effects(told: Told, treatment: str, name: str, charts: dict[str, alt.TopLevelMixin]) -> list[str]:
    """Forest and table of all users; adds to the charts."""
    rows = told.analysis.effects.filter((pl.col("treatment") == treatment) & _is_everybody())
    kind = (
        "for this one reading"
        if (rows["reading"] == "once").all()
        else "that hold on any day of looking (of quantiles: for one)"
    )
    note = f"change against {told.control}, with {told.level:.0%} intervals {kind}; a black tick: the margin of a guardrail"
    chart = forest(rows, told.metrics, "metric")
    if chart is None:
        return [section(f"{treatment}: effects", effects_html(rows, "metric"), note)]
    charts[f"forest{name}"] = chart
    return [section(f"{treatment}: effects", figure(f"forest{name}"), note), effects_html(rows, "metric")]


def _days(told: Told, treatment: str, name: str, charts: dict[str, alt.TopLevelMixin]) -> list[str]:
    """The effect until each day; adds to the charts."""
    seen = told.analysis.looks
    rows = seen.filter(pl.col("treatment") == treatment) if seen.height else seen
    if rows.is_empty():
        return []
    charts[f"days{name}"] = over_days(rows)
    note = f"band: {told.level:.0%} always valid, for all days at once; dashed: for whoever looks on that one day alone"
    return [section(f"{treatment}: effect until each day", figure(f"days{name}"), note)]


def _segments(told: Told, treatment: str, name: str, charts: dict[str, alt.TopLevelMixin]) -> list[str]:
    """A forest for each metric over the segments, and a folded table; adds to the charts."""
    rows = told.analysis.effects.filter((pl.col("treatment") == treatment) & ~_is_everybody())
    sections = []
    for place, metric in enumerate(rows["metric"].unique(maintain_order=True)):
        chart = forest(rows.filter(pl.col("metric") == metric), told.metrics, "segment")
        if chart is not None:
            charts[f"segments{name}_{place}"] = chart
            note = "intervals as they are; verdicts after correction over all segments and metrics"
            sections.append(
                section(f"{treatment}: {metric} by segment", figure(f"segments{name}_{place}"), note)
            )
    if rows.height:
        content = effects_html(rows, "segment", "metric")
        sections.append(section(f"{treatment}: segments as a table", content, "", folded=True))
    return sections


# Pictures -----------------------------------------------------------------------------------------------------------


def forest(
    effects: pl.DataFrame, metrics: Sequence[Metric], label: str
) -> alt.LayerChart | alt.FacetChart | None:
    """Relative effects with their intervals, one line each; None where none can be told. label: the column that names lines."""
    margins = {
        metric.name: (1.0 if metric.lower_is_better else -1.0) * metric.margin
        for metric in metrics
        if metric.margin is not None
    }
    rows = []
    for row in effects.iter_rows(named=True):
        low, high = relative_interval(row)
        if row["relative"] is None or low is None or high is None:
            continue
        name = f"{row[label]} (guardrail)" if row["guardrail"] and label == "metric" else row[label]
        rows.append(
            {
                "name": name,
                "relative": row["relative"],
                "low": low,
                "high": high,
                "verdict": row["verdict"],
                "colour": _COLOURS.get(row["verdict"], NEUTRAL),
                "margin": margins.get(row["metric"]) if label == "metric" else None,
                "said": f"{row['relative']:+.1%}, {row['verdict']}",
            }
        )
    if not rows:
        return None
    ends = [row[key] for row in rows for key in ("low", "high", "margin") if row[key] is not None]
    reach = max(max(ends), 0.0) - min(min(ends), 0.0) or 1.0
    domain = [min(min(ends), 0.0) - 0.04 * reach, max(max(ends), 0.0) + 0.04 * reach]
    order = [row["name"] for row in rows]
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelFontSize=13, labelLimit=320)),
        color=alt.Color("colour:N", scale=None),
    )
    x = alt.X(
        "low:Q",
        title="change",
        axis=alt.Axis(format="+.0%", labelFontSize=12),
        scale=alt.Scale(domain=domain, nice=False),
    )
    tooltip = [
        "name:N",
        *(alt.Tooltip(f"{key}:Q", format="+.2%") for key in ("relative", "low", "high")),
        "verdict:N",
    ]
    rule = base.mark_rule(strokeWidth=3).encode(x=x, x2="high:Q")
    dot = base.mark_circle(size=110, opacity=1).encode(x="relative:Q", tooltip=tooltip)
    zero = alt.Chart(alt.InlineData([{"at": 0.0}])).mark_rule(color="#222").encode(x="at:Q")
    margin = base.mark_tick(thickness=3, size=16, color="#222").encode(x="margin:Q", color=alt.value("#222"))
    text = base.mark_text(align="left", fontSize=13).encode(x=alt.value(_WIDTH + 12), text="said:N")
    return alt.layer(zero, rule, dot, margin, text).properties(width=_WIDTH, height=alt.Step(30))


def over_days(seen: pl.DataFrame) -> alt.ConcatChart:
    """For each metric the effect until each day: a band for all days at once, dashed lines for one day alone."""
    panels = []
    for metric in seen["metric"].unique(maintain_order=True):
        some = seen.filter(pl.col("metric") == metric).with_columns(pl.col("day").cast(pl.String))
        base = alt.Chart(alt.InlineData(some.to_dicts())).encode(
            x=alt.X(
                "day:T",
                title=None,
                axis=alt.Axis(format="%d %b", labelAngle=0, labelFontSize=12, tickCount=6, grid=False),
            )
        )
        # The first looks are wide: without them the rest can be read. They are cut at twice the width of the middle one.
        edge = 1.2 * float((some["high"] - some["low"]).median() or 1.0)  # type: ignore[arg-type]
        middle = float(some["effect"][-1])
        scale = alt.Scale(domain=[min(middle - edge, -0.1 * edge), max(middle + edge, 0.1 * edge)])
        y = alt.Y("low:Q", title=None, scale=scale, axis=alt.Axis(labelFontSize=12))
        band = base.mark_area(opacity=0.22, clip=True, color="#1f5fa8").encode(y=y, y2="high:Q")
        line = base.mark_line(
            strokeWidth=2.5, clip=True, color="#1f5fa8", point=alt.OverlayMarkDef(size=28)
        ).encode(
            y=alt.Y("effect:Q", scale=scale),
            tooltip=[
                "day:T",
                *(alt.Tooltip(f"{name}:Q", format="+.4g") for name in ("effect", "low", "high", "p_value")),
            ],
        )
        dashes = [
            base.mark_line(strokeDash=[4, 3], strokeWidth=1.2, clip=True, color="#c8590c").encode(
                y=alt.Y(f"{name}:Q", scale=scale)
            )
            for name in ("once_low", "once_high")
        ]
        zero = (
            alt.Chart(alt.InlineData([{"at": 0.0}]))
            .mark_rule(color="#222")
            .encode(y=alt.Y("at:Q", scale=scale))
        )
        panels.append(
            alt.layer(band, *dashes, zero, line).properties(
                width=_PANEL, height=_PANEL_HEIGHT, title=alt.Title(metric, anchor="start", fontSize=14)
            )
        )
    return alt.concat(*panels, columns=2)


# Tables -------------------------------------------------------------------------------------------------------------


def effects_html(effects: pl.DataFrame, *names: str) -> str:
    """One row per effect; the interval is the one that decides."""
    body = []
    for row in effects.iter_rows(named=True):
        low, high = deciding_interval(row)
        between = "" if low is None or high is None else f"{low:+.4g} to {high:+.4g}"
        effect = "" if row["effect"] is None else f"{row['effect']:+.4g}<small>{between}</small>"
        kind = {BETTER: "better", KEPT: "better", WORSE: "worse", BROKEN: "worse"}.get(row["verdict"], "")
        taken = "" if row["variance_reduction"] is None else f"{row['variance_reduction']:.0%}"
        cells = [
            *((escape(str(row[name])), "") for name in names[1:]),
            (_number(row["control_mean"]), ""),
            (_number(row["treatment_mean"]), ""),
            (effect, ""),
            ("" if row["relative"] is None else f"{row['relative']:+.2%}", ""),
            ("" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3g}", ""),
            (_number(row["minimum_detectable"]), ""),
            (taken, ""),
            (f"{row['users_control']:,} / {row['users_treatment']:,}", ""),
            (row["verdict"], kind),
        ]
        body.append((str(row[names[0]]), cells))
    head = [
        "control",
        "treatment",
        "difference",
        "change",
        "p, corrected",
        "would be seen",
        "by CUPED",
        "users",
        "verdict",
    ]
    return table(["", *names[1:], *head], body)


def ratio_table(ratios: pl.DataFrame) -> str:
    """Users of each treatment beside those of control, and whether that is as meant."""
    body = [
        (
            row["treatment"],
            [
                (f"{row['users_control']:,}", ""),
                (f"{row['users_treatment']:,}", ""),
                (f"{row['expected_share']:.1%}", ""),
                (f"{row['users_treatment'] / max(1, row['users_control'] + row['users_treatment']):.2%}", ""),
                (f"{row['p_value']:.3g}", "" if row["passed"] else "worse"),
            ],
        )
        for row in ratios.iter_rows(named=True)
    ]
    return table(
        ["", "users of control", "users", "share meant", "share found", "p of the sample ratio"], body
    )


def verdict_box(row: Mapping[str, Any]) -> str:
    """The verdict on a coloured ground, with its reasons. row: "treatment", "verdict", "reasons"."""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in row["reasons"])
    word = f"<b>{escape(row['treatment'])}: {escape(row['verdict'])}.</b>"
    ground = _GROUNDS[row["verdict"]]
    style = f"background:{ground};padding:.6em 1em;margin:.8em 0"
    return f'<div style="{style}">{word}<ul style="margin:.4em 0 0">{reasons}</ul></div>'


# Markdown -----------------------------------------------------------------------------------------------------------


def experiment_markdown(title: str, analysis: Analysis) -> str:
    """The verdict on every treatment with its reasons, then tables of effects, and of segments where there are any."""
    lines = [f"# {title}", ""]
    for row in analysis.verdicts.iter_rows(named=True):
        lines += [
            f"**{row['treatment']}: {row['verdict']}**",
            "",
            *(f"- {reason}" for reason in row["reasons"]),
            "",
        ]
    everybody = _is_everybody()
    lines += effects_table(analysis.effects.filter(everybody), ["treatment", "metric"])
    parts = analysis.effects.filter(~everybody)
    if parts.height:
        lines += ["", *effects_table(parts, ["treatment", "segment", "metric"])]
    lines += [
        "",
        "| treatment | users of control | users of it | share meant | p of the sample ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in analysis.sample_ratios.iter_rows(named=True):
        lines.append(
            f"| {_cell(row['treatment'])} | {row['users_control']:,} | {row['users_treatment']:,}"
            f" | {row['expected_share']:.1%} | {row['p_value']:.3g}{'' if row['passed'] else ' **mismatch**'} |"
        )
    return "\n".join(lines) + "\n"


def effects_table(effects: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """One line per row; the interval is the one that decides."""
    head = [*names, "control", "treatment", "change", "interval of the difference", "p, corrected", "verdict"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in effects.iter_rows(named=True):
        low, high = deciding_interval(row)
        between = "" if low is None or high is None else f"{low:+.4g} to {high:+.4g}"
        cells = [
            *(_cell(row[name]) for name in names),
            _number(row["control_mean"]),
            _number(row["treatment_mean"]),
            "" if row["relative"] is None else f"{row['relative']:+.2%}",
            between,
            "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3g}",
            row["verdict"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def deciding_interval(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval that the verdict follows."""
    prefix = "" if row["reading"] == "once" else "always_"
    return row[f"{prefix}low"], row[f"{prefix}high"]


def relative_interval(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval that the verdict follows, as a share of control. Read once, it is that of the ratio (on the log scale)."""
    if row["reading"] == "once":
        return row["relative_low"], row["relative_high"]
    low, high = deciding_interval(row)
    if low is None or high is None or not row["control_mean"] or row["control_mean"] <= 0.0:
        return None, None
    return low / row["control_mean"], high / row["control_mean"]


def aa_markdown(alarms: pl.DataFrame, level: float) -> str:
    """How often random splits of the same users looked different. alarms: rows of reassignment.FalseAlarms."""
    lines = [
        f"Random splits that look different (should be {1.0 - level:.1%}), and whether their p-values are uniform:",
        "",
        "| metric | analysed | splits | false positives | 95 % interval | p of uniformity |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in alarms.iter_rows(named=True):
        if not row["draws"]:  # as of a single user, or of a metric in which nobody differs
            lines.append(
                f"| {_cell(row['metric'])} | {row['analysis']} | 0 | no split could be compared | | |"
            )
            continue
        off = "" if row["rate_low"] <= 1.0 - level <= row["rate_high"] else " **off**"
        lines.append(
            f"| {_cell(row['metric'])} | {row['analysis']} | {row['draws']:,} | {row['rate']:.2%}{off}"
            f" | {row['rate_low']:.2%} to {row['rate_high']:.2%} | {row['uniform_p_value']:.3g} |"
        )
    return "\n".join(lines) + "\n"


def _is_everybody() -> pl.Expr:
    return pl.col("segment") == EVERYBODY


def _cell(text: str) -> str:
    """A name that cannot break out of its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
