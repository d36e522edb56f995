"""Settings from YAML files, the environment and the command line: merged, validated, every error told with its place.

jsonargparse stops at the first error and knows no line of it, so this reads YAML nodes itself (each keeps its mark),
merges them, and leaves types and defaults to pydantic.
"""

import difflib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipelines.outcomes import ConfigError
from pipelines.settings import Located, Settings, duration_text

ENVIRONMENT_PREFIX = "RECSYS_META__"
LARGEST_CONFIG = 2**20  # bytes: far above any config, far below what its reading could hurt with
_DEEPEST = 50  # mappings and lists inside each other; whatever walks a tree of them recurses
_64_BITS = range(-(2**63), 2**63)

S = TypeVar("S", bound=Settings)
Loc = tuple[int | str, ...]

# YAML 1.2's core schema. PyYAML's own (1.1) reads the column `no` as False, the id 007 as 7 and 1e-3 as a text.
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


@dataclass(frozen=True)
class Node:
    """A value of a config and where it was written."""

    content: "bool | int | float | str | list[Node] | dict[str, Node] | None"
    place: str

    def plain(self) -> Any:
        """The value alone."""
        if isinstance(self.content, dict):
            return {key: child.plain() for key, child in self.content.items()}
        if isinstance(self.content, list):
            return [child.plain() for child in self.content]
        return self.content

    def at(self, loc: Loc) -> tuple["Node", Loc]:
        """The node that a pydantic location leads to, as far as something is written there, and that far location."""
        node = self
        walked: Loc = ()
        for part in loc:
            if isinstance(node.content, dict) and part in node.content:
                node = node.content[str(part)]
            elif isinstance(node.content, list) and isinstance(part, int) and part < len(node.content):
                node = node.content[part]
            else:  # a key that is not written, or pydantic's name for a member of a union
                continue
            walked = (*walked, part)
        return node, walked


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Settings, and what a run stores of them."""

    settings: S
    tree: Node

    @property
    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, in what JSON knows; loading them again gives the same settings."""
        return self.settings.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """Equal exactly when the settings are, whatever the day, and wherever workspace and data lie.

        What the data are is not for the settings to say: a run takes the fingerprint of what it read.
        """
        # Brings DuckDB and polars, which --help and --print_config do without.
        from recsys_meta.store import fingerprint

        return fingerprint(
            _unplaced({key: value for key, value in self.resolved.items() if key not in self.settings.PLACE})
        )

    def place(self, loc: Loc) -> str:
        """Where the setting at this location was written, as "file:line: dotted.key: "."""
        node, _ = self.tree.at(loc)
        return _prefix(node.place, loc)


def _unplaced(setting: object) -> object:
    """The same settings without the paths of sources."""
    if not isinstance(setting, Mapping):
        return setting
    return {key: _unplaced(value) for key, value in setting.items() if key != "path"}


