"""The command line on a tiny checkpoint: output, and error messages for bad input."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import tiny
import torch

import orthrus
from orthrus import machine_load, torch_threads
from orthrus.backends.native import compiler, levels
from orthrus.backends.native import kernels as native
from orthrus.bench import distribution, measure, speed, tasks
from orthrus.bench.speed import Speed
from orthrus.cli import commands
from orthrus.decoding.planning import calibration
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.file_cache import cache_directory
from orthrus.machine_load import LoadReading


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("cli") / "model"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("cli") / "bare", view=False, template=None))


def json_lines(out):
    return [json.loads(line) for line in out.splitlines()]


def untimed(record):
    """A record without the fields that differ between runs: times, and what was shared with other sequences."""
    statistics = {
        k: v for k, v in record["statistics"].items() if not k.endswith(("seconds", "cached_tokens", "batch_size"))
    }
    return {k: v for k, v in record.items() if k != "seed"} | {"statistics": statistics}


def test_every_command_has_help(run):
    verbs = [
        "generate",
        "demo",
        "info",
        "doctor",
        "verify",
        "bench",
        "chat",
        "batch",
        "distill",
        "pack",
        "train",
        "export",
    ]
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in verbs)
    for verb in verbs:
        assert run(verb, "--help")[0] == 0


def test_json_has_one_line_per_prompt_in_input_order_and_nothing_else(run, model, tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"count {n} " * (1 + 20 * (n % 2))} for n in range(5)]
    lines.append({"messages": [{"role": "user", "content": "hello"}]})
    file.write_text("\n".join(map(json.dumps, lines)))
    options = ["--model", model, "--file", file, "--json", "--max-new-tokens", 12, "--dtype", "float32"]
    options += ["--cycle", "two-pass"]
    code, out, _ = run("generate", *options, "--batch-size", 3)
    records = json_lines(out)
    assert code == 0
    assert len(records) == 6
    assert list(map(untimed, records)) == list(map(untimed, json_lines(run("generate", *options)[1])))
    statistics = records[0]["statistics"]
    assert statistics["generated"] == len(records[0]["tokens"])
    assert statistics["tokens_per_cycle"] == pytest.approx(statistics["acceptance_length"] + 1)
    assert statistics["tpf"] == pytest.approx(statistics["generated"] / statistics["passes"])
    assert statistics["passes"] == 1 + 2 * statistics["cycles"]
    assert statistics["seconds"] > statistics["prefill_seconds"] > 0


def test_cycles_and_their_alias_write_the_same_tokens(run, model):
    options = ["--model", model, "--json", "--max-new-tokens", 30, "--temperature", 0.9, "--seed", 5]
    settings = ([], ["--cycle", "one-pass"], ["--cycle", "two-pass"], ["--cycle", "ar"], ["--no-diffusion"])
    records = [json_lines(run("generate", "hi", *options, *more)[1])[0] for more in settings]
    assert all(record["tokens"] == records[0]["tokens"] for record in records)
    assert records[1]["statistics"]["acceptance_length"] > 0
    assert untimed(records[3]) == untimed(records[4])
    assert records[3]["statistics"]["acceptance_length"] == 0


def test_rejection_is_repeatable_and_greedy_is_the_same_under_both_rules(run, model):
    options = ["generate", "hi", "--model", model, "--json", "--max-new-tokens", 30]
    sampled = [*options, "--temperature", 0.9, "--seed", 5, "--rule", "rejection", "--cycle", "one-pass"]
    first, again = (json_lines(run(*sampled)[1])[0] for _ in range(2))
    assert first["tokens"] == again["tokens"]
    assert first["statistics"]["acceptance_length"] > 0
    assert json_lines(run(*options, "--rule", "rejection")[1])[0]["tokens"] == json_lines(run(*options)[1])[0]["tokens"]


def test_a_seed_is_drawn_and_can_be_used_again(run, model):
    options = ["generate", "hi", "--model", model, "--json", "--temperature", 1.0, "--max-new-tokens", 20]
    first = json_lines(run(*options)[1])[0]
    again = json_lines(run(*options, "--seed", first["seed"])[1])[0]
    assert first["tokens"] == again["tokens"]
    assert json_lines(run(*options)[1])[0]["seed"] != first["seed"]


def test_chat_template_kwargs_must_be_an_object(run, model):
    code, _, err = run("generate", "hi", "--model", model, "--chat-template-kwargs", "[1]")
    assert (code, "not a JSON object" in err) == (2, True)


def test_a_prompt_through_standard_input_is_the_prompt(run, model):
    options = ["generate", "--model", model, "--json", "--max-new-tokens", 5]
    assert (
        json_lines(run(*options, stdin="hello")[1])[0]["tokens"] == json_lines(run(*options, "hello")[1])[0]["tokens"]
    )


def test_a_backbone_without_a_view_decodes_plainly_and_says_how_to_get_one(run, bare):
    code, out, err = run("generate", "hi", "--model", bare, "--json", "--max-new-tokens", 5)
    assert code == 0
    assert json_lines(out)[0]["statistics"]["passes"] == 5
    assert "--adapter" in err
    assert "published Orthrus checkpoint" in err
    code, _, err = run("generate", "hi", "--model", bare, "--cycle", "two-pass")
    assert code == 2
    assert "needs a diffusion view" in err


LONG = "x" * 3000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "prompt is empty"),
        (["generate", "  \n"], "prompt is empty"),
        (["generate", LONG], "the model's context 2048: shorten the prompt"),
        (["generate", "hi", "--temperature", "-1"], "temperature must lie in"),
        (["generate", "hi", "--temperature", "nan"], "temperature must lie in"),
        (["generate", "hi", "--top-p", "0"], "top_p must lie in"),
        (["generate", "hi", "--top-k", "-3"], "top_k must be"),
        (["generate", "hi", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["generate", "hi", "--batch-size", "0"], "batch_size must be at least 1"),
        (["generate", "hi", "--width", "99"], "beyond the block size 8"),
        (["generate", "hi", "--width", "1"], "width must be at least 2"),
        (["generate", "hi", "--cycle", "three-pass"], "cycles: ar, auto, one-pass, two-pass"),
        (["generate", "hi", "--rule", "majority"], "rules: exact, rejection"),
        (["generate", "hi", "--stop-token", "<|nope|>"], "'<|nope|>' is not in the vocabulary"),
        (["generate", "hi", "--stop-token", "4000"], "stop token 4000 is outside the vocabulary"),
        (["generate", "hi", "--stop", ""], "stop string must not be empty"),
        (["generate", "hi", "--file", "x.jsonl"], "not both"),
        (["generate", "--file", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["generate", "hi", "--adapter", "no-such-adapter"], "no adapter here"),
        (["generate", "hi", "--device", "cuda:7"], "cuda"),
        (["bench", "acceptance", "--task", "gsm9k"], "no task 'gsm9k'"),
        (["verify", "--against", "llama.cpp"], "--against takes transformers"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_answered_in_one_message(run, model, arguments, message):
    code, out, err = run(*arguments, "--model", model)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", commands())
def test_every_command_refuses_a_level_of_processors_that_does_not_exist(run, monkeypatch, command):
    monkeypatch.setenv(levels.MARCH, "foo")
    code, out, err = run(command)
    assert code == 2 and out == "" and "ORTHRUS_MARCH='foo'" in err and "native" in err


def test_bad_standard_input(run, model):
    assert "not UTF-8 (byte 2 is 0xff)" in run("generate", "--model", model, stdin=b"ab\xff")[2]
    assert "prompt is empty" in run("generate", "--model", model, stdin="")[2]
    assert (
        "standard input, line 2: not valid JSON"
        in run("generate", "--model", model, "--file", "-", stdin='{"prompt": "a"}\n{')[2]
    )


def test_info_and_doctor(run, model, bare):
    record = json.loads(run("info", model, "--json")[1])
    assert record["family"] == "qwen3"
    assert (record["block_size"], record["trained_rows"]) == (8, 7)
    assert json.loads(run("info", bare, "--json")[1])["diffusion_view"] is None
    code, out, _ = run("doctor", "--model", model, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["bfloat16"]["exact"]
    assert report["float32"]["exact"]
    assert report["float32"]["expected"]["plain"] > 0
    assert report["float32"]["expected"]["auto"] is None  # there was no validation


def test_doctor_says_in_ten_lines_what_runs_how_fast(run, model, bare):
    code, out, _ = run("doctor", "--model", model)
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 10)
    names = [line[:10].strip() for line in lines]
    assert [name for name in names if name] == ["machine", "model", "bfloat16", "float32", "faster", "more"]
    assert sum("bits hold: output is bit-identical" in line for line in lines) == 2
    assert sum("tok/s plain (an estimate)" in line for line in lines) == 2
    out = run("doctor", "--model", bare, "--dtype", "float32")[1]
    assert "no estimate of the speed without a diffusion view" in out
    assert "a diffusion view (--adapter, or `orthrus train`): without one only plain decoding runs" in out
    assert "pad rows to" not in out
    assert "pad rows to" in run("doctor", "--model", bare, "--dtype", "float32", "--verbose")[1]


def test_doctor_compiles_for_this_processor_and_says_which_library_runs(run, model, tmp_path, monkeypatch):
    """The compiler's part is played by a copy of the library that the other tests use."""
    usual = native.load(torch.float32, cache_directory())
    if usual is None:
        pytest.skip("no C compiler on this machine")
    monkeypatch.setattr(compiler, "_failed_build", lambda _, made: shutil.copy(usual.path, made) and None)
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    options = ["doctor", "--model", model, "--dtype", "float32"]
    found = json.loads(run("info", model, "--json")[1])["kernel_library_origin"]
    assert found is None or found.startswith("built ahead, ")
    code, out, _ = run(*options, "--compile", "--json")
    report = json.loads(out)["float32"]
    assert code == 0
    assert report["library"].startswith(f"compiled on this machine, -march=native: {tmp_path}")
    assert [row["rows"] for row in report["compiled"]] in ([1, 16], [])
    out = run(*options, "--compile", "--verbose")[1]
    assert "library: compiled on this machine" in out
    assert ("compiled here: " if report["compiled"] else "no library built ahead") in out


