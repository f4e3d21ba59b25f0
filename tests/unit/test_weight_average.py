"""The average of the weights (EMA): what it is, that it decodes and is saved, and resumes with the same bits."""

from __future__ import annotations

import pytest
import torch
from test_training_run import assert_same, checkpoint, config, corpus, train, trained, trainer_of

from orthrus.checkpoint import hub
from orthrus.training.estimate import estimate
from orthrus.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn")
HEAD = {"head_units": 16, "head_learning_rate": 3e-2}
KINDS = [{}, HEAD, {**HEAD, "head_only": True}]
IDS = ["view", "beside", "alone"]


def averages(made):
    return {name: average.clone() for name, average in made._average.tensors.items()}


def of_adapter(bare, adapter):
    """The view and the draft head of a saved adapter, without the calibration of the head."""
    decoder = hub.load(str(bare), adapter=adapter, dtype=torch.float32).decoder
    parameters = decoder.named_parameters()
    return {
        n: p for n, p in parameters if (".diffusion." in n or "draft_head." in n) and not n.endswith("temperatures")
    }


@pytest.mark.parametrize("how", KINDS, ids=IDS)
def test_the_average_is_validated_and_saved_and_the_weights_train_on(bare, jsonl, tmp_path, how):
    plain = train(bare, jsonl, tmp_path / "plain", **how)
    settings, seen = config(ema=0.7, **how), []
    made = trainer_of(bare, jsonl, tmp_path / "run", ema=0.7, **how)
    task = made._task
    original = task.validate
    task.validate = lambda: seen.append(trained(made)) or original()
    expected = trained(made)
    for progress in made.run():
        keep = min(0.7, (1 + progress.step) / (10 + progress.step))
        weights = trained(made)
        expected = {name: keep * average + (1 - keep) * weights[name] for name, average in expected.items()}
        if progress.validation:
            torch.testing.assert_close(seen[-1], expected)
    assert len(seen) == settings.steps // settings.validate_every
    assert_same(trained(plain), trained(made))
    torch.testing.assert_close(averages(made), expected)
    saved = of_adapter(bare, tmp_path / "run" / "last")
    for name, average in averages(made).items():
        tolerance = {"atol": 1e-2, "rtol": 1e-2} if name.startswith("draft_head.") else {}  # which is saved in bfloat16
        torch.testing.assert_close(saved[name], average, **tolerance)
        assert not torch.equal(average, trained(made)[name])


@pytest.mark.parametrize("how", KINDS, ids=IDS)
def test_a_resumed_run_ends_with_the_same_average(bare, jsonl, tmp_path, how):
    whole = train(bare, jsonl, tmp_path / "whole", ema=0.9, **how)
    train(bare, jsonl, tmp_path / "parts", until=3, ema=0.9, **how)
    again = train(bare, jsonl, tmp_path / "parts", ema=0.9, **how)
    assert_same(trained(whole), trained(again))
    assert_same(averages(whole), averages(again))
    assert_same(*(of_adapter(bare, tmp_path / name / "last") for name in ("whole", "parts")))


def test_an_extended_run_has_the_average_of_one_that_was_longer_from_the_start(bare, jsonl, tmp_path):
    settings = {"ema": 0.9, "schedule": "wsd", "decay_share": 0.5, **HEAD}
    whole = train(bare, jsonl, tmp_path / "whole", extend=4, **settings)
    train(bare, jsonl, tmp_path / "parts", **settings)
    assert_same(averages(whole), averages(train(bare, jsonl, tmp_path / "parts", extend=4, **settings)))


def test_the_weights_are_back_after_a_validation_that_fails(bare, jsonl, tmp_path):
    def fails():
        raise RuntimeError("no")

    made = Trainer(checkpoint(bare), config(ema=0.9), corpus(jsonl), tmp_path / "run", fails)
    before = trained(made)
    with pytest.raises(RuntimeError, match="no"):
        made._validated()
    assert_same(before, trained(made))


def test_a_run_without_an_average_has_no_tensors_of_one(bare, jsonl, tmp_path):
    assert not averages(trainer_of(bare, jsonl, tmp_path))
    with pytest.raises(ValueError, match=r"ema must lie in \[0, 1\)"):
        config(ema=1.0)
    made = checkpoint(bare).decoder
    more = estimate(made, config(ema=0.9)).optimiser_bytes - estimate(made, config()).optimiser_bytes
    assert more == 4 * estimate(made, config()).trained
