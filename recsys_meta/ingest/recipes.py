"""How to read known data sets: the MovieLens originals, and the tables that the project is measured on.

A recipe is a value, sources and column mappings, that ``Recipe.read`` turns into checked tables. None of the data is
part of the project.

MovieLens: Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015;
https://grouplens.org/datasets/movielens
"""

import hashlib
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from recsys_meta.ingest.features import declared_features, read_features
from recsys_meta.ingest.interactions import read_interactions
from recsys_meta.ingest.quarantine import Checked
from recsys_meta.ingest.sources import InputError, Source, not_found
from recsys_meta.tables import ITEM_ID, USER_ID, Feature

Original = Literal["ml-100k", "ml-1m"]

# sha256 of the archives whose md5 GroupLens publishes beside them:
# 0e33842e24a9c977be4e0107933c0723 and c4d9eecfca2ab87c1945afe126590906.
ORIGINALS: Mapping[str, str] = {
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
}
ORIGINALS_URL = "https://files.grouplens.org/datasets/movielens/{name}.zip"
MAX_DOWNLOAD = 100 * 2**20  # bytes; the archives have 5 and 6 MB

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


class Dataset(NamedTuple):
    """The checked tables of one data set; None where it has no such table."""

    interactions: Checked
    users: Checked | None
    items: Checked | None


@dataclass(frozen=True)
class Recipe:
    """Sources and column mappings of one data set."""

    interactions: Source
    columns: Mapping[str, Any]  # further arguments of read_interactions
    users: Source | None = None
    user_features: Mapping[str, Any] = field(default_factory=dict)  # further arguments of read_features
    items: Source | None = None
    item_features: Mapping[str, Any] = field(default_factory=dict)
    year_in: str | None = None  # a column of the items whose text ends in "(1995)", read as the number "year"

    @property
    def features_of_users(self) -> tuple[Feature, ...]:
        """The features that the table of users has."""
        return _features(self.user_features)

    @property
    def features_of_items(self) -> tuple[Feature, ...]:
        """The features that the table of items has."""
        declared = tuple(feature for feature in _features(self.item_features) if feature.name != self.year_in)
        return (*declared, Feature("year", "number")) if self.year_in is not None else declared

    def read(self, moment: datetime | None = None) -> Dataset:
        """The checked tables. Raises InputError as read_interactions and read_features do."""
        interactions = read_interactions(self.interactions, moment=moment, **self.columns)
        users = read_features(self.users, id_name=USER_ID, **self.user_features) if self.users else None
        items = read_features(self.items, id_name=ITEM_ID, **self.item_features) if self.items else None
        if items is not None and self.year_in is not None:
            year = pl.col(self.year_in).str.extract(r"\((\d{4})\)\s*$").cast(pl.Float32).alias("year")
            items = items._replace(table=items.table.with_columns(year).drop(self.year_in))
        return Dataset(interactions, users, items)


def movielens_100k(path: Path) -> Recipe:
    """MovieLens-100K as published. ``path``: ml-100k.zip, or the folder with u.data, u.user, u.item (each may be .gz)."""
    data, users, items = _originals(path, ("u.data", "u.user", "u.item"))
    return Recipe(
        interactions=_headless(data, "\t", "user_id", "item_id", "rating", "timestamp"),
        columns={"value": "rating", "timestamp": "timestamp", "time_unit": "s", "value_range": (1, 5)},
        users=_headless(users, "|", "user_id", "age", "gender", "occupation", "zip"),
        user_features={
            "id_column": "user_id",
            "categorical": ("gender", "occupation", "zip"),
            "numbers": ("age",),
        },
        items=_headless(items, "|", "item_id", "title", "released", "released_on_video", "url", *GENRES_100K),
        item_features={"id_column": "item_id", "categorical": ("title",), "flags": {"genres": GENRES_100K}},
        year_in="title",
    )


def movielens_1m(path: Path) -> Recipe:
    """MovieLens-1M as published. ``path``: ml-1m.zip, or the folder with ratings.dat, users.dat, movies.dat (or .gz)."""
    ratings, users, movies = _originals(path, ("ratings.dat", "users.dat", "movies.dat"))
    return Recipe(
        interactions=_headless(ratings, "::", "user_id", "item_id", "rating", "timestamp"),
        columns={"value": "rating", "timestamp": "timestamp", "time_unit": "s", "value_range": (1, 5)},
        users=_headless(users, "::", "user_id", "gender", "age", "occupation", "zip"),
        user_features={"id_column": "user_id", "categorical": ("gender", "age", "occupation", "zip")},
        items=_headless(movies, "::", "item_id", "title", "genres"),
        item_features={"id_column": "item_id", "categorical": ("title",), "multi": ("genres",)},
        year_in="title",
    )


def download(name: Original, folder: Path) -> Path:
    """Fetches a MovieLens original into ``folder`` and gives the path of the archive; one already there is only checked.

    Raises InputError where the network or the archive is not as expected; the message says how to go on from a path.
    """
    url, target = ORIGINALS_URL.format(name=name), folder / f"{name}.zip"
    by_hand = f"get {url} by other means and give its path (or that of the unpacked folder) instead"
    if target.exists():
        payload = target.read_bytes()
    else:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                payload = response.read(MAX_DOWNLOAD + 1)
        except OSError as error:
            raise InputError(f"{url}: could not be downloaded ({error}); {by_hand}") from error
    found = hashlib.sha256(payload).hexdigest()
    if found != ORIGINALS[name]:
        where = str(target) if target.exists() else url
        raise InputError(
            f"{where}: not the known archive (sha256 {found}, expected {ORIGINALS[name]}); {by_hand}"
        )
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_bytes(payload)
        part.replace(target)
    return target


