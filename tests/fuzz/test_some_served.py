"""Law 10 through HTTP, for some requests."""

from __future__ import annotations

import pytest
import served
import tiny

import orthrus


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_of_a_loaded_server_equal_the_oracle(tmp_path, dtype):
    model = orthrus.load(tiny.save_checkpoint(tmp_path / "tiny", template=tiny.TOOL_CHAT), dtype=dtype)
    problems, counts = served.run(model, 4 * len(served.KINDS))
    assert problems == []
    assert set(served.KINDS) - {"leaves"} <= set(counts)


def test_other_answers_are_found(tmp_path):
    model = orthrus.load(tiny.save_checkpoint(tmp_path / "tiny"), dtype="float32")
    case = served.make_case(served.random.Random(1), "greedy")
    case.texts, case.reasons, case.calls = ["another answer"], ["length"], [[]]
    assert "instead of" in served.problem_with(model, case)