def test_doctor_says_why_it_cannot_compile(run, model, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    code, _, err = run("doctor", "--model", model, "--compile")
    assert code == 2
    assert "'no-such-compiler', which is not there" in err


def test_info_and_doctor_say_what_runs_on_the_reference(run, model, tmp_path):
    path = str(tiny.save_checkpoint(tmp_path / "experts", "qwen3_moe", view=False))
    record = json.loads(run("info", path, "--json")[1])
    assert record["features"] == ["sliding window", "experts"]
    reference = record["reference_features"]
    assert reference["native C"] == ["experts"]
    assert reference.get("Triton", ["sliding window", "experts"]) == ["sliding window", "experts"]
    assert "reference runs in place of native C" in " ".join(run("info", path)[1].split())
    assert json.loads(run("info", model, "--json")[1])["features"] == []
    code, out, _ = run("doctor", "--model", path, "--dtype", "float32", "--verbose")
    assert code == 0
    if "native C" in out:
        assert "experts: the reference implementation runs" in out


def test_verify_passes_and_can_fail(run, model, monkeypatch, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"number {n}"}) for n in range(3)))
    options = [
        "verify",
        "--model",
        model,
        "--task",
        file,
        "--max-new-tokens",
        20,
        "--dtype",
        "bfloat16",
        "--dtype",
        "float32",
    ]
    code, out, _ = run(*options, "--json")
    report = json.loads(out)
    assert code == 0
    assert len(report) == 4
    assert all(c["identical"] == 3 for part in report for c in part["comparisons"])
    assert all(part["bits"]["equal"] == part["bits"]["rows"] > 0 for part in report)

    from orthrus.decoding.rules import exact

    honest = exact.verify

    def generous(checks):
        verdicts = honest(checks)
        for n, (check, verdict) in enumerate(zip(checks, verdicts, strict=True)):
            if check.draft.tokens:
                tokens = [check.draft.tokens[0], *(verdict.tokens[1:] or verdict.tokens)]
                verdicts[n] = exact.Verdict(tokens, verdict.path or [0])
        return verdicts

    monkeypatch.setattr(exact, "verify", generous)
    code, out, _ = run(*options)
    assert code == 1
    assert "token" in out


