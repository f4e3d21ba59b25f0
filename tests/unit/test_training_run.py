"""Corpus, packing and trainer: determinism, resuming, refused input, and that only the view is trained."""

from __future__ import annotations

import json
import math
import random
import time

import processes
import pytest
import tiny
import torch
from training_files import conversations, write

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import export, hub, initial_view, low_rank
from orthrus.model.draft_head import typical_inverse_temperature
from orthrus.training import data, objectives, state, tasks
from orthrus.training.config import TrainConfig
from orthrus.training.estimate import estimate
from orthrus.training.inspect import block_rows, words
from orthrus.training.losses import Losses
from orthrus.training.metrics import read
from orthrus.training.packing import Packing
from orthrus.training.step import step
from orthrus.training.tasks import Validation
from orthrus.training.trainer import Trainer, TrainingFailedError

pytestmark = pytest.mark.usefixtures("undrawn")
ENDS = frozenset([tiny.END])
SETTINGS = {
    "block_size": 4, "trained_rows": 4, "mask_token_id": tiny.MASK, "sequence_length": 96, "roots": 6, "sequences": 2,
    "steps": 6, "learning_rate": 1e-2, "held_out": 3, "validate_every": 3, "save_every": 2,
}  # fmt: skip


def checkpoint(bare, dtype=torch.float32):
    loaded = hub.load(str(bare), dtype=dtype)
    initial_view.give_view(loaded, 4, tiny.MASK, last_row=True)
    return loaded


def config(**changes):
    return TrainConfig(**{**SETTINGS, **changes})


def corpus(jsonl, settings=None):
    return data.load([jsonl], tiny.tokenizer(tiny.CHAT), ENDS, settings or config())


def trainer_of(bare, jsonl, directory, *, dtype=torch.float32, keep_frozen_states=False, **changes):
    settings = config(**changes)
    started = checkpoint(bare, dtype)
    low_rank.set_rank(started.decoder, settings.rank or None, settings.seed)
    return Trainer(
        started, settings, corpus(jsonl, settings), directory, lambda: Validation(1.5, 1.2, [0.9, 0.4]),
        keep_frozen_states=keep_frozen_states,
    )  # fmt: skip


def train(bare, jsonl, directory, *, until=None, dtype=torch.float32, **changes):
    """Run to the end, or abandon the run after step `until` as if killed; returns the trainer."""
    made = trainer_of(bare, jsonl, directory, dtype=dtype, **changes)
    for progress in made.run():
        if progress.step == until:
            break
    return made


def view(made):
    return {n: p.detach().clone() for n, p in made.checkpoint.decoder.named_parameters() if ".diffusion." in n}


def trained(made):
    return {n: p.detach().clone() for n, p in made.checkpoint.decoder.named_parameters() if p.requires_grad}


def assert_same(one, other):
    assert one.keys() <= other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_packing_covers_every_document_once_an_epoch_and_is_deterministic(jsonl):
    documents = corpus(jsonl).documents
    packing, again = Packing(documents, config()), Packing(documents, config())
    count = packing.texts_per_epoch()
    ids = [d.id for n in range(count) for d in packing.documents(n)]
    assert sorted(ids) == sorted(d.id for d in documents)
    second = [d.id for n in range(count, count + packing.texts_per_epoch()) for d in packing.documents(n)]
    assert second[: len(ids)] != ids
    for number in (2 * count, 0, 5):
        one, other = packing.blocks(number), again.blocks(number)
        assert torch.equal(one.tokens_T, other.tokens_T)
        assert torch.equal(one.roots_S, other.roots_S)
        assert len(one.tokens_T) <= 96


def test_roots_and_targets_lie_inside_assistant_turns(jsonl):
    packing = Packing(corpus(jsonl).documents, config(roots=1000))
    for number in range(packing.texts_per_epoch()):
        blocks, start = packing.blocks(number), 0
        inside = set()
        for document in packing.documents(number):
            inside |= {start + n for a, b in document.spans for n in range(a, b)}
            start += len(document.tokens)
        targets = blocks.targets_SM[blocks.trained_SM].tolist()
        assert set(targets) == inside
        assert {root + 1 for root in blocks.roots_S.tolist()} == inside
        text = list(words(blocks, lambda ids: str(ids[0])))
        assert [w.role for n, w in enumerate(text) if n in inside and n + 1 in inside] == ["root and target"] * (
            sum(n + 1 in inside for n in inside)
        )
    rows = block_rows(blocks, len(blocks.roots_S) - 1, str)
    assert [target for _, target in rows][1:] == ["-"] * 3