def load(
    model: type[S],
    configs: Sequence[Path],
    overrides: Sequence[tuple[str, str]] = (),
    environment: Mapping[str, str] | None = None,
) -> Loaded[S]:
    """The settings that these files give, the later over the earlier, the environment over files, overrides over all.

    Mappings merge key by key; anything else replaces. Another ``class_path`` replaces its ``init_args`` too, and a policy or a
    protocol of another ``kind`` the whole of it (``KIND_REPLACES``). Paths are relative to the file that names them; those of
    overrides and of the environment to the current folder.

    Args:
        model: the settings wanted.
        configs: YAML files.
        overrides: (dotted key, value as YAML), as the command line gives them.
        environment: variables, of which those named RECSYS_META__dotted__key count.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[str] = []
    tree = Node({}, str(configs[0]) if configs else "command line")
    for config in configs:
        overlay = _read_file(config, problems)
        tree = _merged(tree, overlay, (model,)) if overlay else tree
    said = Node({}, "environment")
    for name, text in sorted((environment or {}).items()):
        if name.upper().startswith(ENVIRONMENT_PREFIX):
            key = name[len(ENVIRONMENT_PREFIX) :].replace("__", ".")
            overlay = _read_override(
                key.lower() if name.isupper() else key, text, f"environment {name}", problems
            )
            said = _merged(said, overlay, (model,)) if overlay else said
    tree = _merged(tree, said, (model,))
    # One thing said, so that a kind may stand before or after the keys that belong to it; null takes back what was there before.
    nothing = Node({}, "command line")
    said = nothing
    for key, text in overrides:
        overlay = _read_override(key, text, "command line", problems)
        if overlay is not None and _is_null(overlay):
            tree, said = _merged(_merged(tree, said, (model,)), overlay, (model,)), nothing
        elif overlay is not None:
            said = _merged(said, overlay, (model,))
    tree = _merged(tree, said, (model,))
    if problems:
        raise ConfigError(problems)
    try:
        return Loaded(model.model_validate(tree.plain()), tree)
    except ValidationError as error:
        raise ConfigError(list(_explained(error, tree, model))) from None


def as_yaml(settings: BaseModel, *, comments: bool = False) -> str:
    """All settings as a config, defaults included; with comments every key under its description."""
    plain = settings.model_dump(mode="json")
    text = ""
    for name, field in type(settings).model_fields.items():
        if comments and field.description:
            text += f"# {field.description}\n"
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            text += f"{name}:\n" + textwrap.indent(as_yaml(value, comments=comments), "  ")
        else:
            text += f"{name}: {_flow(plain[name])}\n"
    return text


def described(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as (dotted key, description and default)."""
    for name, field in model.model_fields.items():
        parts = list(_models(field.annotation))
        if parts:
            yield prefix + name, field.description or ""
            seen = set()
            for part in parts:
                for key, text in described(part, f"{prefix}{name}."):
                    if key not in seen:
                        seen.add(key)
                        yield key, text
        else:
            default = "" if field.is_required() else f" [{_default_text(field.default)}]"
            yield prefix + name, f"{field.description or ''}{default}"


def suggestion(found: str, known: Sequence[str]) -> str:
    """ "did you mean ..?", or else what there is."""
    there_is = f"expected one of {', '.join(known)}" if known else "expected nothing here"
    return _nearest(found, known) or there_is


