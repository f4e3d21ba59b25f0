"""`orthrus bench` on a tiny checkpoint: passes, peers, quality, report, suite."""

from __future__ import annotations

import itertools
import json
import lzma
import os
import signal
import time
from pathlib import Path

import gguf
import numpy as np
import processes
import pytest
import tiny
import tiny_gguf
from gguf import GGMLQuantizationType, GGUFReader

from orthrus.bench import compare, quality, suite, tasks
from orthrus.bench.peers import gguf as files
from orthrus.bench.peers import processes as peer_processes
from orthrus.bench.peers import workers
from orthrus.cli import _shared
from orthrus.training import shards


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("bench") / "model"))


@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8"]])
def test_passes_are_timed_against_the_roofline(run, model, quantize):
    options = ["--rows", 1, "--rows", 5, "--context", 40, "--context", 600, "-n", 2, *quantize]
    code, out, _ = run("bench", "passes", "--model", model, *options, "--json")
    report = json.loads(out)
    assert code == 0
    kinds = {(one["kind"], one["context"], one["rows"]) for one in report["passes"]}
    assert kinds == {(k, c, r) for k, r in (("ar", 1), ("ar", 5), ("diffuse", 8)) for c in (40, 600)}
    assert all(one["seconds"] > 0 for one in report["passes"])
    assert report["roof"]["floor"] == report["roof"]["weights"] / report["roof"]["bandwidth"]
    assert set(report["profiles"]) == {"1", "5"}
    code, out, _ = run("bench", "passes", "--model", model, *options)
    assert code == 0
    assert "GFLOP/s" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", 4000], "a pass of this model has 1 to"),
        (["--context", 5000], "positions: fewer cached tokens"),
        (["--shape", "qwen9"], "there is no shape 'qwen9'"),
        (["--layers", 2], "--layers needs --shape"),
    ],
)
def test_impossible_passes_are_refused(run, model, options, message):
    code, out, err = run("bench", "passes", "--model", model, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_the_engine_is_measured_under_load(run, model):
    options = ["--count", 3, "--every", 0, "--batch-size", 2, "--context", 300, "--max-new-tokens", 4, "-n", 2]
    code, out, _ = run("bench", "engine", "--model", model, *options, "--json")
    assert code == 0
    report = json.loads(out)["engine"]
    assert {kind: len(runs) for kind, runs in report.items()} == {"arrivals": 2, "uneven batch": 2, "chat": 2}
    uneven, chat = report["uneven batch"][0], report["chat"][0]
    assert uneven["cache"] > 0 and uneven["tokens_per_second"] > 0
    assert chat["history"] == 300 and min(chat["first_turn"], chat["second_turn"]) > 0
    code, out, _ = run("bench", "engine", "--model", model, *options)
    assert code == 0 and "second turn" in out


def test_peers_decode_the_same_prompts_and_absent_ones_are_named(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(peer_processes, "cache_directory", lambda: tmp_path)
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(2)))
    monkeypatch.setattr(files, "files", lambda *_: {"gguf_q8_0": ""})
    options = ["--peer", "transformers fp32", "--peer", "llama.cpp Q8_0", "--dtype", "float32", "--max-new-tokens", 8]
    code, out, err = run("bench", "compare", "--task", task, "--model", model, *options, "--json")
    assert code == 0, err
    sides = {side["name"]: side for side in json.loads(out)["sides"]}
    assert sides["transformers fp32"]["identical"] == 2
    assert sides["orthrus auto"]["identical"] == 2
    assert sides["llama.cpp Q8_0"]["absent"]
    code, out, _ = run("bench", "compare", "--task", task, "--model", model, *options[2:])
    assert code == 0
    assert "absent: llama.cpp Q8_0" in out
    code, _, err = run("bench", "compare", "--task", task, "--peer", "nobody")
    assert code == 2
    assert "no such peer; peers: " in err


