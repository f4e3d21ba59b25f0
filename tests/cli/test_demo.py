"""What `orthrus demo` says below its table: why it did not draft, or how typical its prompt is."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import tiny
from rich.console import Console

from orthrus.cli import demo
from orthrus.config import DiffusionConfig
from orthrus.decoding.planning import calibration
from orthrus.decoding.statistics import Statistics

WHY = "{} did not draft: by the cost table of this machine a cycle with 8 drafts takes as long as {} plain passes"


@pytest.fixture(name="model")
def _model():
    """What the conclusion reads of the demo model, on a machine where drafting cannot pay."""
    return SimpleNamespace(
        checkpoint=SimpleNamespace(view="bundled adapter"),
        decoder=SimpleNamespace(diffusion=DiffusionConfig(8, tiny.MASK, 8)),
        costs=lambda: tiny.COSTS["hopeless"],
    )


def conclusion(model, cycles, prompt=demo.PROMPT):
    console = Console(file=io.StringIO(), width=400)
    statistics = Statistics(generated=20, passes=20, cycles=cycles)
    demo._conclude(console, model, SimpleNamespace(statistics=statistics, prompt_tokens=10), prompt)
    return console.file.getvalue()


@pytest.mark.parametrize("cycles", [{"ar": 19}, {"ar": 15, "two-pass": 4}])
@pytest.mark.parametrize("prompt", [demo.PROMPT, "hello"])
def test_a_demo_that_did_not_draft_says_why_and_promises_nothing(model, cycles, prompt):
    text = conclusion(model, cycles, prompt)
    assert WHY.format(f"{cycles['ar']} of 19 cycles", "11.5") in text
    assert "mostly those of plain decoding" in text
    assert "3.6" not in text


def test_a_demo_that_drafted_says_that_its_prompt_is_typical(model):
    assert "3.6 here" in conclusion(model, {"two-pass": 6, "ar": 1})
    assert conclusion(model, {"two-pass": 6}, "hello") == ""


def test_the_verb_prints_the_reason(run, tmp_path, monkeypatch):
    """By a cost table in which no draft can pay."""
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "measure", lambda runner, interrupted=None: tiny.COSTS["hopeless"])
    model = tiny.save_checkpoint(tmp_path / "model", template=tiny.CHAT)
    code, out, err = run("demo", "hello", "--model", model, "--dtype", "float32", "--max-new-tokens", 20)
    assert code == 0, err
    assert "cycles did not draft: by the cost table of this machine" in " ".join(out.split())
