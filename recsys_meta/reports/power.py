"""What an experiment could show, before it is begun: two tables in Markdown, and a picture."""

import altair as alt
import polars as pl
import vl_convert

_WIDTH, _HEIGHT = 520, 260  # pixels


def power_markdown(
    metric: str, horizons: pl.DataFrame, lifts: pl.DataFrame, level: float, power: float
) -> str:
    """One line per length of a test, one line per lift."""
    lines = [
        f"Smallest effect on {metric} that a test sees with probability {power:.0%}, at a level of {level:.0%}:",
        "",
        "| days | users | mean | deviation | variance taken away | read once | in % | looked at every day | in % |",
        f"|{' --- |' * 9}",
    ]
    for row in horizons.iter_rows(named=True):
        taken = "" if row["reduction"] is None else f"{row['reduction']:.1%}"
        lines.append(
            f"| {row['days']} | {row['users']:,} | {row['mean']:.4g} | {row['deviation']:.4g} | {taken}"
            f" | {row['minimum_detectable']:.3g} | {_share(row['relative'])}"
            f" | {row['minimum_detectable_always']:.3g} | {_share(row['relative_always'])} |"
        )
    lines += ["", "Users and days for a lift, in a test that is read once:", ""]
    lines += ["| lift | users | days |", "| --- | --- | --- |"]
    for row in lifts.iter_rows(named=True):
        if row["users"] is None:
            lines.append(f"| {row['lift']:+.1%} | the mean is zero or next to it, or nobody differs | |")
            continue
        days = (
            f"{row['days']}"
            if row["days"] is not None
            else f"about {row['days_at_that_pace']:,}, beyond what was looked at"
        )
        lines.append(f"| {row['lift']:+.1%} | {row['users']:,} | {days} |")
    return "\n".join(lines) + "\n"


def power_picture(metric: str, horizons: pl.DataFrame) -> str:
    """An SVG: the smallest relative effect over the days, read once and looked at every day."""
    rows = [
        {"days": row["days"], "share": row[name], "reading": reading}
        for row in horizons.iter_rows(named=True)
        for name, reading in (("relative", "read once"), ("relative_always", "looked at every day"))
        if row[name] is not None
    ]
    chart = (
        alt.Chart(alt.InlineData(rows))
        .mark_line(point=alt.OverlayMarkDef(size=50), strokeWidth=2.5)
        .encode(
            x=alt.X("days:Q", title="days of the test", axis=alt.Axis(tickMinStep=1, labelFontSize=12)),
            y=alt.Y(
                "share:Q",
                title=f"smallest effect seen, {metric}",
                axis=alt.Axis(format=".1%", labelFontSize=12),
                scale=alt.Scale(zero=True),
            ),
            color=alt.Color(
                "reading:N",
                scale=alt.Scale(domain=["read once", "looked at every day"], range=["#1f5fa8", "#c8590c"]),
                legend=alt.Legend(orient="top", title=None, labelFontSize=13),
            ),
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    picture: str = vl_convert.vegalite_to_svg(chart.to_json())
    return picture


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
