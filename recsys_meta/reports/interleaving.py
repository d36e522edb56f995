"""What merging gave, and which ranking users prefer: Markdown for the terminal, and one self-contained HTML page."""

from collections.abc import Mapping
from math import isnan
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from recsys_meta.ab.experiments.preference import Judged, Preference, Rules
from recsys_meta.reports.experiment import BAD, GOOD, NEUTRAL, over_days, verdict_box
from recsys_meta.reports.page import figure, html_page, section, table

_WIDTH, _HEIGHT = 560, 46  # pixels of the bar of users


class Told(NamedTuple):
    """What the page tells of."""

    title: str
    facts: Mapping[str, str]  # said under the title
    preference: Preference
    looks: pl.DataFrame  # of preference.looks
    judged: Judged
    rules: Rules


def interleaving_page(told: Told) -> str:
    """The page: the verdict in words on top, then users, figures, and the preference over the days."""
    row = {"treatment": "B", "verdict": told.judged.verdict, "reasons": told.judged.reasons}
    note = "every user counts once, by the team with whose items it did more"
    charts: dict[str, alt.TopLevelMixin] = {"users": users_bar(told.preference)}
    sections = [
        verdict_box(row),
        section("Users", figure("users"), note),
        section(
            "Figures",
            _figures(told),
            "preference: half the users who prefer B less half of those who prefer A",
        ),
    ]
    if told.looks.height:
        charts["days"] = over_days(told.looks.with_columns(metric=pl.lit("preference for B")))
        band = f"band: {told.rules.level:.0%} always valid, for all days at once; dashed: for whoever looks on that one day alone"
        sections.append(section("Preference until each day", figure("days"), band))
    return html_page(told.title, told.facts, sections, charts)


def users_bar(found: Preference) -> alt.LayerChart | alt.FacetChart:
    """How many users prefer the one, the other, or neither."""
    rows = [
        {"place": place, "who": who, "users": users, "colour": colour}
        for place, (who, users, colour) in enumerate(
            [("A", found.wins_a, BAD), ("as much", found.ties, NEUTRAL), ("B", found.wins_b, GOOD)]
        )
    ]
    base = alt.Chart(alt.InlineData([row for row in rows if row["users"]])).encode(
        x=alt.X("users:Q", title="users", stack="zero", axis=alt.Axis(labelFontSize=12)),
        order=alt.Order("place:Q"),
        tooltip=["who:N", "users:Q"],
    )
    bar = base.mark_bar(height=30).encode(color=alt.Color("colour:N", scale=None))
    said = alt.Text("who:N")
    text = base.mark_text(color="white", fontSize=13).encode(
        x=alt.X("users:Q", stack="zero", bandPosition=0.5), text=said
    )
    return alt.layer(bar, text).properties(width=_WIDTH, height=_HEIGHT)


def interleaving_markdown(told: Told) -> str:
    """The verdict with its reasons, the figures, and what was counted."""
    lines = [f"# {told.title}", "", f"**B: {told.judged.verdict}**", ""]
    lines += [f"- {reason}" for reason in told.judged.reasons]
    lines += ["", f"| {' | '.join(name for name, _ in _cells(told))} |", f"|{' --- |' * len(_cells(told))}"]
    lines += [f"| {' | '.join(value for _, value in _cells(told))} |", ""]
    lines += [f"- {name}: {said}" for name, said in told.facts.items()]
    return "\n".join(lines) + "\n"


def merged_markdown(title: str, summary: Mapping[str, Any]) -> str:
    """What was merged. summary: the last line of the command."""
    lines = [f"# {title}: the lists of {summary['day']}", "", "| | |", "| --- | --- |"]
    alone = f"{summary['users_of_a_alone']:,} in A alone, {summary['users_of_b_alone']:,} in B alone"
    told = {
        "method": summary["method"],
        "users": f"{summary['users']:,}; {alone}: these are shown it, and it counts for neither",
        "rows": f"{summary['rows']:,}; {summary['rows_a']:,} of A, {summary['rows_b']:,} of B,"
        f" {summary['rows_of_neither']:,} of neither",
        "lists that begin with the same item in both": f"{summary['first_items_of_neither']:,}",
        "set aside": f"{summary['rows_quarantined']:,} rows (quarantine.parquet)",
    }
    lines += [f"| {name} | {said} |" for name, said in told.items()]
    return "\n".join(lines) + "\n"


def _figures(told: Told) -> str:
    cells = _cells(told)
    return table(["", *(name for name, _ in cells)], [("B", [(value, "") for _, value in cells])])


def _cells(told: Told) -> list[tuple[str, str]]:
    """Names and values of the figures."""
    found, verdict = told.preference, told.judged
    low, high = verdict.low, verdict.high
    return [
        ("users", f"{found.users:,}"),
        ("prefer A", f"{found.wins_a:,}"),
        ("as much", f"{found.ties:,}"),
        ("prefer B", f"{found.wins_b:,}"),
        ("credit of A", f"{found.credit_a:,.6g}"),
        ("credit of B", f"{found.credit_b:,.6g}"),
        ("preference", _number(found.effect, "+.4g")),
        ("interval that decides", "" if low is None or high is None else f"{low:+.4g} to {high:+.4g}"),
        ("p", _number(verdict.p_value, ".3g")),
        ("p of the sign test", f"{found.sign_p_value:.3g}"),
        ("would be seen", _number(verdict.minimum_detectable, ".3g")),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None or isnan(value) else f"{value:{form}}"
