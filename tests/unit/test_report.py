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
    "kernels": "native C, groups by int8",
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


def test_headlines_are_of_the_named_setting_and_over_plain_decoding(tmp_path):
    """Neither a variant of `auto`, nor the total of another task, nor a factor over another setting."""
    speed = {"prompts": 3, "over_plain": 1.5, "over_plain_quartiles": [1.4, 1.6], "speed": 9.0}
    records = [
        {**speed, "part": part, "setting": setting, "over_plain": factor}
        for part in ("spec_bench, all", "long_context, all")
        for setting, factor in (("ar", 1.0), ("auto", 1.5), ("auto+15", 1.7))
    ]
    records[-2] |= {"over_plain": 1.9, "speed": 99.0}
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"speed": records, "provenance": ORIGIN}))
    assert "| 1.50 (1.40 to 1.60) |" in report.headlines([file])
    file.write_text(json.dumps({"speed": records[1:], "provenance": ORIGIN}))
    assert "1.50" not in report.headlines([file])


@pytest.mark.parametrize(
    ("kernels", "row"), [("native C, groups by int8", "| tokens/s, "), ("x", "| bfloat16: tokens/s, ")]
)
def test_results_in_bfloat16_have_rows_of_their_own(tmp_path, kernels, row):
    side = {"part": "gsm8k", "name": "orthrus auto", "prompts": 3, "speed": 99.0}
    file = tmp_path / "compare.json"
    file.write_text(json.dumps({"sides": [side], "provenance": ORIGIN | {"kernels": kernels}}))
    assert next(line for line in report.headlines([file]).splitlines() if "99" in line).startswith(row)
