"""Markdown tables of benchmark results."""

from __future__ import annotations

import json

import pytest

from orthrus.bench import report

SYSTEM = {
    "name": "orthrus auto", "speed": 9.0, "quartiles": [8.0, 10.0], "ours_over": 1.0, "ours_over_quartiles": [1.0, 1.0],
    "first_token": 0.1, "absent": None,
}  # fmt: skip
ORIGIN = {
    "command": "orthrus bench compare",
    "model": "m",
    "dtype": "d",
    "machine": {"cores": 2, "cpu": "c", "torch": "t"},
}


@pytest.mark.parametrize("prompts", [{"small": 1, "large": 4}, {"small": 1}])
def test_parts_with_one_prompt_are_omitted_if_there_are_larger_ones(tmp_path, prompts):
    sides = [{**SYSTEM, "part": part, "prompts": count, "identical": count} for part, count in prompts.items()]
    file = tmp_path / "sides.json"
    file.write_text(json.dumps({"sides": sides, "provenance": ORIGIN}))
    shown = report.markdown([file])
    assert ("| small |" in shown) == ("large" not in prompts)
    assert ("| large |" in shown) == ("large" in prompts)
