"""A learner from its name and settings: what a config's and a bundle's ``class_path`` and ``init_args`` come to."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import ClassVar

from recsys_meta.algorithms.base import Learner
from recsys_meta.tensors import Sizes

PACKAGE = "recsys_meta"


class BuildError(ValueError):
    """A class path or settings that no learner can be built from; the message lists every fault found."""

    exit_code: ClassVar[int] = 2


def learner_class(class_path: str, *, allow: Sequence[str] | None = None) -> type[Learner]:
    """The class of a dotted path such as ``recsys_meta.algorithms.maml.MAML``.

    Args:
        class_path: module and class.
        allow: packages besides ``recsys_meta`` whose modules may be imported; None: any, for paths that the user wrote.

    Raises:
        BuildError: nothing is imported from elsewhere, and nothing but a learner is given.
    """
    module_name, _, class_name = class_path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in class_path.split(".")):
        raise BuildError(
            f"class_path is a dotted path to a class, such as {PACKAGE}.algorithms.maml.MAML; found {class_path!r}"
        )
    package = module_name.partition(".")[0]
    if (
        allow is not None
        and package != PACKAGE
        and not any(f"{module_name}.".startswith(f"{name}.") for name in allow)
    ):
        raise BuildError(f"{class_path} lies outside {', '.join([PACKAGE, *allow])}: not imported")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BuildError(f"class_path {class_path}: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise BuildError(
            f"{module_name} has no class {class_name}{_did_you_mean(class_name, _learners_of(vars(module)))}"
        )
    if not (isinstance(found, type) and issubclass(found, Learner)) or inspect.isabstract(found):
        raise BuildError(
            f"{class_path} is not a learner (a concrete subclass of {Learner.__module__}.Learner)"
        )
    return found


def build(
    class_path: str, init_args: Mapping[str, object], sizes: Sizes, *, allow: Sequence[str] | None = None
) -> Learner:
    """A new learner.

    Args:
        class_path, allow: see ``learner_class``.
        init_args: settings of its constructor, all that it takes besides ``sizes``.
        sizes: of the features of users and items.

    Raises:
        BuildError: unknown class, unknown or missing settings, or settings that the constructor refuses.
    """
    chosen = learner_class(class_path, allow=allow)
    settings, required = _settings(chosen)
    faults = [
        f"unknown setting {name!r}{_did_you_mean(name, settings)}"
        for name in init_args
        if name not in settings
    ]
    faults += [f"missing setting {name!r}" for name in required if name not in init_args]
    if faults:
        raise BuildError(f"{class_path}: {'; '.join(faults)} (settings: {', '.join(settings) or 'none'})")
    try:
        return chosen(sizes, **init_args)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise BuildError(f"{class_path} refuses its settings: {error}") from error


def _settings(chosen: type[Learner]) -> tuple[list[str], list[str]]:
    """The names of all settings and of those without a default; ``**settings`` are looked up where they lead."""
    names: dict[str, bool] = {}
    for ancestor in chosen.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.setdefault(parameter.name, parameter.default is parameter.empty)
        if (
            all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters)
            or ancestor is Learner
        ):
            break
    names.pop("sizes", None)
    return list(names), [name for name, required in names.items() if required]


def _learners_of(namespace: Mapping[str, object]) -> list[str]:
    return [
        name for name, value in namespace.items() if isinstance(value, type) and issubclass(value, Learner)
    ]


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
