"""What the tests of training share: a backbone without a view, and conversations."""

from __future__ import annotations

import pytest
import tiny
from training_files import conversations, write

from orthrus.training import metrics


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("train") / "bare", view=False, template=tiny.CHAT)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "data.jsonl", conversations())


@pytest.fixture
def undrawn(monkeypatch):
    """Runs without plots, which take longer than all else at this size; tests of the command line draw them."""
    monkeypatch.setattr(metrics, "draw", lambda *_: None)
