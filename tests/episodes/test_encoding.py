"""Laws of feature encoders."""

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_meta.episodes import FeatureEncoder
from recsys_meta.tables import Feature
from recsys_meta.tensors import Features, FeatureSizes

FEATURES = (
    Feature("genre", "multi"),
    Feature("maker", "categorical"),
    Feature("year", "number"),
    Feature("text", "vector"),
    Feature("price", "number"),
    Feature("image", "vector"),
)
TABLE = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "late"],
        "genre": [["x", "y"], [], None, ["y", "z", None]],
        "maker": ["m", None, "n", "o"],
        "year": [1990.0, 2010.0, None, 2000.0],
        "price": [3.0, 3.0, 3.0, 9.0],
        "text": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]],
        "image": [[7.0], [8.0], [9.0], None],
    },
    schema_overrides={
        "year": pl.Float32,
        "price": pl.Float32,
        "text": pl.List(pl.Float32),
        "image": pl.List(pl.Float32),
    },
)
KNOWN = pl.Series("item_id", ["c", "a", "b"])


def fitted(**options: bool | int) -> FeatureEncoder:
    return FeatureEncoder.fit(KNOWN, TABLE, FEATURES, **options)


def equal(first: Features, second: Features) -> bool:
    bags = zip(first.multi, second.multi, strict=True)
    return all(
        torch.equal(x, y)
        for x, y in [
            *(
                (getattr(first, name), getattr(second, name))
                for name in ("ids", "categorical", "numbers", "vectors")
            ),
            *(pair for one, other in bags for pair in zip(one, other, strict=True)),
        ]
    )


def test_a_small_table_is_encoded_as_by_hand() -> None:
    features = fitted().encode(pl.Series("item_id", ["a", "nobody", "late", "c", "b"]), TABLE)
    assert features.ids.tolist() == [2, 0, 0, 1, 3]  # rows of c, a, b in the order they were fitted on
    assert features.categorical.tolist() == [[1], [0], [0], [2], [0]]  # m, n; o was not fitted on
    assert features.multi[0].values.tolist() == [1, 2, 2, 0]  # x, y; z was not fitted on
    assert features.multi[0].offsets.tolist() == [0, 2, 2, 4, 4, 4]
    # years: mean 2000, standard deviation 10; the price is constant among the fitted, so it says nothing
    assert features.numbers.tolist() == [[-1, 0], [0, 0], [0, 0], [0, 0], [1, 0]]
    assert features.vectors.tolist() == [[1, 2, 7], [0, 0, 0], [5, 6, 0], [3, 4, 9], [0, 0, 8]]


def test_the_types_are_those_that_tensors_state() -> None:
    features = fitted().encode(KNOWN, TABLE)
    assert features.ids.dtype == features.categorical.dtype == features.multi[0].values.dtype == torch.int64
    assert features.multi[0].offsets.dtype == torch.int64
    assert features.numbers.dtype == features.vectors.dtype == torch.float32


def test_sizes_count_the_unknown_rows_and_the_extra_numbers() -> None:
    assert fitted(extra_numbers=4).sizes == FeatureSizes(
        ids=4, categorical=(3,), multi=(3,), numbers=6, vectors=3
    )
    assert fitted(extra_numbers=4).encode(KNOWN, TABLE).numbers.shape == (3, 2)


def test_without_ids_everybody_is_described_by_features_alone() -> None:
    encoder = fitted(use_ids=False)
    assert encoder.sizes.ids == 1
    features = encoder.encode(KNOWN, TABLE)
    assert features.ids.tolist() == [0, 0, 0]
    assert features.categorical.tolist() == [[2], [1], [0]]


def test_without_a_table_there_are_ids_alone() -> None:
    encoder = FeatureEncoder.fit(KNOWN, None, ())
    assert encoder.sizes == FeatureSizes(ids=4)
    features = encoder.encode(pl.Series("item_id", ["b", "x"]), None)
    assert features.ids.tolist() == [3, 0]
    assert (features.categorical.shape, features.numbers.shape, features.vectors.shape) == ((2, 0),) * 3


