"""What a block costs is measured apart from what ran before it."""

import sys

import pytest

from pipelines.cost import cost


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be set back")
def test_the_peak_is_that_of_the_block_alone():
    with cost() as large:
        held = bytearray(200_000_000)
        held[::4096] = b"1" * len(held[::4096])
        del held
    with cost() as small:
        pass
    assert large.peak_mib - small.peak_mib > 100
    assert large.cpu_seconds > small.cpu_seconds
    assert large.seconds > 0
