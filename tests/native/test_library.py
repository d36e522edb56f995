"""Tests of the compiled kernels: they answer as torch does, wherever an item stands, or they are not used."""

import ctypes
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_meta import native
from recsys_meta.native import Kernels, Network, Shelf, kernels, library, plain_scores

needs_kernels = pytest.mark.skipif(
    kernels() is None, reason="no C compiler here: there is only the plain path"
)


def compiled() -> Kernels:
    found = kernels()
    assert found is not None
    return found


def networks(
    seed: int, users: int, items: int, hidden: tuple[int, ...], *, shared: bool
) -> tuple[Network, Shelf]:
    chance = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    rows = 7
    counts = torch.randint(0, 6, (users,), generator=chance)
    total = int(counts.sum())
    network = Network(
        places=torch.randint(rows, (total,), generator=chance),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        moves=drawn(total, hidden[0]),
        constant=drawn(users, hidden[0]),
        layers=[(drawn(users, b, a), drawn(users, b)) for a, b in pairwise(hidden)],
        final=drawn(users, hidden[-1]),
        final_bias=drawn(users) if seed % 2 else None,
    )
    return network, Shelf(drawn(rows, items), drawn(items, hidden[0]) if shared else None, drawn(items))


def scored(network: Network, shelf: Shelf) -> Tensor:
    out = torch.full((len(network.final), len(shelf.bias)), torch.nan)
    compiled().scorer(network)(shelf, out)
    return out


@needs_kernels
@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 4),
    items=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 150), min_size=1, max_size=3).map(tuple),
    shared=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_kernel_scores_as_torch_does(
    seed: int, users: int, items: int, hidden: tuple[int, ...], shared: bool
) -> None:
    network, shelf = networks(seed, users, items, hidden, shared=shared)
    expected = plain_scores(network, shelf)
    found = scored(network, shelf)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1.0) * max(hidden) ** 0.5


@needs_kernels
def test_what_an_item_scores_depends_on_neither_its_place_nor_its_company() -> None:
    network, shelf = networks(3, 5, 50, (64, 64), shared=True)
    together = scored(network, shelf)
    assert shelf.base is not None
    for start, stop in ((0, 1), (17, 30), (49, 50)):
        some = Shelf(shelf.rows[:, start:stop], shelf.base[start:stop], shelf.bias[start:stop])
        assert torch.equal(scored(network, some), together[:, start:stop])


@needs_kernels
def test_scores_may_be_columns_of_a_wider_tensor_and_touch_no_other() -> None:
    network, shelf = networks(5, 3, 20, (16, 8), shared=True)
    wide = torch.full((3, 40), 7.0)
    compiled().scorer(network)(shelf, wide[:, 10:30])
    assert torch.equal(wide[:, 10:30], scored(network, shelf))
    assert (wide[:, :10] == 7.0).all()
    assert (wide[:, 30:] == 7.0).all()


@needs_kernels
@pytest.mark.parametrize("planted", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen_and_harms_no_other_user(planted: float) -> None:
    network, shelf = networks(7, 3, 20, (16, 8), shared=True)
    clean = scored(network, shelf)
    network.final[1, 2] = planted
    network.layers[0][1][1, 2] = 1e30  # whatever the ReLU makes of the rest, this unit is on
    found = scored(network, shelf)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.skipif(not (kernels() and compiled().prefilters), reason="no bf16 products on this processor")
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 300),
    hidden=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
)
@settings(max_examples=80, deadline=None)
def test_what_the_prefilter_rules_out_is_below_and_all_else_exact(
    seed: int, items: int, hidden: tuple[int, int], scale: float
) -> None:
    network, shelf = networks(seed, 3, items, hidden, shared=True)
    network = network._replace(layers=[(scale * weight, bias) for weight, bias in network.layers])
    exact, found = scored(network, shelf), torch.empty(3, items)
    least = exact.sort(dim=1, descending=True).values[:, min(items - 1, 1 + seed % 20)]
    compiled().scorer(network, least)(shelf, found)
    ruled_out = found == torch.finfo(torch.float32).min
    assert (exact[ruled_out] < least.unsqueeze(1).expand_as(exact)[ruled_out]).all()
    assert torch.equal(found[~ruled_out], exact[~ruled_out])


