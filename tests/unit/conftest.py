"""What the tests of training share: a backbone without a view, and conversations."""

from __future__ import annotations

import pytest
import tiny
from training_files import conversations, write


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("train") / "bare", view=False, template=tiny.CHAT)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "data.jsonl", conversations())
