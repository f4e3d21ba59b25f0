"""`orthrus bench gpu`: every part on the CPU, time limits, what is skipped and repeated, summary, the model's file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny

from orthrus import cli
from orthrus.bench import compare
from orthrus.bench.gpu import laws, run, summary, training, transfer
from orthrus.bench.gpu.parts import PARTS
from orthrus.bench.gpu.settings import AbsentError, Settings
from orthrus.checkpoint import known_models, sources


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    model = tiny.save_checkpoint(folder / "model", template=tiny.CHAT)
    return Settings(folder / "out", "cpu", str(model), seconds=300, dry_run=True)


def results(name, settings):
    """The results of a part, each as its JSON file would hold it, and its lines of the summary."""
    part = PARTS[name]
    found = [json.loads(json.dumps(result)) for result in part.measure(settings)]
    assert part.headline(found[-1])
    assert all(isinstance(line, str) for line in part.advice(found[-1]))
    return found


def test_passes_run_on_the_triton_kernels_eagerly_and_as_graphs(settings):
    pytest.importorskip("triton")
    *_, result = results("passes-0.6b", settings)
    assert {one["executor"] for one in result["passes"]} == {"eager", "graphs"}
    assert all(one["over_floor"] == one["seconds"] / one["floor"] for one in result["passes"])
    assert result["weights"] == 4 * (64 * 128 + 64 * 64 + 64 * 192 + 96 * 64 + 320 * 64)
    assert result["longest_kernels"]["1"]


def test_linear_maps_and_prefill_run_on_the_triton_kernels(settings):
    pytest.importorskip("triton")
    *_, result = results("linears-1.7b", settings)
    assert {one["map"].rsplit(".", 1)[-1] for one in result["linears"]} == {"qkv", "o", "gate_up", "down", "head"}
    assert [one.get("error") for one in result["linears"] if one["kernel"] == "Triton, fixed tiles"] == [None] * 5
    assert [one["tokens"] for one in results("prefill-1.7b", settings)[-1]["prompts"]] == [4, 12]


def test_without_triton_parts_are_absent_by_name(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "orthrus.backends.triton.kernels", None)
    for name in ("passes-0.6b", "linears-1.7b", "prefill-1.7b"):
        with pytest.raises(AbsentError, match="Triton is not installed"):
            results(name, settings)


def test_every_cycle_is_decoded_at_every_batch_size_with_the_same_tokens(settings):
    first, result = results("decoding", settings)
    assert len(first["runs"]) < len(result["runs"]) == 8
    assert all(one["identical"] == one["prompts"] for one in result["runs"])
    result["runs"][1]["identical"] -= 1
    assert "differ from plain decoding: a defect" in PARTS["decoding"].advice(result)[0]


def test_peers_run_or_are_absent(settings, monkeypatch):
    asked = []

    class Worker:
        def __init__(self, variant, weights, threads, device, context):
            asked.append((variant, device))
            raise RuntimeError("no peer in this test")

    monkeypatch.setattr(compare, "Worker", Worker)
    monkeypatch.setattr(compare, "weights_for", lambda *_: {})
    (result,) = results("transformers", settings)
    assert [one["absent"] for one in result["systems"]] == [None, None, "no peer in this test"]
    assert asked == [("transformers bf16", "cpu")]
    monkeypatch.setattr("orthrus.bench.gpu.peers.find_spec", lambda _: None)
    with pytest.raises(AbsentError, match="vllm is not installed"):
        results("vllm", settings)


def test_distilling_and_training_go_on_where_they_ended(settings, monkeypatch):
    with pytest.raises(AbsentError, match="run the part distill first"):
        results("train", settings)

    def in_this_process(given, verb, arguments):
        options = ["--model", given.model, "--device", given.device, *arguments]
        if verb == "train":
            options += ["--mask-token", "300"]
        monkeypatch.setattr(sys, "argv", ["orthrus", verb, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return True, 1.0, ""

    monkeypatch.setattr(training, "_run", in_this_process)
    assert [results("distill", settings)[0]["records"] for _ in range(2)] == [4, 4]
    (result,) = results("train", settings)
    assert (result["steps"], result["finished"]) == (1, True)


def test_a_command_whose_time_is_over_is_stopped_and_one_that_fails_is_an_error(settings, monkeypatch):
    monkeypatch.setattr(training, "RESERVE", 3.0)
    monkeypatch.setattr(training, "LEAST", 0.5)
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    ended, seconds, _ = training._run(Settings(settings.output, seconds=1.0), "train", ())
    assert (ended, seconds < 30) == (False, True)
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", "raise SystemExit('no GPU')"))
    with pytest.raises(RuntimeError, match="exit code 1: no GPU"):
        training._run(settings, "train", ())


def test_laws_are_counted_as_they_come(settings, tmp_path, monkeypatch):
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "test_some.py").write_text(
        "def test_good(): pass\ndef test_bad(): assert 1 == 2\ndef test_other(): pass\n"
    )
    monkeypatch.setattr(laws, "FOLDER", folder)
    found = list(laws.measure(Settings(settings.output), select="good or bad"))
    assert [sum(one["counts"].values()) for one in found[-1:]] == [2]
    assert found[-1]["counts"] == {"passed": 1, "failed": 1}
    assert laws.headline(found[-1]) == "1 passed, 1 failed"
    assert "tests/gpu/test_some.py::test_bad" in laws.advice(found[-1])[0]
    monkeypatch.setattr(laws, "FOLDER", tmp_path / "none")
    with pytest.raises(AbsentError, match="checkout"):
        next(laws.measure(settings))


SCRIPT = "import sys, time, pathlib; pathlib.Path(sys.argv[2]).write_text('{\"n\": 1}'); "
ENDS = {"good": "", "missing": "print('no such card'); sys.exit(3)", "broken": "sys.exit('out of memory')",
        "slow": "time.sleep(60)"}  # fmt: skip


def jobs(seconds=60.0, **limits):
    return [
        run.Job(name, (sys.executable, "-c", SCRIPT + end), limits.get(name, seconds)) for name, end in ENDS.items()
    ]


def statuses(folder):
    files = {name: folder / f"{name}.json" for name in ENDS}
    return {name: json.loads(file.read_text())["status"] for name, file in files.items() if file.exists()}


def test_parts_are_recorded_killed_skipped_and_repeated(tmp_path):
    given, told = Settings(tmp_path, "cpu", dry_run=True), []
    assert run.run(jobs(slow=2.0), given, 5.0, again=False, tell=told.append) == []
    expected = {"good": "done", "missing": "absent", "broken": "failed", "slow": "time limit"}
    assert statuses(tmp_path) == expected
    slow, broken = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("slow", "broken"))
    assert slow["result"] == {"n": 1}  # what it had measured when it was killed
    assert slow["seconds"] < 30
    assert broken["output"] == "out of memory"
    times = {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in ENDS}
    told.clear()
    run.run(jobs(slow=2.0), given, 5.0, again=False, tell=told.append)
    assert told == [f"{name}: already measured" for name in ENDS]
    run.run(jobs()[:1], given, 5.0, again=True, tell=told.append)
    changed = [name for name in ENDS if (tmp_path / f"{name}.json").stat().st_mtime_ns != times[name]]
    assert changed == ["good"]
    assert not list(tmp_path.glob(".*"))


def test_what_is_cut_off_by_the_time_of_the_call_runs_again_in_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LEAST", 0.0)
    given = Settings(tmp_path, "cpu", dry_run=True)
    order = [job for name in ("slow", "good") for job in jobs() if job.name == name]
    assert run.run(order, given, 2.0 / 60, again=False, tell=lambda _: None) == ["slow", "good"]
    assert statuses(tmp_path) == {}


def test_the_command_runs_a_part_and_writes_table_and_advice(tmp_path, settings):
    command = [sys.executable, "-m", "orthrus", "bench", "gpu", "--dry-run", "--output", str(tmp_path / "out")]
    options = ["--parts", "vllm", "--model", settings.model]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "A dry run: its figures mean nothing." in done.stdout
    status = json.loads((tmp_path / "out" / "vllm.json").read_text())["status"]
    assert status in ("done", "absent")
    assert f"| vllm | {status} |" in done.stdout
    assert "not measured yet: laws, passes-1.7b, decoding" in done.stdout
    whole = json.loads((tmp_path / "out" / summary.ALL).read_text())
    assert set(whole["parts"]) == {"vllm"}


def test_what_a_summary_says_of_parts_that_did_not_end_well():
    records = {
        "laws": {"status": "time limit", "seconds": 200.0, "result": {"counts": {"passed": 3}, "failed": []}},
        "vllm": {"status": "absent", "seconds": 3.0, "output": "a | b\nvllm is not installed"},
        "train": {"status": "failed", "seconds": 3.0, "output": "no memory"},
    }
    text = summary.page(records, {"accelerator": "H100", "cpu": None})
    assert text.startswith("accelerator H100\n")
    assert "| laws | time limit | 200 | 3 passed |" in text
    assert "| vllm | absent | 3 | vllm is not installed |" in text
    assert "- train: it failed: see `output` in train.json" in text
    assert "- laws: it reached its time limit" in text


def test_the_command_refuses_what_cannot_be(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for options, message in (
        (["--parts", "pases", "--dry-run"], "no part 'pases'; parts: laws, passes-1.7b"),
        (["--output", str(tmp_path / "file")], "is a file: name a folder"),
        (["--device", "cuda:99"], "there is no CUDA device"),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr(sys, "argv", ["orthrus", "bench", "gpu", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_file_of_the_demo_model_travels_in_parts(tmp_path, monkeypatch):
    original = tmp_path / "demo.gguf"
    original.write_bytes(bytes(range(256)) * 10)
    parts = transfer.split(original, tmp_path / "parts", 1000)
    assert [part.stat().st_size for part in parts] == [1000, 1000, 560]
    joined = transfer.join(tmp_path / "parts", tmp_path / "out")
    assert joined.name == "demo.gguf"
    assert joined.read_bytes() == original.read_bytes()
    monkeypatch.setenv(known_models.DEMO_FILE, str(joined))
    assert sources.resolve(known_models.DEMO, None).path == joined
    monkeypatch.setenv(known_models.DEMO_FILE, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="ORTHRUS_DEMO_FILE: no such file"):
        sources.resolve(known_models.DEMO, None)
    parts[1].write_bytes(b"0" * 1000)
    assert transfer.join(tmp_path / "parts", tmp_path / "out") == joined  # it is there already
    with pytest.raises(ValueError, match="not the original file"):
        transfer.join(tmp_path / "parts", tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())
    parts[2].unlink()
    with pytest.raises(ValueError, match="part-2 of 3 parts are missing"):
        transfer.join(tmp_path / "parts", tmp_path / "other")
