"""The size of a cache is known before it is taken, and an error says how much memory is missing."""

from __future__ import annotations

import pytest
import tiny

import orthrus
from orthrus.cache import page_bytes
from orthrus.config import DecodingConfig
from orthrus.decoding.engine import Engine
from orthrus.runner import memory

RUNNER = tiny.runner("llama")
PAGE_BYTES = page_bytes(RUNNER.config, RUNNER.decoder.dtype)


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory, in pages of the tiny model."""

    def set_free(pages):
        monkeypatch.setattr(memory, "NEGLIGIBLE", 0)
        monkeypatch.setattr(memory, "available_bytes", lambda device: int(pages * PAGE_BYTES / 0.9) + 1)

    return set_free


def test_a_cache_is_as_large_as_memory_allows(free):
    config = DecodingConfig(cycle="ar", batch_size=4)
    free(1000)
    whole = Engine(RUNNER, config, tiny.LIMITS).cache.pages
    assert whole == 4 * (whole // 4) and whole * PAGE_BYTES == Engine(RUNNER, config, tiny.LIMITS).cache.keys.nbytes * 2
    free(whole - 1)
    assert Engine(RUNNER, config, tiny.LIMITS).cache.pages == whole - 1


def test_too_little_memory_for_one_sequence_is_an_error_that_says_how_much_is_missing(free):
    free(3)
    with pytest.raises(ValueError, match=r"of 2304 tokens needs 0\.\d\d GB .* are missing\. Lower --ctx-size"):
        Engine(RUNNER, DecodingConfig(cycle="ar"), tiny.LIMITS)


def test_the_limit_of_a_control_group_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.available_bytes(RUNNER.device) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(RUNNER.device) > 4000


def test_the_context_size_limits_sequences_and_their_cache():
    model = orthrus.load("smollm2-demo", ctx_size=340)
    result = model.generate([1, 2, 3] * 100, max_new_tokens=2000, stop_token_ids=[], cycle="ar")
    assert result.finish_reason == "stop" or len(result.tokens) == 40
    assert model.engine(cycle="ar").cache.pages <= 4
    with pytest.raises(ValueError, match="the prompt has 700 tokens, the model's context 340"):
        model.generate([1] * 700)
    for wrong in (0, 10**6, "many"):
        with pytest.raises(ValueError, match=r"ctx_size|context size"):
            orthrus.load("smollm2-demo", ctx_size=wrong)
