"""From ``class_path`` and ``init_args`` to a learner, checked against the class before anything is run."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipelines.loading import Loaded, Loc, suggestion
from pipelines.outcomes import ConfigError
from pipelines.settings import ClassSettings, Settings
from recsys_meta.algorithms.base import Learner
from recsys_meta.tensors import Sizes

ROOMS = ("recsys_meta.algorithms", "recsys_meta.baselines")

S = TypeVar("S", bound=Settings)


def construct(settings: ClassSettings, sizes: Sizes) -> Learner:
    """The learner that the settings name, for features of these sizes.

    Raises:
        ConfigError: where there is no such class, or where it does not take these arguments.
    """
    problems = [": ".join(["learner", *map(str, loc), text]) for loc, text in class_problems(settings)]
    if problems:
        raise ConfigError(problems)
    cls = _named(settings.class_path)
    known = _parameters(cls)
    arguments = {name: _converted(known[name], value) for name, value in settings.init_args.items()}
    try:
        return cls(sizes, **arguments)
    except ValueError as error:  # arguments that are right one by one, but not together
        raise ConfigError([f"{settings.class_path}: {error}"]) from error


def takes(settings: ClassSettings, argument: str) -> bool:
    """Whether the class has an argument of this name. Raises LookupError where there is no such class."""
    return argument in _parameters(_named(settings.class_path))


def check_classes(loaded: Loaded[S]) -> None:
    """Checks every class that the settings name.

    Raises:
        ConfigError: with every problem, at its place.
    """
    problems = [
        loaded.place((*outer, *inner)) + text
        for outer, settings in _class_settings(loaded.settings)
        for inner, text in class_problems(settings)
    ]
    if problems:
        raise ConfigError(problems)


def class_problems(settings: ClassSettings) -> Iterator[tuple[Loc, str]]:
    """What is wrong with a class path and its arguments: where within the settings, and what."""
    try:
        cls = _named(settings.class_path)
    except LookupError as error:
        yield ("class_path",), str(error.args[0])
        return
    known = _parameters(cls)
    for name, value in settings.init_args.items():
        if name not in known:
            yield (
                ("init_args", name),
                f"{cls.__name__} has no such argument; {suggestion(name, sorted(known))}",
            )
            continue
        try:
            _converted(known[name], value)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                expected = fault["msg"].replace("Input should be", "expected")
                yield ("init_args", name), f"{expected}; found {fault['input']!r}"
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in settings.init_args:
            yield ("init_args",), f"{name} is missing; {cls.__name__} has no default for it"


def _class_settings(settings: object, loc: Loc = ()) -> Iterator[tuple[Loc, ClassSettings]]:
    if isinstance(settings, ClassSettings):
        yield loc, settings
    elif isinstance(settings, Settings):
        for name in type(settings).model_fields:
            yield from _class_settings(getattr(settings, name), (*loc, name))
    elif isinstance(settings, tuple):
        for number, value in enumerate(settings):
            yield from _class_settings(value, (*loc, number))


def _named(class_path: str) -> type[Learner]:
    """The class of this dotted path; LookupError where there is none that can be constructed as a learner."""
    if not all(part.isidentifier() for part in class_path.split(".")):
        raise LookupError(f"there is no {class_path!r}; expected the dotted path of a class")
    module_name, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name, None) if module_name else None
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but something that it imports is not
        found = None
    if found is None:
        raise LookupError(f"there is no {class_path}; {_near(class_path)}")
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise LookupError(f"{class_path} is no learner; {_near(class_path)}")
    if inspect.isabstract(found):
        raise LookupError(f"{class_path} is abstract; {_near(class_path)}")
    return found


def _near(class_path: str) -> str:
    """The learners of the package with a similar name, or all of them."""
    learners: dict[str, str] = {}
    for room in ROOMS:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            for name, found in vars(importlib.import_module(module.name)).items():
                if isinstance(found, type) and issubclass(found, Learner) and not inspect.isabstract(found):
                    learners[name] = f"{found.__module__}.{name}"
    name = class_path.rpartition(".")[2]
    alike = [path for known, path in sorted(learners.items()) if known.lower() == name.lower()]
    return f"did you mean {alike[0]}?" if alike else suggestion(class_path, sorted(set(learners.values())))


def _parameters(cls: type[Learner]) -> dict[str, inspect.Parameter]:
    """What the constructor takes by name beside the sizes, through every **kwargs that passes on to a base class."""
    known: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        constructor = vars(owner).get("__init__")
        if constructor is None:
            continue
        hints = get_type_hints(constructor)
        parameters = inspect.signature(constructor).parameters
        for name, parameter in parameters.items():
            if name not in ("self", "sizes") and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            ):
                known.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return known


def _converted(parameter: inspect.Parameter, value: object) -> object:
    """The value as the annotation wants it; pydantic's ValidationError where it cannot be."""
    wanted: TypeAdapter[object] = TypeAdapter(
        parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True)
    )
    return wanted.validate_python(value)
