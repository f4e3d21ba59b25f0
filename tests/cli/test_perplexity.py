"""`orthrus bench perplexity` on a tiny checkpoint."""

from __future__ import annotations

import json
from math import exp

import pytest
import tiny
import torch

import orthrus
from orthrus.bench import perplexity, quality

TEXT = "A text that no model has seen: so it is held out. " * 4


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("perplexity") / "model"))


@pytest.fixture(name="text")
def _text(tmp_path):
    path = tmp_path / "held-out.txt"
    path.write_text(TEXT)
    return path


def test_arithmetics_are_compared_with_float32(run, model, text, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"prompt": "say it"}))
    options = ["--tokens", 70, "--window", 32, "--task", task, "--max-new-tokens", 4]
    code, out, err = run("bench", "perplexity", "--model", model, "--text", text, *options, "--json")
    assert code == 0, err
    exact, bf16, int8 = json.loads(out)["fidelity"]
    assert [one["arithmetic"] for one in (exact, bf16, int8)] == ["float32", "bfloat16", "int8"]
    assert (exact["difference"], exact["standard_error"], exact["identical"], exact["agreeing"]) == (0, 0, 1, 1)
    for one in (bf16, int8):
        assert 0 < abs(one["difference"]) < 0.1 and one["standard_error"] > 0 and one["answers"] == 1
        low, high = one["interval"]
        assert low <= one["difference"] <= high and low < high and one["verdicts"] is None
        assert one["perplexity"] == pytest.approx(exact["perplexity"] * exp(one["difference"]))
    with orthrus.load(model, adapter="none", dtype="float32") as loaded:
        ids = loaded.encode(TEXT, special_tokens=False)
        expected = [loss_of(loaded, ids[start : start + 32]) for start in (0, 32)]
    assert exact["perplexity"] == pytest.approx(exp(sum(expected) / 2), rel=1e-4)


def loss_of(loaded, window):
    """By torch, in one pass over all tokens."""
    (table,) = loaded.runner.new_tables(1, len(window))
    (logits_RV,) = loaded.runner.ar([window], [table])
    return float(torch.nn.functional.cross_entropy(logits_RV[:-1].float(), torch.tensor(window[1:])))


def test_a_window_longer_than_a_pass_is_scored_in_pieces(monkeypatch, model):
    with orthrus.load(model, adapter="none", dtype="float32") as loaded:
        window = loaded.encode(TEXT, special_tokens=False)[:33]
        whole = perplexity._loss(loaded.runner, window)
        monkeypatch.setattr(perplexity, "ROWS", 5)
        assert perplexity._loss(loaded.runner, window) == pytest.approx(whole, rel=1e-6)


def test_what_cannot_be_measured_is_refused(run, model, text):
    for options, message in (
        (["--window", 4000], "less than a window of 4000: use a longer text"),
        (["--arithmetic", "float16"], "use float32, bfloat16, int8"),
        (["--score"], "name a task"),
        (["--score", "--task", "humaneval"], "pass --allow-code-execution"),
        (["--score", "--task", "spec_bench"], "does not say what a right answer is"),
    ):
        code, out, err = run("bench", "perplexity", "--model", model, "--text", text, *options)
        assert (code, out) == (2, "") and message in err


def test_tokens_before_the_first_other_one_are_counted():
    found = perplexity.Answers(torch.tensor([1.0, 2.0]), [[1, 2, 9, 4], [5, 6]])
    reference = perplexity.Answers(torch.tensor([1.0, 1.5]), [[1, 2, 3, 4], [5, 6]])
    score = perplexity.compare("int8", found, reference)
    assert (score.identical, score.agreeing, score.difference) == (1, 4 / 6, 0.25)


def test_right_answers_are_counted(run, model, text, monkeypatch):
    checked = []
    monkeypatch.setenv("COLUMNS", "160")  # each cell of the table on one line
    monkeypatch.setattr(quality, "runs", lambda program: not checked.append(program))
    options = ["--tokens", 70, "--window", 32, "--task", "humaneval", "--limit", 2, "--max-new-tokens", 4]
    call = ["bench", "perplexity", "--model", model, "--text", text, *options, "--arithmetic", "int8"]
    code, out, err = run(*call, "--score", "--allow-code-execution")
    assert code == 0, err
    assert len(checked) == 4 and "2 (100.0%)" in out and "0, 0 (1.00)" in out and "exact McNemar test" in err
    code, out, err = run(*call)
    assert code == 0 and len(checked) == 4 and "right" not in out


def test_right_answers_are_compared_prompt_by_prompt():
    found, reference = [True] * 4 + [False] * 4, [False] + [True] * 7
    losses, answers = torch.tensor([1.0, 2.0]), [[1]] * 8
    score = perplexity.compare("int8", *(perplexity.Answers(losses, answers, list(v)) for v in (found, reference)))
    assert score.verdicts is not None
    assert (score.verdicts.right, score.verdicts.lost, score.verdicts.gained) == (4, 4, 1)
    assert score.verdicts.p == pytest.approx(2 * (1 + 5) / 2**5)
    low, high = score.verdicts.interval
    assert low < -3 / 8 < high < 0.2
    same = perplexity.compare("float32", *[perplexity.Answers(losses, answers, reference)] * 2)
    assert same.verdicts == perplexity.Verdicts(7, 0, 0, 1.0, (0.0, 0.0))
