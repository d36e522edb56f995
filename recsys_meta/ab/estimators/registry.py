"""Every estimator by name: what it needs, and what its interval does not know."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from recsys_meta.ab.estimators import doubly_robust as dr
from recsys_meta.ab.estimators.embeddings import marginalized_ips
from recsys_meta.ab.estimators.importance import clipped_ips, ips, snips, sub_gaussian_ips
from recsys_meta.ab.estimators.replay import replay
from recsys_meta.ab.estimators.sample import Contributions, Sample

Need = Literal["propensities", "model", "robust model", "embeddings"]


class Estimator(NamedTuple):
    """An estimator and what there is to say of it."""

    name: str
    contributions: Callable[[Sample], Contributions]
    needs: frozenset[Need]
    note: str = ""  # what the interval does not know


_TUNED = (
    "the interval does not know the bias of the shrunk weights, nor that they were chosen on the same logs"
)
_WEIGHTS: frozenset[Need] = frozenset({"propensities"})
_BOTH: frozenset[Need] = frozenset({"propensities", "model"})

ESTIMATORS: Mapping[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("Replay", replay, frozenset(), "unbiased only where actions were logged uniformly at random"),
        Estimator("IPS", ips, _WEIGHTS),
        Estimator("clipped IPS", clipped_ips, _WEIGHTS, _TUNED),
        Estimator("SNIPS", snips, _WEIGHTS),
        Estimator("sub-Gaussian", sub_gaussian_ips, _WEIGHTS, _TUNED),
        Estimator(
            "DM", dr.direct, frozenset({"model"}),
            "the interval knows the spread over users, not the error of the model",
        ),
        Estimator("DR", dr.doubly_robust, _BOTH),
        Estimator("SNDR", dr.self_normalized_doubly_robust, _BOTH),
        Estimator("Switch-DR", dr.switch_doubly_robust, _BOTH, _TUNED),
        Estimator("DRos", dr.shrunk_doubly_robust, _BOTH, _TUNED),
        Estimator("MRDR", dr.more_robust_doubly_robust, frozenset({"propensities", "robust model"})),
        Estimator(
            "MIPS", marginalized_ips, _WEIGHTS | {"embeddings"},
            "biased where an action matters beyond its embedding; the interval takes the marginal weights as known",
        ),
    )
}  # fmt: skip


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
