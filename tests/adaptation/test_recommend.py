"""Tests of the stream from histories to lists."""

import logging
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from torch import Tensor
from torch.func import grad

from recsys_meta.adaptation.recommend import REASONS, Recommended, recommend
from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.algorithms.maml import MAML
from recsys_meta.native import kernels
from recsys_meta.native.topk import TieRanks
from recsys_meta.tables import SOURCES
from recsys_meta.tensors import Catalogue, Examples, Features, FeatureSizes, Histories, ItemCodes, Sizes

NOTHING = FeatureSizes()


class Table(Learner):
    """Scores stand in a table [U, I]; adaptation adds what the support items are worth, and can be made to fail."""

    def __init__(
        self, table: Tensor, *, inner_fails: tuple[int, ...] = (), prior_fails: tuple[int, ...] = ()
    ) -> None:
        super().__init__(Sizes(NOTHING, NOTHING))
        self.register_buffer("table", table)
        self.inner_fails, self.prior_fails = torch.tensor(inner_fails), torch.tensor(prior_fails)
        self.encoded = 0
        self.tiles: list[tuple[int, int]] = []

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        self.encoded += 1
        ids = catalogue.features.ids
        return ItemCodes(ids, torch.zeros(len(ids), 2), torch.zeros(len(ids)), catalogue.eligible)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        gain = (support.targets * support.mask).sum(1)
        failing = torch.isin(users.ids, self.inner_fails) & (support.shots > 0)
        failing |= torch.isin(users.ids, self.prior_fails)
        return {"user": users.ids, "gain": gain.masked_fill(failing, torch.nan)}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        assert index is None
        self.tiles.append((len(state["user"]), len(items.ids)))
        table: Tensor = self.table  # type: ignore[assignment]
        return table[state["user"]][:, items.ids] + state["gain"].unsqueeze(1)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        return 100.0 - state["gain"]

    def user_vectors(self, state: TaskState) -> Tensor:
        return torch.stack([state["gain"], state["user"].float()], dim=1)


class Tower(Learner):
    """A linear head under squared error, adapted by one gradient step."""

    def __init__(self, num_items: int, dim: int = 4) -> None:
        super().__init__(Sizes(NOTHING, FeatureSizes(ids=num_items)))
        generator = torch.Generator().manual_seed(0)
        self.vectors = torch.nn.Parameter(torch.randn(num_items, dim, generator=generator))
        self.start = torch.nn.Parameter(torch.randn(dim, generator=generator))

    def encode(self, catalogue: Catalogue) -> ItemCodes:
        ids = catalogue.features.ids
        return ItemCodes(ids, self.vectors[ids], torch.zeros(len(ids)), catalogue.eligible)

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        start = self.start.expand(len(support.mask), -1)
        step = grad(lambda user: self.task_loss({"user": user}, support, items).sum())(start)
        return {"user": start - 0.1 * step}

    def predict(self, state: TaskState, items: ItemCodes, index: Tensor | None = None) -> Tensor:
        if index is None:
            return state["user"] @ items.vectors.T
        return (state["user"].unsqueeze(1) * items.vectors[index]).sum(-1)

    def task_loss(
        self, state: TaskState, examples: Examples, items: ItemCodes, excluded: Examples | None = None
    ) -> Tensor:
        error = (self.predict(state, items, examples.items) - examples.targets) ** 2
        return (error * examples.mask).sum(1) / examples.shots.clamp(min=1)


def features(ids: Tensor) -> Features:
    nothing = torch.zeros(len(ids), 0)
    return Features(ids, nothing.long(), (), nothing, nothing)


def catalogue_of(
    num_items: int, *, eligible: Tensor | None = None, popularity: Tensor | None = None
) -> Catalogue:
    return Catalogue(
        features(torch.arange(num_items)),
        torch.zeros(num_items) if popularity is None else popularity,
        torch.ones(num_items, dtype=torch.bool) if eligible is None else eligible,
    )


def histories_of(lists: list[list[int]]) -> Histories:
    lengths = torch.tensor([len(items) for items in lists])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.tensor([item for items in lists for item in items], dtype=torch.int64)
    return Histories(items, torch.ones(len(items)), torch.zeros(0, dtype=torch.int64), offsets)


