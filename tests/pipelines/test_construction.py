"""Construction: a class path and its arguments are checked against the class before anything runs."""

import pytest
from torch import nn

from pipelines.construction import check_classes, class_problems, construct
from pipelines.loading import load
from pipelines.outcomes import ConfigError
from pipelines.settings import ClassSettings, EvaluateSettings
from recsys_meta.algorithms.maml import FOMAML, MAML
from recsys_meta.tensors import FeatureSizes, Sizes

SIZES = Sizes(FeatureSizes(), FeatureSizes(ids=4))


class Passing(FOMAML):
    """A class of its own whose constructor passes on what it does not know."""

    def __init__(self, sizes: Sizes, *, width: int, **others: object) -> None:
        super().__init__(sizes, dim=width, **others)


class Demanding(MAML):
    """Takes what no check of single arguments can judge."""

    def __init__(self, sizes: Sizes, *, low: int = 0, high: int = 1) -> None:
        super().__init__(sizes)
        if low > high:
            raise ValueError(f"low {low} is above high {high}")


def told(class_path: str, **init_args: object) -> list[str]:
    settings = ClassSettings(class_path=class_path, init_args=init_args)
    return [f"{'.'.join(map(str, loc))}: {text}" for loc, text in class_problems(settings)]


@pytest.fixture
def own_class(monkeypatch):
    """Makes a class importable by a dotted path, as a user's own module would be."""

    def path_of(cls: type) -> str:
        monkeypatch.setattr(f"recsys_meta.algorithms.maml.{cls.__name__}", cls, raising=False)
        return f"recsys_meta.algorithms.maml.{cls.__name__}"

    return path_of


def test_a_learner_is_constructed_with_values_in_the_types_of_its_signature():
    settings = ClassSettings(
        class_path="recsys_meta.algorithms.maml.MAML", init_args={"dim": 8, "num_steps": 2}
    )
    learner = construct(settings, SIZES)
    assert type(learner) is MAML
    assert learner.sizes == SIZES
    assert learner.num_steps == 2


@pytest.mark.parametrize("class_path", ["MAML", "maml.MAML", "recsys_meta.algorithms.mamml.MAML"])
def test_a_class_that_is_not_there_is_told_with_one_that_is(class_path):
    assert told(class_path) == [
        f"class_path: there is no {class_path}; did you mean recsys_meta.algorithms.maml.MAML?"
    ]


def test_what_is_no_learner_is_refused():
    assert told("os.path.join")[0].startswith("class_path: os.path.join is no learner; expected one of ")
    assert told("torch.nn.Linear")[0].startswith("class_path: torch.nn.Linear is no learner")
    assert "Learner is abstract" in told("recsys_meta.algorithms.base.Learner")[0]
    assert issubclass(MAML, nn.Module)


def test_every_wrong_argument_is_told():
    found = told("recsys_meta.algorithms.maml.MAML", dimm=3, num_steps="many", loss="squarred", sizes=1)
    assert found[0] == "init_args.dimm: MAML has no such argument; did you mean dim?"
    assert found[1].startswith("init_args.num_steps: expected a valid integer")
    assert found[2].endswith("found 'squarred'")
    assert found[3].startswith("init_args.sizes: MAML has no such argument")
    assert len(found) == 4


def test_arguments_pass_on_to_base_classes(own_class):
    path = own_class(Passing)
    assert told(path, width=4, num_steps=2) == []
    assert (
        construct(ClassSettings(class_path=path, init_args={"width": 4, "num_steps": 2}), SIZES).num_steps
        == 2
    )
    assert told(path) == ["init_args: width is missing; Passing has no default for it"]
    assert told(path, width=4, stepps=2)[0].startswith("init_args.stepps: Passing has no such argument")


def test_what_a_constructor_refuses_is_an_error_of_the_config(own_class):
    settings = ClassSettings(class_path=own_class(Demanding), init_args={"low": 2})
    with pytest.raises(ConfigError, match=r"Demanding: low 2 is above high 1"):
        construct(settings, SIZES)


def test_a_module_that_cannot_import_what_it_needs_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_learner.py").write_text("import there_is_no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        told("broken_learner.Mine")


def test_all_classes_of_a_config_are_checked_at_their_places(tmp_path):
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        "workspace: w\n"
        "interactions: {path: a}\n"
        "protocol: {kind: held_out_users}\n"
        "learners:\n"
        "- recsys_meta.algorithms.maml.MAML\n"
        "- class_path: recsys_meta.algorithms.maml.MAML\n"
        "  init_args:\n"
        "    dimm: 3\n"
        "baselines:\n"
        "- recsys_meta.baselines.popularity.Popularty\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_classes(load(EvaluateSettings, [config]))
    first, second = caught.value.problems
    assert first == f"{config}:8: learners.1.init_args.dimm: MAML has no such argument; did you mean dim?"
    assert second.startswith(f"{config}:10: baselines.0.class_path: there is no ")
    assert "did you mean recsys_meta.baselines.popularity.Popularity" in second
