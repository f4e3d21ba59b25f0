"""Runs that train the factors of a low-rank view: what is trained and saved, resuming, extending, warm starts."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from test_training_run import assert_same, checkpoint, config, train, trained, trainer_of

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import hub, low_rank
from orthrus.training import state
from orthrus.training.estimate import estimate

pytestmark = pytest.mark.usefixtures("undrawn")
LOW = {"rank": 8, "ema": 0.9, "head_units": 16}


def test_factors_alone_are_trained_and_saved(bare, jsonl, tmp_path):
    made = trainer_of(bare, jsonl, tmp_path / "run", **LOW)
    before = trained(made)
    assert {name.rpartition(".")[2] for name in before if ".diffusion." in name} == {"up", "down", "q_norm", "k_norm"}
    for _ in made.run():
        pass
    after = trained(made)
    assert [name for name, tensor in before.items() if torch.equal(tensor, after[name])] == []
    with safe_open(tmp_path / "run" / state.STATE, "pt") as stored:
        assert "layers.0.diffusion.qkv.up/exp_avg" in stored.keys()  # noqa: SIM118
        assert not any(".qkv.weight" in name for name in stored.keys())  # noqa: SIM118
    config_of_last = adapters.read_config(tmp_path / "run" / "last")
    assert config_of_last.rank == 8
    assert config_of_last.provenance["recipe"]["rank"] == 8
    assert "model.layers.0.self_attn.qkv_proj_diff.up" in adapters.weights(tmp_path / "run" / "last").names
    full = checkpoint(bare).decoder
    low_rank.make_empty(full, 8)
    assert estimate(full, config()).trained == sum(t.numel() for name, t in before.items() if "head" not in name)


def test_a_resumed_run_ends_with_the_bits_of_a_whole_one(bare, jsonl, tmp_path):
    whole = train(bare, jsonl, tmp_path / "whole", **LOW)
    train(bare, jsonl, tmp_path / "parts", until=3, **LOW)
    again = train(bare, jsonl, tmp_path / "parts", **LOW)
    assert_same(trained(whole), trained(again))
    files = [adapters.weights(tmp_path / name / "last") for name in ("whole", "parts")]
    assert all(torch.equal(*(file.tensor(name) for file in files)) for name in files[0].names)
    with pytest.raises(ValueError, match=r"recipe\.rank was 8, is 4"):
        trainer_of(bare, jsonl, tmp_path / "parts", **{**LOW, "rank": 4})


def test_an_extended_run_ends_with_the_bits_of_a_longer_one(bare, jsonl, tmp_path):
    settings = {**LOW, "schedule": "wsd", "decay_share": 0.5}
    whole = train(bare, jsonl, tmp_path / "whole", extend=4, **settings)
    train(bare, jsonl, tmp_path / "parts", **settings)
    assert_same(trained(whole), trained(train(bare, jsonl, tmp_path / "parts", extend=4, **settings)))


def test_a_warm_start_from_a_low_rank_view_keeps_its_factors(bare, jsonl, tmp_path):
    made = train(bare, jsonl, tmp_path / "run", rank=8)
    warm = hub.load(str(bare), adapter=tmp_path / "run" / "last", dtype=torch.float32)
    low_rank.set_rank(warm.decoder, 8)
    read = dict(warm.decoder.named_parameters())
    assert all(torch.equal(tensor, read[name]) for name, tensor in trained(made).items())


def test_a_step_of_a_new_low_rank_view_loses_what_one_of_a_full_view_loses(bare, jsonl, tmp_path):
    """It starts as the same copy of the backbone."""
    losses = [next(trainer_of(bare, jsonl, tmp_path / str(rank), rank=rank).run()).loss for rank in (0, 8)]
    assert losses[0] == losses[1]
