"""What a file shows is what its parts show."""

from pathlib import Path
from types import ModuleType

from recsys_meta import store
from recsys_meta.store.shown import shown_in_file, shown_in_parts


def test_a_published_file_and_the_parts_it_is_made_of_show_the_same(
    small_night: ModuleType, tmp_path: Path
) -> None:
    published = small_night.night(tmp_path, "night-1")
    of_file = shown_in_file(published.path)
    of_parts = shown_in_parts(store.Workspace(tmp_path).run("night-1"))
    assert sorted(of_file.scores) == sorted(of_parts.scores) == sorted([0.5, 0.25, 0.125] * 4)
    for shown in (of_file, of_parts):
        assert dict(shown.items.iter_rows()) == {10: 4, 11: 4, 12: 4}