def test_the_token_cache_gives_the_same_documents(jsonl):
    first = corpus(jsonl)
    assert corpus(jsonl) == first
    assert corpus(jsonl).digest == first.digest


def test_truncated_and_skipped_records_are_reported(tmp_path):
    long = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * 200}]}
    late = {"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]}
    loaded = corpus(write(tmp_path / "d.jsonl", [*conversations(), long, late]))
    assert loaded.notices == [
        "2 of 26 records are longer than 96 tokens: truncated",
        "1 of 26 records have no assistant turn to train on: skipped",
    ]
    assert max(len(d.tokens) for d in loaded.documents) == 96


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"messages": [{"role": "user", "content": "x"}]}], "line 1: no assistant turn has text"),
        ([{"prompt": "x"}], "line 1: no assistant turn has text"),
        ([{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}], "turn has text"),
        ([*conversations(2), {"text": "x"}], "line 3: needs `prompt`"),
        (list(conversations(2)), "usable records: 2, and 3 are held out"),
        ([], "no records"),
    ],
)
def test_bad_data_is_named(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        corpus(write(tmp_path / "d.jsonl", records))


def test_data_without_a_template_or_a_manifest_is_refused(tmp_path, jsonl):
    with pytest.raises(ValueError, match="no chat template"):
        data.load([jsonl], tiny.tokenizer(None), ENDS, config())
    with pytest.raises(ValueError, match=r"no manifest.json here; `orthrus distill"):
        corpus(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        corpus(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 128, "trained_rows": 128}, "does not fit a sequence of 96"),
        ({"trained_rows": 5}, "trained_rows must lie in"),
        ({"mask_token_id": -1}, "must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"schedule": "linear"}, "no schedule 'linear'; schedules: cosine, wsd"),
        ({"extend": 2}, "only with --schedule wsd"),
        ({"schedule": "wsd", "extend": -1}, "extend -1"),
        ({"schedule": "wsd", "warmup": 0.5, "decay_share": 0.6}, "exceed all steps"),
        ({"decay_share": 1.5}, "decay_share must lie in"),
        ({"decay_share": 0.3}, "decay_share 0.3 is for --schedule wsd alone"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_mask_token_is_required_and_checked(bare):
    loaded = hub.load(str(bare))
    with pytest.raises(ValueError, match=r"needs --mask-token.*<unused"):
        initial_view.give_view(loaded, 4, None, last_row=True)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        initial_view.give_view(loaded, 4, tiny.VOCAB, last_row=True)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        initial_view.give_view(loaded, 4, "<nothing>", last_row=True)
    assert initial_view.give_view(loaded, None, "<unused300>", last_row=False).diffusion.trained_rows == 31


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("until", [1, 2, 3, 5])
def test_a_resumed_run_ends_with_the_same_bits(bare, jsonl, tmp_path, until, dtype):
    whole = view(train(bare, jsonl, tmp_path / "whole", dtype=dtype))
    train(bare, jsonl, tmp_path / "parts", until=until, dtype=dtype)
    assert_same(whole, view(train(bare, jsonl, tmp_path / "parts", dtype=dtype)))
    one, other = (
        [{k: v for k, v in r.items() if k != "seconds"} for r in read(tmp_path / name)] for name in ("whole", "parts")
    )
    assert one == other


def test_every_step_is_in_the_metrics_at_once_and_those_of_a_killed_run_are_taken_back(bare, jsonl, tmp_path):
    """No step is validated or saved before the last one."""
    settings = {"validate_every": 100, "save_every": 100}
    made, written = trainer_of(bare, jsonl, tmp_path, **settings), []
    for progress in made.run():
        written.append([record["step"] for record in read(tmp_path)])
        if progress.step == 4:
            break  # as if killed: four records, and no state
    assert written == [[*range(1, n + 1)] for n in range(1, 5)]
    train(bare, jsonl, tmp_path, **settings)
    assert [record["step"] for record in read(tmp_path)] == [*range(1, 7)]


def test_stopping_saves_the_state_and_ends_after_the_step(bare, jsonl, tmp_path):
    made = Trainer(checkpoint(bare), config(), corpus(jsonl), tmp_path / "run", lambda: Validation(1.0, 1.0, [0.5]))
    for progress in made.run():
        if progress.step == 1:
            made.stop()
    assert made.done == 1
    resumed = train(bare, jsonl, tmp_path / "run", until=2)
    assert resumed.done == 2
    assert_same(view(train(bare, jsonl, tmp_path / "whole")), view(train(bare, jsonl, tmp_path / "run")))


def test_training_lowers_the_loss_and_changes_only_the_view(bare, jsonl, tmp_path):
    frozen = {n: p.clone() for n, p in checkpoint(bare).decoder.named_parameters() if ".diffusion." not in n}
    made = train(bare, jsonl, tmp_path / "run", steps=40, validate_every=20, warmup=0.1)
    steps = read(tmp_path / "run")
    assert sum(s["loss"] for s in steps[-5:]) < 0.7 * sum(s["loss"] for s in steps[:5])
    assert_same(frozen, dict(made.checkpoint.decoder.named_parameters()))
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"best", "last", "run.json", "tensorboard"}
    saved = adapters.read_config(tmp_path / "run" / "best")
    assert saved.provenance["validation"]["acceptance_length"] == 1.5
    assert saved.provenance["recipe"]["steps"] == 40
    warm = initial_view.give_view(hub.load(str(bare), adapter=tmp_path / "run" / "last"), None, None, last_row=True)
    assert warm.diffusion.block_size == 4


def test_the_expected_prefix_of_held_out_texts_grows(bare, jsonl, tmp_path):
    changes = {"objective": "expected-prefix", "steps": 30, "validate_every": 30}
    held_out = Packing(corpus(jsonl).held_out, config(**changes))

    def prefix(decoder):
        return 1 - step(decoder, held_out.blocks(0), objectives.load("expected-prefix")).loss.item()

    made = train(bare, jsonl, tmp_path / "run", **changes)
    assert prefix(made.checkpoint.decoder) > prefix(checkpoint(bare).decoder) + 0.03


def test_a_view_without_a_head_is_calibrated_and_keeps_that(bare, jsonl, tmp_path):
    made = train(bare, jsonl, tmp_path / "run")
    fitted = made.checkpoint.decoder.diffusion.inverse_temperatures
    assert len(set(fitted)) > 1
    assert all(0.6 <= inverse <= 2.7 for inverse in fitted)
    loaded = hub.load(str(bare), adapter=tmp_path / "run" / "last")
    assert loaded.decoder.draft_temperatures() == [1 / inverse for inverse in fitted]
    export.export_published(loaded, tmp_path / "whole")
    assert hub.load(str(tmp_path / "whole")).decoder.diffusion == loaded.decoder.diffusion
    path = tmp_path / "run" / "last" / "adapter_config.json"
    content = json.loads(path.read_text())
    del content["inverse_temperatures"]
    path.write_text(json.dumps(content))
    older = hub.load(str(bare), adapter=tmp_path / "run" / "last").decoder.draft_temperatures()
    assert older == [1 / typical_inverse_temperature(row) for row in range(4)]


def test_a_changed_backbone_stops_the_run(bare, jsonl, tmp_path):
    made = Trainer(checkpoint(bare), config(), corpus(jsonl), tmp_path / "run", lambda: Validation(1.0, 1.0, [0.5]))
    with torch.no_grad():
        made.checkpoint.decoder.norm.weight[0] += 1
    with pytest.raises(TrainingFailedError, match="frozen weight"):
        list(made.run())


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "the loss is nan at step 3"), (1e4, "exploded to 1e\\+04, from a mean of .* at step 3")],
)
def test_a_bad_loss_stops_with_its_batch_saved(bare, jsonl, tmp_path, monkeypatch, value, message):
    original, calls = tasks.step, []

    def bad_step(*arguments, **options):
        outcome = original(*arguments, **options)
        calls.append(outcome)
        return outcome if len(calls) < 6 else tasks.replace(outcome, loss=outcome.loss * 0 + value)

    monkeypatch.setattr(tasks, "step", bad_step)
    with pytest.raises(TrainingFailedError, match=message):
        train(bare, jsonl, tmp_path / "run")
    batch = json.loads((tmp_path / "run" / "failed-step-3.json").read_text())
    assert torch.equal(torch.tensor(batch["tokens_T"]), Packing(corpus(jsonl).documents, config()).blocks(5).tokens_T)
    monkeypatch.undo()
    assert_same(view(train(bare, jsonl, tmp_path / "whole")), view(train(bare, jsonl, tmp_path / "run")))


