"""What a terminal is shown cannot drive it, and stays readable."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.printable import printable


def test_controls_are_written_out_and_all_else_stays() -> None:
    assert (
        printable("\x1b[2J\x07a\x00b\r\u202etxt\u2028\udcff") == r"\x1b[2J\x07a\x00b\r\u202etxt\u2028\udcff"
    )
    assert printable("line\n\tMisérables, 東京 🎬") == "line\n\tMisérables, 東京 🎬"


@given(st.text())
def test_nothing_but_lines_tabs_and_what_can_be_seen_is_left(text: str) -> None:
    shown = printable(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert printable(shown) == shown
