"""Feature tables to tensors: vocabularies with a row for the unknown, scaled numbers, vectors side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys_meta.episodes.ids import rows_of
from recsys_meta.tables import ITEM_ID, USER_ID, Feature, FeatureKind, in_width
from recsys_meta.tensors import Features, FeatureSizes, Ragged


class Scale(NamedTuple):
    """How a number is scaled: (number - mean) / std; always 0 where std is 0, for a constant says nothing."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class FeatureEncoder:
    """What was learned of one side, users or items, and travels with the model.

    Position p of a vocabulary is row p + 1 of its embedding; row 0 is the unknown.
    """

    features: tuple[Feature, ...]
    ids: pl.Series  # the id vocabulary, of the type the ids came in; empty where ids are not used
    vocabularies: Mapping[str, pl.Series]  # of each categorical and multi-valued feature
    scales: Mapping[str, Scale]  # of each number
    widths: Mapping[str, int]  # of each vector
    extra_numbers: int = 0  # columns that CatalogueClock appends; ``sizes`` counts them

    @classmethod
    def fit(
        cls,
        ids: pl.Series,
        table: pl.DataFrame | None,
        features: Sequence[Feature],
        *,
        extra_numbers: int = 0,
        use_ids: bool = True,
    ) -> "FeatureEncoder":
        """Vocabularies of these ids and of their rows of a checked table, and the scales of its numbers.

        ``use_ids=False`` leaves every id unknown: described by its features alone.
        Raises ValueError on a missing column, on a vector feature of several lengths, on ids of another
        type than the table's, and on an id with several rows.
        """
        features = tuple(Feature(*feature) for feature in features)
        known = ids.drop_nulls().unique(maintain_order=True)
        columns = _columns(known, table, features)
        return cls(
            features,
            known if use_ids else known.clear(),
            {name: _vocabulary(columns[name]) for name, kind in features if kind in ("categorical", "multi")},
            {name: _scale(columns[name]) for name, kind in features if kind == "number"},
            {name: _width(table[name]) for name, kind in features if kind == "vector"}
            if table is not None
            else {},
            extra_numbers,
        )

    def grown(self, ids: pl.Series, table: pl.DataFrame | None) -> "FeatureEncoder":
        """The same encoder, with what it does not know yet behind what it knows.

        What is known keeps its place and its scale, so that embeddings of this encoder are the first rows of those of the
        grown one. Integer ids may come in another width. Raises ValueError as ``fit`` does, and where a vector has become longer
        or shorter.
        """
        new = FeatureEncoder.fit(
            ids, table, self.features, extra_numbers=self.extra_numbers, use_ids=len(self.ids) > 0
        )
        if new.widths != self.widths:
            raise ValueError(f"vectors have lengths {dict(new.widths)}; {dict(self.widths)} was expected")
        return FeatureEncoder(
            self.features,
            _appended(self.ids, new.ids),
            {name: _appended(words, new.vocabularies[name]) for name, words in self.vocabularies.items()},
            self.scales,
            self.widths,
            self.extra_numbers,
        )

    @property
    def sizes(self) -> FeatureSizes:
        """What the embeddings of this side are constructed from."""
        return FeatureSizes(
            ids=len(self.ids) + 1,
            categorical=tuple(len(self.vocabularies[name]) + 1 for name in self._named("categorical")),
            multi=tuple(len(self.vocabularies[name]) + 1 for name in self._named("multi")),
            numbers=len(self.scales) + self.extra_numbers,
            vectors=sum(self.widths.values()),
        )

    def encode(self, ids: pl.Series, table: pl.DataFrame | None) -> Features:
        """Features of these ids in their order, N rows; the extra numbers are left to CatalogueClock.

        What is not known is 0: an id outside the vocabulary or without a row in the table, a null.
        Raises ValueError as ``fit`` does, and on ids of another type than those fitted on.
        """
        columns = _columns(ids, table, self.features)
        categorical = [
            _looked_up(columns[name], self.vocabularies[name]) for name in self._named("categorical")
        ]
        numbers = [_scaled(columns[name], self.scales[name]) for name in self._named("number")]
        vectors = [_vectors(columns[name], self.widths[name]) for name in self._named("vector")]
        return Features(
            _looked_up(ids, self.ids),
            torch.stack(categorical, 1) if categorical else torch.zeros(len(ids), 0, dtype=torch.int64),
            tuple(_bags(columns[name], self.vocabularies[name]) for name in self._named("multi")),
            torch.stack(numbers, 1) if numbers else torch.zeros(len(ids), 0),
            torch.cat(vectors, 1) if vectors else torch.zeros(len(ids), 0),
        )

    def save(self, folder: Path) -> None:
        """Writes one Parquet file per vocabulary and encoder.json into the folder, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"id": self.ids}).write_parquet(folder / "ids.parquet")
        for number, words in enumerate(
            self.vocabularies.values()
        ):  # numbered: a name may not be fit for a file
            pl.DataFrame({"word": words}).write_parquet(folder / f"vocabulary_{number}.parquet")
        fitted = {
            "features": self.features,
            "id_name": self.ids.name,
            "vocabularies": list(self.vocabularies),
            "scales": self.scales,
            "widths": self.widths,
            "extra_numbers": self.extra_numbers,
        }
        (folder / "encoder.json").write_text(json.dumps(fitted, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "FeatureEncoder":
        """The encoder that was saved in this folder."""
        fitted = json.loads((folder / "encoder.json").read_text())
        return cls(
            tuple(Feature(*feature) for feature in fitted["features"]),
            pl.read_parquet(folder / "ids.parquet")["id"].alias(fitted["id_name"]),
            {
                name: pl.read_parquet(folder / f"vocabulary_{number}.parquet")["word"].alias(name)
                for number, name in enumerate(fitted["vocabularies"])
            },
            {name: Scale(*scale) for name, scale in fitted["scales"].items()},
            fitted["widths"],
            fitted["extra_numbers"],
        )

    def _named(self, kind: FeatureKind) -> list[str]:
        return [feature.name for feature in self.features if feature.kind == kind]


def _columns(ids: pl.Series, table: pl.DataFrame | None, features: Sequence[Feature]) -> dict[str, pl.Series]:
    """The declared columns, one row per id, null where the id has none."""
    names = [feature.name for feature in features]
    if len(set(names)) < len(names):
        raise ValueError(f"features {names} name a column more than once")
    if table is None:
        if names:
            raise ValueError(f"features {names} are declared, but no table is given")
        return {}
    id_columns = [name for name in (USER_ID, ITEM_ID) if name in table.columns and name not in names]
    if len(id_columns) != 1 or not set(names) <= set(table.columns):
        raise ValueError(
            f"the feature table has columns {table.columns}; one of {USER_ID!r} and {ITEM_ID!r} and {names}"
            " were expected"
        )
    rows = rows_of(ids, table[id_columns[0]])
    return {name: table[name].gather(rows) for name in names}


def _appended(known: pl.Series, more: pl.Series) -> pl.Series:
    """Those known, then the others; in the integer width of those known, unless one of the others does not fit that."""
    new = more.filter(rows_of(more, known).is_null())
    if new.cast(known.dtype, strict=False).null_count():
        return pl.concat([in_width(known, new.dtype, "what is new"), new])
    return pl.concat([known, new.cast(known.dtype)])


def _words(column: pl.Series) -> pl.Series:
    """The values laid end to end."""
    if isinstance(column.dtype, pl.List):
        return column.list.drop_nulls().explode(empty_as_null=False, keep_nulls=False)
    return column


def _vocabulary(column: pl.Series) -> pl.Series:
    return _words(column).drop_nulls().unique().sort()


def _looked_up(words: pl.Series, vocabulary: pl.Series) -> Tensor:
    """Rows of an embedding, [N] int64: 0 for a null and for what is not in the vocabulary."""
    return (rows_of(words, vocabulary).cast(pl.Int64) + 1).fill_null(0).to_torch()


def _bags(column: pl.Series, vocabulary: pl.Series) -> Ragged:
    lengths = column.list.drop_nulls().list.len().fill_null(0).cast(pl.Int64).to_torch()
    return Ragged(_looked_up(_words(column), vocabulary), pad(lengths.cumsum(0), (1, 0)))


def _numbers(column: pl.Series) -> pl.Series:
    """Float64, null where not a finite number."""
    return column.cast(pl.Float64).to_frame("x").select(pl.when(pl.col("x").is_finite()).then("x"))["x"]


def _scale(column: pl.Series) -> Scale:
    numbers = _numbers(column).drop_nulls().to_torch()
    if not len(numbers):
        return Scale(0.0, 0.0)
    if numbers.min() == numbers.max():  # said exactly: the deviation of equal numbers may be a rounding error
        return Scale(float(numbers[0]), 0.0)
    return Scale(float(numbers.mean()), float(numbers.std(correction=0)))


def _scaled(column: pl.Series, scale: Scale) -> Tensor:
    if scale.std == 0:
        return torch.zeros(len(column))
    return ((_numbers(column) - scale.mean) / scale.std).fill_null(0.0).to_torch().float()


def _width(column: pl.Series) -> int:
    widths = column.list.len().drop_nulls().unique().sort()
    if len(widths) > 1:
        raise ValueError(
            f"vectors {column.name!r} have lengths {widths.to_list()[:5]}; a single one was expected"
        )
    return int(widths[0]) if len(widths) else 0


def _vectors(column: pl.Series, width: int) -> Tensor:
    """[N, width] float32; width 0 says that there was no vector to fit on, so none is read."""
    given = column.is_not_null()
    vectors = torch.zeros(len(column), width)
    if not width or not given.any():
        return vectors
    if _width(column) != width:
        raise ValueError(f"vectors {column.name!r} have length {_width(column)}; {width} was expected")
    numbers = column.filter(given).explode(empty_as_null=False).cast(pl.Float32).fill_nan(0.0).fill_null(0.0)
    vectors[given.to_torch()] = numbers.to_torch().reshape(-1, width)
    return vectors
