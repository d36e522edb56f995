"""What every test may rely on: one thread per worker, reproducible examples, and the path of the shared data sets."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# Derandomized: a failure is the same failure on every machine. No deadline: nothing here asserts on time.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of shared data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("RECSYS_META_DATASETS") or REPOSITORY.parent / "shared" / "datasets")
    if not folder.is_dir():
        pytest.skip(
            f"needs the shared data sets: {folder} is no folder; RECSYS_META_DATASETS may name another"
        )
    return folder
