"""A tiny model behind a service."""

from __future__ import annotations

import pytest
import tiny

import orthrus


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of 320 tokens, most of which are bytes, and of 512 positions."""
    directory = tiny.save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", template=tiny.CHAT)
    return orthrus.load(directory, dtype="float32", ctx_size=512)