def test_one_odd_text_does_not_stop_a_run_and_a_lasting_rise_does():
    losses = Losses()
    for number in range(40):
        loss = 0.02 if number == 25 else 1.5  # a text that repeats itself
        assert losses.explosion(loss) is None
        losses = losses.and_then(loss)
    assert losses.explosion(14.0) is None
    assert losses.explosion(16.0) == "the loss exploded to 16, from a mean of 1.46"
    rising = 0
    while losses.divergence is None:
        losses, rising = losses.and_then(9.0), rising + 1
    assert 5 < rising < 15
    assert losses.divergence.startswith("the mean of the loss rose from 1.43 to 4.")


def test_the_losses_of_a_run_are_resumed(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "run", until=2)
    resumed = train(bare, jsonl, tmp_path / "run")
    assert resumed._losses == train(bare, jsonl, tmp_path / "whole")._losses


def test_a_run_of_a_version_without_a_setting_goes_on_with_its_default(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "r", until=2)
    path = tmp_path / "r" / "run.json"
    description = json.loads(path.read_text())
    del description["recipe"]["head_gradient"]
    path.write_text(json.dumps(description))
    assert train(bare, jsonl, tmp_path / "r").done == config().steps


def test_another_run_does_not_continue_here(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "run", until=2)
    with pytest.raises(ValueError, match=r"recipe.learning_rate was 0.01, is 0.1"):
        train(bare, jsonl, tmp_path / "run", learning_rate=0.1)
    saved = tmp_path / "run" / "state.safetensors"
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as the state of this run"):
        train(bare, jsonl, tmp_path / "run")