def by_row(batches: list[Recommended]) -> dict[int, dict[str, Any]]:
    """Each user's answer, by row; fails where a user is answered twice."""
    answers: dict[int, dict[str, Any]] = {}
    for batch in batches:
        for t, row in enumerate(batch.rows.tolist()):
            assert row not in answers
            present = batch.items[t] >= 0
            answers[row] = {
                "items": batch.items[t][present].tolist(),
                "scores": batch.scores[t][present].tolist(),
                "source": SOURCES[int(batch.source[t])],
                "reason": REASONS[int(batch.reason[t])],
                "n_support": int(batch.n_support[t]),
                "before": float(batch.loss_before[t]),
                "after": float(batch.loss_after[t]),
                "vector": None if batch.vectors is None else batch.vectors[t].tolist(),
            }
    return answers


def run(
    learner: Learner, lists: list[list[int]], catalogue: Catalogue, **settings: Any
) -> dict[int, dict[str, Any]]:
    histories = histories_of(lists)
    arguments: dict[str, Any] = {
        "rows": torch.arange(len(lists)),
        "consumed": histories,
        "top_k": 3,
        "batch_size": 2,
        "tile_size": 2,
    }
    users = features(torch.arange(len(lists)))
    return by_row(list(recommend(learner, histories, users, catalogue, **(arguments | settings))))


worlds = st.tuples(st.integers(1, 7), st.integers(1, 12)).flatmap(
    lambda shape: st.fixed_dictionaries(
        {
            "table": st.lists(
                st.lists(st.integers(-2, 2), min_size=shape[1], max_size=shape[1]),
                min_size=shape[0],
                max_size=shape[0],
            ),
            "lists": st.lists(
                st.lists(st.integers(0, shape[1] - 1), max_size=6), min_size=shape[0], max_size=shape[0]
            ),
            "eligible": st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]),
        }
    )
)


def test_lists_are_as_long_as_there_are_candidates_however_long_they_were_asked_for() -> None:
    eligible = torch.tensor([True] * 6 + [False])

    def lists(top_k: int, eligible: Tensor) -> list[list[int]]:
        catalogue = catalogue_of(7, eligible=eligible)
        found = run(Tower(7), [[0, 1], [], [4]], catalogue, top_k=top_k, consumed=None)
        return [found[user]["items"] for user in range(3)]

    assert lists(10**12, eligible) == lists(6, eligible)
    assert {len(items) for items in lists(10**12, eligible)} == {6}
    assert lists(10**12, torch.zeros(7, dtype=torch.bool)) == [[], [], []]


