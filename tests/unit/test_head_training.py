"""Training of the draft head: with the view or alone, resumed with the same bits, stored with the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from test_training_run import config, corpus, train, trainer_of

from orthrus.checkpoint import draft_head, export, hub, initial_view
from orthrus.training import head_task
from orthrus.training.metrics import read
from orthrus.training.packing import Packing

pytestmark = pytest.mark.usefixtures("undrawn")
HEAD = {"head_units": 16, "head_learning_rate": 3e-2}


def parameters(made, part):
    return {n: p.detach().clone() for n, p in made.checkpoint.decoder.named_parameters() if part in n}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def load(bare, adapter, dtype=torch.float32):
    return hub.load(str(bare), adapter=adapter, dtype=dtype)


@pytest.mark.parametrize("how", [{}, {"head_gradient": 0.5}, {"head_only": True}], ids=["beside", "joint", "alone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_with_the_same_bits(bare, jsonl, tmp_path, dtype, how):
    settings = {"dtype": dtype, **how, **HEAD}
    whole = train(bare, jsonl, tmp_path / "whole", **settings)
    train(bare, jsonl, tmp_path / "parts", until=3, **settings)
    again = train(bare, jsonl, tmp_path / "parts", **settings)
    assert_same(parameters(whole, "draft_head."), parameters(again, "draft_head."))
    assert_same(parameters(whole, ".diffusion."), parameters(again, ".diffusion."))


def test_the_view_trains_to_the_same_bits_with_and_without_a_head(bare, jsonl, tmp_path):
    one, other = train(bare, jsonl, tmp_path / "one"), train(bare, jsonl, tmp_path / "other", **HEAD)
    assert_same(parameters(one, ".diffusion."), parameters(other, ".diffusion."))


def test_a_view_that_learns_from_the_head_lowers_the_loss_of_the_head_further(bare, jsonl, tmp_path):
    losses = []
    for share in (0.0, 1.0):
        train(bare, jsonl, tmp_path / str(share), steps=40, head_gradient=share, **HEAD)
        losses.append(sum(step["head_loss"] for step in read(tmp_path / str(share))[-5:]))
    assert losses[1] < losses[0]


def test_a_head_alone_lowers_its_loss_and_changes_nothing_else(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "view", steps=30)
    before = load(bare, tmp_path / "view" / "last")
    assert before.decoder.draft_head is None
    made = train(bare, jsonl, tmp_path / "head", steps=40, head_only=True, **HEAD)
    steps = read(tmp_path / "head")
    assert sum(s["head_loss"] for s in steps[-5:]) < 0.9 * sum(s["head_loss"] for s in steps[:5])
    untrained = initial_view.give_view(hub.load(str(bare), dtype=torch.float32), 4, tiny.MASK, last_row=True)
    assert_same(
        dict(untrained.named_parameters()),
        {n: p for n, p in made.checkpoint.decoder.named_parameters() if "draft_head" not in n},
    )
    inverse = made.checkpoint.decoder.draft_head.inverse_temperatures
    assert len(set(inverse.tolist())) > 1
    assert all(0.6 <= value <= 2.7 for value in inverse.tolist())


def test_the_rows_of_a_frozen_view_are_computed_once(bare, jsonl, tmp_path, monkeypatch):
    """Also where the run is killed meanwhile, and the steps that follow have the same bits."""
    calls, original = [], head_task.head_rows

    def counted(*arguments):
        calls.append(arguments[1].blocks.tokens_T.tolist())
        return original(*arguments)

    monkeypatch.setattr(head_task, "head_rows", counted)
    settings = {"head_only": True, **HEAD}
    whole = train(bare, jsonl, tmp_path / "whole", steps=40, **settings)
    files, packing = tmp_path / "whole" / "rows", Packing(corpus(jsonl).documents, config())
    assert len(calls) == len({str(tokens) for tokens in calls})
    assert len(calls) == packing.texts_per_epoch() + (files / "held-out" / "done").stat().st_size
    assert whole.rows_on_disk == sum(
        path.stat().st_size for path in files.glob("*/*") if path.name not in ("rows.json", "done")
    )
    assert Path(files / "train" / "counts_S").stat().st_size == 4 * packing.blocks_per_epoch()
    made, count = trainer_of(bare, jsonl, tmp_path / "parts", steps=40, **settings), len(calls)
    for done, _ in made.prepare():
        if done == 3:
            break
    again = train(bare, jsonl, tmp_path / "parts", steps=40, **settings)
    assert len(calls) == 2 * count
    assert_same(parameters(whole, "draft_head."), parameters(again, "draft_head."))


def test_stopping_while_rows_are_computed_takes_no_step(bare, jsonl, tmp_path):
    made = trainer_of(bare, jsonl, tmp_path / "run", head_only=True, **HEAD)
    made.stop()
    assert list(made.run()) == []
    assert made.done == 0
    assert train(bare, jsonl, tmp_path / "run", head_only=True, **HEAD).done == 6


def test_rows_of_something_else_are_refused(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "run", head_only=True, **HEAD)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match="rows of another view, other texts or other settings"):
        train(bare, jsonl, tmp_path / "run", head_only=True, roots=5, **HEAD)


def test_an_epoch_takes_every_block_once(bare, jsonl, tmp_path):
    made = trainer_of(bare, jsonl, tmp_path / "run", head_only=True, roots=7, **HEAD)
    task, count = made._task, made._task.blocks
    taken = [block for number in range(count) for block in task.batch(number)["blocks"]]
    assert len(taken) == 7 * count
    assert all(taken.count(block) == 7 for block in range(count))


def test_a_head_round_trips_with_its_adapter_and_its_checkpoint(bare, jsonl, tmp_path):
    made = train(bare, jsonl, tmp_path / "run", **HEAD)
    trained = {n: p.bfloat16() if p.ndim == 2 else p for n, p in parameters(made, "draft_head.").items()}
    joined = load(bare, tmp_path / "run" / "last", torch.bfloat16)
    assert_same(trained, {n: p for n, p in joined.decoder.named_parameters() if "draft_head." in n})
    export.export_published(joined, tmp_path / "whole")
    whole = hub.load(str(tmp_path / "whole"), dtype=torch.bfloat16)
    assert_same(trained, {n: p for n, p in whole.decoder.named_parameters() if "draft_head." in n})
    assert whole.decoder.draft_temperatures() == joined.decoder.draft_temperatures()
    warm = train(bare, jsonl, tmp_path / "warm", **HEAD)
    assert warm.checkpoint.decoder.draft_head.units == 16


def test_a_head_that_does_not_belong_to_its_config_is_refused(bare, jsonl, tmp_path):
    made = train(bare, jsonl, tmp_path / "run", **HEAD)
    adapter = tmp_path / "run" / "last"
    path, content = adapter / draft_head.FILE, json.loads((adapter / "adapter_config.json").read_text())

    def described(**changes):
        own = content["draft_head"] | changes if changes.pop("whole", True) else None
        (adapter / "adapter_config.json").write_text(json.dumps(content | {"draft_head": own}))

    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"draft_head\.safetensors: its sha256 is"):
        load(bare, adapter)
    path.unlink()
    with pytest.raises(ValueError, match=r"draft_head\.safetensors is missing"):
        load(bare, adapter)
    path.write_bytes(whole)
    for change, message in (({"units": 15}, "units"), ({"units": 17}, "multiple of 16"), ({"format": "1"}, "format")):
        described(**change)
        with pytest.raises(ValueError, match=message):
            load(bare, adapter)
    described(units=32)
    with pytest.raises(ValueError, match=r"tensor .* has shape"):
        load(bare, adapter)
    described(format=2)
    assert load(bare, adapter).decoder.draft_head is None, "a later format is ignored"
    described(whole=False)
    assert load(bare, adapter).decoder.draft_head is None
    assert made.checkpoint.decoder.draft_head is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_units": 15}, "multiple of 16"), ({"head_units": -16}, "multiple of 16"),
        ({"head_only": True}, "nothing is left to train"),
        ({"head_units": 16, "trained_rows": 1}, "only one row is trained"),
        ({"head_units": 16, "head_learning_rate": 0.0}, "head_learning_rate"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
