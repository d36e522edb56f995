"""Numbers that are none, planted in the data, in features, in weights and in what adaptation leaves."""

import contextlib
import io
import math
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torture.children import Ended, answered
from torture.counts import Found
from torture.grounds import TONIGHT, Grounds, Seen, state

from recsys_meta import cli
from recsys_meta.adaptation import recommend
from recsys_meta.tables import ADAPTED, PRIOR
from recsys_meta.training.bundle import load_bundle, save_bundle

_TOGETHER = 25  # nights that share a process
_TEXTS = ("nan", "NaN", "inf", "-inf", "Infinity", "1e999", "-1e39")
_NUMBERS = (math.nan, math.inf, -math.inf)
_KINDS = ("data", "features", "weights", "adaptation")


def planted(grounds: Grounds, numbers: Sequence[int], found: Found) -> None:
    """The night ends; whoever fell back is counted; nothing that is not finite is published."""
    grounds.restore()
    ended = grounds.start(grounds.trial, TONIGHT, verb="train").ended()
    if ended.code != 0:
        raise RuntimeError(f"the model that is to be spoiled was not trained: {ended}")
    trained = grounds.folder / "trained"
    grounds.trial.rename(trained)
    progress = grounds.folder / "progress"
    left = list(numbers)
    while left:
        some, left = left[:_TOGETHER], left[_TOGETHER:]
        progress.write_text(str(some[0]))
        told, ended = answered(partial(_nights, grounds, trained, some, progress))
        if told is None:
            number = int(progress.read_text())
            found.fault("tracebacks", number, f"the night killed the process: {ended}")
            found.did(some.index(number) + 1)
            left = [later for later in some if later > number] + left
            continue
        for number, result in zip(some, told, strict=True):
            found.did(1)
            _judge(grounds, number, found, result)


def _judge(grounds: Grounds, number: int, found: Found, result: dict[str, Any]) -> None:
    ended, now, kind = Ended(*result["ended"]), Seen(*result["seen"]), result["kind"]
    summary = ended.summary
    found.note(f"{kind}, {'published' if ended.code == 0 else 'refused'}")
    if ended.fault or ended.code not in (0, 3, 4):
        found.fault("tracebacks", number, f"{kind}: {ended.fault or 'an unexpected exit code'}: {ended}")
    if now.digest is None:
        found.fault("lost", number, f"{kind}: {now.words}")
        return
    if now.not_finite:
        found.fault("not_finite", number, f"{kind}: {now.not_finite} numbers published that are not finite")
    if now.twice:
        found.fault("doubled", number, f"{kind}: {now.twice} rows twice")
    if ended.code != 0:
        if now.digest != grounds.before:
            found.fault("half_visible", number, f"{kind}: refused, and yet something else is in force")
        return
    if sum(now.users.values()) != summary["users_requested"]:
        found.fault("not_finite", number, f"{kind}: {now.users} of {summary['users_requested']} users")
    for name, count in result["expected"].items():
        if summary[name] != count:
            found.fault("not_finite", number, f"{kind}: {name} is {summary[name]}, expected {count}: {ended}")


def _nights(grounds: Grounds, trained: Path, numbers: Sequence[int], progress: Path) -> list[dict[str, Any]]:
    results = []
    for number in numbers:
        progress.write_text(str(number))
        results.append(_night(grounds, trained, number))
    return results


def _night(grounds: Grounds, trained: Path, number: int) -> dict[str, Any]:
    """One night with something planted; what it came to and what is expected of its summary."""
    chance, kind = grounds.chance("planted", number), _KINDS[number % len(_KINDS)]
    shutil.rmtree(grounds.trial, ignore_errors=True)
    shutil.copytree(trained if kind == "weights" else grounds.base, grounds.trial, symlinks=True)
    strict = chance.random() < 0.3
    settings = [] if strict else ["--gates.max_fallen_share", "1", "--max_quarantined_share", "1"]
    settings += ["--gates.max_score_drift", "null"] if chance.random() < 0.5 else []
    settings += ["--gates.champion_margin", "null"] if chance.random() < 0.5 else []
    paths, expected = {}, {}
    undo: Callable[[], object] = lambda: None  # noqa: E731
    if kind == "data":
        paths["ratings"] = grounds.folder / "planted-ratings.csv"
        expected["quarantined"] = _plant_in_ratings(grounds.ratings, paths["ratings"], chance)
    elif kind == "features":
        paths["items"] = grounds.folder / "planted-items.csv"
        _plant_in_items(grounds.items, paths["items"], chance)
    elif kind == "weights":
        _plant_in_weights(grounds, chance)
    else:
        undo = _plant_in_adaptation(chance, expected)
    config = grounds.config(grounds.trial, TONIGHT, **paths)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["nightly", "--config", str(config), *settings])
    finally:
        undo()
    return {
        "kind": kind,
        "ended": Ended(code, out.getvalue(), err.getvalue()),
        "seen": state(grounds.trial),
        "expected": expected,
    }


