"""Exposures to users: one row per user of an experiment, with its variant and its first exposure."""

from typing import Literal, NamedTuple

import polars as pl

from recsys_meta.tables import USER_ID

Crossed = Literal["exclude", "first"]


class Population(NamedTuple):
    """Who takes part."""

    users: pl.DataFrame  # USER_ID (ascending), "variant", "exposed_at": the first exposure
    seen: int  # users with any exposure
    crossed: int  # of those, users seen in more than one variant


def population(exposures: pl.DataFrame, *, crossed: Crossed = "exclude") -> Population:
    """The users of an experiment. exposures: USER_ID, "variant", "exposed_at", any number of rows per user.

    crossed: what becomes of users seen in more than one variant. "exclude": they are left out. "first": they stay, all that they
    did, with the variant that they saw first (of several at one instant, the first by name): the effect of being assigned.
    """
    first = exposures.group_by(USER_ID).agg(
        pl.col("variant").sort_by("exposed_at", "variant").first(),
        pl.col("exposed_at").min(),
        variants=pl.col("variant").n_unique(),
    )
    several = first["variants"] > 1
    users = first.filter(~several) if crossed == "exclude" else first
    return Population(users.drop("variants").sort(USER_ID), first.height, int(several.sum()))
