"""Prints how often the intervals of off-policy estimates cover the truth: the table of docs/offline_ab.md.

python -m pipelines.coverage --rows 2000 --draws 1000
"""

import argparse
import logging
import time

from recsys_meta.ab.coverage import coverage
from recsys_meta.ab.intervals import KINDS
from recsys_meta.ab.off_policy import ANSWERS, DEFAULT_KIND
from recsys_meta.ab.slate_off_policy import SLATE_ANSWERS
from recsys_meta.ab.synthetic_logs import WORLDS

log = logging.getLogger(__name__)


def main() -> None:
    """One table per world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="logged rows of each draw")
    parser.add_argument("--draws", type=int, default=1000, help="logs drawn from each world")
    parser.add_argument("--world", action="append", choices=tuple(WORLDS), help="by default all of them")
    parser.add_argument(
        "--no-model", action="store_true", help="leave out the estimators with a reward model"
    )
    parser.add_argument("--interval", action="append", choices=KINDS, help="by default all kinds")
    given = parser.parse_args()
    kinds = given.interval or KINDS
    logging.basicConfig(level=logging.INFO)
    for name in given.world or WORLDS:
        start = time.monotonic()
        found = coverage(WORLDS[name], given.rows, given.draws, kinds=kinds, model=not given.no_model)
        name_of_answer = next(name for name in (*SLATE_ANSWERS, *ANSWERS) if name in found["estimator"])
        answer = found.filter(
            estimator=name_of_answer, interval=DEFAULT_KIND if DEFAULT_KIND in kinds else kinds[0]
        ).row(0, named=True)
        when = answer["covered_when_trusted"]
        print(
            f"\n{name}: value {WORLDS[name].value:.4f}, {given.draws:,} draws of {given.rows:,} rows; trustworthy in"
        )
        print(f"{answer['trusted']:.1%} of them, where {answer['estimator']} covers {when or 0:.3f}\n")
        print(f"| estimator | bias | deviation | {' | '.join(kinds)} | width |")
        print(f"|{' --- |' * (len(kinds) + 4)}")
        for estimator in found["estimator"].unique(maintain_order=True):
            rows = {row["interval"]: row for row in found.filter(estimator=estimator).iter_rows(named=True)}
            row = rows.get(DEFAULT_KIND, rows[kinds[0]])
            cells = [f"{rows[kind]['covered']:.3f}" for kind in kinds]
            print(
                f"| {estimator} | {row['bias']:+.4f} | {row['deviation']:.4f} | {' | '.join(cells)} | {row['width']:.4f} |",
                flush=True,
            )
        log.info("%s: %.0f s", name, time.monotonic() - start)


if __name__ == "__main__":
    main()