@pytest.mark.skipif(not (kernels() and compiled().prefilters), reason="no bf16 products on this processor")
def test_the_prefilter_spares_most_scores_of_a_wide_catalogue_and_hides_no_odd_one() -> None:
    network, shelf = networks(1, 3, 3000, (64, 64), shared=True)
    assert shelf.base is not None
    shelf.base[5, 3] = torch.nan
    exact, found = scored(network, shelf), torch.empty(3, 3000)
    least = exact.nan_to_num(-9e9).topk(10).values[:, -1]
    compiled().scorer(network, least)(shelf, found)
    assert found[:, 5].isnan().all()
    assert (found == torch.finfo(torch.float32).min).float().mean() > 0.8


def test_layers_wider_than_the_kernels_room_are_left_to_torch() -> None:
    for width, fits in ((1024, True), (1025, False)):
        network, _ = networks(0, 2, 3, (8, width), shared=True)
        assert native.fits(network) is fits
    network, _ = networks(0, 2, 3, (8,), shared=True)
    assert not native.fits(network._replace(moves=network.moves.double()))


def serving(tmp_path: Path, **environment: str) -> str:
    """What a fresh process with an empty cache says of its kernels."""
    script = "import logging; logging.basicConfig(level='INFO'); from recsys_meta.native import kernels; print(kernels())"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout + ended.stderr


def test_without_a_compiler_there_are_no_kernels_and_the_reason_is_logged(tmp_path: Path) -> None:
    said = serving(tmp_path, PATH=str(tmp_path), CC="")
    assert said.startswith("None")
    assert "no C compiler found" in said


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
    compiler.chmod(0o700)
    said = serving(tmp_path, CC=str(compiler))
    assert said.startswith("None")
    assert "out of luck" in said


def test_kernels_can_be_switched_off(tmp_path: Path) -> None:
    assert serving(tmp_path, RECSYS_META_NATIVE="0").strip() == "None"
    assert list(tmp_path.rglob("*.so")) == []


IDLE = """
void mlp_scores(const void *network, const void *room) { (void)network, (void)room; }
void merge(void) {}
int prefilters(void) { return 0; }
void episodes_run_float32(const void *episodes) { (void)episodes; }
void episodes_run_float64(const void *episodes) { (void)episodes; }
long room_float32(const void *episodes) { return episodes != 0; }
long room_float64(const void *episodes) { return episodes != 0; }
"""


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler; the source is another, whose functions do nothing, and the cache is empty."""
    (tmp_path / "kernels.c").write_text(IDLE)
    monkeypatch.setattr(library, "_SOURCE", tmp_path / "kernels.c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))


@needs_kernels
def test_a_library_is_built_once_and_only_its_owner_may_write_it(idle: str, tmp_path: Path) -> None:
    made = library._built(idle)
    stamp = made.stat().st_mtime_ns
    assert made.parent == tmp_path / "cache" / "recsys_meta"
    assert made.parent.stat().st_mode & 0o077 == 0
    assert library._built("/nowhere/cc") == made
    assert made.stat().st_mtime_ns == stamp
    assert [path.name for path in made.parent.iterdir()] == [made.name]


@needs_kernels
def test_another_source_is_another_library(idle: str, tmp_path: Path) -> None:
    first = library._built(idle)
    (tmp_path / "more.c").write_text("/* included by the other */")
    assert library._built(idle) != first


@needs_kernels
def test_a_library_that_answers_otherwise_is_not_used(idle: str) -> None:
    built = Kernels(ctypes.CDLL(str(library._built(idle))))
    assert not library._answers_as_torch(built)