def _nearest(found: str, known: Sequence[str]) -> str:
    """ "did you mean ..?"; empty where nothing is near."""
    near = difflib.get_close_matches(found, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return str(text).removesuffix("...\n").rstrip()


def _default_text(default: object) -> str:
    if isinstance(default, timedelta):
        return duration_text(default)
    if isinstance(default, tuple):
        return ", ".join(map(_default_text, default)) or "none"
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


# Reading ------------------------------------------------------------------------------------------------------------


class _Reader(yaml.SafeLoader):
    """Composes nodes only: nothing is ever constructed, and no value stands for more than what is written there."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own way; filled below)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases are not read; expected the value itself", mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML would read as something else."""


for _name, _pattern, _first in _SCALARS:
    for _class in (_Reader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def _read_file(config: Path, problems: list[str]) -> Node | None:
    """The values of one file; what is wrong with it goes to ``problems``."""
    try:
        if config.exists() and not config.is_file():  # a folder, or a device or pipe that never ends
            raise OSError("not a file")
        with config.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise OSError(f"larger than {LARGEST_CONFIG:,} bytes, at most so many are read")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        beside = sorted(str(config.with_name(file.name)) for file in config.parent.glob("*.y*ml"))
        problems.append(f"{config}: there is no such file; {suggestion(str(config), beside)}")
        return None
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{config}: cannot be read ({error}); expected a YAML file in UTF-8")
        return None
    node = _composed(text, lambda line: f"{config}:{line}", config.parent, problems)
    if node is None or isinstance(node.content, dict):
        return node and Node(node.content, str(config))
    if node.content is not None:  # an empty file says nothing, and may
        problems.append(f"{node.place}: expected settings as key: value{_found(node)}")
    return None


def _read_override(key: str, text: str, place: str, problems: list[str]) -> Node | None:
    """The mapping in which only this dotted key is set."""
    node = _composed(text, lambda _: place, Path(), problems)
    parts = key.split(".")
    if not all(parts):
        problems.append(f"{place}: {key!r} is no setting; expected names joined by dots")
        return None
    for part in reversed(parts):
        node = node and Node({part: node}, place)
    return node


def _composed(text: str, place: Callable[[int], str], folder: Path, problems: list[str]) -> Node | None:
    """YAML text as nodes; None, and an entry in ``problems``, where it is none."""
    try:
        written = yaml.compose(text, Loader=_Reader)
        return Node(None, place(1)) if written is None else _node(written, place, folder, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        problems.append(f"{place(mark.line + 1 if mark else 1)}: {said}{_way_out(said)}")
    except yaml.YAMLError as error:  # a character that YAML does not allow
        problems.append(f"{place(1)}: {' '.join(str(error).split())}")
    except RecursionError:
        problems.append(f"{place(1)}: nested too deeply to be settings")
    return None


def _way_out(said: str) -> str:
    """What to do about what PyYAML says, where its words do not tell."""
    if "'\\t' that cannot start any token" in said:
        return "; expected spaces before a key, no tab"
    if "cannot start any token" in said or said.startswith("while scanning an a"):  # an alias or an anchor
        return (
            "; expected a text that begins so to stand in quotes, as '*.csv' does (for a shell: \"'*.csv'\")"
        )
    if "unknown escape character" in said:
        return "; expected single quotes around a text with backslashes"
    return ""


def _node(
    written: yaml.Node, place: Callable[[int], str], folder: Path, problems: list[str], depth: int = 0
) -> Node:
    here = place(written.start_mark.line + 1)
    if depth > _DEEPEST:
        problems.append(f"{here}: nested too deeply to be settings")
        return Node(None, here)
    if isinstance(written, yaml.MappingNode) and written.tag == _TAG + "map":
        children: dict[str, Node] = {}
        for key, value in written.value:
            line = place(key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):
                problems.append(f"{line}: found a {key.id} as a key; expected a name")
            elif key.value in children:
                problems.append(f"{line}: {key.value} is set twice, first at {children[key.value].place}")
            else:
                children[key.value] = Node(_node(value, place, folder, problems, depth + 1).content, line)
        return Node(children, here)
    if isinstance(written, yaml.SequenceNode) and written.tag == _TAG + "seq":
        return Node([_node(value, place, folder, problems, depth + 1) for value in written.value], here)
    if isinstance(written, yaml.ScalarNode) and written.tag.removeprefix(_TAG) in (
        "str",
        "null",
        "bool",
        "int",
        "float",
    ):
        try:
            return Node(_scalar(written, folder), here)
        except ValueError as error:
            problems.append(f"{here}: {error}")
            return Node(None, here)
    problems.append(f"{here}: the tag {written.tag} is not read; expected a plain value")
    return Node(None, here)


def _scalar(written: yaml.ScalarNode, folder: Path) -> bool | int | float | str | None:
    text: str = written.value
    match written.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            number = int(text, 0)
            if number not in _64_BITS:
                raise ValueError(f"found a whole number of {len(text)} digits; expected one of 64 bits")
            return number
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return Located(text, folder)


def _merged(base: Node, overlay: Node, annotations: Sequence[object]) -> Node:
    """The overlay over the base: mappings key by key, anything else whole. annotations: of what stands here."""
    if not isinstance(overlay.content, dict):
        return overlay
    content = base.content
    if isinstance(content, str) and "init_args" in overlay.content:  # a class path alone is short for this
        content = {"class_path": base}
    if not isinstance(content, dict):
        return overlay
    merged = dict(content)
    before, after = merged.get("class_path"), overlay.content.get("class_path")
    if before and after and before.content != after.content:
        merged.pop("init_args", None)  # they were another class's
    before, after = merged.get("kind"), overlay.content.get("kind")
    if before and after and before.content != after.content and _kind_replaces(annotations):
        return overlay
    for key, value in overlay.content.items():
        deeper = _annotations_at(annotations, key)
        merged[key] = _merged(merged[key], value, deeper) if key in merged else value
    return Node(merged, base.place)


def _is_null(overlay: Node) -> bool:
    """Whether the one key of an override is set to null."""
    content = overlay.content
    while isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values())).content
    return content is None


def _kind_replaces(annotations: Sequence[object]) -> bool:
    models = (model for one in annotations for model in _models(one))
    return any(model.KIND_REPLACES for model in models if issubclass(model, Settings))


def _annotations_at(annotations: Sequence[object], key: str) -> list[object]:
    """What may stand under this key of what may stand here."""
    found: list[object] = []
    for one in annotations:
        if isinstance(one, type) and issubclass(one, BaseModel):
            found += [one.model_fields[key].annotation] if key in one.model_fields else []
        elif get_origin(one) is dict:
            found.append(get_args(one)[1])
        else:  # of a union, or of something annotated
            found += _annotations_at(get_args(one), key)
    return found


# Explaining ---------------------------------------------------------------------------------------------------------


def _explained(error: ValidationError, tree: Node, model: type[BaseModel]) -> Iterator[str]:
    """One line per setting at fault: its place, what was expected, what was found."""
    faults: dict[str, tuple[list[str], str]] = {}
    errors = error.errors(include_url=False)
    for fault in errors:
        node, loc = tree.at(fault["loc"])
        kind, found = fault["type"], ""
        if kind == "too_short" and any(_lies_in(fault["loc"], other["loc"]) for other in errors):
            continue  # pydantic counts what is right alone, and tells what is wrong besides
        if kind == "missing":
            loc = (*loc, fault["loc"][-1])
            expectation = f"is missing; expected {_description(model, fault['loc'])}"
        elif kind == "extra_forbidden":
            expectation = f"unknown key; {_known_instead(model, fault['loc'])}"
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            expectation, found = "expected keys and values", _found(node)
        elif kind in ("too_short", "too_long"):
            limit = fault["ctx"]["min_length" if kind == "too_short" else "max_length"]
            expectation = f"expected {limit} at {'least' if kind == 'too_short' else 'most'}"
            found = f"; found {fault['ctx']['actual_length']}"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):  # the key that tells which model is meant
            missing = "is missing; " if kind == "union_tag_not_found" else ""
            node, _ = tree.at((*loc, "kind"))
            loc = (*loc, "kind")
            expectation = f"{missing}expected {_description(model, loc)}"
            kinds = [kind for one in _models_at(model, loc[:-1]) for kind in _kinds(one)]
            near = _nearest(node.content, kinds) if isinstance(node.content, str) else ""
            found = "" if missing else "; ".join(filter(None, (_found(node), near)))
        else:
            expectation = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            expectation = expectation.replace("a valid tuple", "a list")
            found = "" if kind == "value_error" and isinstance(node.content, dict) else _found(node)
        expectations, _ = faults.setdefault(_prefix(node.place, loc), ([], found))
        if expectation not in expectations:
            expectations.append(expectation)
    for prefix, (expectations, found) in faults.items():
        yield prefix + " or ".join(expectations) + found