def _plant_in_ratings(ratings: Path, planted_ratings: Path, chance: random.Random) -> int:
    """How many rows of tonight have a value that is none."""
    header, *lines = ratings.read_text().splitlines()
    tonight = [place for place, line in enumerate(lines) if line.rsplit(",", 1)[1] < f"{TONIGHT}T23:59:59Z"]
    chosen = chance.sample(tonight, chance.choice((1, 2, 4, 8, 40)))
    for place in chosen:
        user, item, _, at = lines[place].split(",")
        lines[place] = ",".join((user, item, chance.choice(_TEXTS), at))
    planted_ratings.write_text("\n".join([header, *lines]) + "\n")
    return len(chosen)


def _plant_in_items(items: Path, planted_items: Path, chance: random.Random) -> None:
    header, *lines = items.read_text().splitlines()
    for place in chance.sample(range(len(lines)), chance.choice((1, 2, 5, 30))):
        item, kind, tags, price, look = lines[place].split(",", 4)
        text = chance.choice(_TEXTS)
        if chance.random() < 0.5:
            price = text
        else:
            look = f'"[{text}, 0.5]"'
        lines[place] = ",".join((item, kind, tags, price, look))
    planted_items.write_text("\n".join([header, *lines]) + "\n")


def _plant_in_weights(grounds: Grounds, chance: random.Random) -> None:
    """In a bundle under a good seal: as a training that went wrong would have written it."""
    published = {path.parent.parent.name for path in grounds.base.glob("models/*/bundle/bundle.json")}
    [folder] = [path for path in grounds.trial.glob("models/*/bundle") if path.parent.name not in published]
    bundle = load_bundle(folder)
    tensors = [
        tensor
        for tensor in bundle.learner.state_dict().values()
        if tensor.is_floating_point() and tensor.numel()
    ]
    with torch.no_grad():
        for tensor in chance.sample(tensors, chance.randint(1, len(tensors))):
            flat = tensor.view(-1)
            for _ in range(chance.choice((1, 1, 3, len(flat)))):
                flat[chance.randrange(len(flat))] = chance.choice(_NUMBERS)
    save_bundle(
        folder,
        bundle.learner,
        class_path=bundle.class_path,
        init_args=bundle.init_args,
        user_encoder=bundle.user_encoder,
        item_encoder=bundle.item_encoder,
        meta=bundle.meta,
    )


def _plant_in_adaptation(chance: random.Random, expected: dict[str, int]) -> Callable[[], None]:
    """The inner loops of some users diverge; gives what undoes it."""
    original = recommend._adapted
    expected |= {f"users_{ADAPTED}": 0, f"users_{PRIOR}": 0}
    share = chance.choice((0.0, 0.02, 0.2, 1.0))

    def adapted(learner: Any, batch: Any, codes: Any) -> Any:
        state = {name: value.clone() for name, value in original(learner, batch, codes).items()}
        for user, shots in enumerate(batch.shots.tolist()):
            diverged = shots > 0 and chance.random() < share
            expected[f"users_{PRIOR if diverged or not shots else ADAPTED}"] += 1
            if diverged:
                flat = state[chance.choice(sorted(state))][user].view(-1)
                flat[chance.randrange(len(flat))] = chance.choice(_NUMBERS)
        return state

    recommend._adapted = adapted

    def undo() -> None:
        recommend._adapted = original

    return undo