@given(
    world=worlds,
    top_k=st.integers(1, 5),
    batch_size=st.integers(1, 8),
    tile_size=st.integers(1, 13),
    workers=st.integers(1, 3),
    seed=st.integers(0, 3),
    excluding=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_lists_equal_those_of_brute_force_for_any_batches_tiles_and_workers(
    world: dict[str, Any],
    top_k: int,
    batch_size: int,
    tile_size: int,
    workers: int,
    seed: int,
    excluding: bool,
) -> None:
    table, lists = world["table"], world["lists"]
    num_items = len(table[0])
    catalogue = catalogue_of(num_items, eligible=torch.tensor(world["eligible"]))
    answers = run(
        Table(torch.tensor(table, dtype=torch.float32)),
        lists,
        catalogue,
        consumed=histories_of(lists) if excluding else None,
        top_k=top_k,
        batch_size=batch_size,
        tile_size=tile_size,
        seed=seed,
        workers=workers,
    )
    ties = TieRanks(num_items, seed=seed).keys(torch.zeros(num_items), torch.arange(num_items)).tolist()
    assert answers.keys() == set(range(len(lists)))
    for user, answer in answers.items():
        allowed = [
            i for i in range(num_items) if world["eligible"][i] and not (excluding and i in lists[user])
        ]
        wanted = sorted(allowed, key=lambda i: (-table[user][i], -ties[i]))[:top_k]
        assert answer["items"] == wanted
        assert answer["scores"] == [table[user][i] + len(lists[user]) for i in wanted]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("tile_size", [1, 7, 100])
def test_a_gradient_adapted_learner_gives_every_user_the_same_list_in_any_company(
    batch_size: int, tile_size: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    lists = [torch.randperm(40, generator=generator)[: u % 6].tolist() for u in range(20)]
    catalogue = catalogue_of(40, eligible=torch.arange(40) % 5 != 0)
    alone = run(Tower(40), lists, catalogue, batch_size=20, tile_size=40, top_k=5, vectors=True)
    answers = run(
        Tower(40), lists, catalogue, batch_size=batch_size, tile_size=tile_size, top_k=5, vectors=True
    )
    for user, answer in answers.items():
        assert answer["items"] == alone[user]["items"]
        assert answer["scores"] == pytest.approx(alone[user]["scores"], abs=1e-5)
        assert answer["vector"] == pytest.approx(alone[user]["vector"], abs=1e-5)
        assert answer["source"] == ("adapted" if lists[user] else "prior")


@pytest.mark.skipif(kernels() is None, reason="no C compiler here: there is only the plain path")
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_compiled_path_lists_what_the_plain_one_does(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    lists = [torch.randperm(400, generator=generator)[: u % 9].tolist() for u in range(30)]
    torch.manual_seed(0)
    sizes = Sizes(FeatureSizes(ids=31), FeatureSizes(ids=400))
    learner = MAML(sizes, head=head, dim=16, hidden=(24, 12), num_steps=3, step_sizes="per_step")  # type: ignore[arg-type]
    fast = run(learner, lists, catalogue_of(400), top_k=100, batch_size=8, tile_size=150)
    filtered = run(learner, lists, catalogue_of(400), top_k=100, batch_size=8, tile_size=150, prefilter=True)
    assert repr(filtered) == repr(fast)  # in which NaN equals NaN
    for module in ("recsys_meta.models.heads", "recsys_meta.adaptation.recommend"):
        monkeypatch.setattr(f"{module}.kernels", lambda: None)
    plain = run(learner, lists, catalogue_of(400), top_k=100, batch_size=8, tile_size=150)
    for user, answer in fast.items():
        assert answer["items"] == plain[user]["items"]
        assert answer["scores"] == pytest.approx(plain[user]["scores"], rel=1e-6, abs=1e-6)


def test_adaptation_lowers_the_support_loss_that_is_reported() -> None:
    answers = run(Tower(10), [[1, 2], [], [3]], catalogue_of(10))
    for user in (0, 2):
        assert answers[user]["after"] < answers[user]["before"]
    assert torch.tensor([answers[1]["before"], answers[1]["after"]]).isnan().all()


@pytest.mark.parametrize("settings", [{"loss": "squared"}, {"loss": "softmax"}, {"loss": "bpr"}])
def test_maml_recommends_only_eligible_items_that_were_not_consumed(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    lists = [torch.randperm(30, generator=generator)[: u % 5].tolist() for u in range(12)]
    eligible = torch.arange(30) % 4 != 0
    learner = MAML(Sizes(FeatureSizes(ids=13), FeatureSizes(ids=30)), dim=4, num_steps=2, **settings)
    answers = run(learner, lists, catalogue_of(30, eligible=eligible), top_k=25, batch_size=5, tile_size=11)
    for user, answer in answers.items():
        offered = {i for i in range(30) if eligible[i]} - set(lists[user])
        assert set(answer["items"]) == offered
        assert answer["scores"] == sorted(answer["scores"], reverse=True)


def test_a_user_whose_inner_loop_is_not_finite_gets_the_prior() -> None:
    table = torch.arange(12.0).reshape(3, 4)
    answers = run(Table(table, inner_fails=(1,)), [[0], [0, 1], []], catalogue_of(4), vectors=True)
    assert answers[1]["source"] == "prior"
    assert answers[1]["reason"] == "inner loop not finite"
    assert answers[1]["items"] == [3, 2]
    assert answers[1]["scores"] == [7.0, 6.0]
    assert answers[1]["vector"] == [0.0, 1.0]
    assert torch.tensor([answers[1]["before"], answers[1]["after"]]).isnan().all()
    assert (answers[0]["source"], answers[0]["reason"]) == ("adapted", None)
    assert (answers[0]["before"], answers[0]["after"]) == (100.0, 99.0)
    assert (answers[2]["source"], answers[2]["reason"]) == ("prior", "no history")


def test_a_user_whose_prior_is_not_finite_gets_what_is_popular() -> None:
    popularity = torch.tensor([1.0, 4.0, 3.0, 2.0])
    answers = run(
        Table(torch.zeros(3, 4), prior_fails=(0, 2)),
        [[1], [1], []],
        catalogue_of(4, popularity=popularity),
        vectors=True,
    )
    assert answers[0]["items"] == [2, 3, 0]
    assert answers[0]["scores"] == [3.0, 2.0, 1.0]
    assert answers[2]["items"] == [1, 2, 3]
    for user in (0, 2):
        assert (answers[user]["source"], answers[user]["reason"]) == ("popularity", "prior not finite")
        assert torch.tensor(answers[user]["vector"]).isnan().any()
    assert answers[1]["source"] == "adapted"


@pytest.mark.parametrize("planted", [torch.nan, torch.inf, -torch.inf])
def test_one_score_that_is_not_finite_is_enough_to_fall_back(planted: float) -> None:
    table = torch.zeros(2, 5)
    table[1, 4] = planted
    answers = run(Table(table), [[0], [0]], catalogue_of(5))
    assert answers[0]["source"] == "adapted"
    assert answers[1]["source"] == "popularity"
    assert len(answers[1]["items"]) == 3
    assert torch.tensor(answers[1]["scores"]).isfinite().all()


def test_scores_whose_sum_overflows_are_still_finite() -> None:
    table = torch.full((1, 4), 3e38)
    assert run(Table(table), [[]], catalogue_of(4), tile_size=4)[0]["scores"] == pytest.approx([3e38] * 3)


def test_an_item_whose_code_is_not_finite_is_not_recommended_and_harms_no_user(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner = Tower(6)
    with torch.no_grad():
        learner.vectors[2] = torch.nan
    answers = run(learner, [[0], [2], []], catalogue_of(6), top_k=6)
    assert "1 of 6 candidates" in caplog.text
    assert [answers[user]["source"] for user in (0, 1, 2)] == ["adapted", "prior", "prior"]
    assert all(2 not in answer["items"] for answer in answers.values())
    assert len(answers[2]["items"]) == 5


def test_a_learner_of_nans_leaves_everybody_with_what_is_popular() -> None:
    learner = Tower(6)
    with torch.no_grad():
        learner.vectors.fill_(torch.nan)
    answers = run(learner, [[0], []], catalogue_of(6, popularity=torch.arange(6.0)))
    assert [answers[user]["source"] for user in (0, 1)] == ["popularity", "popularity"]
    assert answers[1]["items"] == [5, 4, 3]


def test_only_the_newest_are_adapted_on_and_the_reason_says_so() -> None:
    answers = run(Table(torch.zeros(2, 9)), [[0, 1, 2, 3], [4, 5]], catalogue_of(9), newest=2, top_k=9)
    assert (answers[0]["n_support"], answers[0]["reason"]) == (2, "history cut to the newest")
    assert (answers[1]["n_support"], answers[1]["reason"]) == (2, None)
    assert set(answers[0]["items"]) == {4, 5, 6, 7, 8}, "the older ones were consumed all the same"


def test_a_user_who_consumed_everything_gets_an_empty_list_and_a_reason() -> None:
    answers = run(Table(torch.zeros(2, 3)), [[0, 1, 2], [0]], catalogue_of(3))
    assert (answers[0]["items"], answers[0]["reason"]) == ([], "no candidate left")
    assert len(answers[1]["items"]) == 2


def test_a_night_without_candidates_answers_everybody_with_an_empty_list() -> None:
    answers = run(
        Table(torch.zeros(2, 3)), [[0], []], catalogue_of(3, eligible=torch.zeros(3, dtype=torch.bool))
    )
    assert [answers[user]["items"] for user in (0, 1)] == [[], []]
    assert answers[0]["reason"] == "no candidate left"


def test_what_prepare_adds_is_adapted_on_but_not_counted_as_history() -> None:
    seen: dict[int, Tensor] = {}

    def prepare(support: Examples, rows: Tensor) -> Examples:
        seen.update(zip(rows.tolist(), support.shots, strict=True))
        return Examples(
            torch.cat([support.items, support.items], 1),
            torch.cat([support.targets, 10 * support.targets], 1),
            torch.cat([support.mask, support.mask], 1),
        )

    answers = run(Table(torch.zeros(3, 5)), [[0, 1], [0], []], catalogue_of(5), prepare=prepare)
    assert {row: int(shots) for row, shots in seen.items()} == {0: 2, 1: 1, 2: 0}
    assert [answers[user]["n_support"] for user in range(3)] == [2, 1, 0]
    assert answers[0]["scores"][0] == 22.0


def test_users_asked_for_are_answered_and_no_others() -> None:
    answers = run(Table(torch.zeros(5, 4)), [[0]] * 5, catalogue_of(4), rows=torch.tensor([4, 1]))
    assert answers.keys() == {1, 4}
    assert (
        run(Table(torch.zeros(5, 4)), [[0]] * 5, catalogue_of(4), rows=torch.zeros(0, dtype=torch.int64))
        == {}
    )


@pytest.mark.parametrize("setting", ["top_k", "batch_size", "tile_size", "newest"])
def test_settings_below_one_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is at least 1; found 0"):
        run(Table(torch.zeros(1, 3)), [[0]], catalogue_of(3), **{setting: 0})


def test_no_tensor_grows_with_users_times_items() -> None:
    num_users, num_items, batch_size, tile_size = 96, 600, 8, 50
    generator = torch.Generator().manual_seed(0)
    lists = [torch.randperm(num_items, generator=generator)[: u % 6].tolist() for u in range(num_users)]
    learner = Tower(num_items)
    with LargestTensor() as tensors:
        answers = run(
            learner, lists, catalogue_of(num_items), batch_size=batch_size, tile_size=tile_size, top_k=10
        )
    assert len(answers) == num_users
    # Item codes are I x 4; everything else lies below. A score matrix of one batch would have 4,800 elements.
    assert tensors.largest <= num_items * 4 < batch_size * num_items


def test_items_are_encoded_once_and_scored_in_tiles() -> None:
    learner = Table(torch.zeros(7, 10))
    run(learner, [[0]] * 7, catalogue_of(10), batch_size=3, tile_size=4)
    assert learner.encoded == 1
    assert sorted(set(learner.tiles)) == [(1, 2), (1, 4), (3, 2), (3, 4)]


class Greedy(Table):
    """Has no memory for more than so many users at once."""

    room = 4

    def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
        if len(users.ids) > self.room:
            raise torch.OutOfMemoryError("no more")
        return super().adapt(support, users, items)


@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_memory_halves_the_batch_once(caplog: pytest.LogCaptureFixture, workers: int) -> None:
    with caplog.at_level(logging.WARNING):
        answers = run(Greedy(torch.zeros(20, 4)), [[0]] * 20, catalogue_of(4), batch_size=8, workers=workers)
    assert len(answers) == 20
    assert caplog.text.count("out of memory: going on with batches of 4 users") == 1


def test_out_of_memory_a_second_time_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(Greedy(torch.zeros(20, 4)), [[0]] * 20, catalogue_of(4), batch_size=16)


def test_other_errors_of_a_learner_are_not_taken_for_a_lack_of_memory() -> None:
    class Faulty(Table):
        calls = 0

        def adapt(self, support: Examples, users: Features, items: ItemCodes) -> TaskState:
            self.calls += 1
            raise RuntimeError("shapes do not match")

    learner = Faulty(torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(learner, [[0]] * 4, catalogue_of(4))
    assert learner.calls == 1


def test_the_consumer_of_the_stream_can_differentiate_between_two_batches() -> None:
    histories = histories_of([[0], [1], [2]])
    stream = recommend(
        Tower(4),
        histories,
        features(torch.arange(3)),
        catalogue_of(4),
        rows=torch.arange(3),
        consumed=None,
        top_k=1,
        batch_size=1,
    )
    for _ in stream:
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("vectors", [True, False])
def test_batches_are_handed_on_together_unless_their_vectors_are_asked_for(vectors: bool) -> None:
    lists = [[u % 4] for u in range(7)]
    histories = histories_of(lists)
    stream = recommend(
        Table(torch.zeros(7, 4)),
        histories,
        features(torch.arange(7)),
        catalogue_of(4),
        rows=torch.arange(7),
        consumed=histories,
        top_k=2,
        batch_size=3,
        vectors=vectors,
    )
    assert [len(some.rows) for some in stream] == ([3, 3, 1] if vectors else [7])


def test_threads_of_torch_are_as_many_after_work_was_split_as_before() -> None:
    before = torch.get_num_threads()
    run(Table(torch.zeros(9, 4)), [[0]] * 9, catalogue_of(4), batch_size=2, workers=2)
    assert torch.get_num_threads() == before


def test_a_stream_that_is_not_read_to_its_end_leaves_no_thread_behind() -> None:
    histories = histories_of([[0]] * 40)
    before = threading.active_count()
    stream = recommend(
        Table(torch.zeros(40, 4)),
        histories,
        features(torch.arange(40)),
        catalogue_of(4),
        rows=torch.arange(40),
        consumed=None,
        top_k=1,
        batch_size=1,
        vectors=True,
        workers=3,
    )
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