def test_plain_decoding_is_compared_with_peers_where_there_is_no_view(run, tmp_path, monkeypatch):
    """From a directory, which llama.cpp cannot read: it is absent, and the others are compared."""
    monkeypatch.setattr(compare, "cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setattr(peer_processes, "cache_directory", lambda: tmp_path / "cache")
    bare = tiny.save_checkpoint(tmp_path / "bare", view=False)
    (tmp_path / "task.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(2)))
    asked = ["bench", "compare", "--task", tmp_path / "task.jsonl", "--model", bare, "--dtype", "float32"]
    peers = ["--peer", "transformers fp32", "--peer", "llama.cpp Q8_0", "--max-new-tokens", 8]
    code, out, err = run(*asked, *peers, "--json")
    assert code == 0, err
    sides = {side["name"]: side for side in json.loads(out)["sides"]}
    assert [*sides] == ["orthrus ar", "transformers fp32", "llama.cpp Q8_0"]
    assert sides["orthrus ar"]["ours_over"] == 1.0 and sides["transformers fp32"]["identical"] == 2
    assert "not a GGUF file" in sides["llama.cpp Q8_0"]["absent"]
    assert "no diffusion view" in err and "starting transformers fp32" in err


def test_a_benchmark_in_a_pipe_prints_a_line_every_half_minute(monkeypatch, capsys):
    now = itertools.count(0.0, 12.0)
    monkeypatch.setattr(_shared, "perf_counter", lambda: next(now))
    assert [*_shared.progress([*"abcdefgh"], "gsm8k")] == [*"abcdefgh"]
    assert capsys.readouterr().err.splitlines() == [
        "gsm8k ...", "gsm8k: 3 of 8, ETA 0:01:00", "gsm8k: 6 of 8, ETA 0:00:24",
    ]  # fmt: skip


SLEEPER = """
import os, subprocess, sys, time
from pathlib import Path

VARIANTS, REQUIREMENTS = {"sleeper": {}}, []


def version():
    return "1"


def load(weights, options, threads, device):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Path("unfinished").write_text(f"{os.getpid()} {child.pid}")
    Path("unfinished").rename("processes")
    return lambda tokens, count, stops: time.sleep(300)
"""
"""A peer that has started a process, and whose answer takes five minutes."""


def compare_with_a_sleeper(directory):
    os.chdir(directory)
    workers.__path__ = [str(directory)]
    with _shared.ended_by_sigterm(), peer_processes.Worker("sleeper", {}, 1) as worker:
        worker.generate(tokens=[1], count=2, stops=[])


def is_running(pid):
    """Whether there is such a process that has not ended; one that nobody has waited for is listed until then."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_no_worker_outlives_a_comparison(tmp_path, name):
    """Neither one that computes, nor a process that it has started."""
    worker = (Path(workers.__path__[0]) / "_worker.py").read_text().replace("GRACE = 3.0", "GRACE = 0.1")
    (tmp_path / "_worker.py").write_text(worker)
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    process = processes.CONTEXT.Process(target=compare_with_a_sleeper, args=(tmp_path,), daemon=True)
    process.start()
    while not (tmp_path / "processes").exists():
        assert process.is_alive()
        time.sleep(0.01)
    started = (tmp_path / "processes").read_text().split()
    assert all(map(is_running, started))
    os.kill(process.pid, getattr(signal, name))
    process.join(60)
    assert process.exitcode == (143 if name == "SIGTERM" else -signal.SIGKILL)
    end = time.monotonic() + 60
    while any(map(is_running, started)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(is_running, started))


def test_a_peer_that_fails_says_why():
    with pytest.raises(RuntimeError, match="directory"):
        peer_processes.Worker("transformers fp32", {}, 1)


def test_a_requantised_gguf_file_has_the_same_weights(tmp_path):
    weights = tiny_gguf.tensors()
    kinds = {name: GGMLQuantizationType.Q4_1 for name, values in weights.items() if values.ndim == 2}
    path = tiny_gguf.save(tmp_path / "q4.gguf", weights, kinds)
    reader = GGUFReader(path)
    target = tmp_path / "q8.gguf"
    files.requantise(path, target, GGMLQuantizationType.Q8_0)
    again = GGUFReader(target)
    assert set(again.fields) == set(reader.fields)
    assert again.fields["tokenizer.ggml.tokens"].contents() == reader.fields["tokenizer.ggml.tokens"].contents()
    for one, other in zip(reader.tensors, again.tensors, strict=True):
        assert one.name == other.name
        assert other.tensor_type == (GGMLQuantizationType.Q8_0 if one.name in kinds else GGMLQuantizationType.F32)
        first, second = (gguf.dequantize(t.data, t.tensor_type) for t in (one, other))
        assert np.abs(first - second).max() <= np.abs(first).max() / 100


def test_answers_are_scored():
    number = tasks.TaskPrompt("1", "gsm8k", "?", number="1,234")
    assert quality.right(number, "So 5 + 1229 is $1234.")
    assert not quality.right(number, "I do not know.")
    program = tasks.TaskPrompt("2", "mbpp", "?", program=f"{tasks.ANSWER}\nassert f(2) == 4")
    assert quality.right(program, "Here:\n```python\ndef f(x):\n    return x * x\n```\nDone.")
    assert not quality.right(program, "```python\ndef f(x):\n    return x + 3\n```")
    with pytest.raises(ValueError, match="does not say what a right answer is"):
        quality.right(tasks.TaskPrompt("3", "x", "?"), "")


@pytest.mark.parametrize(
    "program", ["while True: pass", "bytearray(2**33)", "open('f', 'wb').write(b'0' * 2**22)", "\0"]
)
def test_programs_beyond_the_limits_are_stopped(program, monkeypatch):
    monkeypatch.setattr(quality, "SECONDS", 2)
    assert not quality.runs(program)


def test_programs_run_in_an_empty_environment_and_folder(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert quality.runs("import os; assert 'SECRET' not in os.environ and not os.listdir('.')")


def test_quality_is_the_same_by_every_cycle(run, model):
    code, out, err = run("bench", "quality", "--model", model, "--limit", 2, "--max-new-tokens", 12, "--json")
    assert code == 0, err
    assert [(s["cycle"], s["identical"]) for s in json.loads(out)["scores"]] == [("ar", 2), ("auto", 2)]
    code, out, err = run("bench", "quality", "--model", model, "--task", "mbpp", "--limit", 2)
    assert (code, out) == (2, "")
    assert "outside a sandbox" in err


def test_two_views_are_compared_on_the_same_answers(run, model, tmp_path):
    task, adapter = tmp_path / "task.jsonl", tmp_path / "view"
    task.write_text("\n".join(json.dumps({"prompt": f"say <{n}>"}) for n in range(3)))
    code, _, err = run("export", "--model", model, "--layout", "adapter", "--output", adapter)
    assert code == 0, err
    shared = ["--model", model, "--task", task, "--max-new-tokens", 8]
    code, out, err = run("bench", "acceptance", "--paired", adapter, adapter, *shared, "--json")
    assert code == 0, err
    rows = json.loads(out)["paired"]
    assert {row["drafts"] for row in rows} >= {"chain", "tree of 8"}
    assert all(row["first"] == row["second"] and row["interval"] == [0.0, 0.0] for row in rows)
    code, out, err = run("bench", "acceptance", "--paired", adapter, adapter, *shared)
    assert code == 0, err
    assert "neither" in out
    for wrong in (["--adapter", adapter], ["--rule", "rejection"]):
        code, _, err = run("bench", "acceptance", "--paired", adapter, adapter, *wrong, *shared)
        assert code == 2
        assert "leave --adapter and --rule out" in err


def test_training_data_that_repeats_a_benchmark_is_named(run, tmp_path):
    task, data = tmp_path / "task.jsonl", tmp_path / "data.jsonl"
    task.write_text('{"prompt": "Who wrote Hamlet?"}\n{"prompt": "Name a river."}\n')
    data.write_text('{"id": "a", "prompt": "who wrote hamlet"}\n{"id": "b", "prompt": "Who wrote Faust?"}\n')
    code, out, err = run("bench", "overlap", "--data", data, "--task", task, "--json")
    assert code == 1, err
    (found,) = json.loads(out)["overlap"]
    assert (found["prompts"], found["repeated"], found["records"]) == (2, 1, ["a"])
    data.write_text('{"id": "b", "prompt": "Who wrote Faust?"}\n')
    code, out, _ = run("bench", "overlap", "--data", data, "--task", task)
    assert code == 0
    assert "1 training records" in out
    code, _, err = run("bench", "overlap", "--data", tmp_path / "none", "--task", task)
    assert code == 2
    assert "no JSONL file" in err
    (tmp_path / "packed.jsonl.xz").write_bytes(b"token ids")
    code, _, err = run("bench", "overlap", "--data", tmp_path / "packed.jsonl.xz", "--task", task)
    assert code == 2
    assert "packed.jsonl.xz: not compressed by xz, or damaged" in err


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}<|im_start|>assistant\n"


def test_packed_records_are_compared_as_their_directory_is(run, tmp_path):
    """Their texts are read back from their tokens."""
    model = tiny.save_checkpoint(tmp_path / "model", template=TURNS, special=("<|im_start|>",))
    task, prompts, data = tmp_path / "task.jsonl", tmp_path / "prompts.jsonl", tmp_path / "data"
    task.write_text('{"prompt": "Who wrote Hamlet?"}\n{"prompt": "Name a river."}\n')
    asked = ["who wrote hamlet", "Who wrote Faust?", "Is it raining?"]
    prompts.write_text("".join(json.dumps({"id": f"r{n}", "prompt": text}) + "\n" for n, text in enumerate(asked)))
    code, _, err = run("distill", "--model", model, "--data", prompts, "--output", data, "--count", 3,
                       "--max-new-tokens", 4, "--dtype", "float32")  # fmt: skip
    assert code == 0, err
    packed, plain = tmp_path / "data.jsonl.xz", tmp_path / "plain.jsonl.xz"
    packed.write_bytes(shards.packed(data))
    plain.write_bytes(lzma.compress(prompts.read_bytes()))
    for path in (data, packed, plain):
        code, out, err = run("bench", "overlap", "--data", path, "--task", task, "--json")
        assert code == 1, err
        report = json.loads(out)
        assert (report["records"], report["overlap"][0]["records"]) == (3, ["r0"])
    model.rename(tmp_path / "moved")
    code, _, err = run("bench", "overlap", "--data", packed, "--task", task)
    assert (code, "whose tokenizer is needed: name that model with --model" in err) == (2, True)
    assert run("bench", "overlap", "--data", packed, "--task", task, "--model", tmp_path / "moved")[0] == 1
    code, _, err = run(
        "bench", "overlap", "--data", packed, "--task", task, "--model", tiny.save_checkpoint(tmp_path / "x")
    )
    assert (code, "whose vocabulary is another than that of" in err) == (2, True)
    plain.write_bytes(b"not xz")
    code, _, err = run("bench", "overlap", "--data", plain, "--task", task)
    assert (code, "plain.jsonl.xz: not compressed by xz, or damaged" in err) == (2, True)


def test_results_become_one_page(run, model, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(json.dumps({"prompt": f"say <{n}>"}) for n in range(2)))
    shared = ["--model", model, "--max-new-tokens", 8, "--json"]
    lines = {
        "acceptance": ["--task", task, *shared],
        "speed": ["--task", task, "--setting", "ar", "--setting", "two-pass", *shared],
        "passes": ["--model", model, "--rows", 2, "--context", 40, "-n", 2, "--json"],
        "quality": ["--limit", 2, *shared],
    }
    files = [tmp_path / f"{verb}.json" for verb in lines]
    for (verb, options), file in zip(lines.items(), files, strict=True):
        code, out, err = run("bench", verb, *options)
        assert code == 0, err
        file.write_text(out)
    page = tmp_path / "page.html"
    code, out, err = run("bench", "report", *files, "-o", page)
    assert code == 0, err
    text = page.read_text()
    assert text.count("<table>") == 4
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text
    assert "bench speed" in text
    code, out, _ = run("bench", "report", *files, "--markdown")
    assert code == 0
    assert out.count("|---|") >= 4
    (tmp_path / "bad.json").write_text("{}")
    code, _, err = run("bench", "report", tmp_path / "bad.json")
    assert code == 2
    assert "not what a benchmark of acceptance, " in err
    code, _, err = run("bench", "report", tmp_path / "none.json")
    assert code == 2
    assert "no such file" in err


def test_the_suite_resumes_where_it_stopped(run, model, tmp_path, monkeypatch):
    task, output = tmp_path / "task.jsonl", tmp_path / "measured"
    task.write_text(json.dumps({"prompt": "say it"}) + "\n")
    speed = ("speed", ("--task", str(task), "--max-new-tokens", "4", "--setting", "ar"))
    steps = {"memory": ("memory", ("--context", "40", "--context", "80")), "speed": speed}
    monkeypatch.setattr(suite, "QUICK", {**steps, "speed": ("speed", ("--task", "nowhere"))})
    command = ["bench", "suite", "--quick", "--model", model, "--output", output]
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    assert "speed failed with exit code 2" in err
    assert sorted(path.name for path in output.iterdir()) == ["memory.json", "suite.json"]
    before = (output / "memory.json").stat().st_mtime_ns

    monkeypatch.setattr(suite, "QUICK", steps)
    code, out, err = run(*command)
    assert code == 0, err
    assert "1 of 2: memory is already measured" in err
    assert (output / "memory.json").stat().st_mtime_ns == before
    page = (output / "report.html").read_text()
    assert "Bytes of one sequence" in page
    assert "Speed of cycles" in page

    code, _, err = run(*command, "--quantize", "int8")
    assert code == 2
    assert "holds results of other settings" in err
    code, _, err = run("bench", "suite", "--model", model, "--output", task)
    assert code == 2
    assert "is a file: name a directory" in err
