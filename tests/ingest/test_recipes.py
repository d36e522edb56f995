"""Recipes: the originals and the prepared tables are read with the facts that are known of them."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import polars as pl
import pytest

from recsys_meta.ingest import InputError, download, movielens_1m, movielens_100k, prepared, recipes
from recsys_meta.tables import ITEM_ID, USER_ID, VALUE, Feature

FILES_1M = {
    "ratings.dat": "1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    "movies.dat": "10::Toy Story (1995)::Animation|Comedy\n20::Misérables, Les (1998)::Drama\n",
}


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


def zipped(file: Path, files: dict[str, str], inside: str = "ml-1m/") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(inside + name, text.encode("latin-1"))
    return file


@pytest.mark.parametrize("layout", ["folder", "folder above", "zip", "zip that would escape"])
def test_the_movielens_1m_original_is_read_from_a_folder_and_from_the_archive(
    tmp_path: Path, layout: str
) -> None:
    path = {
        "folder": lambda: written(tmp_path / "ml-1m", FILES_1M),
        "folder above": lambda: written(tmp_path / "above" / "ml-1m", FILES_1M).parent,
        "zip": lambda: zipped(tmp_path / "ml-1m.zip", FILES_1M),
        "zip that would escape": lambda: zipped(tmp_path / "ml-1m.zip", FILES_1M, "../../../outside/"),
    }[layout]()
    before = sorted(tmp_path.parent.rglob("*"))
    recipe = movielens_1m(path)
    interactions, users, items = recipe.read()
    assert interactions.table.select(USER_ID, ITEM_ID, VALUE).rows() == [
        (1, 10, 5.0),
        (1, 20, 3.0),
        (2, 10, 4.0),
    ]
    assert interactions.table["timestamp"].dt.year().to_list() == [2000, 2000, 2000]
    assert users is not None
    assert users.table.rows() == [(1, "F", "1", "10", "48067"), (2, "M", "56", "16", "70072")]
    assert items is not None
    assert items.table.rows() == [(10, ["Animation", "Comedy"], 1995.0), (20, ["Drama"], 1998.0)]
    assert recipe.features_of_items == (Feature("genres", "multi"), Feature("year", "number"))
    assert [feature.name for feature in recipe.features_of_users] == users.table.columns[1:]
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_path_that_is_not_the_original_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected ratings\.dat, users\.dat, movies\.dat"):
        movielens_1m(tmp_path)
    with pytest.raises(
        InputError, match=r"expected u\.data, u\.user, u\.item in the archive; found ml-1m/ratings\.dat"
    ):
        movielens_100k(zipped(tmp_path / "x.zip", FILES_1M))
    (tmp_path / "y.zip").write_text("no archive")
    with pytest.raises(InputError, match="neither a folder nor a readable zip archive"):
        movielens_1m(tmp_path / "y.zip")
    with pytest.raises(InputError, match="not found; give the path"):
        movielens_1m(tmp_path / "z.zip")


def test_a_download_is_checked_kept_and_not_fetched_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = zipped(tmp_path / "made.zip", FILES_1M).read_bytes()
    asked: list[str] = []

    def served(url: str, **_: Any) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(payload)

    monkeypatch.setattr("urllib.request.urlopen", served)
    with pytest.raises(InputError, match=r"not the known archive .*give its path"):
        download("ml-1m", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(recipes, "ORIGINALS", {"ml-1m": hashlib.sha256(payload).hexdigest()})
    target = download("ml-1m", tmp_path / "cache")
    assert download("ml-1m", tmp_path / "cache") == target
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-1m.zip"] * 2
    assert [path.name for path in target.parent.iterdir()] == ["ml-1m.zip"]
    assert movielens_1m(target).read().interactions.table.height == 3
    target.write_bytes(payload[:-1])
    with pytest.raises(InputError, match=r"cache.*ml-1m\.zip: not the known archive"):
        download("ml-1m", tmp_path / "cache")


def test_without_a_network_the_error_says_how_to_pass_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> io.BytesIO:
        raise URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(InputError, match=r"ml-100k\.zip: could not be downloaded .*give its path"):
        download("ml-100k", tmp_path)


def test_an_unknown_recipe_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe 'ml-1n' was not found; did you mean 'ml-1m'"):
        prepared("ml-1n", tmp_path)


# users, items, rows of interactions, as the card of the data sets says
FACTS = {
    "ml-1m": (6_040, 3_706, 1_000_209),
    "ml-100k": (943, 1_682, 100_000),
    "lastfm-tanp": (1_872, 3_846, 42_346),
    "amazon-beauty": (22_363, 12_101, 198_502),
    "coat": (290, 300, 6_960),
}


@pytest.mark.parametrize("name", FACTS)
def test_the_prepared_tables_have_the_users_items_and_rows_of_their_card(datasets: Path, name: str) -> None:
    recipe = prepared(name, datasets)
    interactions, users, items = recipe.read()
    table = interactions.table
    assert (table[USER_ID].n_unique(), table[ITEM_ID].n_unique(), table.height) == FACTS[name]
    assert interactions.counts["rows_quarantined"] == 0
    for side, features, id_name in (
        (users, recipe.features_of_users, USER_ID),
        (items, recipe.features_of_items, ITEM_ID),
    ):
        if side is not None:
            assert side.quarantine.height == 0
            assert set(side.table.columns[1:]) == {feature.name for feature in features}
            assert table[id_name].is_in(side.table[id_name].implode()).all()


@pytest.mark.parametrize(
    ("name", "histogram"),
    [
        ("ml-1m", [56_174, 107_557, 261_197, 348_971, 226_310]),
        ("ml-100k", [6_110, 11_370, 27_145, 34_174, 21_201]),
    ],
)
def test_the_histogram_of_ratings_is_the_official_one(
    datasets: Path, name: str, histogram: list[int]
) -> None:
    table = prepared(name, datasets).read().interactions.table
    assert table[VALUE].value_counts().sort(VALUE).rows() == list(
        zip([1.0, 2.0, 3.0, 4.0, 5.0], histogram, strict=True)
    )


def test_the_movielens_100k_original_and_its_prepared_table_are_the_same(datasets: Path) -> None:
    original, table = (
        movielens_100k(datasets / "ml-100k" / "raw").read(),
        prepared("ml-100k", datasets).read(),
    )
    by = [USER_ID, ITEM_ID]
    as_integers = pl.col(pl.Int32).cast(pl.Int64)
    assert original.interactions.table.sort(by).equals(
        table.interactions.table.with_columns(as_integers).sort(by)
    )
    assert original.users is not None
    assert table.users is not None
    assert original.users.table.equals(table.users.table.with_columns(as_integers))
    assert original.items is not None
    assert table.items is not None
    genres = pl.col("genres").list.sort()
    assert original.items.table.with_columns(genres).equals(
        table.items.table.with_columns(as_integers, genres)
    )


def test_repeated_clicks_of_the_news_portal_are_kept(datasets: Path) -> None:
    interactions = prepared("globo", datasets).read().interactions
    assert interactions.table.height == 2_988_181
    pairs = interactions.table.select(pl.struct(USER_ID, ITEM_ID).hash()).to_series()
    assert len(pairs) - pairs.n_unique() == 37_471
    assert interactions.table["timestamp"].min().year == 2017  # type: ignore[union-attr]