def prepared(name: str, root: Path) -> Recipe:
    """The recipe of one of the prepared tables under ``root`` (PREPARED lists them)."""
    if name not in PREPARED:
        raise InputError(not_found("recipe", name, PREPARED))
    return PREPARED[name](root / name)


def _ml_100k(folder: Path) -> Recipe:
    return Recipe(
        interactions=Source(folder / "ratings.parquet"),
        columns={"value": "rating", "timestamp": "timestamp", "time_unit": "s", "value_range": (1, 5)},
        users=Source(folder / "users.parquet"),
        user_features={
            "id_column": "user_id",
            "categorical": ("gender", "occupation", "zip"),
            "numbers": ("age",),
        },
        items=Source(folder / "items.parquet"),
        item_features={"id_column": "item_id", "categorical": ("title",), "multi": ("genres",)},
        year_in="title",
    )


def _ml_1m(folder: Path) -> Recipe:
    return Recipe(
        interactions=Source(folder / "ratings.parquet"),
        columns={"value": "rating", "value_range": (1, 5)},
        users=Source(folder / "users.parquet"),
        user_features={"id_column": "user_id", "categorical": ("gender", "age", "occupation", "zip")},
        items=Source(folder / "items.parquet"),
        item_features={
            "id_column": "item_id",
            "categorical": ("mpaa",),
            "multi": ("genres", "director", "actors"),
            "numbers": ("year",),
            "multi_separator": {"director": ",", "actors": ","},
        },
    )


def _globo(folder: Path) -> Recipe:
    return Recipe(
        interactions=Source(folder / "ratings.parquet"),
        columns={
            "timestamp": "timestamp",
            "time_unit": "ms",
            "duplicates": "keep",
        },  # clicks: a second one is another event
    )


def _amazon_beauty(folder: Path) -> Recipe:
    return Recipe(
        interactions=Source(folder / "ratings.parquet"),
        columns={"timestamp": "timestamp", "time_unit": "s", "duplicates": "keep"},
        items=Source(folder / "items.parquet"),
        item_features={"id_column": "item_id", "multi": ("attributes",)},
    )


def _lastfm_tanp(folder: Path) -> Recipe:
    return Recipe(
        interactions=Source(folder / "ratings.parquet"),
        columns={"value": "rating", "value_range": (0, 1)},  # half of the labels are sampled negatives
    )


def _coat(folder: Path) -> Recipe:
    age = ("under 20", "20-30", "30-40", "40-50", "50-60", "over 60")
    jacket = ("bomber", "cropped", "field", "fleece", "insulated", "motorcycle", "other", "packable", "parkas", "pea", "rain",
              "shells", "track", "trench", "vests")  # fmt: skip
    color = (
        "beige",
        "black",
        "blue",
        "brown",
        "gray",
        "green",
        "multi",
        "navy",
        "olive",
        "other",
        "pink",
        "purple",
        "red",
    )

    def flags(**features: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        return {name: tuple(f"{name}:{value}" for value in values) for name, values in features.items()}

    user_flags = flags(
        gender=("men", "women"),
        age=age,
        location=("rural", "suburban", "urban"),
        fashioninterest=("not at all", "moderately", "very"),
    )
    return Recipe(
        interactions=Source(folder / "splits.parquet", where="split = 'train_selfselected'"),
        columns={"value": "rating", "value_range": (1, 5)},
        users=Source(folder / "users.parquet"),
        user_features={"id_column": "user_id", "flags": user_flags},
        items=Source(folder / "items.parquet"),
        item_features={
            "id_column": "item_id",
            "flags": flags(
                gender=("men", "women"), jackettype=jacket, color=color, onfrontpage=("yes", "no")
            ),
        },
    )


PREPARED: Mapping[str, Callable[[Path], Recipe]] = {
    "ml-100k": _ml_100k,
    "ml-1m": _ml_1m,
    "globo": _globo,
    "amazon-beauty": _amazon_beauty,
    "lastfm-tanp": _lastfm_tanp,
    "coat": _coat,
}


def _features(arguments: Mapping[str, Any]) -> tuple[Feature, ...]:
    return declared_features(
        **{k: v for k, v in arguments.items() if k not in ("id_column", "multi_separator")}
    )


def _originals(path: Path, names: tuple[str, str, str]) -> list[Source]:
    """Where these files lie: in a folder or one below it, or in a zip archive, which is read and never unpacked."""
    if path.is_dir():
        folders = [path, *sorted(below for below in path.iterdir() if below.is_dir())]
        for folder in folders:
            found = [
                next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
                for name in names
            ]
            if all(found):
                return [Source(file) for file in found if file is not None]
        raise InputError(
            f"{path}: not the unpacked original; expected {', '.join(names)} in it (or the same as .gz)"
        )
    if path.exists():
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path}: neither a folder nor a readable zip archive ({error})") from error
        chosen = [
            next((member for member in members if member.rsplit("/", 1)[-1] == name), None) for name in names
        ]
        if not all(chosen):
            raise InputError(
                f"{path}: expected {', '.join(names)} in the archive; found {', '.join(members[:20])}"
            )
        return [Source(path, member=member) for member in chosen]
    raise InputError(f"{path}: not found; give the path of the archive or of the unpacked folder")


def _headless(source: Source, separator: str, *names: str) -> Source:
    """The source as MovieLens writes its files: no header, no quotes, latin-1."""
    return Source(source.path, member=source.member, format="csv", separator=separator, header=False, column_names=names,
                  encoding="latin-1", quote=None)  # fmt: skip