def test_a_full_disk_leaves_the_older_state(bare, jsonl, tmp_path, monkeypatch):
    train(bare, jsonl, tmp_path / "run", until=2)
    before = (tmp_path / "run" / "state.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        train(bare, jsonl, tmp_path / "run")
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))


def test_the_estimate_counts_parameters_and_rows(bare):
    made = checkpoint(bare).decoder
    counted = estimate(made, config())
    assert counted.trained == sum(p.numel() for n, p in made.named_parameters() if ".diffusion." in n)
    assert counted.trained + counted.frozen == sum(p.numel() for p in made.parameters())
    assert counted.rows == 2 * 6 * 4
    assert estimate(made, config(sequences=4)).flops == 2 * counted.flops


def train_saving_always(bare, jsonl, directory, settings):
    torch.set_num_threads(1)
    train(bare, jsonl, directory, save_every=1, **settings)


@pytest.mark.parametrize("head", [{}, {"head_only": True, "head_units": 16}], ids=["view", "head"])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(bare, jsonl, tmp_path, request, head):
    """kill -9, also while saving: with a state saved at every step most of the time is spent on saving."""
    rng, settings = random.Random(0), {"steps": 40, "validate_every": 1000, **head}
    kills = 10 if request.config.getoption("--full") else 2
    lines = tmp_path / "run" / "metrics.jsonl"
    for _ in range(kills):
        seen = lines.stat().st_size if lines.exists() else 0
        process = processes.CONTEXT.Process(
            target=train_saving_always, args=(bare, jsonl, tmp_path / "run", settings), daemon=True
        )
        process.start()
        while process.is_alive() and (lines.stat().st_size if lines.exists() else 0) <= seen:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train(bare, jsonl, tmp_path / "whole", save_every=1000, **settings)
    resumed = train(bare, jsonl, tmp_path / "run", save_every=1, **settings)
    torch.set_num_threads(threads)
    assert_same(trained(whole), trained(resumed))
    assert [r["step"] for r in read(tmp_path / "run")] == list(range(1, 41))
