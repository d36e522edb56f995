"""How a story can end other than well, where no room says it already."""

from collections.abc import Sequence
from typing import ClassVar


class ConfigError(Exception):
    """The settings cannot be used; says every problem found, each with its file and line."""

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class NothingToDo(Exception):
    """There is no work for this moment, as on a night without interactions."""

    exit_code: ClassVar[int] = 99
