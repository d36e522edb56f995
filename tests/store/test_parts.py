"""A run in parts: what is recorded counts, what is not is made again."""

from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys_meta.store import Damaged, RunFolder, Workspace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = Workspace(tmp_path).run("night-1")
    run.begin("f")
    return run


def test_parts_come_back_in_the_order_of_their_numbers(run: RunFolder) -> None:
    for number in (10, 2, 1_000_000, 0):
        run.write_part("figures", number, pl.DataFrame({"number": [number]}))
    assert run.scan("figures").collect()["number"].to_list() == [0, 2, 10, 1_000_000]


def test_a_shard_is_finished_once_it_is_recorded_and_not_before(
    run: RunFolder, small_night: ModuleType
) -> None:
    assert not run.finished(0)
    run.write_part("scores", 0, small_night.scores("night-1", [1], [10]))
    run.write_part("user_status", 0, small_night.status([1]))
    assert not run.finished(0)
    run.finish_shard(0, {"users": 1, "seconds": 0.5})
    assert run.finished(0)
    assert not run.finished(1)
    assert run.shards() == {0: {"users": 1, "seconds": 0.5}}


def test_a_shard_without_its_part_or_written_again_is_unfinished(run: RunFolder) -> None:
    for number in (0, 1, 2):
        run.write_part("figures", number, pl.DataFrame({"number": [number]}))
        run.finish_shard(number, {})
    run.part_files("figures")[0].unlink()
    run.write_part("figures", 1, pl.DataFrame({"number": [11]}))
    assert [run.finished(number) for number in (0, 1, 2)] == [False, False, True]
    assert run.scan("figures").collect()["number"].to_list() == [11, 2]


def test_a_part_without_its_record_is_not_read(run: RunFolder) -> None:
    for number in (0, 1):
        run.write_part("figures", number, pl.DataFrame({"number": [number]}))
    run.part_files("figures")[0].with_suffix(".json").unlink()
    assert run.scan("figures").collect()["number"].to_list() == [1]


def test_the_same_fingerprint_resumes_and_another_starts_anew(run: RunFolder) -> None:
    run.write_part("figures", 0, pl.DataFrame({"number": [0]}))
    run.finish_shard(0, {})
    run.begin("f")
    assert run.finished(0)
    run.begin("g")
    assert not run.finished(0)
    assert run.tables() == []
    assert run.fingerprint() == "g"


def test_what_killed_writers_left_is_removed_by_the_next_holder_of_the_lock_only(
    tmp_path: Path, run: RunFolder
) -> None:
    run.write_part("figures", 0, pl.DataFrame({"number": [0]}))
    left = [run.path / ".tmp-a", run.parts / ".tmp-b", run.parts / "figures" / ".tmp-c"]
    for path in left:
        path.touch()
    workspace = Workspace(tmp_path)
    workspace.run("night-1")
    assert all(path.exists() for path in left)
    with workspace.lock():
        workspace.run("night-1")
    assert not any(path.exists() for path in left)
    assert run.scan("figures").collect().height == 1


def test_a_part_that_changed_on_disk_is_named_and_made_again(run: RunFolder) -> None:
    run.write_part("figures", 0, pl.DataFrame({"number": [0]}))
    run.finish_shard(0, {})
    run.verify_parts("figures")
    [path] = run.part_files("figures")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match=r"figures/000000\.parquet"):
        run.verify_parts("figures")
    assert not run.finished(0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff"])
def test_a_damaged_record_counts_for_nothing(run: RunFolder, content: bytes) -> None:
    run.write_part("figures", 0, pl.DataFrame({"number": [0]}))
    run.finish_shard(0, {})
    [path] = run.part_files("figures")
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(Damaged, match="makes it anew"):
        run.verify_parts("figures")
    run.write_part("figures", 0, pl.DataFrame({"number": [0]}))
    run.finish_shard(0, {})
    (run.parts / "finished" / "000000.json").write_bytes(content)
    assert not run.finished(0)
    assert run.shards() == {}
    (run.parts / "fingerprint.json").write_bytes(content)
    run.begin("f")
    assert run.tables() == []


def test_columns_of_fixed_tables_are_checked_and_ordered(run: RunFolder, small_night: ModuleType) -> None:
    good = small_night.scores("night-1", ["a"], [1, 2])
    run.write_part("scores", 0, good.select(reversed(good.columns)))
    assert_frame_equal(run.scan("scores").collect(), good, check_column_order=False)
    with pytest.raises(ValueError, match=r"missing columns \['propensity'\], unknown columns \['chance'\]"):
        run.write_part("scores", 1, good.rename({"propensity": "chance"}))
    with pytest.raises(TypeError, match="column rank: found Int64, expected Int32"):
        run.write_part("scores", 1, good.with_columns(pl.col("rank").cast(pl.Int64)))
    for dtype in (pl.Float64, pl.Categorical, pl.Int128):
        with pytest.raises(TypeError, match=r"column item_id: found .*, expected an integer or string type"):
            run.write_part("scores", 1, good.with_columns(pl.col("item_id").cast(pl.String).cast(dtype)))
    assert not run.finished(1)


@pytest.mark.parametrize(
    "table", ["../scores", "Scores", "", "a b", "scores;", "finished", "scores\n", "x" * 65]
)
def test_a_table_has_a_plain_name(run: RunFolder, table: str) -> None:
    with pytest.raises(ValueError, match="table"):
        run.write_part(table, 0, pl.DataFrame({"number": [0]}))


def test_a_shard_has_a_number_from_zero_on(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="shard -1"):
        run.write_part("figures", -1, pl.DataFrame({"number": [0]}))


def test_a_table_without_parts_cannot_be_read(run: RunFolder) -> None:
    with pytest.raises(FileNotFoundError, match="no recorded part of table 'scores'"):
        run.scan("scores")


@pytest.mark.parametrize("file", ["figures/000000.parquet", "figures/000000.json", "finished/000000.json"])
def test_whatever_bit_is_turned_of_a_finished_shard_it_is_unfinished_or_means_the_same(
    run: RunFolder, file: str
) -> None:
    run.write_part("figures", 0, pl.DataFrame({"number": [7]}))
    run.finish_shard(0, {"users": 1})
    path = run.parts / file
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 2, 5, 7):
            turned = bytearray(whole)
            turned[place] ^= 1 << bit
            path.write_bytes(turned)
            if run.finished(0):  # of a record only the sha256 and the names of the tables count
                assert path.suffix == ".json"
                assert run.scan("figures").collect()["number"].to_list() == [7]


def test_a_damaged_fingerprint_starts_the_run_anew(run: RunFolder) -> None:
    run.write_part("figures", 0, pl.DataFrame({"number": [0]}))
    run.finish_shard(0, {})
    (run.parts / "fingerprint.json").write_bytes(b'"f\xff')
    run.begin("f")
    assert not run.finished(0)
    assert run.tables() == []
