"""The gates of a night: what is measured before anything is published, the limit of each, and what it came to.

A gate that refuses leaves the last good scores in force (exit code 4); the champion's alone never does: there the champion
scores the night. Every gate stands in the summary and in the row of ``runs``, whatever it came to.
"""

import logging
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, ClassVar, NamedTuple

import polars as pl

from pipelines.champion import CHAMPION, Challenge
from recsys_meta import store
from recsys_meta.evaluation.drift import ks_distance, total_variation
from recsys_meta.store.shown import Shown, shown_in_file
from recsys_meta.tables import ADAPTED, ITEM_ID, POPULARITY, same_kind

log = logging.getLogger(__name__)

PASSED, REFUSED, NOT_JUDGED = "passed", "refused", "not judged"
PROMOTED, KEPT = "promoted", "champion kept"


class Gate(NamedTuple):
    """One gate and what it came to."""

    name: str
    figure: float | None  # what was found; None where there was nothing to compare with
    limit: (
        float | None
    )  # the figure from which it refuses, or below which, as the reason says; None: it never does
    verdict: str
    reason: str
    setting: str  # what to set where a night shall be let through all the same
    details: Mapping[str, Any] = {}

    def row(self) -> dict[str, Any]:
        """As it stands in the summary."""
        return {
            "gate": self.name,
            "figure": None if self.figure is None else round(self.figure, 6),
            "limit": self.limit,
            "verdict": self.verdict,
            "reason": self.reason,
            "setting": self.setting,
            **self.details,
        }


class GatesRefused(store.PublishRefused):
    """Gates that refuse the night; ``details`` has all gates, for the summary."""

    exit_code: ClassVar[int] = 4

    def __init__(self, run_id: str, gates: Sequence[Gate]) -> None:
        refusing = [gate for gate in gates if gate.verdict == REFUSED]
        super().__init__(run_id, {gate.name: 1 for gate in refusing})
        reasons = "; ".join(f"{gate.reason} (see {gate.setting})" for gate in refusing)
        self.args = (f"run {run_id} is not published, the last good scores stay: {reasons}",)
        self.details = {"run_id": run_id, "gates": [gate.row() for gate in gates]}


def champion_gate(
    found: Challenge, champion: str | None, challenger: str | None, margin: float | None
) -> Gate:
    """Whether the model of tonight may take the champion's place. figure: the upper end of the paired interval of its gain."""
    return Gate(
        CHAMPION,
        found.high,
        None if margin is None else -margin,
        PROMOTED if found.promoted else KEPT,
        found.reason,
        "gates.champion_margin",
        {
            "champion": champion,
            "challenger": challenger,
            **{name: value for name, value in found._asdict().items() if name not in ("promoted", "reason")},
        },
    )


def quarantine_gate(counts: Mapping[str, int], allowed: float) -> Gate:
    """The largest share of bad rows of a source; above the limit the night has ended at reading."""
    shares = {
        name: counts.get(f"{name}_rows_quarantined", 0) / max(counts[f"{name}_rows_read"], 1)
        for name in ("interactions", "users", "items")
        if f"{name}_rows_read" in counts
    }
    worst = max(shares, key=lambda name: shares[name])
    reason = f"{shares[worst]:.2%} of the rows of {worst} are in quarantine, at most {allowed:.2%} may be"
    return Gate("quarantined", shares[worst], allowed, PASSED, reason, "max_quarantined_share")


def usual_nights(
    gate: str, allowed: float | None, others: Sequence[store.Manifest], nights: int
) -> list[store.Manifest]:
    """Those of the last nights that tell what is usual: without those that a higher limit let through, for they were odd.

    All of them where none is left: what every one of them was is usual by now.

    gate: the name of the one that compares; allowed: its limit tonight; others: newest first.
    """
    last = list(others[:nights])
    if allowed is None:
        return last
    return [night for night in last if _figure(night, gate) <= allowed] or last


def _figure(night: store.Manifest, gate: str) -> float:
    """What a gate came to on that night; 0 where it was not judged, or not there yet."""
    return next((row["figure"] or 0.0 for row in night.record["gates"] if row["gate"] == gate), 0.0)


def rows_gate(rows: int, earlier: Sequence[int], allowed: float, left_out: int = 0) -> Gate:
    """Whether rows are missing against the median of the last nights: one odd night moves it little.

    earlier: rows of ``usual_nights``; left_out: how many of the last nights are not among them.
    """
    setting = "publish.max_row_drop"
    if rows == 0:
        reason = "no rows, so no user has a candidate left (see candidates and interactions)"
        return Gate("rows", 1.0, allowed, REFUSED, reason, setting)
    if not earlier:
        return Gate("rows", None, allowed, NOT_JUDGED, "no other night is published", setting)
    drop, change = _drop(rows, earlier)
    reason = f"{change}{_without(left_out)}; max_row_drop {allowed:.0%}"
    return Gate("rows", drop, allowed, REFUSED if drop > allowed else PASSED, reason, setting)


