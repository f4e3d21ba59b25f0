"""Lists of prompts: how many are decoded together where nobody says, and what a terminal shows meanwhile."""

from __future__ import annotations

import io
import sys

import pytest
import tiny

import orthrus
from orthrus.cache import pages_for
from orthrus.config import DecodingConfig
from orthrus.decoding import batch_size
from orthrus.decoding.drafting import workspace_positions
from orthrus.runner import memory

PROMPTS = [f"prompt {n}" for n in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return orthrus.load(str(tiny.save_checkpoint(tmp_path_factory.mktemp("batches") / "model")), dtype="float32")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_for(monkeypatch):
    """Set in the test itself: pytest sets `sys.stderr` anew after the fixtures."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def limit_memory(monkeypatch, model, pages):
    """As much free memory as `pages` pages take."""
    monkeypatch.setattr(memory, "NEGLIGIBLE", 0)
    usable = pages * model.runner.page_bytes
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(usable / (1 - memory.RESERVED)) + 8)


@pytest.mark.parametrize("options", [{}, {"cycle": "one-pass"}, {"temperature": 0.9, "seed": 4}], ids=str)
def test_a_list_is_a_batch_and_each_prompt_has_the_tokens_it_has_alone(model, options):
    together = model.generate(PROMPTS, max_new_tokens=12, **options)
    assert [result.statistics.batch_size for result in together] == [7] * 7
    alone = [model.generate(prompt, max_new_tokens=12, **options) for prompt in PROMPTS]
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert {result.statistics.batch_size for result in alone} == {1}
    streamed = dict(model.results(PROMPTS, max_new_tokens=12, **options))
    assert [streamed[n].tokens for n in range(7)] == [result.tokens for result in alone]
    assert streamed[0].to_dict()["statistics"]["batch_size"] == 7


def test_a_batch_size_that_is_given_counts(model):
    assert model.generate(PROMPTS, max_new_tokens=3, batch_size=2)[0].statistics.batch_size == 2
    assert model.generate(PROMPTS[:2], max_new_tokens=3, batch_size=5)[0].statistics.batch_size == 2, "there were two"


def test_memory_decides_how_many_are_decoded_together(model, monkeypatch):
    workspace = workspace_positions(model.runner, DecodingConfig())
    each = pages_for(len(model.prompt_tokens(PROMPTS[0], {})) + 6 + workspace)
    expected = [result.tokens for result in model.generate(PROMPTS, max_new_tokens=6, batch_size=1)]
    for most in (1, 3):
        limit_memory(monkeypatch, model, most * each + each // 2)
        results = model.generate(PROMPTS, max_new_tokens=6)
        assert [result.statistics.batch_size for result in results] == [most] * 7
        assert [result.tokens for result in results] == expected
    limit_memory(monkeypatch, model, each - 1)
    with pytest.raises(ValueError, match="Lower --ctx-size"):
        model.results(PROMPTS, max_new_tokens=6)


def test_a_batch_has_an_upper_limit(model, monkeypatch):
    monkeypatch.setattr(batch_size, "MAX_BATCH_ON_CPU", 4)
    assert model.generate(PROMPTS, max_new_tokens=3)[0].statistics.batch_size == 4


def test_a_terminal_shows_progress_and_keeps_nothing_of_it(model, monkeypatch):
    terminal = terminal_for(monkeypatch)
    model.generate(PROMPTS, max_new_tokens=6)
    assert "of 7 prompts" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")


def test_progress_is_hidden_while_a_result_is_printed(model, monkeypatch):
    terminal = terminal_for(monkeypatch)
    results = model.results(PROMPTS, max_new_tokens=6, batch_size=2)
    for number, _ in results:
        assert terminal.getvalue().endswith("\r\x1b[2K"), number
    shown = len(terminal.getvalue())
    partial = model.results(PROMPTS, max_new_tokens=6, batch_size=2)
    next(partial)
    partial.close()
    assert len(terminal.getvalue()) > shown
    assert terminal.getvalue().endswith("\r\x1b[2K")


def test_no_progress_for_one_prompt_without_a_terminal_or_where_it_is_unwanted(model, monkeypatch):
    terminal = terminal_for(monkeypatch)
    model.generate("one", max_new_tokens=3)
    model.generate(PROMPTS, max_new_tokens=3, progress=False)
    assert terminal.getvalue() == ""
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    model.generate(PROMPTS, max_new_tokens=3)
    assert plain.getvalue() == ""
    model.generate(PROMPTS, max_new_tokens=3, progress=True)
    assert "prompts" in plain.getvalue()
