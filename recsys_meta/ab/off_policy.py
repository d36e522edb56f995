"""Off-policy evaluation of a policy over logs: all estimates, their diagnostics and the verdict; and two policies compared."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recsys_meta.ab import reward_models
from recsys_meta.ab.diagnostics import Diagnostics, diagnose, weight_distribution
from recsys_meta.ab.estimators.registry import available
from recsys_meta.ab.estimators.replay import matches_alike
from recsys_meta.ab.estimators.sample import (
    Codes,
    Contributions,
    Numbers,
    Sample,
    UserSums,
    difference,
    per_user,
    user_sums,
)
from recsys_meta.ab.intervals import MEANT, Kind, Resamples, interval, resamples
from recsys_meta.ab.logged_actions import POSITION, LoggedActions, Origin
from recsys_meta.ab.policies import Policy, supported_share, target_probabilities
from recsys_meta.ab.verdict import AGREEMENT, WORDS, WORTH, Limits, Verdict, judge, left_out_words

DEFAULT_KIND: Kind = "studentized"  # docs/offline_ab.md says by what measurement
# Which estimate is the answer: the first that there is. Replay only where the actions that match were logged alike.
ANSWERS: Sequence[str] = ("DR", "SNIPS", "Replay")
_UNLIKE = "no answer here: the propensities of the actions that match differ"

ESTIMATES: Mapping[str, type[pl.DataType]] = {
    "policy": pl.String,
    "estimator": pl.String,
    "value": pl.Float64,  # reward per logged row
    "low": pl.Float64,  # null: no bound
    "high": pl.Float64,
    "standard_error": pl.Float64,
    "interval": pl.String,  # kind
    "level": pl.Float64,
    "setting": pl.Float64,  # what a tuned estimator chose, or what was fixed; null elsewhere
    "is_answer": pl.Boolean,  # false for all where the verdict is "not identified", or none that was asked for can be it
    "note": pl.String,  # what the interval does not know, and what it is worth where the verdict is not "trustworthy"
}


class Models(NamedTuple):
    """The reward models of one set of logs; they do not depend on the policy, but for the one of MRDR."""

    kind: reward_models.Kind
    folds: int
    seed: int
    plain: reward_models.RewardModel


class OffPolicy(NamedTuple):
    """What the logs say about one policy."""

    policy: Policy
    estimates: pl.DataFrame  # ESTIMATES
    diagnostics: Diagnostics
    verdict: Verdict
    weights: pl.DataFrame  # of diagnostics.weight_distribution; empty without propensities
    sums: Mapping[str, UserSums]  # by estimator
    drawn: Resamples
    rows: Numbers  # [U], logged rows (or slates) of each user
    unit: str = "row"  # or "slate": what values are per
    answers: Sequence[str] = ()  # estimators that may be the answer here, asked for or not, the better first

    @property
    def answer(self) -> dict[str, Any] | None:
        """The estimate that is given as the answer; None where there is none to give."""
        chosen = self.estimates.filter("is_answer")
        return chosen.row(0, named=True) if len(chosen) else None


def fitted_models(
    logs: LoggedActions, kind: reward_models.Kind = "logistic", *, folds: int = 5, seed: int = 0
) -> Models:
    """Reward models cross-fitted by user."""
    return Models(kind, folds, seed, reward_models.fit(logs, kind=kind, folds=folds, seed=seed))


def off_policy(
    logs: LoggedActions,
    policy: Policy,
    *,
    models: Models | None = None,
    estimators: Sequence[str] | None = None,
    kind: Kind = DEFAULT_KIND,
    level: float = 0.95,
    drawn: Resamples | None = None,
    draws: int = 1000,
    seed: int = 0,
    limits: Limits | None = None,
    fixed: Mapping[str, float] | None = None,
) -> OffPolicy:
    """Everything that the logs say about a policy.

    models: for DM, DR and their kin; None: these are left out.
    estimators: names of those wanted; None: all that can be computed.
    fixed: settings of tuned estimators that are not to be chosen from the logs, by name, such as {"Switch-DR": 1.0}.
    drawn: resamples of the users; the same ones make several policies comparable. None: drawn here.
    """
    sample = sample_of(logs, policy, models, estimators)
    drawn = drawn or resamples(int(sample.users.max()) + 1, draws, seed)
    answers = [name for name in ANSWERS if name != "Replay" or matches_alike(sample)]
    found = []
    for estimator in available(sample):
        if estimators is None or estimator.name in estimators:
            contributions, note = estimator.applied(sample, fixed or {})
            unlike = estimator.name == "Replay" and "Replay" not in answers
            found.append((estimator.name, contributions, _joined(note, _UNLIKE if unlike else "")))
    evidence = Evidence(sample, logs.clustered, logs.origin, supported_share(policy, logs), "row")
    return evaluated(policy, evidence, found, answers, kind, level, drawn, limits)


class Evidence(NamedTuple):
    """What an evaluation rests on."""

    sample: Sample  # one entry per unit
    clustered: bool
    origin: Origin
    support: float | None
    unit: str  # "row" or "slate": what the value is per
    left_out: int = 0  # units that are not in the sample, because rows of them are missing


def evaluated(
    policy: Policy,
    evidence: Evidence,
    found: Sequence[tuple[str, Contributions, str]],
    answers: Sequence[str],
    kind: Kind,
    level: float,
    drawn: Resamples,
    limits: Limits | None,
) -> OffPolicy:
    """Intervals, diagnostics and verdict of estimates.

    found: name, contributions, and what the interval does not know.
    answers: names of those that may be the answer, the better first.
    """
    sample = evidence.sample
    n_users = int(sample.users.max()) + 1
    diagnostics = diagnose(
        sample, evidence.clustered, evidence.origin, evidence.support, kind=kind, drawn=drawn, level=level
    )
    verdict = judge(diagnostics, limits, evidence.left_out)
    left_out = left_out_words(evidence.left_out, diagnostics.rows) if evidence.left_out else ""
    answer = next((name for name in answers if name in {name for name, _, _ in found}), None)
    rows, sums = [], {}
    for name, contributions, note in found:
        sums[name] = user_sums(contributions, sample.users, n_users)
        row = _row(policy.name, name, sums[name], kind, drawn, level)
        is_answer = verdict.answers and name == answer
        said = (
            AGREEMENT
            if sample.propensities is None
            else _joined(note, left_out, MEANT.get(kind, ""), WORTH[verdict.word])
        )
        rows.append(row | {"setting": contributions.setting, "is_answer": is_answer, "note": said})
    weights = weight_distribution(sample.weights if sample.propensities is not None else np.empty(0))
    behind = per_user(sample.users, None, n_users)
    estimates = pl.DataFrame(rows, schema=dict(ESTIMATES))
    return OffPolicy(
        policy, estimates, diagnostics, verdict, weights, sums, drawn, behind, evidence.unit, answers
    )


def compare(
    left: OffPolicy, right: OffPolicy, kind: Kind = DEFAULT_KIND, level: float = 0.95
) -> pl.DataFrame:
    """The paired difference, left minus right, by every estimator that both have. Columns of ESTIMATES.

    Both must be of the same logs with the same resamples. No difference is an answer where one of the two is not identified, nor
    by an estimator that is no answer for one of them.
    """
    names = [name for name in left.sums if name in right.sums]
    answer = next((name for name in left.answers if name in right.answers and name in names), None)
    worse = max(left, right, key=lambda found: WORDS.index(found.verdict.word))
    rows = []
    for name in names:
        sums = difference(left.sums[name], right.sums[name], left.rows)
        row = _row(f"{left.policy.name} - {right.policy.name}", name, sums, kind, left.drawn, level)
        is_answer = name == answer and left.verdict.answers and right.verdict.answers
        note = worse.estimates.filter(pl.col("estimator") == name)["note"].item()
        rows.append(row | {"setting": None, "is_answer": is_answer, "note": note})
    return pl.DataFrame(rows, schema=dict(ESTIMATES))


def sample_of(
    logs: LoggedActions,
    policy: Policy,
    models: Models | None,
    estimators: Sequence[str] | None = None,
) -> Sample:
    """The logs as the estimators see them under one policy."""
    propensities = logs.propensities
    sample = Sample(logs.users, logs.rewards, propensities, target_probabilities(policy, logs))
    if models is not None and policy.column is None:
        sample = sample._replace(
            model_value=models.plain.values(logs, policy), model_reward=models.plain.rewards(logs)
        )
        if propensities is not None and (estimators is None or "MRDR" in estimators):
            robust = reward_models.fit(
                logs,
                kind=models.kind,
                folds=models.folds,
                seed=models.seed,
                weights=np.square(sample.weights),
            )
            sample = sample._replace(
                robust_value=robust.values(logs, policy), robust_reward=robust.rewards(logs)
            )
    if logs.embedding:
        sample = sample._replace(embeddings=cells_of(logs))
    return sample


def cells_of(logs: LoggedActions) -> Codes:
    """A number for what MIPS takes for alike: the same embedding at the same position, [n]."""
    place = [POSITION] if POSITION in logs.table.columns else []
    ranks = logs.table.select(pl.struct(*place, *logs.embedding).rank("dense").cast(pl.Int64) - 1)
    return ranks.to_series().to_numpy()


def _row(
    policy: str, estimator: str, sums: UserSums, kind: Kind, drawn: Resamples, level: float
) -> dict[str, object]:
    low, high, _ = interval(sums, kind, drawn, level)
    return {
        "policy": policy,
        "estimator": estimator,
        "value": _finite(sums.value),
        "low": _finite(low),
        "high": _finite(high),
        "standard_error": _finite(sums.standard_error),
        "interval": kind,
        "level": level,
    }


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
