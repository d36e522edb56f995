"""Models of the reward for DM and DR, cross-fitted by user: nobody is judged by a model that saw any of his rewards.

Chernozhukov et al., "Double/Debiased Machine Learning", Econometrics Journal 2018, definition 3.1 (DML2), with folds of users for
folds of rows. Rows that are alike in everything that the model sees are predicted once.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from recsys_meta.ab.estimators.sample import Numbers
from recsys_meta.ab.logged_actions import POSITION, REWARD, LoggedActions, LogsError
from recsys_meta.ab.policies import PROBABILITY, Policy, matching
from recsys_meta.tables import ITEM_ID

Kind = Literal["boosting", "logistic"]

# Values of a categorical column with a code of their own, the frequent first; boosting knows at most 255.
_VALUES = 254
_MOST_CELLS = 1_000_000  # a model is fitted on so many at most, drawn at random: more do not change it
_AT_ONCE = 2_000_000  # rows predicted at once

_FOLD, _CELL, _ROWS, _SUM = "fold of the user", "cell", "rows of the cell", "rewards of the cell"


class Encoding(NamedTuple):
    """How columns become numbers: the codes of categorical values; a column without any is a number already."""

    columns: tuple[str, ...]
    values: tuple[pl.Series | None, ...]

    def matrix(self, table: pl.DataFrame) -> NDArray[np.float64]:
        """One column per feature, [rows, F]; a value without a code of its own, and null, share the last code."""
        return np.stack(
            [_coded(table[name], known) for name, known in zip(self.columns, self.values, strict=True)],
            axis=1,
        )


class RewardModel(NamedTuple):
    """One fitted model per fold of users, to be asked about that fold."""

    encoding: Encoding
    fitted: tuple[Any, ...]
    folds: NDArray[np.int64]  # [n], the fold of each logged row
    kind: Kind

    def rewards(self, logs: LoggedActions) -> Numbers:
        """q(x_i, a_i): what the logged actions were expected to earn, [n]."""
        features = list(self.encoding.columns)
        rows = logs.table.select(features).with_columns(pl.Series(_FOLD, self.folds))
        cells = rows.unique(maintain_order=True)
        cells = cells.with_columns(self._predicted(cells).alias("prediction"))
        joined = rows.join(cells, on=rows.columns, how="left", nulls_equal=True, maintain_order="left")
        return joined["prediction"].to_numpy()

    def values(self, logs: LoggedActions, policy: Policy) -> Numbers:
        """v(x_i): what the policy would be expected to earn in each situation, [n]."""
        features = [name for name in self.encoding.columns if name != ITEM_ID]
        situation = list(dict.fromkeys([*policy.keys, *features]))
        rows = logs.table.select(*situation, pl.Series(_FOLD, self.folds))
        cells = rows.unique(maintain_order=True).with_row_index(_CELL)
        actions = matching(policy, logs).filter(pl.col(PROBABILITY) > 0)
        per_situation = max(
            1, len(actions) // max(1, actions.select(policy.keys).n_unique() if policy.keys else 1)
        )
        parts = []
        for some in cells.iter_slices(max(1, _AT_ONCE // per_situation)):
            grid = (
                some.join(actions, on=policy.keys, nulls_equal=True)
                if policy.keys
                else some.join(actions, how="cross")
            )
            grid = grid.with_columns(self._predicted(grid).alias("prediction"))
            parts.append(grid.group_by(_CELL).agg(value=(pl.col("prediction") * pl.col(PROBABILITY)).sum()))
        cells = cells.join(pl.concat(parts), on=_CELL, how="left")
        joined = rows.join(cells, on=rows.columns, how="left", nulls_equal=True, maintain_order="left")
        return joined["value"].to_numpy()

    def at(self, table: pl.DataFrame, rows: NDArray[np.int64]) -> Numbers:
        """q of other actions in the situations of logged rows, by the models that judge these. rows: one for each action."""
        return self._predicted(table.with_columns(pl.Series(_FOLD, self.folds[rows]))).to_numpy()

    def _predicted(self, table: pl.DataFrame) -> pl.Series:
        matrix, folds = self.encoding.matrix(table), table[_FOLD].to_numpy()
        predictions = np.empty(len(table))
        for fold, model in enumerate(self.fitted):
            of_fold = folds == fold
            if of_fold.any():
                predictions[of_fold] = model.predict(matrix[of_fold])
        return pl.Series(predictions)


def fit(
    logs: LoggedActions,
    *,
    kind: Kind = "boosting",
    folds: int = 5,
    seed: int = 0,
    weights: Numbers | None = None,
) -> RewardModel:
    """Models of the reward given context, action and position, one for each fold of users, fitted on the others.

    kind: gradient boosted trees, or linear on indicators of the values; rewards that are all 0 or 1 are fitted as probabilities.
    weights: of the rows, [n]; None: all alike.
    """
    users = logs.users
    n_users = int(users.max()) + 1
    if n_users < 2:
        raise LogsError(
            "all logged actions are of one user; expected several, to fit on some and judge the others"
        )
    folds = min(folds, n_users)
    fold_of = (np.random.default_rng(seed).permutation(n_users) % folds)[users]
    columns = [ITEM_ID, *([POSITION] if POSITION in logs.table.columns else []), *logs.context]
    encoding = Encoding(tuple(columns), tuple(_known(logs.table[name]) for name in columns))
    mass = pl.Series("mass", np.ones(len(fold_of)) if weights is None else weights)
    cells = logs.table.select(
        *columns, mass.alias(_ROWS), (pl.col(REWARD) * mass).alias(_SUM), pl.Series(_FOLD, fold_of)
    ).filter(pl.col(_ROWS) > 0)
    if kind == "logistic":  # trees count rows, not weights, when they decide whether a leaf is large enough
        cells = cells.group_by(_FOLD, *columns, maintain_order=True).agg(pl.col(_ROWS, _SUM).sum())
    if len(cells) > _MOST_CELLS:
        cells = cells.sample(_MOST_CELLS, seed=seed)
    binary = bool(logs.table[REWARD].is_in([0.0, 1.0]).all())
    matrix = encoding.matrix(cells)
    of_cell, rows, sums = (cells[name].to_numpy() for name in (_FOLD, _ROWS, _SUM))
    fitted = []
    for fold in range(folds):
        others = of_cell != fold
        learner = _Learner(kind, binary, encoding, seed)
        fitted.append(learner.fit(matrix[others], rows[others], sums[others]))
    return RewardModel(encoding, tuple(fitted), fold_of, kind)


class _Learner:
    """One of scikit-learn's, fitted on cells with the number of their rows and the sum of their rewards."""

    def __init__(self, kind: Kind, binary: bool, encoding: Encoding, seed: int) -> None:
        self.kind, self.binary, self.encoding = kind, binary, encoding
        categorical = [known is not None for known in encoding.values]
        trees = {"max_iter": 100, "learning_rate": 0.05, "max_leaf_nodes": 15, "early_stopping": False}
        if kind == "boosting":
            boosting = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
            self.model = boosting(**trees, categorical_features=categorical, random_state=seed)
        else:
            self.model = LogisticRegression(max_iter=1000) if binary else Ridge()
        self.constant: float | None = None

    def fit(self, matrix: Numbers, rows: Numbers, sums: Numbers) -> "_Learner":
        mean = float(sums.sum() / rows.sum())
        if not self.binary:
            self.model.fit(self._inputs(matrix), sums / rows, sample_weight=rows)
        elif mean in (0.0, 1.0):
            self.constant = mean
        else:
            both = np.concatenate([matrix, matrix])
            labels = np.repeat([1, 0], len(matrix))
            weights = np.concatenate([sums, rows - sums])
            some = weights > 0
            self.model.fit(self._inputs(both[some]), labels[some], sample_weight=weights[some])
        return self

    def predict(self, matrix: Numbers) -> Numbers:
        if self.constant is not None:
            return np.full(len(matrix), self.constant)
        inputs = self._inputs(matrix)
        predicted: Numbers = (
            self.model.predict_proba(inputs)[:, 1] if self.binary else self.model.predict(inputs)
        )
        return predicted

    def _inputs(self, matrix: Numbers) -> Any:
        """Indicators of the values for a linear model; trees take codes as they are."""
        if self.kind == "boosting":
            return matrix
        blocks = []
        for column, known in zip(matrix.T, self.encoding.values, strict=True):
            if known is None:
                blocks.append(sparse.csr_matrix(np.nan_to_num(column)[:, None]))
            else:
                rows = np.arange(len(column))
                shape = (len(column), len(known) + 1)
                blocks.append(sparse.csr_matrix((np.ones(len(column)), (rows, column.astype(int))), shape))
        return sparse.hstack(blocks, format="csr")


def _known(column: pl.Series) -> pl.Series | None:
    """The values with a code of their own, the most frequent first; None for numbers. Ids and positions are no numbers."""
    if column.dtype.is_float() or (column.dtype.is_integer() and column.name not in (ITEM_ID, POSITION)):
        return None
    if column.dtype.is_nested():
        raise LogsError(f"context column {column.name!r} is of type {column.dtype}; expected single values")
    counts = column.drop_nulls().value_counts(sort=True)
    return counts.sort("count", column.name, descending=[True, False])[column.name].head(_VALUES)


def _coded(column: pl.Series, known: pl.Series | None) -> Numbers:
    if known is None:
        return column.cast(pl.Float64).to_numpy()
    codes = pl.Series(np.arange(len(known)))
    coded = column.replace_strict(known, codes, default=len(known), return_dtype=pl.Float64)
    return coded.fill_null(float(len(known))).to_numpy()
