"""What nights in a row came to: tables in Markdown, and a picture of quality and cost."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl
import vl_convert

_WIDTH, _HEIGHT = 560, 190
_COLOURS = ("#c2410c", "#1d4ed8", "#64748b")


def nights_table(rows: pl.DataFrame, regimes: Sequence[str]) -> str:
    """One line per night; a star where the gate kept the champion. rows: night, regime, ndcg, cpu_seconds, promoted, users."""
    head = ["night", "users", *(f"NDCG {name}" for name in regimes), *(f"CPU s {name}" for name in regimes)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for night in rows["night"].unique().sort():
        of = {row["regime"]: row for row in rows.filter(pl.col("night") == night).iter_rows(named=True)}
        quality = [
            f"{of[name]['ndcg']:.4f}{'*' if of[name]['promoted'] is False else ''}" for name in regimes
        ]
        seconds = [f"{of[name]['cpu_seconds'] or 0:.0f}" for name in regimes]
        lines.append(f"| {' | '.join([str(night), str(of[regimes[0]]['users']), *quality, *seconds])} |")
    return "\n".join(lines) + "\n"


def totals_table(totals: Sequence[dict[str, Any]]) -> str:
    """One line per regime: what ``totals_of`` gives, the first night left out."""
    lines = [
        "| regime | NDCG, mean over users | mean over nights | to training anew, by users | by nights | training s"
        " | of that CPU s | gate s | champion kept |",
        f"|{' --- |' * 9}",
    ]
    for total in totals:
        differences = [
            f"{total[f'difference_by_{by}']:+.4f} ({_between(total[f'low_by_{by}'], total[f'high_by_{by}'], '+.4f')})"
            if f"difference_by_{by}" in total
            else ""
            for by in ("users", "nights")
        ]
        lines.append(
            f"| {total['regime']} | {total['ndcg']:.4f} ({_between(total['low'], total['high'], '.4f')})"
            f" | {total['ndcg_over_nights']:.4f} | {differences[0]} | {differences[1]} | {total['train_seconds']:.0f}"
            f" | {total['cpu_seconds']:.0f} | {total['gate_seconds']:.0f} | {total['kept']} |"
        )
    return "\n".join(lines) + "\n"


def nights_picture(rows: pl.DataFrame, regimes: Sequence[str], against: str) -> str:
    """An SVG: above by how much NDCG differs each night from that of one regime, below the training added up.

    Differences, because nights differ from each other far more than regimes do.
    """
    other = rows.filter(pl.col("regime") == against).select("night", pl.col("ndcg").alias("of_other"))
    added = (
        rows.sort("night")
        .join(other, on="night", maintain_order="left")
        .with_columns(
            pl.col("night").cast(pl.String),
            (pl.col("ndcg") - pl.col("of_other")).alias("difference"),
            pl.col("cpu_seconds").fill_null(0).cum_sum().over("regime").alias("seconds"),
        )
    )
    data = alt.InlineData(added.select("night", "regime", "difference", "seconds").to_dicts())
    colour = alt.Color(
        "regime:N",
        scale=alt.Scale(domain=list(regimes), range=list(_COLOURS[: len(regimes)])),
        legend=alt.Legend(orient="top", title=None, labelFontSize=13),
    )
    days = alt.Axis(format="%d %b", labelAngle=0, labelFontSize=12, tickCount="day", labelOverlap=True)
    charts = [
        alt.Chart(data)
        .mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=2)
        .encode(
            x=alt.X("night:T", title=None, axis=days),
            y=alt.Y(f"{field}:Q", title=title, axis=alt.Axis(labelFontSize=12)),
            color=colour,
        )
        .properties(width=_WIDTH, height=_HEIGHT)
        for field, title in (
            ("difference", f"NDCG, difference to {against}"),
            ("seconds", "training, CPU s in all"),
        )
    ]
    picture: str = vl_convert.vegalite_to_svg(alt.vconcat(*charts).to_json())
    return picture


def _between(low: float | None, high: float | None, form: str) -> str:
    """An interval; of a single user, or night, there is none."""
    return "no interval" if low is None or high is None else f"{low:{form}} to {high:{form}}"
