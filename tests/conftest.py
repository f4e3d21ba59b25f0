"""What the whole suite shares: determinism, and the option that runs every case of a law."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, which may be before their tests are


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the whole product of every law, not the pairwise sample")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep derived files of the tests out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ORTHRUS_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()
