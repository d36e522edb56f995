"""A summary of judgements as a Markdown table: learners by shots, one metric, the best of each shot in bold."""

import polars as pl

from recsys_meta.evaluation.intervals import LOWER_IS_BETTER, shot_order


def markdown(summary: pl.DataFrame, metric: str, *, intervals: bool = True, digits: int = 4) -> str:
    """One row per learner (in the order of the summary), one column per shot; a last line counts the users.

    summary: what ``intervals.summarize`` gives. Raises KeyError if it does not hold the metric.
    """
    rows = summary.filter(pl.col("metric") == metric)
    if len(rows) == 0:
        raise KeyError(
            f"no metric {metric!r} in the summary; found {summary['metric'].unique().sort().to_list()}"
        )
    learners: list[str] = rows["learner"].unique(maintain_order=True).to_list()
    shots: list[str] = sorted(rows["shot"].unique().to_list(), key=shot_order)
    best = _best(rows, metric, digits)
    cells = {
        (row["learner"], row["shot"]): _cell(row, best.get(row["shot"]), intervals, digits)
        for row in rows.iter_rows(named=True)
    }
    lines = [_line([f"{metric} at shot", *shots]), _line(["---"] * (len(shots) + 1))]
    lines += [
        _line([_name(learner), *(cells.get((learner, shot), "") for shot in shots)]) for learner in learners
    ]
    return "\n".join([*lines, "", _users(rows)]) + "\n"


def _best(rows: pl.DataFrame, metric: str, digits: int) -> dict[str, str]:
    """The best mean of each shot, as it is printed: learners that print alike are best together."""
    mean = pl.col("mean").min() if metric in LOWER_IS_BETTER else pl.col("mean").max()
    per_shot = rows.group_by("shot").agg(mean).drop_nulls()
    return {shot: f"{value:.{digits}f}" for shot, value in per_shot.iter_rows()}


def _cell(row: dict[str, float | None], best: str | None, intervals: bool, digits: int) -> str:
    """One mean with its interval."""
    mean, low, high = row["mean"], row["low"], row["high"]
    if mean is None:
        return "-"
    text = f"{mean:.{digits}f}"
    text = f"**{text}**" if text == best else text
    if not intervals:
        return text
    return f"{text} [no interval]" if low is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _users(rows: pl.DataFrame) -> str:
    """How many users the table speaks of, and how many it leaves out."""
    judged, without = _span(rows["users"]), _span(rows["users_without_relevant"])
    return f"{judged} users judged; {without} without a relevant item"


def _span(counts: pl.Series) -> str:
    """One count, or the least and the greatest where cells differ."""
    found: list[int] = counts.to_list()
    least, most = f"{min(found):,}", f"{max(found):,}"
    return most if least == most else f"{least} to {most}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(learner: str) -> str:
    """A learner's name that cannot break out of its cell."""
    return learner.replace("|", "\\|").replace("\n", " ")
