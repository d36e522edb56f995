"""How a fit can fail; apart from the fit itself, so that who catches it need not import Lightning."""

from typing import ClassVar


class FitError(Exception):
    """A fit that cannot give a usable learner: where nothing else can serve, the night is refused."""

    exit_code: ClassVar[int] = 4
