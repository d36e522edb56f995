"""A suite at one look: where the first learner stands above the ladder, level with it, below; Markdown, a picture, a page."""

from collections.abc import Mapping, Sequence
from html import escape

import altair as alt
import polars as pl
import vl_convert

from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, shot_order
from recsys_meta.reports.page import figure, html_page, section, table

# One row for each shot of each evaluation: the learner against the best baseline there.
STANDINGS = pl.Schema(
    {
        **dict.fromkeys(("evaluation", "metric", "shot"), pl.String),
        **dict.fromkeys(("mean", "best_baseline"), pl.Float64),
        "best_baseline_name": pl.String,
        **dict.fromkeys(("low", "high"), pl.Float64),
        "verdict": pl.String,
    }
)
VERDICTS = {"win": "better", "tie": "level", "loss": "worse", "alone": "no baseline"}
_COLOURS = {"win": "#a9cdf0", "tie": "#ececec", "loss": "#f6bd95", "alone": "#ffffff"}
_CELL, _LABELS = (94, 38), 340  # pixels: width and height of a cell, room for the names


def standings_table(standings: pl.DataFrame) -> str:
    """One line for each shot of each evaluation, as Markdown; standings: see ``suite_page``."""
    lines = [
        "| evaluation | shot | first learner | best baseline | difference | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in standings.iter_rows(named=True):
        best, interval = _best(row), _interval(row)
        lines.append(
            f"| {row['evaluation']}, {row['metric']} | {row['shot']} | {row['mean']:.4f} | {best} | {interval} |"
            f" {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def standings_picture(standings: pl.DataFrame, learner: str) -> str:
    """An SVG: evaluations by shots, what the learner gains on the best baseline of each, coloured by the verdict."""
    picture: str = vl_convert.vegalite_to_svg(standings_chart(standings, learner).to_json())
    return picture


def suite_page(
    title: str, facts: Mapping[str, str], standings: pl.DataFrame, ranks: pl.DataFrame, learner: str
) -> str:
    """The page.

    standings: the columns of ``STANDINGS``; mean is the learner's, low and high those of the paired difference (above 0:
    the learner is better; null where a single user was judged, and where it stands alone, as is the best baseline),
    verdict a key of ``VERDICTS``.
    ranks: of ``evaluation.ranks.mean_ranks``.
    """
    sections = [
        section(
            "Against the best baseline of each shot",
            figure("standings"),
            f"what {learner} gains, in % of that baseline; better or worse: the paired difference excludes 0, at 95 %",
        ),
        section(
            "Mean ranks",
            _rank_table(ranks, learner),
            "over all shots of all evaluations; 1 is the best; last: geometric mean of the figure to that of the best baseline",
        ),
        section("All figures", _figures_table(standings), "", folded=True),
    ]
    return html_page(title, facts, sections, {"standings": standings_chart(standings, learner)})


def standings_chart(standings: pl.DataFrame, learner: str) -> alt.LayerChart | alt.FacetChart:
    """Evaluations by shots: a cell with the gain in % of the best baseline, and that baseline's name."""
    shots = sorted(standings["shot"].unique().to_list(), key=shot_order)
    sign = pl.when(pl.col("metric").is_in(LOWER_IS_BETTER)).then(-1.0).otherwise(1.0)
    gain = sign * (pl.col("mean") - pl.col("best_baseline")) / pl.col("best_baseline")
    rows = standings.with_columns(
        gain=pl.when(pl.col("best_baseline") > 0).then(gain),
        name=pl.format("{}, {}", "evaluation", "metric"),
        said=pl.col("verdict").replace_strict(VERDICTS),
    )
    said = [VERDICTS[key] for key in VERDICTS if key in set(standings["verdict"])]
    names = rows["name"].unique(maintain_order=True).to_list()
    base = alt.Chart(alt.InlineData(rows.to_dicts())).encode(
        x=alt.X(
            "shot:N", sort=shots, title="shots", axis=alt.Axis(orient="top", labelAngle=0, labelFontSize=13, ticks=False)
        ),
        y=alt.Y(
            "name:N", sort=names, title=None,
            axis=alt.Axis(labelFontSize=13, labelLimit=_LABELS, ticks=False, domain=False),
        ),
    )  # fmt: skip
    cell = base.mark_rect(stroke="white", strokeWidth=2).encode(
        color=alt.Color(
            "said:N",
            scale=alt.Scale(domain=said, range=[_COLOURS[key] for key in VERDICTS if VERDICTS[key] in said]),
            legend=alt.Legend(orient="bottom", title=f"{learner} is", labelFontSize=13, titleFontSize=13),
        ),
        tooltip=[
            alt.Tooltip("name:N"), alt.Tooltip("shot:N"), alt.Tooltip("mean:Q", title=learner, format=".4f"),
            alt.Tooltip("best_baseline_name:N", title="best baseline"), alt.Tooltip("best_baseline:Q", format=".4f"),
            alt.Tooltip("low:Q", format="+.4f"), alt.Tooltip("high:Q", format="+.4f"),
        ],
    )  # fmt: skip
    number = base.mark_text(dy=-6, fontSize=13).encode(text=alt.Text("gain:Q", format="+.1%"))
    against = base.mark_text(dy=9, fontSize=9, color="#555", limit=_CELL[0] - 4).encode(
        text="best_baseline_name:N"
    )
    unframed = alt.Config(view=alt.ViewConfig(stroke=None))
    return alt.layer(cell, number, against, config=unframed).properties(
        width=_CELL[0] * len(shots), height=_CELL[1] * len(names)
    )


def _best(row: Mapping[str, object]) -> str:
    return "" if row["best_baseline"] is None else f"{row['best_baseline']:.4f} {row['best_baseline_name']}"


def _interval(row: Mapping[str, object]) -> str:
    if row["low"] is None:
        return "" if row["best_baseline"] is None else "no interval"
    return f"{row['low']:+.4f} to {row['high']:+.4f}"


def _rank_table(ranks: pl.DataFrame, learner: str) -> str:
    body: list[tuple[str, Sequence[tuple[str, str]]]] = []
    for row in ranks.iter_rows(named=True):
        ratio = "" if row["ratio"] is None else f"{row['ratio'] - 1:+.1%}"
        body.append(
            (
                row["learner"],
                [(f"{row['mean_rank']:.2f}", ""), (f"{row['best']} of {row['cells']}", ""), (ratio, "")],
            )
        )
    return table(["", "mean rank", "best in", "to the best baseline"], body, strong=learner)


def _figures_table(standings: pl.DataFrame) -> str:
    body: list[tuple[str, Sequence[tuple[str, str]]]] = []
    for row in standings.iter_rows(named=True):
        colour = {"win": "better", "loss": "worse"}.get(row["verdict"], "")
        cells = [row["shot"], f"{row['mean']:.4f}", escape(_best(row)), _interval(row)]
        body.append(
            (
                f"{row['evaluation']}, {row['metric']}",
                [*((cell, "") for cell in cells), (VERDICTS[row["verdict"]], colour)],
            )
        )
    return table(["", "shot", "first learner", "best baseline", "difference", ""], body)
