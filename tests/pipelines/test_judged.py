"""Who is judged under each protocol, on what, and that nothing later is learned from."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inputs import Inputs, read_inputs
from pipelines.judged import Trial, read_judged, trial_of
from pipelines.loading import load
from pipelines.settings import EvaluateSettings
from recsys_meta import ingest
from recsys_meta.tensors import Histories

START = datetime(2026, 3, 1, tzinfo=UTC)
BASELINE = "baselines: [recsys_meta.baselines.popularity.Popularity]\nlearners: []\n"


def trial(
    folder: Path, rows: list[tuple[str, str, float]], protocol: str, more: str = "", rule: str = "keep"
) -> Trial:
    """rows: user, item, days since the start."""
    pl.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": [item for _, item, _ in rows],
            "timestamp": [START + timedelta(days=days) for _, _, days in rows],
        }
    ).write_parquet(folder / "clicks.parquet")
    (folder / "evaluate.yaml").write_text(
        f"workspace: workspace\ninteractions: {{path: clicks.parquet, timestamp: timestamp, duplicates: {rule}}}\n"
        f"protocol: {protocol}\n{BASELINE}{more}"
    )
    story = load(EvaluateSettings, [folder / "evaluate.yaml"]).settings
    return trial_of(story, read_inputs(story, None))


RATED = [
    (f"u{user}", f"i{(user + item) % 7}", [-2, 0, 1, 5, 300][item]) for user in range(20) for item in range(5)
]


def read_rated(
    folder: Path, protocol: str, more: str = "", rows: list[tuple[str, str, float]] = RATED
) -> tuple[EvaluateSettings, Inputs]:
    types = {"user_id": pl.String, "item_id": pl.String, "value": pl.Float64}
    pl.DataFrame(rows, schema=types, orient="row").write_csv(folder / "rated.csv")
    (folder / "evaluate.yaml").write_text(
        f"workspace: workspace\ninteractions: {{path: rated.csv, value: value}}\nprotocol: {protocol}\n{more}"
    )
    return read_judged(load(EvaluateSettings, [folder / "evaluate.yaml"]).settings)


def test_where_rankings_are_judged_values_above_0_are_events_alike(tmp_path: Path, caplog) -> None:
    """A learner whose loss follows the values would learn to predict them, and be judged by something else."""
    held_out = "{kind: held_out_users, metrics: ranking}"
    story, inputs = read_rated(tmp_path, held_out)
    assert inputs.events["value"].to_list() == [1.0] * 60
    assert inputs.interactions.height == 100
    assert story.interactions.positive_from > 0
    assert "each above 0 counts as one event" in caplog.text
    # Where values are judged, or each learner's loss says what they are, or all are the same, they stay.
    weighed = "learners: [{class_path: recsys_meta.algorithms.maml.MAML, init_args: {loss: softmax}}]"
    for protocol, more in (("{kind: held_out_users}", ""), (held_out, weighed)):
        assert set(read_rated(tmp_path, protocol, more)[1].events["value"]) == {-2, 0, 1, 5, 300}
    alike = [(user, item, 3.0) for user, item, _ in RATED]
    assert set(read_rated(tmp_path, held_out, rows=alike)[1].events["value"]) == {3.0}
    below = [(user, item, min(value, 0)) for user, item, value in RATED]
    with pytest.raises(ingest.InputError, match="no value is above 0"):
        read_rated(tmp_path, held_out, rows=below)


def test_values_that_are_all_the_same_are_not_judged_as_ratings(tmp_path: Path) -> None:
    alike = [(user, item, 3.0) for user, item, _ in RATED]
    protocol = "{kind: held_out_users, metrics: rating, min_history: 2, share: 0.5}"
    with pytest.raises(ingest.InputError, match=r"all \d+ values are 3; expected values that differ"):
        read_rated(tmp_path, protocol, rows=alike)


@pytest.mark.parametrize(("shots", "told"), [("[0, 1, 3, 4]", False), ("[0, 1, 6, 9, all]", True)])
def test_shots_that_nobody_has_are_said(tmp_path: Path, caplog, shots: str, told: bool) -> None:
    protocol = f"{{kind: held_out_users, metrics: rating, min_history: 2, share: 0.5, query_size: 1, shots: {shots}}}"
    trial_of(*read_rated(tmp_path, protocol))
    assert ("nobody who is judged has more than 4 events" in caplog.text) == told
    assert ("figures at 6 and 9 shots are those at 4" in caplog.text) == told


def test_predictions_that_could_not_be_right_are_refused(tmp_path: Path) -> None:
    protocol = "{kind: held_out_users, metrics: rating, min_history: 2, share: 0.5, shots: [0], clip: CLIP}"
    trial_of(*read_rated(tmp_path, protocol.replace("CLIP", "[-2, 300]")))
    with pytest.raises(
        ingest.InputError, match=r"protocol.clip is \[1.0, 5.0\], but .* lies between -2 and 300; expected"
    ):
        trial_of(*read_rated(tmp_path, protocol.replace("CLIP", "[1, 5]")))


def test_rows_that_are_set_aside_are_said(tmp_path: Path, caplog) -> None:
    read_rated(tmp_path, "{kind: held_out_users}", rows=[*RATED * 3, ("u1", "i1", float("nan"))])
    assert "1 rows are set aside, first: " in caplog.text
    assert "column 'value'" in caplog.text


def lists(found: Trial, histories: Histories) -> list[list[str]]:
    """The items of each task."""
    return [
        [found.item_ids[item] for item in histories.items[start:end].tolist()]
        for start, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    ]


WEEK = [
    *(("old", item, day) for day, item in enumerate("abcd")),
    *(("also", item, day + 0.5) for day, item in enumerate("abc")),
    ("young", "b", 4.2), ("young", "a", 4.1), ("young", "d", 4.9),
    ("young", "b", 5.0),  # once more
    ("short", "a", 4.5),
    ("old", "e", 4.6),
    ("young", "e", 5.5),  # nothing is known of e
]  # fmt: skip


def test_whoever_first_comes_after_the_moment_is_judged_in_the_order_of_time(tmp_path: Path) -> None:
    found = trial(tmp_path, WEEK, "{kind: temporal, moment: 2026-03-05, shots: [0, 1], min_query: 2}")
    assert found.tasks.user_ids.to_list() == ["young"]
    assert lists(found, found.tasks.support) == [["a"]]
    assert lists(found, found.tasks.query) == [["b", "d"]]
    assert found.tasks.judged == "ranking"
    assert found.moment == START + timedelta(days=4)


def test_nothing_after_the_moment_is_learned_from(tmp_path: Path) -> None:
    found = trial(tmp_path, WEEK, "{kind: temporal, moment: 2026-03-05, shots: [0]}")
    assert found.inputs.interactions["timestamp"].max() < found.moment
    assert found.training_users.to_list() == ["also", "old"]
    assert found.item_ids.to_list() == ["a", "b", "c", "d"]


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("uvwx"), st.sampled_from("abc"), st.floats(0, 6), st.sampled_from([1.0, 2.0, 4.0])
        ),
        min_size=1,
        max_size=25,
    ),
    how=st.sampled_from(
        [
            "",
            "duplicates: keep, ",
            "value: stars, ",
            "value: stars, positive_from: 2, ",
            "value: stars, duplicates: mean, ",
        ]
    ),
)
def test_what_is_known_at_a_moment_is_what_would_have_been_read_then(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float, float]], how: str
) -> None:
    folder = tmp_path_factory.mktemp("then")
    [*users], [*items], [*days], [*stars] = zip(
        *rows,
        *((f"new{number}", "a", 4.5 + number, 4.0) for number in range(2)),
        ("old", "a", 0.0, 4.0),
        strict=True,
    )
    table = pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "stars": stars,
            "t": [START + timedelta(days=day) for day in days],
        }
    )
    moment = START + timedelta(days=4)
    table.write_parquet(folder / "all.parquet")
    table.filter(pl.col("t") < moment).write_parquet(folder / "then.parquet")
    found = []
    for name in ("all", "then"):
        (folder / f"{name}.yaml").write_text(
            f"workspace: w\ninteractions: {{path: {name}.parquet, timestamp: t, {how}}}\n"
            f"protocol: {{kind: temporal, moment: 2026-03-05, shots: [0], min_query: 1}}\n{BASELINE}"
        )
        story = load(EvaluateSettings, [folder / f"{name}.yaml"]).settings
        found.append((story, read_inputs(story, None)))
    (story, inputs), (_, then) = found
    trial = trial_of(story, inputs)
    for cut, read in ((trial.inputs.interactions, then.interactions), (trial.inputs.events, then.events)):
        assert cut.sort(cut.columns).equals(read.sort(read.columns))


def test_what_was_met_again_was_met_first(tmp_path: Path) -> None:
    again = [*WEEK, *(("old", item, 5.1 + day) for day, item in enumerate("abcd")), ("young", "a", 8.0)]
    found = trial(
        tmp_path, again, "{kind: temporal, moment: 2026-03-05, shots: [0, 1], min_query: 2}", rule="auto"
    )
    assert len(found.inputs.events) == 7
    assert lists(found, found.tasks.support) == [["a"]]
    assert lists(found, found.tasks.query) == [["b", "d"]]
    held_out = trial(
        tmp_path,
        [(f"u{user}", item, user + hours) for user in range(20) for hours, item in enumerate("abacb")],
        "{kind: held_out_users, share: 0.5, shots: [1], min_history: 3}",
    )
    assert lists(held_out, held_out.tasks.support) == [["a"]] * len(held_out.tasks.user_ids)
    assert lists(held_out, held_out.tasks.query) == [["b", "c"]] * len(held_out.tasks.user_ids)


def test_the_share_of_events_after_the_moment_is_as_asked(tmp_path: Path) -> None:
    rows = [(f"u{day}", "a", float(day)) for day in range(10)]
    found = trial(tmp_path, rows, "{kind: temporal, share: 0.3, shots: [0]}")
    assert len(found.inputs.events) == 7
    assert found.tasks.user_ids.to_list() == ["u7", "u8", "u9"]


def test_validation_users_come_before_those_of_the_test(tmp_path: Path) -> None:
    rows = [(f"u{day}", "a", float(day)) for day in range(10)]
    found = trial(tmp_path, rows, "{kind: temporal, share: 0.2, shots: [0]}", "judge: validation\n")
    assert found.tasks.user_ids.to_list() == ["u6", "u7"]
    assert found.training_users.to_list() == [f"u{day}" for day in range(6)]


def test_a_moment_after_which_nobody_comes_is_refused(tmp_path: Path) -> None:
    told = r"none of 0 users who first come after protocol.moment 2026-03-05 .*; move the moment: .* has events from 2026-03-0"
    with pytest.raises(ingest.InputError, match=told):
        trial(tmp_path, WEEK[:7], "{kind: temporal, moment: 2026-03-05}")


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ("{kind: temporal, moment: 2020-03-05}", "no events before protocol.moment 2020-03-05"),
        (
            "{kind: temporal, moment: 2030-03-05}",
            "none of 0 users who first come after protocol.moment 2030-03-05",
        ),
        ("{kind: next_day, day: 2020-03-05}", "no events before the end of day 2020-03-05"),
        ("{kind: next_day, day: 2030-03-05}", "new to it on the day after day 2030-03-05"),
    ],
)
def test_a_moment_outside_of_all_events_is_told_with_their_file_and_times(
    tmp_path: Path, protocol: str, told: str
) -> None:
    with pytest.raises(ingest.InputError) as caught:
        trial(tmp_path, WEEK, protocol)
    assert told in str(caught.value)
    assert re.search(r"parquet has events from 2026-03-0\d \d\d:\d\d to 2026-03-0\d", str(caught.value))


NIGHT = [
    *(("warm", item, 0.1 * place) for place, item in enumerate("abcd")),
    ("cold", "a", 2.1), ("cold", "b", 2.2), ("cold", "a", 2.3),
    ("idle", "c", 2.4),
    # the day after:
    ("cold", "c", 3.1), ("cold", "c", 3.2),  # twice
    ("cold", "a", 3.3),  # nothing new to them
    ("cold", "d", 3.4),  # not seen for too long
    ("cold", "new", 3.5),  # not known yet
    ("warm", "b", 3.6),  # not cold
    ("idle", "d", 3.7),
    ("cold", "b", 4.5), ("idle", "a", 4.6),  # too late
]  # fmt: skip
NEXT_DAY = "{kind: next_day, day: 2026-03-03, shots: [0, 1, all]}"
COLD = "cold: {below: 4}\ncandidates: {seen_within: 1d}\n"


def test_the_next_day_asks_for_candidates_that_are_new_to_a_cold_user(tmp_path: Path) -> None:
    found = trial(tmp_path, NIGHT, NEXT_DAY, COLD)
    assert found.tasks.user_ids.to_list() == ["cold"]
    assert lists(found, found.tasks.support) == [["a", "b"]]
    assert lists(found, found.tasks.query) == [["c"]]
    assert found.training_users.to_list() == ["warm"]
    assert found.item_ids.to_list() == ["a", "b", "c"]
    assert found.inputs.interactions["timestamp"].max() < found.moment
    assert found.tasks.newest


def test_validation_is_the_day_before(tmp_path: Path) -> None:
    rows = [*NIGHT, ("cold", "c", 1.5), ("warm", "b", 1.7), ("idle", "a", 3.8)]
    found = trial(tmp_path, rows, NEXT_DAY, COLD.replace("4", "5") + "judge: validation\n")
    assert found.moment == START + timedelta(days=2)
    assert lists(found, found.tasks.support) == [["c"]]
    assert lists(found, found.tasks.query) == [["b"]]


def test_so_many_users_as_asked_are_judged_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [("old", "a", 0.0), *((f"u{number}", "a", 5.0) for number in range(20))]
    protocol = "{kind: temporal, moment: 2026-03-05, shots: [0], max_users: 4}"
    some = trial(tmp_path, rows, protocol).tasks.user_ids
    assert len(some) == 4
    assert some.to_list() == trial(tmp_path, rows[::-1], protocol).tasks.user_ids.to_list()


def test_listed_candidates_have_their_own_names_for_order_and_no_draws(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "user_id": ["x"] * 4,
            "item_id": ["c", "a", "b", "d"],
            "label": [1, 0, 1, 0],
            "role": ["support", "support", "query", "query"],
            "order": [1, 0, 0, 1],
        }
    ).write_parquet(tmp_path / "episodes.parquet")
    protocol = "{kind: listed, episodes: {path: episodes.parquet}, position: order, draw: null, value: label}"
    found = trial(tmp_path, WEEK, protocol)
    assert lists(found, found.tasks.support) == [["a", "c"]]
    assert found.tasks.query.values.tolist() == [1, 0]
    assert found.tasks.judged == "listed"


@pytest.mark.parametrize(("shots", "longest"), [("[1, all]", 20), ("[1, 2]", 2)])
def test_validation_users_of_fixed_episodes_are_training_users_judged_alike(
    tmp_path: Path, shots: str, longest: int
) -> None:
    pl.DataFrame(
        {
            "user_id": ["x"] * 2,
            "item_id": ["a", "b"],
            "rating": [4.0, 2.0],
            "role": ["support", "query"],
            "position": [0, 1],
            "draw": [0, 0],
        }
    ).write_parquet(tmp_path / "episodes.parquet")
    rows = [
        (f"u{user}", "abcdefghijklmnopqrstuvwxyzABCD"[item], item + 0.0)
        for user in range(60)
        for item in range(30)
    ]
    protocol = f"{{kind: rating, episodes: {{path: episodes.parquet}}, shots: {shots}}}"
    found = trial(tmp_path, rows, protocol, "judge: validation\n")
    assert len(found.tasks.user_ids) > 0
    assert not set(found.tasks.user_ids) & set(found.training_users)
    assert "x" not in set(found.tasks.user_ids)
    assert set(found.tasks.query.lengths.tolist()) == {10}
    assert set(found.tasks.support.lengths.tolist()) == {longest}
    assert found.tasks.judged == "rating"


def test_protocols_of_time_need_a_timestamp(tmp_path: Path) -> None:
    from pipelines.outcomes import ConfigError

    (tmp_path / "evaluate.yaml").write_text(
        f"workspace: w\ninteractions: {{path: clicks.parquet}}\nprotocol: {NEXT_DAY}\n{BASELINE}"
    )
    with pytest.raises(ConfigError, match=r"protocol\.kind need to know the time"):
        load(EvaluateSettings, [tmp_path / "evaluate.yaml"])
