"""What is compared between the variants of an experiment: how the rows of a user become one number, and which way is better."""

from typing import Literal, NamedTuple

Kind = Literal["mean", "ratio", "quantile"]
Aggregate = Literal["sum", "count", "any"]
Covariate = Literal["interactions", "value", "outcome"]

EXPOSURES = "exposures"  # as a metric of rows: one row of the exposures, of value 1


class Metric(NamedTuple):
    """A metric. The user is the unit: rows are added up per user first, whatever they are rows of.

    mean: of the users' numbers. ratio: the sum over all users of one number, divided by that of another (clicks per impression).
    quantile: of the users' numbers.
    """

    name: str
    outcome: str  # the metric of the rows of outcomes
    kind: Kind = "mean"
    aggregate: Aggregate = (
        "sum"  # of a user's rows: their values added up, their number, or whether there is any
    )
    per: str = EXPOSURES  # of a ratio: the rows that are counted below the line
    quantile: float = 0.5
    covariate: Covariate | None = None  # what of the time before the exposure is used to reduce the variance
    lower_is_better: bool = False
    margin: float | None = None  # makes it a guardrail: the share of control's mean by which it may be worse

    @property
    def guards(self) -> bool:
        """Whether it is to be kept, rather than won."""
        return self.margin is not None

    @property
    def sources(self) -> frozenset[str]:
        """The metrics of the rows that it is made of."""
        return frozenset({self.outcome, self.per} if self.kind == "ratio" else {self.outcome})