def _lies_in(outer: Loc, inner: Loc) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _prefix(place: str, loc: Loc) -> str:
    key = ".".join(map(str, loc))
    return f"{place}: {key}: " if key else f"{place}: "


def _found(node: Node) -> str:
    if isinstance(node.content, dict):
        return "; found keys and values"
    if isinstance(node.content, list):
        return "; found a list"
    return f"; found {'null' if node.content is None else repr(node.content)}"


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a field may hold, within unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _known_instead(model: type[BaseModel], loc: Loc) -> str:
    """What to set instead of the key at a pydantic location: one of another kind, of another place, or near to it."""
    key = str(loc[-1])
    tag = str(loc[-2]) if len(loc) > 1 else ""
    kinds = [kind for one in _models_at(model, loc[:-2]) if key in one.model_fields for kind in _kinds(one)]
    known = sorted({name for fields in _fields_at(model, loc[:-1]) for name in fields})
    if kinds and tag in {kind for one in _models_at(model, loc[:-2]) for kind in _kinds(one)}:
        return f"it belongs to kind: {' or '.join(kinds)}, of kind: {tag} expected one of {', '.join(known)}"
    elsewhere = [place for place, _ in described(model) if place.rpartition(".")[2] == key]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    return suggestion(key, known)


def _models_at(model: type[BaseModel], loc: Loc) -> list[type[BaseModel]]:
    """Every model that may stand at this location, or just the one that pydantic names there."""
    models = [model]
    for part in loc:
        if any(part in one.model_fields for one in models):
            fields = (one.model_fields[str(part)] for one in models if part in one.model_fields)
            models = [deeper for field in fields for deeper in _models(field.annotation)]
        elif isinstance(part, str):  # pydantic's name for a member of a union
            models = [one for one in models if part in _kinds(one)] or models
    return models


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The kinds that tell this model from others in its place."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _fields_at(model: type[BaseModel], loc: Loc) -> list[dict[str, FieldInfo]]:
    """The fields of every model that may stand at this location."""
    return [one.model_fields for one in _models_at(model, loc)]


def _description(model: type[BaseModel], loc: Loc) -> str:
    for fields in _fields_at(model, loc[:-1]):
        if str(loc[-1]) in fields:
            return fields[str(loc[-1])].description or "a value"
    return "a value"
