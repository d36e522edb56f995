"""The verdict: every sign of missing overlap or evidence is seen, said, and weighed."""

import pytest

from recsys_meta.ab.diagnostics import Diagnostics, Overlap
from recsys_meta.ab.verdict import AGREEMENT, judge

OVERLAP = Overlap(
    mean_weight=1.01,
    mean_weight_low=0.97,
    mean_weight_high=1.05,
    effective_rows=5000.0,
    largest_weight=8.0,
    largest_share=0.001,
    effective_rewarded_rows=400.0,
)
GOOD = Diagnostics(
    rows=10_000,
    users=3000,
    clustered=True,
    origin="logged",
    rewarded_rows=800,
    rewarded_users=600,
    logged_value=0.08,
    support=1.0,
    matches=900.0,
    overlap=OVERLAP,
)


def worse(**changes: object) -> Diagnostics:
    """The good ones with some figures changed."""
    overlap = {name: value for name, value in changes.items() if name in Overlap._fields}
    others = {name: value for name, value in changes.items() if name not in Overlap._fields}
    return GOOD._replace(overlap=OVERLAP._replace(**overlap), **others)


def test_good_overlap_and_evidence_is_trustworthy_and_says_why():
    found = judge(GOOD)
    assert found.word == "trustworthy"
    assert found.answers
    assert found.reasons == ("5,000 effective rows, mean weight 1.010",)


@pytest.mark.parametrize(
    ("doubtful", "denied", "said"),
    [
        ({"support": 0.97}, {"support": 0.5}, "never occurs in the logs"),
        ({"effective_rows": 100.0}, {"effective_rows": 2.1}, "weigh as much as"),
        ({"effective_rewarded_rows": 15.0}, {"effective_rewarded_rows": 3.0}, "rows with a reward"),
        ({"largest_share": 0.1}, {"largest_share": 0.7}, "a single row holds"),
        ({"users": 20}, {"users": 5}, "users stand behind"),
        (
            {"mean_weight": 0.9, "mean_weight_low": 0.85, "mean_weight_high": 0.95},
            {"mean_weight": 0.3, "mean_weight_low": 0.2, "mean_weight_high": 0.4},
            "should be 1",
        ),
    ],
)
def test_every_sign_makes_the_answer_doubtful_and_then_denies_it(doubtful, denied, said):
    for changes, word in ((doubtful, "doubtful"), (denied, "not identified")):
        found = judge(worse(**changes))
        assert found.word == word
        assert any(said in reason for reason in found.reasons)


@pytest.mark.parametrize("changes", [{"origin": "estimated"}, {"clustered": False}])
def test_what_is_not_known_for_sure_is_doubtful_at_best(changes):
    assert judge(worse(**changes)).word == "doubtful"


def test_slates_that_lack_rows_make_it_doubtful_above_a_hundredth_and_never_deny_it():
    assert judge(GOOD, left_out=100).word == "trustworthy"
    for left_out, share in ((102, "1.01%"), (90_000, "90.00%")):
        found = judge(GOOD, left_out=left_out)
        assert found.word == "doubtful"
        assert f"({share}) lack rows and are left out whole" in found.reasons[0]


def test_stated_propensities_are_believed():
    assert judge(worse(origin="stated")).word == "trustworthy"


def test_without_propensities_there_is_agreement_and_no_causal_estimate():
    found = judge(GOOD._replace(origin="none", overlap=None))
    assert found.word == "not identified"
    assert not found.answers
    assert AGREEMENT in found.reasons[0]


def test_a_mean_weight_off_1_within_its_noise_is_no_sign():
    assert judge(worse(mean_weight=3.1, mean_weight_low=0.6, mean_weight_high=149.0)).word == "trustworthy"


def test_all_reasons_are_said_and_the_worst_first():
    found = judge(worse(support=0.97, effective_rows=2.0, clustered=False))
    assert found.word == "not identified"
    assert len(found.reasons) == 3
    assert "weigh as much" in found.reasons[0]
