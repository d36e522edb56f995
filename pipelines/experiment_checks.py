"""How often experiments in which nothing differs are called different: the table of docs/experiments.md.

python -m pipelines.experiment_checks          # 2,000 experiments of each kind, about a minute
python -m pipelines.experiment_checks 200
"""

import sys

from recsys_meta.ab.experiments.simulation import LOOKS, WORLDS, Alarms, false_positives


def checks(experiments: int = 2000) -> list[Alarms]:
    """Runs every world, and prints the table."""
    print(
        f"| called different | once, at the end | {LOOKS} looks, t-test | {LOOKS} looks, band | once, by row |"
    )
    print("| --- | --- | --- | --- | --- |")
    found = []
    for world in WORLDS:
        alarms = false_positives(world, experiments)
        by_row = "" if alarms.by_row is None else f"{alarms.by_row:.1%}"
        print(
            f"| {world} | {alarms.once:.1%} | {alarms.plain:.1%} | {alarms.band:.1%} | {by_row} |", flush=True
        )
        found.append(alarms)
    return found


if __name__ == "__main__":
    checks(*(int(argument) for argument in sys.argv[1:2]))
