"""One evaluation as one self-contained HTML page: curves over shots, differences, groups, the harmed, the costs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from recsys_meta.evaluation.breakdown import ON_ITEMS
from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, SUPPORT_LOSSES, shot_order
from recsys_meta.reports.page import figure, html_page, section, table

DEFAULT, BEST, OTHER = "#1f5fa8", "#c8590c", "#9a9a9a"
_WIDTH, _HEIGHT = 620, 380  # pixels of the chart of the curves
_LINE = 14  # pixels between the baselines of two labels
_MIB_PER_GIB = 1024
_NO_INTERVAL = "<small>no interval</small>"  # of a single user


class Found(NamedTuple):
    """What the page tells of."""

    title: str
    facts: Mapping[str, str]  # said under the title
    metric: str  # the chief one
    default: str  # the learner that leads
    baselines: Sequence[str]
    summary: pl.DataFrame  # of intervals.summarize
    differences: pl.DataFrame  # of everybody to the best baseline of each shot, by the chief metric
    harmed: pl.DataFrame  # of intervals.against_prior, by the chief metric
    breakdown: pl.DataFrame  # of breakdown.breakdown
    costs: pl.DataFrame  # learner, fit_ and judge_ seconds, cpu_seconds, peak_mib


def evaluation_page(found: Found) -> str:
    """The page. The default and the baseline that is best on average over the shots stand out; the others are grey."""
    chief = found.summary.filter(pl.col("metric") == found.metric)
    best = best_on_average(chief, found.baselines, found.metric)
    charts: dict[str, alt.TopLevelMixin] = {"curves": curves(chief, found.metric, found.default, best)}
    groups = group_chart(found.breakdown, found.default, best)
    if groups is not None:
        charts["groups"] = groups
    arrow = "lower" if found.metric in LOWER_IS_BETTER else "higher"
    sections = [
        section(f"{found.metric} by number of shots", figure("curves"), f"{arrow} is better; bands: 95 % of resampled users"),
        section("Differences to the best baseline of each shot", difference_table(found),
                 "with the 95 % interval of the paired difference; signed so that above 0 is better than that baseline"),
        section("Users harmed by adaptation", harm_table(found),
                 "against the learner's own prior, the same items left out; below, its loss on the support before and after"),
        *([section("Groups", figure("groups"), f"{found.default} and {best}, at the largest shot; users in brackets")]
          if groups is not None else []),
        section("Cost", cost_table(found.costs),
                 "fit: when the model was fitted, empty where it was not written down; judge: all users at all shots"),
        *(section(metric, metric_table(found.summary, metric), "", folded=True) for metric in _metrics(found.summary)),
    ]  # fmt: skip
    return html_page(found.title, found.facts, sections, charts)


def best_on_average(chief: pl.DataFrame, baselines: Sequence[str], metric: str) -> str | None:
    """The baseline of the best mean over the shots; None where there is none."""
    means = chief.filter(pl.col("learner").is_in(list(baselines))).group_by("learner", maintain_order=True)
    ranked = means.agg(pl.col("mean").mean()).sort("mean", descending=metric not in LOWER_IS_BETTER)
    return ranked["learner"][0] if len(ranked) else None


# Pictures -----------------------------------------------------------------------------------------------------------


def curves(
    chief: pl.DataFrame, metric: str, default: str, best: str | None
) -> alt.LayerChart | alt.FacetChart:
    """A line per learner over the shots, each with its name at its end; bands for those that stand out."""
    shots = sorted(chief["shot"].unique().to_list(), key=shot_order)
    rows = chief.with_columns(
        place=pl.col("shot").replace_strict({shot: place for place, shot in enumerate(shots)}, return_dtype=pl.Int64),
        role=_role(default, best),
    ).drop_nulls("mean")  # fmt: skip
    bands = rows.filter(pl.col("role") != "other").with_columns(role=pl.col("role"))
    low = float(pl.concat([rows["mean"], bands["low"]]).min() or 0.0)  # type: ignore[arg-type]
    high = float(pl.concat([rows["mean"], bands["high"]]).max() or 1.0)  # type: ignore[arg-type]
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    labels = _spread(rows.filter(pl.col("place") == len(shots) - 1), low, high)
    axis = alt.Axis(
        values=list(range(len(shots))),
        labelExpr=f"{json.dumps(shots)}[datum.value]",
        grid=False,
        labelFontSize=13,
    )
    x = alt.X("place:Q", title="shots", axis=axis, scale=alt.Scale(domain=[0, len(shots) - 1], nice=False))
    y_scale = alt.Scale(domain=[low, high], zero=False)
    colour = alt.Color(
        "role:N",
        legend=None,
        scale=alt.Scale(domain=["default", "best", "other"], range=[DEFAULT, BEST, OTHER]),
    )
    base = alt.Chart(alt.InlineData(rows.to_dicts())).encode(x=x, color=colour)
    tooltip = [
        alt.Tooltip("learner:N"), alt.Tooltip("shot:N"), alt.Tooltip("mean:Q", format=".4f"),
        alt.Tooltip("low:Q", format=".4f"), alt.Tooltip("high:Q", format=".4f"),
    ]  # fmt: skip
    shown = "datum.role != 'other'"
    band = base.transform_filter(shown).mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", scale=y_scale, title=metric), y2="high:Q", detail="learner:N"
    )  # fmt: skip
    line = base.mark_line().encode(
        y=alt.Y("mean:Q", scale=y_scale, title=metric, axis=alt.Axis(labelFontSize=13)),
        detail="learner:N",
        strokeWidth=alt.condition(shown, alt.value(3), alt.value(1.3)),
    )
    point = base.mark_circle(opacity=1).encode(
        y=alt.Y("mean:Q", scale=y_scale),
        size=alt.condition(shown, alt.value(60), alt.value(20)),
        tooltip=tooltip,
    )
    text = alt.Chart(alt.InlineData(labels)).encode(
        x=x, y=alt.Y("at:Q", scale=y_scale), text="learner:N", color=colour
    )  # fmt: skip
    names = [
        text.transform_filter(f"{'' if bold else '!'}({shown})").mark_text(
            align="left", dx=12, fontSize=13, fontWeight="bold" if bold else "normal", clip=False
        )
        for bold in (False, True)
    ]
    return alt.layer(band, line, point, *names).properties(width=_WIDTH, height=_HEIGHT)


def _role(default: str, best: str | None) -> pl.Expr:
    """Who stands out."""
    roles = {default: "default"} | ({best: "best"} if best is not None else {})
    return pl.col("learner").replace_strict(roles, default="other", return_dtype=pl.String)


def _spread(ends: pl.DataFrame, low: float, high: float) -> list[dict[str, Any]]:
    """The names at the ends of the lines, moved apart so that none covers another; ``at`` in units of the metric."""
    ends = ends.sort("mean")
    step = _LINE / _HEIGHT * ((high - low) or 1.0)
    at: list[float] = []
    for mean in ends["mean"]:
        at.append(max(mean, at[-1] + step) if at else mean)
    over = max(0.0, at[-1] - high) if at else 0.0
    # What the top pushed out of the picture goes down again, as far as the names below leave room.
    for place in range(len(at) - 1, -1, -1):
        ceiling = high if place == len(at) - 1 else at[place + 1] - step
        at[place] = min(at[place], ceiling) if over else at[place]
    return [
        {**row, "at": place}
        for row, place in zip(ends.select("learner", "place", "role").to_dicts(), at, strict=True)
    ]


def group_chart(breakdown: pl.DataFrame, default: str, best: str | None) -> alt.VConcatChart | None:
    """Mean and interval of the two that stand out for each group at the largest shot; None where there are no groups."""
    if breakdown.is_empty():
        return None
    last = max(breakdown["shot"].unique().to_list(), key=shot_order)
    rows = breakdown.filter(
        (pl.col("shot") == last) & pl.col("learner").is_in([default, *([best] if best else [])])
    ).drop_nulls("mean").with_columns(
        role=_role(default, best), label=pl.format("{} ({})", "group", "users")
    )  # fmt: skip
    names = [default, *([best] if best else [])]
    colour = alt.Color(
        "learner:N",
        scale=alt.Scale(domain=names, range=[DEFAULT, BEST][: len(names)]),
        legend=alt.Legend(orient="top", title=None, labelFontSize=13, labelLimit=400),
    )
    charts = []
    for kind in rows["kind"].unique(maintain_order=True):
        some = rows.filter(pl.col("kind") == kind)
        metric = some["metric"][0]
        order = some["label"].unique(maintain_order=True).to_list()
        base = alt.Chart(alt.InlineData(some.to_dicts())).encode(
            y=alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelFontSize=13, labelLimit=250)),
            yOffset=alt.YOffset("learner:N", sort=names),
            color=colour,
        )
        rule = base.mark_rule(strokeWidth=2).encode(
            x=alt.X(
                "low:Q",
                title=f"{metric} at shot {last}",
                axis=alt.Axis(tickCount=6),
                scale=alt.Scale(zero=False),
            ),
            x2="high:Q",
        )
        dot = base.mark_circle(size=70, opacity=1).encode(
            x="mean:Q",
            tooltip=["learner:N", "group:N", alt.Tooltip("mean:Q", format=".4f"), "users:Q"],
        )
        charts.append(
            alt.layer(rule, dot).properties(
                width=_WIDTH - 100, height=alt.Step(18), title=alt.Title(kind, anchor="start", fontSize=14)
            )
        )
    return alt.vconcat(*charts) if charts else None


# Tables -------------------------------------------------------------------------------------------------------------


def difference_table(found: Found) -> str:
    """Learners by shots: the difference, its interval, and a colour where the interval excludes zero."""
    shots = sorted(found.summary["shot"].unique().to_list(), key=shot_order)
    sign = -1.0 if found.metric in LOWER_IS_BETTER else 1.0
    cells = {(row["learner"], row["shot"]): row for row in found.differences.iter_rows(named=True)}
    best = {row["shot"]: row["against"] for row in found.differences.iter_rows(named=True)}
    means = {
        (row["learner"], row["shot"]): row["mean"]
        for row in found.summary.filter(pl.col("metric") == found.metric).iter_rows(named=True)
    }

    def cell(learner: str, shot: str) -> tuple[str, str]:
        if learner == best.get(shot):
            return f"best: {_number(means.get((learner, shot)))}", "best"
        row = cells.get((learner, shot))
        if row is None or row["difference"] is None:
            return "", ""
        if row["low"] is None:
            return f"{sign * row['difference']:+.4f} {_NO_INTERVAL}", row["verdict"]
        low, high = sorted(sign * row[name] for name in ("low", "high"))
        return f"{sign * row['difference']:+.4f} <small>{low:+.3f} to {high:+.3f}</small>", row["verdict"]

    learners = found.summary["learner"].unique(maintain_order=True).to_list()
    body = [(learner, [cell(learner, shot) for shot in shots]) for learner in learners]
    return table(["", *(f"shot {shot}" for shot in shots)], body, strong=found.default)


def harm_table(found: Found) -> str:
    """Who adapts, by shots: shares of users worse and better off, and the loss of the support before and after."""
    shots = sorted(found.harmed["shot"].unique().to_list(), key=shot_order)
    losses = {
        (row["learner"], row["shot"], row["metric"]): row["mean"]
        for row in found.summary.filter(pl.col("metric").is_in(SUPPORT_LOSSES)).iter_rows(named=True)
    }
    cells = {(row["learner"], row["shot"]): row for row in found.harmed.iter_rows(named=True)}

    def cell(learner: str, shot: str) -> tuple[str, str]:
        row = cells.get((learner, shot))
        if row is None:
            return "", ""
        text = f"{row['worse']:.0%} worse<small>{row['better']:.0%} better</small>"
        before, after = (losses.get((learner, shot, name)) for name in SUPPORT_LOSSES)
        if before is not None and after is not None:
            text += f"<small>loss {before:.3f} to {after:.3f}</small>"
        return text, row["verdict"]

    learners = found.harmed["learner"].unique(maintain_order=True).to_list()
    body = [(learner, [cell(learner, shot) for shot in shots]) for learner in learners]
    if not body:
        return "<p>Nobody was adapted.</p>"
    return table(["", *(f"shot {shot}" for shot in shots)], body, strong=found.default)


def cost_table(costs: pl.DataFrame) -> str:
    """Processor seconds and peak memory of fitting and judging."""

    def seconds(row: dict[str, float | None], name: str) -> tuple[str, str]:
        return "" if (value := row[name]) is None else f"{value:,.1f}", ""

    def gib(row: dict[str, float | None], name: str) -> tuple[str, str]:
        return "" if (value := row[name]) is None else f"{value / _MIB_PER_GIB:.2f}", ""

    body = [
        (
            row["learner"],
            [
                seconds(row, "fit_cpu_seconds"),
                gib(row, "fit_peak_mib"),
                seconds(row, "judge_cpu_seconds"),
                gib(row, "judge_peak_mib"),
            ],
        )
        for row in costs.iter_rows(named=True)
    ]
    return table(["", "fit, CPU s", "peak, GiB", "judge, CPU s", "peak, GiB"], body)


def metric_table(summary: pl.DataFrame, metric: str) -> str:
    """Learners by shots: mean and interval of one metric."""
    rows = summary.filter(pl.col("metric") == metric)
    shots = sorted(rows["shot"].unique().to_list(), key=shot_order)
    cells = {(row["learner"], row["shot"]): row for row in rows.iter_rows(named=True)}

    def cell(learner: str, shot: str) -> tuple[str, str]:
        row = cells.get((learner, shot))
        if row is None or row["mean"] is None:
            return "", ""
        if row["low"] is None:
            return f"{row['mean']:.4f} {_NO_INTERVAL}", ""
        return f"{row['mean']:.4f} <small>{row['low']:.3f} to {row['high']:.3f}</small>", ""

    learners = rows["learner"].unique(maintain_order=True).to_list()
    body = [(learner, [cell(learner, shot) for shot in shots]) for learner in learners]
    return table(["", *(f"shot {shot}" for shot in shots)], body)


def _metrics(summary: pl.DataFrame) -> list[str]:
    names: list[str] = summary["metric"].unique(maintain_order=True).to_list()
    return [name for name in names if ON_ITEMS not in name and name not in SUPPORT_LOSSES]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
