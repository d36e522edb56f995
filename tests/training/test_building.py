"""Tests of building learners by name."""

import sys
from pathlib import Path

import pytest

from recsys_meta.algorithms.maml import FOMAML, MAML
from recsys_meta.tensors import FeatureSizes, Sizes
from recsys_meta.training.building import BuildError, build, learner_class

SIZES = Sizes(FeatureSizes(ids=3), FeatureSizes(ids=5))


def test_a_learner_is_built_with_its_settings() -> None:
    learner = build("recsys_meta.algorithms.maml.MAML", {"num_steps": 3, "dim": 7}, SIZES)
    assert isinstance(learner, MAML)
    assert learner.num_steps == 3
    assert learner.sizes == SIZES


def test_settings_that_a_variant_inherits_are_known() -> None:
    assert isinstance(build("recsys_meta.algorithms.maml.FOMAML", {"num_steps": 3}, SIZES), FOMAML)


def test_all_unknown_settings_are_named_with_what_may_have_been_meant() -> None:
    with pytest.raises(BuildError) as caught:
        build("recsys_meta.algorithms.maml.MAML", {"num_step": 3, "colour": "red"}, SIZES)
    assert "unknown setting 'num_step'; did you mean 'num_steps'?" in str(caught.value)
    assert "unknown setting 'colour'" in str(caught.value)
    assert "step_size" in str(caught.value)


def test_a_misspelt_class_is_named_with_what_may_have_been_meant() -> None:
    with pytest.raises(BuildError, match=r"has no class MALM; did you mean 'MAML'\?"):
        build("recsys_meta.algorithms.maml.MALM", {}, SIZES)


@pytest.mark.parametrize(
    "path", ["MAML", "", "recsys_meta..MAML", "recsys_meta.algorithms.maml.MAML()", "a b.C"]
)
def test_a_path_that_is_no_dotted_path_is_refused(path: str) -> None:
    with pytest.raises(BuildError, match="dotted path"):
        learner_class(path)


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(BuildError, match=r"recsys_meta\.algorithms\.mmal"):
        learner_class("recsys_meta.algorithms.mmal.MAML")


@pytest.mark.parametrize(
    "path",
    ["recsys_meta.algorithms.base.Learner", "recsys_meta.tensors.Examples", "recsys_meta.tables.SCORES"],
)
def test_what_is_no_concrete_learner_is_refused(path: str) -> None:
    with pytest.raises(BuildError, match="not a learner"):
        learner_class(path)


def test_settings_that_the_constructor_refuses_are_an_error_of_ours() -> None:
    with pytest.raises(BuildError, match="refuses its settings"):
        build("recsys_meta.algorithms.maml.MAML", {"head": "round"}, SIZES)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages of somebody else's; importing one leaves a trace."""
    source = (
        "from pathlib import Path\n"
        "from recsys_meta.algorithms.maml import MAML\n"
        "Path(__file__).with_name('imported').touch()\n"
        "class Theirs(MAML):\n"
        "    def __init__(self, sizes, *, strength, **settings):\n"
        "        super().__init__(sizes, **settings)\n"
    )
    for name in ("foreign_learners", "foreign_learners_too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("foreign_learners", "foreign_learners_too"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_package_that_is_not_allowed_is_not_even_imported(foreign: Path) -> None:
    for allow in ((), ("foreign_learners_too",), ("foreign",)):
        with pytest.raises(BuildError, match="not imported"):
            learner_class("foreign_learners.Theirs", allow=allow)
    assert not (foreign / "foreign_learners" / "imported").exists()


def test_a_package_that_is_allowed_is(foreign: Path) -> None:
    assert learner_class("foreign_learners.Theirs", allow=("foreign_learners",)).__name__ == "Theirs"
    assert (foreign / "foreign_learners" / "imported").exists()
    assert learner_class("foreign_learners_too.Theirs").__name__ == "Theirs"


def test_settings_are_followed_to_where_a_constructor_passes_them_on(foreign: Path) -> None:
    learner = build("foreign_learners.Theirs", {"strength": 1, "num_steps": 2}, SIZES)
    assert isinstance(learner, MAML)
    with pytest.raises(BuildError, match="missing setting 'strength'"):
        build("foreign_learners.Theirs", {"num_steps": 2}, SIZES)
