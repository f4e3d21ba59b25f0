"""Distill, train, export and chat on the command line at toy size, from a backbone without a view."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
from pathlib import Path

import processes
import pytest
import tiny
import torch

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import hub
from orthrus.cli import _progress, _shared, _train_setup
from orthrus.tokenization import Tokenization
from orthrus.training import metrics
from orthrus.training.trainer import Trainer
from orthrus.training.world import device_of_process

TOY = "--block-size 4 --mask-token 300 --sequence-length 160 --roots 8 --sequences 1 --held-out 3 --dtype float32"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("verbs") / "bare", view=False, template=tiny.CHAT)


@pytest.fixture
def drawn():
    """For a test of plots, which take longer than all else at this size: the others draw none."""


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(metrics, "draw", lambda *_: None)


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run a shell line in this process, in a temporary directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield lambda line, stdin="": run(*shlex.split(line), stdin=stdin)
    for name, handler in handlers.items():
        signal.signal(name, handler)


def distill(run, bare, more=""):
    return run(f"distill -o data --model {bare} --max-new-tokens 24 --max-prompt-tokens 60 --batch-size 8 {more}")


@pytest.mark.usefixtures("drawn")
def test_from_a_bare_backbone_to_a_generating_checkpoint(run, bare, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(16)))
    (tmp_path / "topics.txt").write_text("Sing\n\nCount to\n")
    code, out, err = distill(run, bare, "--data prompts.jsonl --dtype float32")
    assert code == 0, err
    assert out.startswith("16 records with ")
    code, _, err = run(f"distill -o own --model {bare} --count 6 --topics topics.txt --max-prompt-tokens 8")
    assert code == 0, err
    assert "no question" in err
    assert "shard-00000.jsonl" in err
    train = f"train -o run --data data --model {bare} --steps 4 --validate-every 2 {TOY}"
    code, out, err = run(train)
    assert code == 0, err
    assert "held-out records decode by trees of 8 with A" in err
    assert "the adapter is run/best" in out
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    head = f"train -o head --data data --model {bare} --warm-start run/best --head-only --epochs 2 {TOY}"
    code, out, err = run(head)
    assert code == 0, err
    assert "the rows of all blocks are computed once" in err
    assert err.count("held-out records replay trees of 8 with A") == 2
    code, out, err = run(f"{head.replace('-o head', '-o head2')} --no-keep-rows")
    assert code == 0, err
    assert [(tmp_path / name / "rows").exists() for name in ("head", "head2")] == [True, False]
    code, _, err = run(f"export -o whole --model {bare} --adapter head/best --dtype float32")
    assert code == 0, err
    texts = []
    for how in ("--model whole", f"--model {bare} --adapter head/best", f"--model {bare}"):
        code, out, err = run(f"generate hello {how} --max-new-tokens 20 --json --dtype float32")
        assert code == 0, err
        texts.append(json.loads(out)["tokens"])
    assert texts[0] == texts[1] == texts[2]
    code, out, _ = run("info whole")
    assert code == 0
    assert "4" in out
    code, _, err = run(train)
    assert code == 0
    assert "resumed after step 4 of 4" in err
    code, _, err = run(train.replace("--steps 4", "--steps 9"))
    assert code == 2
    assert "recipe.steps was 4, is 9" in err


def test_a_distillation_shows_progress_and_resumes(run, bare, tmp_path, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(10)))
    monkeypatch.setattr(_progress, "LINE_SECONDS", 0)
    speed = r"\d+ tokens/s, ETA (-|\d+:\d\d:\d\d)"
    code, out, err = distill(run, bare, "--data prompts.jsonl --shard-size 4")
    assert code == 0, err
    for done in (1, 3, 7, 9):
        assert re.search(rf"(^| ){done} of 10 prompts, {speed}", err)
    for shard, done in enumerate((4, 8, 10)):
        assert re.search(
            rf"shard-0000{shard}.jsonl: \d+ records, \d+ answer tokens; {done} of 10 prompts, {speed}", err
        )
    code, _, err = distill(run, bare, "--data prompts.jsonl --shard-size 5")
    assert (code, "begun with other settings (shard_size was 4)" in err) == (2, True)

    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    whole = (tmp_path / "data/manifest.json").read_bytes()
    del manifest["shards"][1:]
    (tmp_path / "data/manifest.json").write_text(json.dumps(manifest))
    code, _, err = run(f"train -o run --data data --model {bare} --inspect {TOY} --held-out 1")
    assert code == 0, err
    assert "data holds 4 of 10 prompts: the distillation is unfinished; run the same `orthrus distill` to go on" in err

    code, again, err = distill(run, bare, "--data prompts.jsonl")
    assert code == 0, err
    assert "resuming: 4 of 10 prompts are already done" in err
    assert "shard-00000" not in err
    assert again.split(" in ")[0] == out.split(" in ")[0]
    assert (tmp_path / "data/manifest.json").read_bytes() == whole
    code, _, err = run(f"train -o run --data data --model {bare} --inspect {TOY} --held-out 1")
    assert (code, "unfinished" in err) == (0, False)


def test_shards_are_small_by_default(run, bare, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "say it"}))
    code, _, err = distill(run, bare, "--data prompts.jsonl")
    assert code == 0, err
    assert json.loads((tmp_path / "data/manifest.json").read_text())["settings"]["shard_size"] == 64


def test_an_interrupted_distillation_reports_what_is_kept(run, bare, tmp_path, monkeypatch):
    from orthrus.training import distill as module

    honest, asked = module.Distillation._write, []

    def interrupted(self, *arguments):
        asked.append(self)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return honest(self, *arguments)

    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(10)))
    monkeypatch.setattr(module.Distillation, "_write", interrupted)
    code, out, err = distill(run, bare, "--data prompts.jsonl --shard-size 4")
    assert (code, out) == (130, "")
    assert "interrupted: 8 of 10 prompts are in complete shards; run the same command to resume" in err


def test_an_adapter_in_int8_is_small_and_still_exact(run, bare):
    whole = tiny.save_checkpoint(bare.parent / "whole", template=tiny.CHAT)
    assert run(f"export -o plain --model {whole} --layout adapter")[0] == 0
    code, _, err = run(f"export -o small --model {whole} --layout adapter --int8")
    assert code == 0, err
    sizes = [Path(name, "adapter.safetensors").stat().st_size for name in ("plain", "small")]
    assert sizes[1] < 0.75 * sizes[0]
    outs = [run(f"generate hello --model {whole} {how} --json")[1] for how in ("--adapter small", "--cycle ar")]
    assert json.loads(outs[0])["tokens"] == json.loads(outs[1])["tokens"]
    code, out, err = run(
        f"export -o mean --model {whole} --adapter plain --mean-with small --mean-with plain --layout adapter"
    )
    assert code == 0, err
    assert "mean of adapter plain and adapter small and adapter plain" in out
    assert run(f"generate hello --model {whole} --adapter mean --json")[0] == 0
    assert run(f"export -o x --model {whole} --int8")[0] == 2
    code, _, err = run(f"export -o small --model {whole}")
    assert code == 2
    assert "not an empty directory" in err


def test_a_draft_vocabulary_is_trained_resumed_and_added_afterwards(run, bare, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(12)))
    assert distill(run, bare, "--data prompts.jsonl --dtype float32")[0] == 0
    train = f"train -o run --data data --model {bare} --steps 2 --validate-every 2 {TOY} --draft-vocabulary 96"
    for said in ("draft vocabulary: 96 tokens, ", "resumed after step 2 of 2"):
        code, _, err = run(train)
        assert code == 0, err
        assert said in err
    code, _, err = run(train.replace("96", "0"))
    assert code == 2
    assert "recipe.draft_vocabulary was 96, is 0" in err
    whole = f"train -o whole --data data --model {bare} --warm-start run/best --steps 1 {TOY} --draft-vocabulary 0"
    code, _, err = run(f"{whole} --keep-frozen-states --validation-nodes 4 --objective mixed --head-objective mixed")
    assert code == 0, err
    assert "what the AR view computes for each text is kept; it takes 0.00 GB" in err
    assert "held-out records decode by trees of 4 with A" in err
    assert (tmp_path / "whole" / "frozen" / "states").stat().st_size > 0
    export = f"export --layout adapter --model {bare} --dtype float32"
    code, out, err = run(f"{export} --adapter whole/last -o less --draft-vocabulary 96 --data data")
    assert code == 0, err
    assert "draft vocabulary: 96 tokens, " in out
    assert run(f"{export} --adapter run/best -o more --draft-vocabulary 0")[0] == 0
    views = [adapters.read_config(tmp_path / name).diffusion for name in ("run/best", "less", "whole/last", "more")]
    drafted = [view.draft_vocabulary for view in views]
    assert len(drafted[0]) == 96
    assert drafted == [drafted[0], drafted[0], None, None]
    weights = [adapters.weights(tmp_path / name) for name in ("whole/last", "less")]
    assert all(torch.equal(weights[0].tensor(name), weights[1].tensor(name)) for name in weights[0].names)
    texts = []
    for how in ("--adapter less", "--adapter run/best", "--adapter none --cycle ar"):
        code, out, err = run(f"generate hello {how} --model {bare} --max-new-tokens 20 --json --dtype float32")
        assert code == 0, err
        texts.append(json.loads(out)["tokens"])
    assert texts[0] == texts[1] == texts[2]
    code, out, _ = run(f"info {bare} --adapter less")
    assert "96 tokens" in out
    code, _, err = run(f"{export} --adapter whole/last -o odd --draft-vocabulary 50 --data data")
    assert code == 2
    assert "a multiple of 32 tokens, not 50" in err
    code, _, err = run(f"{export} --adapter whole/last -o odd --draft-vocabulary 64")
    assert code == 2
    assert "give it and --data together" in err


def test_a_low_rank_view_is_trained_resumed_exported_and_described(run, bare, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(12)))
    assert distill(run, bare, "--data prompts.jsonl --dtype float32")[0] == 0
    train = f"train -o run --data data --model {bare} --steps 2 --validate-every 2 {TOY} --rank 8"
    for said in ("the adapter is run/best", "resumed after step 2 of 2"):
        code, out, err = run(train)
        assert code == 0, err
        assert said in out + err
    warm = f"train --data data --model {bare} --steps 1 {TOY}"
    starts = {"kept": "--warm-start run/best", "full": "--warm-start run/best --rank 0"}
    starts |= {"lower": "--warm-start full/last --rank 4", "head": "--warm-start run/best --head-only"}
    for name, how in starts.items():
        code, _, err = run(f"{warm} -o {name} {how}")
        assert code == 0, err
    export = f"export --layout adapter --model {bare} --dtype float32"
    for name, how in {"int8": "--int8", "less": "--rank 2", "merged": "--rank 0"}.items():
        assert run(f"{export} --adapter run/best -o {name} {how}")[0] == 0
    places = ("run/best", "kept/last", "full/last", "lower/last", "head/best", "int8", "less", "merged")
    ranks = [adapters.read_config(tmp_path / name).rank for name in places]
    assert ranks == [8, 8, None, 4, 8, 8, 2, None]
    sizes = [(tmp_path / name / "adapter.safetensors").stat().st_size for name in ("int8", "run/best", "merged")]
    assert 2 * sizes[0] < sizes[1] < sizes[2] / 2
    texts = []
    for how in ("--adapter int8", "--adapter merged", "--adapter none --cycle ar"):
        code, out, err = run(f"generate hello {how} --model {bare} --max-new-tokens 20 --json --dtype float32")
        assert code == 0, err
        texts.append(json.loads(out)["tokens"])
    assert texts[0] == texts[1] == texts[2]
    records = [json.loads(run(f"info {line} --json")[1]) for line in ("int8", f"{bare} --adapter int8", f"{bare}")]
    assert [record["rank"] for record in records] == [8, 8, None]
    whole = json.loads(run(f"info {bare} --adapter merged --json")[1])
    assert records[1]["bfloat16_weight_bytes"] == whole["bfloat16_weight_bytes"]
    assert records[1]["diffusion_parameters"] < whole["diffusion_parameters"]
    assert "factors of this rank" in run("info int8")[1]
    for line, message in {
        f"export --model {bare} --adapter run/best -o x --rank 4": "--rank is for adapters",
        f"{export} --adapter run/best -o x --rank 65": "must lie in 1..64",
        train.replace("--rank 8", "--rank 4"): "recipe.rank was 8, is 4",
    }.items():
        code, _, err = run(line)
        assert code == 2
        assert message in err


def test_a_rank_that_the_model_cannot_have_is_refused_before_its_weights_are_read(run, bare, monkeypatch):
    monkeypatch.setattr(hub, "load", lambda *_, **__: pytest.fail("the weights are read"))
    code, _, err = run(f"export --layout adapter --model {bare} -o x --rank 5000")
    assert (code, "must lie in 1..64" in err) == (2, True)


def test_a_processor_that_emulates_bfloat16_is_named(run, bare, tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two three " * 20}]
    (tmp_path / "d.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 6))
    for slowdown, dtype, told in ((9.0, "bfloat16", True), (1.0, "bfloat16", False), (9.0, "float32", False)):
        monkeypatch.setattr(_train_setup, "bfloat16_slowdown", lambda found=slowdown: found)
        toy = TOY.replace("float32", dtype)
        code, _, err = run(f"train -o run --data d.jsonl --model {bare} {toy} --inspect")
        assert code == 0, err
        assert ("9 times slower than float32; --dtype float32" in " ".join(err.split())) is told


def test_estimate_and_inspect_start_nothing(run, bare, tmp_path):
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]}
    (tmp_path / "d.jsonl").write_text("\n".join([json.dumps(record)] * 6))
    code, out, _ = run(f"train -o run --data d.jsonl --model {bare} {TOY} --estimate")
    assert code == 0
    assert "M trained" in out
    assert "TFLOP" in out
    code, out, err = run(f"train -o run --data d.jsonl --model {bare} {TOY} --inspect")
    assert code == 0, err
    assert "--- document ---" in out
    assert "'[mask]' -> " in out
    assert "8 blocks of 4 rows" in " ".join(out.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("distill -o d --data missing.jsonl", "missing.jsonl"),
        ("distill -o d --data empty.jsonl", "no records"),
        ("distill -o d --data empty.jsonl --system x", "--topics and --system are for self-written"),
        ("distill -o d --count 2 --temperature -1", "temperature must lie"),
        ("distill -o d --count 2 --exclude nothing", "no task 'nothing'"),
        ("train -o r --data empty.jsonl", "needs --mask-token"),
        ("train -o r --data empty.jsonl --mask-token 300", "no records"),
        ("train -o r --data missing --mask-token 300", "no such file or directory of shards"),
        ("train -o r --data empty.jsonl --mask-token 320", "outside the vocabulary"),
        (
            "train -o r --data empty.jsonl --mask-token 300 --block-size 200 --sequence-length 100",
            "does not fit a sequence",
        ),
        ("train -o r --data empty.jsonl --mask-token 300 --block-size 1", "block_size must lie in 2"),
        ("train -o r --data empty.jsonl --mask-token 300 --objective mse", "no objective 'mse'"),
        ("train -o r --data empty.jsonl --mask-token 300 --head-objective mse", "no objective 'mse'"),
        (
            "train -o r --data empty.jsonl --mask-token 300 --head-only --objective total-variation",
            "set head_objective",
        ),
        ("train -o r --data empty.jsonl --mask-token 300 --head-only --head-gradient 1", "trained together"),
        ("train -o r --data empty.jsonl --mask-token 300 --head-units 0 --head-gradient 1", "trained together"),
        ("train -o r --data empty.jsonl --mask-token 300 --head-gradient -1", "head_gradient must lie in"),
        ("train -o r --data empty.jsonl --mask-token 300 --head-only --estimate", "drop --head-only"),
        ("export -o e", "no diffusion view to publish"),
        ("export -o e --mean-with nowhere", "nowhere"),
    ],
)
def test_bad_input_is_answered_in_one_message(run, bare, tmp_path, line, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    code, out, err = run(f"{line} --model {bare}")
    assert code == 2 or "missing.jsonl" in line
    assert message in err
    assert not out
    assert "Traceback" not in err


def test_a_warm_start_keeps_the_form_of_view_and_head(run, bare, tmp_path):
    """Neither an untrained last row nor a head of another size comes in unasked; a changed block size has all rows."""
    turns = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two three " * 9}]
    (tmp_path / "d.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 9))
    toy = TOY.replace("--block-size 4 --mask-token 300 ", "")
    line = f"train --data d.jsonl --model {bare} {toy} --steps 1 --save-every 1"

    def form(name):
        config = adapters.read_config(tmp_path / name / "last")
        return config.diffusion.block_size, config.diffusion.trained_rows, config.draft_head.units

    for name, more in (
        ("first", "--block-size 4 --mask-token 300 --no-train-last-row --head-units 32"),
        ("same", "--warm-start first/last"),
        ("head", "--warm-start first/last --head-only"),
        ("wider", "--warm-start first/last --block-size 6 --head-units 16"),
        ("longer", "--warm-start first/last --train-last-row"),
    ):
        code, _, err = run(f"{line} -o {name} {more}")
        assert code == 0, err
    assert [form(name) for name in ("first", "same", "head")] == [(4, 3, 32)] * 3
    assert [form(name) for name in ("wider", "longer")] == [(6, 6, 16), (4, 4, 32)]
    for more, message in (
        ("--block-size 4 --mask-token 300 --head-only", "needs a view that is trained already"),
        ("--warm-start first/last --epochs 2", "give one of them"),
    ):
        code, _, err = run(f"{line} -o none {more}")
        assert code == 2
        assert message in err
    sizes = {more: run(f"{line} -o none {more} --estimate")[1] for more in ("", "--warm-start first/last")}
    assert "for 256 supervised rows" in sizes[""]
    assert "for 24 supervised rows" in sizes["--warm-start first/last"]


def test_every_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    assert [device_of_process(name) for name in ("cuda", "cpu")] == ["cuda", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [device_of_process(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_saved_and_resumes(run, bare, tmp_path, monkeypatch, name):
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]}
    (tmp_path / "d.jsonl").write_text("\n".join([json.dumps(record)] * 9))
    line = f"train -o run --data d.jsonl --model {bare} {TOY} --steps 1000 --save-every 1000 --validate-every 1000"
    honest, taken = Trainer._step, []

    def step(trainer):
        taken.append(trainer.done)
        if len(taken) % 3 == 0:
            os.kill(os.getpid(), getattr(signal, name))
        return honest(trainer)

    monkeypatch.setattr(Trainer, "_step", step)
    for stopped in (3, 6):
        code, _, err = run(line)
        assert code == 130
        assert f"stopped after step {stopped} of 1000; the state is saved, run the same command to resume" in err
        assert ("resumed after step 3" in err) == (stopped == 6)
    assert taken == [*range(6)]
    assert (tmp_path / "run" / "last" / "adapter.safetensors").exists()


def test_a_run_in_a_pipe_prints_a_line_every_half_minute(run, bare, tmp_path, monkeypatch):
    """By a clock that goes on by twelve seconds whenever it is read, which is once a step."""
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]}
    (tmp_path / "d.jsonl").write_text("\n".join([json.dumps(record)] * 9))
    now = itertools.count(0.0, 12.0)
    monkeypatch.setattr(_shared, "perf_counter", lambda: next(now))
    line = f"train -o run --data d.jsonl --model {bare} {TOY} --steps 9 --save-every 100 --validate-every 100"
    code, _, err = run(line)
    assert code == 0, err
    assert "training: 9 steps" in err
    assert re.findall(r"step (\d) of 9: loss \d\.\d+, agreement [\d. ]+, \d+ rows/s, ETA ([\d:]+)", err) == [
        ("1", "0:01:36"), ("4", "0:01:00"), ("7", "0:00:24"),
    ]  # fmt: skip


def test_two_processes_do_the_work_of_one_and_resume_with_the_same_bits(run, bare, tmp_path):
    words = ("hello you", "and so on", "once more", "the end")
    records = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": words[n % 4] * (1 + n % 3)},
            ]
        }
        for n in range(1, 24)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    options = f"{TOY} --sequences 2 --steps 12 --learning-rate 1e-2 --validate-every 1000 --save-every 1000"

    def line(name):
        return f"train -o {name} --data d.jsonl --model {bare} {options}"

    def launch(name, stop_at=None):
        """What torchrun does: both processes, with its variables. One of them gets SIGTERM at a step."""
        codes = processes.run_ranks(line(name), tmp_path, stop_at=stop_at)
        return codes, "".join((tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2))

    def weights(name):
        stored = adapters.weights(tmp_path / name / "last")
        return {key: stored.tensor(key) for key in stored.names}

    codes, err = launch("parts", stop_at=4)
    assert codes == [130, 130], err
    for name in ("parts", "whole"):
        codes, err = launch(name)
        assert codes == [0, 0], err
        assert ("resumed after step 5 of 12" in err) == (name == "parts")
    code, _, err = run(line("alone"))
    assert code == 0, err
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("parts")[name])
        torch.testing.assert_close(value, weights("alone")[name], atol=5e-3, rtol=2e-2)


def test_chat_keeps_history_and_prints_statistics(run, bare, monkeypatch):
    asked = []
    real = Tokenization.encode

    def spy(self, messages, settings):
        asked.append([m["role"] for m in messages])
        return real(self, messages, settings)

    monkeypatch.setattr(Tokenization, "encode", spy)
    lines = ["hello", "again", "/undo", "and", "/system be brief", "/reset", "", "fresh", "/help", "/exit"]
    whole = tiny.save_checkpoint(bare.parent / "chat", template=tiny.CHAT)
    code, _, err = run(f"chat --model {whole} --max-new-tokens 6 --cycle two-pass", stdin="\n".join(lines) + "\n")
    assert code == 0, err
    assert asked == [
        ["user"], ["user", "assistant", "user"], ["user", "assistant", "user"], ["system", "user"],
    ]  # fmt: skip
    assert err.count("passes") == 4
    assert err.count("kept from before") >= 2


def test_chat_needs_a_template(run, tmp_path):
    plain = tiny.save_checkpoint(tmp_path / "plain", template=None)
    code, _, err = run(f"chat --model {plain}")
    assert code == 2
    assert "no chat template" in err
