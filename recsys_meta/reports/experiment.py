"""An experiment in words, tables and pictures: Markdown for the terminal, and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from recsys_meta.ab.experiments.analysis import EVERYBODY, Analysis


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
    everybody = pl.col("segment") == EVERYBODY
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


def _cell(text: str) -> str:
    """A name that cannot break out of its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
