"""What the frozen view computes is kept on disk: the same training, without its passes after the first epoch."""

from __future__ import annotations

import pytest
import torch
from test_training_run import assert_same, trained, trainer_of

from orthrus.training import frozen_states, step

pytestmark = pytest.mark.usefixtures("undrawn")
STEPS = {"steps": 24, "sequences": 1, "validate_every": 12, "save_every": 12}


@pytest.fixture(name="passes")
def _passes(monkeypatch):
    """The texts whose frozen pass was computed."""
    computed, real = [], step.frozen_pass

    def counted(decoder, blocks, ops=None):
        computed.append(blocks)
        return real(decoder, blocks, ops)

    for module in (step, frozen_states):
        monkeypatch.setattr(module, "frozen_pass", counted)
    return computed


def train(bare, jsonl, directory, keep, until=None, **changes):
    made = trainer_of(bare, jsonl, directory, keep_frozen_states=keep, **STEPS, **changes)
    losses = []
    for progress in made.run():
        losses.append(progress.loss)
        if progress.step == until:
            break
    return made, losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_states_train_the_same_view_with_one_frozen_pass_per_text_of_an_epoch(
    bare, jsonl, tmp_path, dtype, passes
):
    plain, expected = train(bare, jsonl, tmp_path / "plain", keep=False, dtype=dtype)
    texts = plain._task._packing.texts_per_epoch()
    assert texts < STEPS["steps"]
    held_out = len(passes) - STEPS["steps"]  # calibration computes those of held-out texts
    passes.clear()
    kept, losses = train(bare, jsonl, tmp_path / "kept", keep=True, dtype=dtype)
    assert len(passes) == texts + held_out
    assert losses[:texts] == expected[:texts]
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(losses, expected, atol=tolerance, rtol=tolerance)
    assert kept.frozen_states_on_disk > 0 == plain.frozen_states_on_disk


def test_a_resumed_run_reads_what_is_kept_and_ends_with_the_same_bits(bare, jsonl, tmp_path, passes):
    whole, _ = train(bare, jsonl, tmp_path / "whole", keep=True)
    all_of_them = len(passes)
    train(bare, jsonl, tmp_path / "killed", keep=True, until=14)
    passes.clear()
    resumed, losses = train(bare, jsonl, tmp_path / "killed", keep=True)
    assert len(losses) == 12
    assert_same(trained(whole), trained(resumed))
    assert len(passes) < all_of_them - 14


def test_states_of_other_texts_are_refused(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "run", keep=True, until=1)
    (tmp_path / "run" / "frozen" / "frozen.json").write_text('{"data": "other"}')
    with pytest.raises(ValueError, match="other texts or other settings: delete it"):
        train(bare, jsonl, tmp_path / "run", keep=True)