@pytest.mark.parametrize(
    "ids", [KNOWN, pl.Series("item_id", [2**40, -1, 5]), pl.Series("item_id", [7], dtype=pl.UInt16)]
)
@pytest.mark.parametrize("use_ids", [True, False])
def test_a_saved_encoder_comes_back_identical(ids: pl.Series, use_ids: bool, tmp_path: Path) -> None:
    table = TABLE.with_columns(
        item_id=TABLE["item_id"] if ids.dtype == pl.String else pl.int_range(4).cast(ids.dtype)
    )
    encoder = FeatureEncoder.fit(ids, table, FEATURES, extra_numbers=2, use_ids=use_ids)
    encoder.save(tmp_path / "new" / "items")
    loaded = FeatureEncoder.load(tmp_path / "new" / "items")
    assert loaded.features == encoder.features
    assert loaded.sizes == encoder.sizes
    assert loaded.scales == encoder.scales
    assert (loaded.ids.dtype, loaded.ids.name, loaded.ids.to_list()) == (
        ids.dtype,
        ids.name,
        encoder.ids.to_list(),
    )
    assert equal(loaded.encode(table["item_id"], table), encoder.encode(table["item_id"], table))


def test_saving_twice_leaves_the_same_bytes(tmp_path: Path) -> None:
    fitted().save(tmp_path / "one")
    FeatureEncoder.load(tmp_path / "one").save(tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["encoder.json", "ids.parquet", "vocabulary_0.parquet", "vocabulary_1.parquet"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_ids_of_another_type_are_refused_at_encoding() -> None:
    encoder = FeatureEncoder.fit(pl.Series("item_id", [1, 2]), None, ())
    with pytest.raises(ValueError, match=r"'item_id' are String, but Int64 was expected"):
        encoder.encode(pl.Series("item_id", ["1"]), None)
    with pytest.raises(ValueError, match=r"are Int64, but String was expected"):
        fitted(use_ids=False).encode(pl.Series("item_id", [1]), TABLE)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"columns \['item_id', 'genre'\].*'maker'"):
        FeatureEncoder.fit(KNOWN, TABLE.select("item_id", "genre"), FEATURES)
    with pytest.raises(ValueError, match="'item_id'"):
        FeatureEncoder.fit(KNOWN, TABLE.drop("item_id"), FEATURES)
    with pytest.raises(ValueError, match="no table"):
        fitted().encode(KNOWN, None)


def test_a_column_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="more than once"):
        FeatureEncoder.fit(KNOWN, TABLE, (Feature("year", "number"), Feature("year", "number")))


def test_vectors_of_another_length_are_refused() -> None:
    longer = TABLE.with_columns(text=pl.Series([[1.0, 2.0, 3.0]] * 4, dtype=pl.List(pl.Float32)))
    with pytest.raises(ValueError, match="'text' have length 3; 2 was expected"):
        fitted().encode(KNOWN, longer)
    mixed = TABLE.with_columns(text=pl.Series([[1.0], [1.0, 2.0], [], None], dtype=pl.List(pl.Float32)))
    with pytest.raises(ValueError, match=r"'text' have lengths \[0, 1, 2\]"):
        fitted().encode(KNOWN, mixed)


def test_an_id_with_two_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' more than once"):
        fitted().encode(KNOWN, pl.concat([TABLE, TABLE.head(1)]))


def test_what_is_missing_within_a_vector_is_0() -> None:
    vectors = pl.Series([[float("nan"), 2.0], [None, 3.0], None, None], dtype=pl.List(pl.Float32))
    features = fitted().encode(TABLE["item_id"], TABLE.with_columns(text=vectors))
    assert features.vectors[:, :2].tolist() == [[0, 2], [0, 3], [0, 0], [0, 0]]


