"""What in the documents follows from the code: the tables of configuration.md, and the lines that links point to.

``make docs`` rewrites both; tests/test_docs.py finds what is out of date.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines import settings
from pipelines.settings import duration_text

REPOSITORY = Path(__file__).resolve().parents[1]
MARKER = "<!-- everything below is written by `make docs` -->\n"
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")

# Sections of configuration.md: heading, where it applies, the model, and the model whose settings it has besides.
SECTIONS: tuple[tuple[str, str, type[BaseModel], type[BaseModel] | None], ...] = (
    ("Every story", "the configs of a night and of an evaluation", settings.Story, None),
    ("A night", "configs for `nightly`, `validate`, `train`, `adapt` and `publish`", settings.NightSettings, settings.Story),
    ("An evaluation", "configs for `evaluate`", settings.EvaluateSettings, settings.Story),
    ("Tuning", "configs for `tune`", settings.TuneSettings, settings.EvaluateSettings),
    ("Nights", "configs for `nights`", settings.NightsSettings, settings.Story),
    ("A simulated month", "configs for `simulate`", settings.SimulateSettings, None),
    ("Variants of a simulated month", "`control`, `treatment`", settings.VariantSettings, None),
    ("Reading an experiment", "configs for `ab`, `interleave` and `power`", settings.ReadingSettings, None),
    ("An experiment", "configs for `ab`", settings.ExperimentSettings, settings.ReadingSettings),
    ("Power", "configs for `power`", settings.PowerSettings, settings.ReadingSettings),
    ("Stated figures", "`stated`", settings.StatedSettings, None),
    ("Exposures", "`exposures`", settings.ExposureSettings, settings.SourceSettings),
    ("Outcomes", "`outcomes`", settings.OutcomeSettings, settings.SourceSettings),
    ("Interleaving", "configs for `interleave`", settings.InterleaveSettings, settings.ReadingSettings),
    ("Rankings", "`a`, `b`", settings.RankingSettings, settings.SourceSettings),
    ("Merged lists", "`interleaved`", settings.InterleavedSettings, settings.SourceSettings),
    ("Outcomes of merged lists", "`outcomes` of `interleave`", settings.InterleavedOutcomeSettings, settings.OutcomeSettings),
    ("Metrics", "`metrics`, `metric`", settings.MetricSettings, None),
    ("Ranges", "`spaces`", settings.RangeSettings, None),
    ("Off-policy evaluation", "configs for `ope`", settings.OffPolicySettings, None),
    ("Logged actions", "`logs`", settings.LogSettings, settings.SourceSettings),
    ("Analyses", "`analyses`", settings.AnalysisSettings, None),
    ("Reward models", "`reward_model`", settings.RewardModelSettings, None),
    ("The uniform policy", "policies of `kind: uniform`", settings.UniformPolicySettings, None),
    ("A policy in a table", "policies of `kind: table`", settings.TablePolicySettings, settings.SourceSettings),
    ("A policy out of scores", "policies of `kind: scores`", settings.ScoresPolicySettings, settings.SourceSettings),
    ("A policy in a column of the logs", "policies of `kind: column`", settings.ColumnPolicySettings, None),
    ("As another behaviour did", "policies of `kind: logged`", settings.LoggedPolicySettings, settings.SourceSettings),
    ("A suite", "configs for `suite`", settings.SuiteSettings, None),
    ("Evaluations of a suite", "`evaluations`", settings.EvaluationSettings, None),
    ("Where rows come from", "every place that names a table", settings.SourceSettings, None),
    ("Interactions", "`interactions`", settings.InteractionSettings, settings.SourceSettings),
    ("Features", "`users`, `items`", settings.FeatureSettings, settings.SourceSettings),
    ("Lists of ids", "`score`, `candidates.table`", settings.IdTableSettings, settings.SourceSettings),
    ("Parts of popularity", "`popularity_mix`", settings.MixSettings, None),
    ("Cold users", "`cold`", settings.ColdSettings, None),
    ("Candidates", "`candidates`", settings.CandidateSettings, None),
    ("Learners", "`learner`, `learners`, `baselines`", settings.LearnerSettings, None),
    ("Baselines", "`baselines`", settings.BaselineSettings, None),
    ("Training", "`training`", settings.TrainingSettings, None),
    ("Moments", "`training.moments`", settings.MomentSettings, None),
    ("Adaptation", "`adaptation`", settings.AdaptationSettings, None),
    ("Slates", "`slate`", settings.SlateSettings, None),
    ("Publishing", "`publish`", settings.PublishSettings, None),
    ("Gates", "`gates`", settings.GateSettings, None),
    ("Rating episodes", "`protocol` with `kind: rating`", settings.RatingProtocol, None),
    ("Ranking episodes", "`protocol` with `kind: ranking`", settings.RankingProtocol, None),
    ("Listed candidates", "`protocol` with `kind: listed`", settings.ListedProtocol, None),
    ("Held-out users", "`protocol` with `kind: held_out_users`", settings.HeldOutProtocol, None),
    ("A moment for all", "`protocol` with `kind: temporal`", settings.TemporalProtocol, None),
    ("The next day", "`protocol` with `kind: next_day`", settings.NextDayProtocol, None),
)  # fmt: skip


def configuration_tables() -> str:
    """All settings: one table per section, one row per setting."""
    return "\n".join("\n".join(_section(*section)) + "\n" for section in SECTIONS)


def with_lines(document: Path, text: str) -> str:
    """The same Markdown, every link `symbol`(file#L..) pointing to the line where the symbol is defined now.

    Raises LookupError where the file does not define it.
    """

    def renewed(link: re.Match[str]) -> str:
        if not re.fullmatch(r"L\d*", link["anchor"] or ""):
            return link[0]
        line = line_of(document.parent / link["path"], link["text"].strip("`"))
        return f"[{link['text']}]({link['path']}#L{line})"

    return LINK.sub(renewed, text)


def line_of(file: Path, symbol: str) -> int:
    """Where a name is defined: a function, class, method (``MAML.adapt``) or constant of Python, a table or view of SQL."""
    text = file.read_text()
    if file.suffix == ".sql":
        found = re.search(rf'^CREATE (?:TABLE|VIEW) "?{re.escape(symbol)}"?\b', text, re.MULTILINE)
        if found:
            return text.count("\n", 0, found.start()) + 1
    elif file.suffix == ".py":
        body: list[ast.stmt] = ast.parse(text).body
        *owners, name = symbol.split(".")
        for owner in owners:
            body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == owner), [])
        for node in body:
            if name in _names(node):
                return node.lineno
    raise LookupError(f"{file.name} defines no {symbol}")


def documents() -> list[Path]:
    """The documents whose links are kept."""
    root = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
    return [file for file in (*root, *sorted((REPOSITORY / "docs").glob("*.md"))) if file.exists()]


def main() -> None:
    """Rewrites what is out of date."""
    page = REPOSITORY / "docs" / "configuration.md"
    before, _, _ = page.read_text().partition(MARKER)
    page.write_text(before + MARKER + "\n" + configuration_tables())
    for document in documents():
        document.write_text(with_lines(document, document.read_text()))


def _section(heading: str, where: str, model: type[BaseModel], base: type[BaseModel] | None) -> Iterator[str]:
    inherited = set(base.model_fields) if base else set()
    schema = model.model_json_schema()
    yield f"### {heading}\n"
    sentence = " ".join((model.__doc__ or "").split()).replace("``", "`")
    yield f"{sentence} Stands in {where}."
    if base:
        (name,) = (section[0] for section in SECTIONS if section[2] is base)
        yield f"Beside these, all of [{name}]({_anchor(name)})."
    yield "\n| setting | expected | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if name not in inherited:
            cells = (
                f"`{name}`",
                _expected(schema["properties"][name]),
                _default(field),
                field.description or "",
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _expected(schema: Mapping[str, Any]) -> str:
    """What a JSON schema lets pass, in words."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        words = dict.fromkeys(_expected(option) for option in options)
        return " or ".join(sorted(words, key=lambda word: word == "none"))
    if "$ref" in schema:
        wanted = schema["$ref"].rpartition("/")[2]
        names = {model.__name__: heading for heading, _, model, _ in SECTIONS}
        name = names.get(wanted, "Learners")  # the class of a baseline has no default; all else is alike
        return f"[{name.lower()}]({_anchor(name)})"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} numbers"
        return f"list: {_expected(schema['items'])}"
    words_of = {"boolean": "`true`, `false`", "null": "none", "object": "keys and values"}
    if schema["type"] in ("integer", "number"):
        return _number(schema)
    return words_of.get(schema["type"]) or str(schema.get("format") or "text")


def _number(schema: Mapping[str, Any]) -> str:
    whole = schema["type"] == "integer"
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if whole and above is not None:
        low, above = above + 1, None
    limits = [f"from {low:g}" if low is not None else "", f"above {above:g}" if above is not None else ""]
    limits += [f"to {high:g}" if high is not None else "", f"below {below:g}" if below is not None else ""]
    return " ".join(["whole number" if whole else "number", *filter(None, limits)])


def _default(field: FieldInfo) -> str:
    """A default as a config would say it."""
    if field.is_required():
        return "*required*"
    value = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple) and any(isinstance(part, BaseModel) for part in value):
        return "one, with its defaults"
    return f"`{_yaml(value)}`" if value is not None else "none"


def _yaml(value: object) -> str:
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


def _anchor(heading: str) -> str:
    return "#" + heading.lower().replace(" ", "-")


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


if __name__ == "__main__":
    main()
