"""Every estimator by name: what it needs, and what its interval does not know."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from recsys_meta.ab.estimators import doubly_robust as dr
from recsys_meta.ab.estimators.embeddings import marginalized_ips
from recsys_meta.ab.estimators.importance import clipped_ips, ips, snips, sub_gaussian_ips
from recsys_meta.ab.estimators.replay import replay
from recsys_meta.ab.estimators.sample import Contributions, Sample

Need = Literal["propensities", "model", "robust model", "embeddings"]


class Tuned(NamedTuple):
    """What an estimator chooses from the logs, unless it is fixed."""

    word: str  # "threshold"
    low: float  # the least that may be fixed
    below: float  # what is fixed has to lie below
    low_too: bool = True  # whether low itself may be fixed

    def refusal(self, setting: float) -> str | None:
        """What is expected of a setting that may not be; None where it may."""
        fits = self.low <= setting < self.below and (self.low_too or setting > self.low)
        if fits:
            return None
        end = "" if self.below == float("inf") else f" below {self.below:g}"
        return f"expected a {self.word} {'from' if self.low_too else 'above'} {self.low:g}{end}"


class Estimator(NamedTuple):
    """An estimator and what there is to say of it."""

    name: str
    contributions: Callable[..., Contributions]  # of a Sample; of one that is tuned also of its setting
    needs: frozenset[Need]
    note: str = ""  # what the interval does not know
    tuned: Tuned | None = None

    def applied(self, sample: Sample, fixed: Mapping[str, float]) -> tuple[Contributions, str]:
        """What each row adds and what the interval does not know. fixed: settings by the name of the estimator."""
        if self.tuned is None or self.name not in fixed:
            return self.contributions(sample), self.note
        setting = fixed[self.name]
        return self.contributions(sample, setting), f"{self.tuned.word} fixed at {setting:g}: {_SHRUNK}"


_SHRUNK = "the interval does not know the bias of the shrunk weights"
_TUNED = f"{_SHRUNK}, nor that they were chosen on the same logs"
_INFINITY = float("inf")
_WEIGHTS: frozenset[Need] = frozenset({"propensities"})
_BOTH: frozenset[Need] = frozenset({"propensities", "model"})

ESTIMATORS: Mapping[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("Replay", replay, frozenset(), "unbiased only where actions were logged uniformly at random"),
        Estimator("IPS", ips, _WEIGHTS),
        Estimator("clipped IPS", clipped_ips, _WEIGHTS, _TUNED, Tuned("threshold", 0.0, _INFINITY, low_too=False)),
        Estimator("SNIPS", snips, _WEIGHTS),
        Estimator("sub-Gaussian", sub_gaussian_ips, _WEIGHTS, _TUNED, Tuned("shrinkage", 0.0, 1.0)),
        Estimator(
            "DM", dr.direct, frozenset({"model"}),
            "the interval knows the spread over users, not the error of the model",
        ),
        Estimator("DR", dr.doubly_robust, _BOTH),
        Estimator("SNDR", dr.self_normalized_doubly_robust, _BOTH),
        Estimator("Switch-DR", dr.switch_doubly_robust, _BOTH, _TUNED, Tuned("threshold", 0.0, _INFINITY)),
        Estimator("DRos", dr.shrunk_doubly_robust, _BOTH, _TUNED, Tuned("shrinkage", 0.0, _INFINITY, low_too=False)),
        Estimator(
            "MRDR", dr.more_robust_doubly_robust, frozenset({"propensities", "robust model"}),
            "its model is fitted under squared weights: where some are large its interval holds less often than it says",
        ),
        Estimator(
            "MIPS", marginalized_ips, _WEIGHTS | {"embeddings"},
            "biased where an action matters beyond its embedding; the interval takes the marginal weights as known",
        ),
    )
}  # fmt: skip


def refused(fixed: Mapping[str, float], wanted: Sequence[str] = ()) -> list[str]:
    """What is wrong with fixed settings, a sentence each. wanted: the estimators that are computed; none: all."""
    tuned = {name: one.tuned for name, one in ESTIMATORS.items() if one.tuned is not None}
    problems = []
    for name, setting in fixed.items():
        one = tuned.get(name)
        if one is None:
            what = "chooses nothing" if name in ESTIMATORS else "is not known here"
            problems.append(f"{name!r} {what}; expected some of {', '.join(tuned)}")
        elif wanted and name not in wanted:
            problems.append(f"{name} is fixed, and not among the estimators {', '.join(wanted)}")
        elif (expected := one.refusal(setting)) is not None:
            problems.append(f"{name}: {expected}; found {setting:g}")
    return problems


def available(sample: Sample) -> list[Estimator]:
    """Those that this sample has everything for, in order."""
    have: set[Need] = set()
    if sample.propensities is not None:
        have.add("propensities")
    if sample.model_value is not None:
        have.add("model")
    if sample.robust_value is not None:
        have.add("robust model")
    if sample.embeddings is not None:
        have.add("embeddings")
    return [estimator for estimator in ESTIMATORS.values() if estimator.needs <= have]
