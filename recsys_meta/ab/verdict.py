"""Whether an off-policy estimate may be believed: trustworthy, doubtful or not identified, with the reasons.

The limits are meant so that the default interval covers what it promises where the verdict is "trustworthy".
``recsys_meta.ab.coverage`` measures it on worlds with a known answer; docs/offline_ab.md says for which that has been done.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, get_args

from recsys_meta.ab.diagnostics import Diagnostics, Overlap

Word = Literal["trustworthy", "doubtful", "not identified"]

WORDS: tuple[Word, ...] = get_args(Word)  # the better first
AGREEMENT = "agreement with what the old system showed, not a causal estimate"


# What an interval is worth under a verdict; docs/offline_ab.md has how often intervals held the truth.
WORTH: Mapping[Word, str] = {
    "trustworthy": "",
    "doubtful": "nominal: where the verdict is doubtful, intervals may hold the truth less often than they say",
    "not identified": "nominal: not identified, so the interval says nothing of where the truth lies",
}


class Limits(NamedTuple):
    """(doubtful beyond, not identified beyond) for each sign of missing overlap or evidence."""

    support: tuple[float, float] = (0.99, 0.9)  # what the logs never show, they cannot value
    effective_rows: tuple[float, float] = (300.0, 30.0)
    effective_rewarded_rows: tuple[float, float] = (50.0, 10.0)  # the answer is made of these
    largest_share: tuple[float, float] = (0.02, 0.3)  # one row that decides the answer
    users: tuple[float, float] = (50.0, 10.0)  # intervals rest on them being many
    mean_weight: tuple[float, float] = (1.0, 1.25)  # factor off 1, where its interval leaves 1 out
    left_out: tuple[float, float] = (0.01, 1.0)  # share of the slates that lack rows


class _Sign(Protocol):
    def __call__(
        self, value: float, bounds: tuple[float, float], sentence: str, *, above: bool = False
    ) -> None: ...


class Verdict(NamedTuple):
    """The word, and every sentence that speaks for it."""

    word: Word
    reasons: tuple[str, ...]

    @property
    def answers(self) -> bool:
        """Whether an estimate may be given as an answer at all."""
        return self.word != "not identified"


def judge(found: Diagnostics, limits: Limits | None = None, left_out: int = 0) -> Verdict:
    """The verdict on one policy over one set of logs: the worst of all signs. left_out: slates that found does not count."""
    limits = limits or Limits()
    doubts: list[str] = []
    denials: list[str] = []

    def sign(value: float, bounds: tuple[float, float], sentence: str, *, above: bool = False) -> None:
        """A sentence for a value on the wrong side of a bound."""
        doubtful, denied = (value > bound if above else value < bound for bound in bounds)
        if denied:
            denials.append(sentence)
        elif doubtful:
            doubts.append(sentence)

    if found.support is not None:
        unseen = 1 - found.support
        sign(
            found.support,
            limits.support,
            f"{unseen:.1%} of what the policy would show never occurs in the logs at that position",
        )
    sign(found.users, limits.users, f"only {found.users:,} users stand behind the number")
    share = left_out / (found.rows + left_out) if left_out else 0.0
    sign(share, limits.left_out, left_out_words(left_out, found.rows), above=True)
    if found.overlap is None:
        denials.append(f"there are no propensities: {AGREEMENT}")
    else:
        _weigh(found, found.overlap, limits, sign)
        _mean_weight(found.overlap, limits, doubts, denials)
    if found.origin == "estimated":
        doubts.append("the propensities were estimated afterwards, not logged")
    if not found.clustered:
        doubts.append(
            "no column says which rows are of one user: every row counts as independent of all others"
        )
    if denials:
        return Verdict("not identified", (*denials, *doubts))
    if doubts:
        return Verdict("doubtful", tuple(doubts))
    overlap = found.overlap
    assert overlap is not None  # without propensities there is a denial
    reason = f"{overlap.effective_rows:,.0f} effective rows, mean weight {overlap.mean_weight:.3f}"
    return Verdict("trustworthy", (reason,))


def left_out_words(left_out: int, rows: int) -> str:
    """How many slates lack rows. left_out: these; rows: the slates that are valued."""
    total = rows + left_out
    return f"{left_out:,} of {total:,} slates ({left_out / total:.2%}) lack rows and are left out whole"


def _weigh(found: Diagnostics, overlap: Overlap, limits: Limits, sign: _Sign) -> None:
    sign(
        overlap.effective_rows,
        limits.effective_rows,
        f"the {found.rows:,} rows weigh as much as {overlap.effective_rows:,.1f} rows of equal weight",
    )
    rewarded = f"the {found.rewarded_rows:,} rows with a reward weigh as much as"
    sign(
        overlap.effective_rewarded_rows,
        limits.effective_rewarded_rows,
        f"{rewarded} {overlap.effective_rewarded_rows:,.1f} of equal weight",
    )
    sign(
        overlap.largest_share,
        limits.largest_share,
        f"a single row holds {overlap.largest_share:.1%} of all weight (its weight is {overlap.largest_weight:,.1f})",
        above=True,
    )


def _mean_weight(overlap: Overlap, limits: Limits, doubts: list[str], denials: list[str]) -> None:
    mean, low, high = overlap.mean_weight, overlap.mean_weight_low, overlap.mean_weight_high
    if low <= 1.0 <= high:
        return
    sentence = (
        f"the mean weight is {mean:.3f} ({low:.3f} to {high:.3f}) and should be 1: propensities are wrong, or the logging"
        " policy never took some of the target's actions"
    )
    factor = max(mean, 1 / mean) if mean > 0 else float("inf")
    (denials if factor > limits.mean_weight[1] else doubts).append(sentence)