def test_verify_compares_the_distributions_of_both_rules(run, model, monkeypatch):
    code, out, _ = run("verify", "--model", model, "--samples", 40, "--dtype", "float32", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["same"]
    assert record["agreements"][-1]["what"] == "tokens 1 to 4 together"
    monkeypatch.setattr(
        distribution, "first_tokens", lambda _model, _prompt, options, n: iter([(options["cycle"] == "ar",)] * n)
    )
    code, out, _ = run("verify", "--model", model, "--samples", 40)
    assert code == 1
    assert "DIFFER" in out


def test_verify_against_transformers(run, model, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "number"}))
    code, out, _ = run("verify", "--model", model, "--task", file, "--against", "transformers", "--dtype", "float32")
    assert code == 0
    assert "100%" in out


def test_bench_acceptance_reports_with_provenance(run, model, monkeypatch):
    prompts = tasks.load("spec_bench", 6)
    monkeypatch.setattr(
        tasks, "load", lambda task, limit: [tasks.TaskPrompt(p.id, p.part, p.prompt[:200]) for p in prompts]
    )
    code, out, _ = run(
        "bench", "acceptance", "--task", "spec_bench", "--model", model, "--max-new-tokens", 10, "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert [row["part"] for row in report["acceptance"]][-1] == "spec_bench, all"
    assert report["provenance"]["backbone_sha256"]
    assert report["provenance"]["machine"]["threads"] >= 1


def spawn(*arguments, **options):
    """A process that obeys Ctrl-C even if the suite itself was started in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "orthrus", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_closed_pipe_ends_quietly(model):
    process = spawn(
        "generate",
        "hi",
        "--model",
        model,
        "--max-new-tokens",
        2000,
        "--raw",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


def test_ctrl_c_keeps_the_text_so_far(model):
    slow = {**os.environ, "CC": "/nonexistent"}  # no native kernels, and a small pipe buffer:
    process = spawn("generate", "hi", "--model", model, "--max-new-tokens", 2000, "--raw", env=slow)
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # the process still runs, or blocks on the pipe, when the signal arrives
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    first = os.read(process.stdout.fileno(), 1)  # a buffered read would empty the pipe, and let the process finish
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert first + rest
    assert b"interrupted" in err
    assert b"Traceback" not in err


def test_demo_highlights_drafts_and_compares(run, model):
    code, out, _ = run("demo", "hello", "--model", model, "--max-new-tokens", 20)
    assert code == 0
    assert "accepted drafts, in [brackets]" in out
    assert "identical: 20 of 20 tokens compared" in out
    assert "key/value cache" in out


def test_measuring_the_cost_of_exactness_leaves_the_model_exact(tmp_path):
    model = orthrus.load(str(tiny.save_checkpoint(tmp_path / "model")), dtype="float32")
    before = model.generate("hi", max_new_tokens=30, cycle="two-pass").tokens
    rules = [linear.rule for linear in model.decoder.linears().values()]
    cost = measure.exactness_cost(model, context=20, n=3)
    assert cost["ratio"] > 0
    assert rules == [linear.rule for linear in model.decoder.linears().values()]
    assert model.generate("hi", max_new_tokens=30, cycle="ar").tokens == before


def test_explain_plan_prints_costs_and_cycles(run, model):
    options = ["generate", "hi", "--model", model, "--max-new-tokens", 40]
    code, _, err = run(*options, "--explain-plan")
    assert code == 0
    assert all(
        words in err
        for words in ("milliseconds per pass", "cycles by shape", "Expected from the cost table", "fell back")
    )
    code, _, err = run(*options, "--explain-plan", "--cycle", "two-pass")
    assert (code, "needs --cycle auto" in err) == (2, True)


def test_a_collapse_prints_a_warning(run, model, monkeypatch):
    from orthrus.decoding.plan import PassPlan
    from orthrus.decoding.planning.planner import Planner

    monkeypatch.setattr(Planner, "plan", lambda _planner, batch: [PassPlan(width=8) for _ in batch])
    monkeypatch.setattr(Planner, "learn", lambda *_: None)
    code, _, err = run("generate", "hi", "--model", model, "--max-new-tokens", 40)
    assert (code, "drafting hardly pays on this text" in err) == (0, True)
    assert "no draft was tried" in err
    assert "right 0%" not in err  # nothing was drafted, so nothing was wrong


def test_calibration_is_printed_and_cached(run, model):
    report = json.loads(run("doctor", "--model", model, "--dtype", "float32", "--calibrate", "--json")[1])
    passes = report["float32"]["passes"]
    assert [rows for rows, _ in passes["rows"]][:4] == [1, 2, 4, 8]
    assert orthrus.load(str(model), dtype="float32").costs().as_dict() == CostModel.of(passes).as_dict()


def test_speed_has_every_setting_and_a_plot(run, model, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(json.dumps({"prompt": f"count {n}"}) for n in range(3)))
    options = ["bench", "speed", "--task", task, "--model", model, "--limit", 2, "--max-new-tokens", 20]
    settings = ["ar", "two-pass/4", "one-pass:2", "auto"]
    more = [part for setting in settings for part in ("--setting", setting)]
    code, out, _ = run(*options, *more, "--plot", tmp_path / "speed.png", "--json")
    rows = json.loads(out)["speed"]
    assert code == 0
    assert [row["setting"] for row in rows] == settings
    assert all(row["identical"] == row["prompts"] == 2 for row in rows)
    assert all(row["expected"] > 0 for row in rows)
    assert (tmp_path / "speed.png").stat().st_size > 5000
    assert rows[0]["passes"] == rows[0]["generated"]
    code, _, err = run(*options, "--setting", "one-pass:x")
    assert (code, "is no setting" in err) == (2, True)
    code, _, err = run(*options, "--setting", "two-pass:2")
    assert (code, "only with cycle one-pass" in err) == (2, True)


@pytest.mark.parametrize(("spread", "noted"), [(0.02, False), (0.4, True)])
def test_speed_says_that_other_programs_disturbed_the_cost_table(run, model, tmp_path, monkeypatch, spread, noted):
    costs = replace(tiny.random_costs(1), spread=spread)
    monkeypatch.setattr(orthrus.Model, "costs", lambda self, *, refresh=False: costs)
    (tmp_path / "task.jsonl").write_text(json.dumps({"prompt": "count"}))
    options = ["--model", model, "--max-new-tokens", 4, "--setting", "ar", "--json"]
    code, _, err = run("bench", "speed", "--task", tmp_path / "task.jsonl", *options)
    assert (code, "orthrus doctor --calibrate" in err) == (0, noted)


DISTURBED = "other programs were busy while passes were timed"


@pytest.mark.parametrize("verb", ["generate", "chat", "demo"])
@pytest.mark.parametrize(("spreads", "noted"), [((0.02,), False), ((0.4, 0.5), True)])
def test_verbs_that_plan_say_that_other_programs_disturbed_the_cost_table(
    run, model, tmp_path, monkeypatch, verb, spreads, noted
):
    """`generate` measures after its answer; a second one plans by the table of the first."""
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    tables = [replace(tiny.random_costs(1), spread=spread) for spread in spreads]
    monkeypatch.setattr(calibration, "measure", lambda runner, interrupted=None: tables.pop(0))
    asked = ([] if verb == "chat" else ["count"], ["--model", model, "--dtype", "float32", "--max-new-tokens", 4])
    for _ in range(2):
        code, _, err = run(verb, *asked[0], *asked[1], stdin="/exit\n")
        assert (code, DISTURBED in err) == (0, noted)


def test_calibrating_in_a_disturbed_minute_keeps_the_calm_table_and_says_so(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    tables = [replace(tiny.random_costs(1), spread=spread) for spread in (0.02, 0.6)]
    monkeypatch.setattr(calibration, "measure", lambda runner, interrupted=None: tables.pop(0))
    asked = ["doctor", "--model", model, "--dtype", "float32", "--calibrate", "--json"]
    assert DISTURBED not in run(*asked)[2]
    _, out, err = run(*asked)
    assert json.loads(out)["float32"]["passes"]["spread"] == 0.02
    assert f"{DISTURBED} again (spread 0.60), so the cost table of before stays (spread 0.02)" in err


@pytest.mark.parametrize(("foreign", "noted"), [(0.1, False), (1.3, True)])
def test_a_benchmark_says_that_other_programs_ran_beside_it(run, model, tmp_path, monkeypatch, foreign, noted):
    begin = LoadReading(0.0, 0.0, 0.0)
    readings = [begin, LoadReading(10.0, 9.0, 9.0 + 10 * foreign)]
    monkeypatch.setattr(calibration, "measure", lambda runner, interrupted=None: tiny.random_costs(1))
    monkeypatch.setattr(machine_load, "read", lambda: readings.pop(0))
    monkeypatch.setattr(machine_load, "usable_processors", lambda: 2)
    monkeypatch.setattr(torch_threads, "kernel_threads", lambda: 2)
    monkeypatch.setattr(torch_threads, "on_one", nullcontext)  # which would leave torch two threads
    (tmp_path / "task.jsonl").write_text(json.dumps({"prompt": "count"}))
    asked = ["--task", tmp_path / "task.jsonl", "--model", model, "--max-new-tokens", 4, "--setting", "ar", "--json"]
    code, out, err = run("bench", "speed", *asked)
    assert (code, f"other programs kept {foreign} of 2 processors busy while this was timed" in err) == (0, noted)
    assert json.loads(out)["provenance"]["foreign_processors"] == pytest.approx(foreign)


@pytest.mark.parametrize(("seconds", "doubted"), [(2.0, False), (2.7, False), (9.0, True), (0.9, True)])
def test_a_speed_that_the_cost_table_does_not_explain_is_doubted(seconds, doubted):
    """100 tokens, of which the first takes half a second and the others should take 1.5 seconds."""
    row = Speed("gsm8k", "ar", 4, 400, 0.0, 1.0, 400, 1.0, 1.0, 100 / seconds, (0.0, 0.0), 1.0, (1.0, 1.0), 99 / 1.5,
                4, 0.5, (0.0, 0.0), 0)  # fmt: skip
    assert bool(speed.doubts([row, replace(row, setting="auto", speed=1.0)])) == doubted
    assert speed.doubts([replace(row, generated=4, expected=0.0)]) == []


def test_memory_of_a_cycle_is_the_same_at_any_context(run, model):
    code, out, _ = run("bench", "memory", "--model", model, "--context", 100, "--context", 1124, "--json")
    near, far = json.loads(out)["memory"]
    assert code == 0
    assert (near["two_pass"], near["one_pass"]) == (far["two_pass"], far["one_pass"])
    assert near["cache"] < far["cache"]


def test_a_simulation_says_that_it_is_one(run, tmp_path):
    code, out, _ = run("bench", "simulate", "--acceptance", 6, "--width", 8, "--batch", 1, "--plot", tmp_path / "s.png")
    assert (code, "modelled" in out) == (0, True)
    assert (tmp_path / "s.png").stat().st_size > 5000
    setting = ["bench", "simulate", "--acceptance", 6, "--width", 8, "--batch", 1]
    outs = [run(*setting, name, 0.1)[1] for name in ("--miss-factor", "--astray")]
    assert outs[0] == outs[1] != out
    code, out, _ = run(*setting, "--planner-tokens", 40)
    assert (code, "regret" in out) == (0, True)
    code, _, err = run("bench", "simulate", "--shape", "gpt-9")
    assert (code, "shapes: qwen3-0.6b" in err) == (2, True)


def test_a_replay_has_every_cycle(run, model, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"prompt": "count"}))
    code, out, _ = run("bench", "replay", "--task", task, "--model", model, "--max-new-tokens", 12)
    assert code == 0
    assert all(words in out for words in ("two-pass", "1 candidates", "all candidates", "auto", "speed-up"))