def test_columns_without_any_value_are_zeros() -> None:
    nothing = TABLE.with_columns(pl.lit(None).cast(TABLE.schema[name]).alias(name) for name, _ in FEATURES)
    encoder = FeatureEncoder.fit(KNOWN, nothing, FEATURES)
    assert encoder.sizes == FeatureSizes(ids=4, categorical=(1,), multi=(1,), numbers=2, vectors=0)
    assert encoder.encode(KNOWN, nothing).numbers.tolist() == [[0, 0]] * 3
    features = fitted().encode(KNOWN, nothing)
    assert features.multi[0].offsets.tolist() == [0, 0, 0, 0]
    assert not features.categorical.any()
    assert not features.vectors.any()


@given(
    numbers=st.lists(
        st.none() | st.floats(-1e6, 1e6, width=32) | st.sampled_from([float("nan"), float("inf")]),
        min_size=1,
        max_size=20,
    )
)
@settings(deadline=None, max_examples=40)
def test_fitted_numbers_have_mean_0_and_deviation_1_or_are_all_0(numbers: list[float | None]) -> None:
    table = pl.DataFrame(
        {"item_id": range(len(numbers)), "x": numbers},
        schema_overrides={"x": pl.Float32, "item_id": pl.Int64},
    )
    scaled = (
        FeatureEncoder.fit(table["item_id"], table, (Feature("x", "number"),))
        .encode(table["item_id"], table)
        .numbers[:, 0]
    )
    known = torch.tensor([x is not None and abs(x) < float("inf") for x in numbers])
    assert scaled.isfinite().all()
    assert not scaled[~known].any()
    if scaled.any():
        assert abs(scaled[known].double().mean()) < 1e-5
        assert abs(scaled[known].double().std(correction=0) - 1) < 1e-5
    else:
        assert len({x for x in numbers if x is not None and abs(x) < float("inf")}) <= 1


def test_a_grown_encoder_reads_what_was_known_as_before_and_gives_what_is_new_the_rows_behind() -> None:
    before = fitted(extra_numbers=2)
    more = TABLE.vstack(
        TABLE.head(1).with_columns(
            item_id=pl.lit("aa"), genre=pl.lit(["w"], pl.List(pl.String)), maker=pl.lit("a")
        )
    )
    grown = before.grown(pl.Series("item_id", ["aa", "a", "late"]), more)
    assert equal(before.encode(KNOWN, TABLE), grown.encode(KNOWN, more))
    assert grown.ids.to_list() == ["c", "a", "b", "aa", "late"]
    assert grown.vocabularies["genre"].to_list() == [*before.vocabularies["genre"], "w", "z"]
    assert grown.encode(pl.Series("item_id", ["aa"]), more).categorical.tolist() == [[3]]
    assert (grown.scales, grown.extra_numbers) == (before.scales, 2)
    assert grown.sizes.ids == before.sizes.ids + 2


@pytest.mark.parametrize(
    ("new", "dtype", "grown"),
    [
        ([7, 9], pl.Int64, pl.Int32),
        ([7, 2**40], pl.Int64, pl.Int64),  # does not fit: the vocabulary widens
        ([7, 9], pl.Int8, pl.Int32),  # 300 is known
    ],
)
def test_ids_of_another_width_grow_by_their_values(new, dtype, grown) -> None:
    before = FeatureEncoder.fit(pl.Series("item_id", [300, 7], pl.Int32), None, ())
    after = before.grown(pl.Series("item_id", new, dtype), None)
    assert after.ids.to_list() == [300, 7, new[1]]
    assert after.ids.dtype == grown
    assert after.encode(pl.Series("item_id", new, dtype), None).ids.tolist() == [2, 3]


def test_an_encoder_without_ids_grows_none() -> None:
    assert fitted(use_ids=False).grown(pl.Series("item_id", ["late"]), TABLE).ids.is_empty()


def test_a_vector_that_became_longer_does_not_go_on_from_a_shorter_one() -> None:
    longer = TABLE.with_columns(image=pl.lit([1.0, 2.0], pl.List(pl.Float32)))
    with pytest.raises(ValueError, match="have lengths"):
        fitted().grown(KNOWN, longer)
