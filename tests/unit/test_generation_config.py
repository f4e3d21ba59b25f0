"""What a checkpoint recommends for sampling, and what chat makes of it."""

from __future__ import annotations

import json

import pytest
import tiny
import tiny_gguf

from orthrus.checkpoint import hub
from orthrus.checkpoint.generation_config import sampling_options
from orthrus.checkpoint.sources import Source
from orthrus.cli._defaults import described, starting_options


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, {}),
        ({"do_sample": True, "top_k": 20, "top_p": 0.95}, {"temperature": 1.0, "top_k": 20, "top_p": 0.95}),
        ({"do_sample": True, "temperature": 0.6, "eos_token_id": 3}, {"temperature": 0.6}),
        ({"temperature": 0.7, "repetition_penalty": 1.05}, {"temperature": 0.7, "repetition_penalty": 1.05}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": "hot", "top_k": -1, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
    ],
)
def test_generation_config(tmp_path, content, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert sampling_options(Source("x", None, tmp_path)) == expected


def test_sampling_keys_of_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    chosen = {"temp": 0.5, "top_k": 40, "penalty_repeat": 1.5, "mirostat": 2}
    tiny_gguf.save(path, **{f"general__sampling__{name}": value for name, value in chosen.items()})
    expected = {"temperature": 0.5, "top_k": 40, "repetition_penalty": 1.5}
    assert sampling_options(Source("x", None, path)) == expected


def test_a_checkpoint_carries_it(tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model")
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    assert hub.load(str(path)).sampling == {"temperature": 0.6}


def test_a_given_temperature_replaces_what_goes_with_the_recommended_one():
    recommended = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    assert starting_options(recommended, {"seed": 1}) == {**recommended, "seed": 1}
    assert starting_options(recommended, {"temperature": 0.0}) == {"temperature": 0.0, "repetition_penalty": 1.05}


def test_settings_in_words_leave_out_what_changes_nothing():
    assert described({"temperature": 0.0, "top_k": 20}) == "greedy"
    assert described({"temperature": 0.0, "repetition_penalty": 1.1}) == "greedy, repetition_penalty 1.1"
    assert described({"temperature": 0.6, "top_k": 0, "top_p": 0.95, "min_p": 0.0}) == "temperature 0.6, top_p 0.95"


def test_the_demo_and_other_checkpoints_that_recommend_nothing_are_greedy():
    assert hub.load("smollm2-demo", lazily=True).default_sampling == {"temperature": 0.0}
