"""A self-contained HTML page: title, facts, sections, and charts that are drawn without a network."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from string import Template

import altair as alt
import vl_convert


def html_page(
    title: str, facts: Mapping[str, str], sections: Sequence[str], charts: Mapping[str, alt.TopLevelMixin]
) -> str:
    """The page. title and facts are text; sections are HTML, with ``figure(name)`` where a chart is to stand."""
    # `</` would end the script that holds the specifications, `<!--` and `<script` would swallow its end.
    specifications = json.dumps({name: chart.to_dict() for name, chart in charts.items()}).replace(
        "<", "\\u003c"
    )
    page = Template(resources.files(__package__).joinpath("page.html").read_text("utf8"))
    return page.substitute(
        title=escape(title),
        facts="".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()),
        sections="\n".join(sections),
        specifications=specifications,
        bundle=_vega(),
    )


def section(heading: str, content: str, note: str, *, folded: bool = False) -> str:
    """A part of the page under a heading; folded: opened by a click."""
    if folded:
        return f"<details><summary>{escape(heading)}</summary>{content}</details>"
    return f"<section><h2>{escape(heading)}</h2><p class='note'>{escape(note)}</p>{content}</section>"


def figure(name: str) -> str:
    """The place of a chart."""
    return f'<div class="figure" id="{name}"></div>'


def table(
    header: Iterable[str], body: Iterable[tuple[str, Sequence[tuple[str, str]]]], strong: str | None = None
) -> str:
    """Rows of a name and cells (HTML and class)."""
    lines = ["<table><thead><tr>", *(f"<th>{escape(name)}</th>" for name in header), "</tr></thead><tbody>"]
    for name, cells in body:
        mark = ' class="default"' if name == strong else ""
        lines.append(f"<tr{mark}><th>{escape(name)}</th>")
        lines += [f'<td class="{kind}">{text}</td>' for text, kind in cells]
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vegaEmbed as one script, a second's work."""
    # Altair writes for v6.4.1, say, which vl-convert knows as 6.4.
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
