"""Starting: imports that are not searched for garbage."""

import gc

import pytest

from pipelines.starting import importing


def test_garbage_is_searched_for_again_after_imports_and_after_those_that_fail():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), importing():
        import recsys_meta.no_such_module  # noqa: F401
    assert gc.isenabled()


def test_whoever_has_switched_the_search_off_keeps_it_off():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