def features_gate(
    rows: Mapping[str, int],
    earlier: Mapping[str, Sequence[int]],
    allowed: float | None,
    left_out: int = 0,
) -> Gate:
    """Whether rows of a table of users or items are missing: whoever has none is known by the id alone. figure: the worst drop.

    rows: of each table tonight, which is named by its file; earlier: of the same ones on ``usual_nights``; left_out: how many of
    the last nights are not among them.
    """
    setting = "gates.max_feature_drop"
    drops = {table: _drop(found, earlier[table]) for table, found in rows.items() if earlier.get(table)}
    if not drops:
        reason = "no other night with a table of users or items is published"
        return Gate("features", None, allowed, NOT_JUDGED, reason, setting)
    figure = max(drop for drop, _ in drops.values())
    beyond = {table for table, (drop, _) in drops.items() if allowed is not None and drop > allowed}
    limit = "no limit is set" if allowed is None else f"max_feature_drop {allowed:.0%}"
    told = "; ".join(f"{table}: {said}" for table, (_, said) in drops.items() if table in (beyond or drops))
    verdict = REFUSED if beyond else PASSED
    return Gate("features", figure, allowed, verdict, f"{told}{_without(left_out)}; {limit}", setting)


def _drop(rows: int, earlier: Sequence[int]) -> tuple[float, str]:
    """The share of the rows that is missing against the median of the last nights, and how that is said."""
    usual = median(earlier)
    nights = f"the median of the last {len(earlier)} nights" if len(earlier) > 1 else "the last night"
    drop = (usual - rows) / usual if usual else 0.0
    change = rows / usual - 1 if usual else 0
    return drop, f"{rows:,} rows are {change:+.1%} against {nights}, {usual:,.0f}"


def _without(left_out: int) -> str:
    """How it is said that nights are not compared with."""
    return f" ({left_out} let through beyond this limit not counted)" if left_out else ""


def fallen_gate(status: pl.LazyFrame, allowed: float) -> Gate:
    """The share of users whose own adaptation failed: they have the prior or what is popular, and the reason."""
    fell = (pl.col("source") != ADAPTED) & (pl.col("n_support") > 0) | (pl.col("source") == POPULARITY)
    fallen, users = status.select(fell.sum().alias("fallen"), pl.len().alias("users")).collect().row(0)
    share = fallen / max(users, 1)
    reason = f"{fallen:,} of {users:,} users fell back since their adaptation was not finite, at most {allowed:.1%} may"
    return Gate(
        "fallen", share, allowed, REFUSED if share > allowed else PASSED, reason, "gates.max_fallen_share"
    )


def drift_gates(
    now: Shown, before: Shown | str, max_score: float | None, max_item: float | None
) -> list[Gate]:
    """How far scores and items have moved from the last night of the same settings; ``before``: or why there is none."""
    limits = {
        "score_drift": (max_score, "gates.max_score_drift"),
        "item_drift": (max_item, "gates.max_item_drift"),
    }
    if isinstance(before, str):
        return [
            Gate(name, None, limit, NOT_JUDGED, before, setting) for name, (limit, setting) in limits.items()
        ]
    scores = ks_distance(before.scores.to_numpy(), now.scores.to_numpy())
    items = total_variation(before.items, now.items, ITEM_ID)
    said = {
        "score_drift": (
            scores,
            f"the distributions of the scores differ by {scores:.3f} from the last night's",
        ),
        "item_drift": (items, f"{items:.1%} of the rows went to other items than on the last night"),
    }
    gates = []
    for name, (figure, reason) in said.items():
        limit, setting = limits[name]
        beyond = limit is not None and figure > limit
        limited = "no limit is set" if limit is None else f"at most {limit:g} is allowed"
        gates.append(
            Gate(name, figure, limit, REFUSED if beyond else PASSED, f"{reason}, {limited}", setting)
        )
    return gates


def shown_before(
    workspace: store.Workspace, others: Sequence[store.Manifest], config_fingerprint: str, now: Shown
) -> Shown | str:
    """What the last night of the same settings showed, or why that cannot be compared with. others: newest first."""
    last = next((m.record for m in others if m.record["config_fingerprint"] == config_fingerprint), None)
    if last is None:
        return "no other night of the same settings is published"
    run = workspace.run(last["run_id"])
    try:
        store.verify(run)
        before = shown_in_file(run.scores)
    except store.Damaged as error:
        log.warning("no comparison with run %s: %s", run.run_id, error)
        return f"run {run.run_id} is damaged"
    except store.HeldForWriting as error:
        log.warning("no comparison with run %s: %s", run.run_id, error)
        return f"the file of run {run.run_id} cannot be read now: another process holds it for writing"
    ids, ids_now = (shown.items.schema[ITEM_ID] for shown in (before, now))
    if not same_kind(ids, ids_now):
        return f"the item ids of run {run.run_id} are {ids}, those of tonight {ids_now}"
    return before
