"""The options of `orthrus generate`: their effect, the statistics below the text, and errors before loading."""

from __future__ import annotations

import importlib
import io
import json
import re
import time

import pytest
import tiny
import torch
from rich.console import Console

import orthrus
from orthrus import api
from orthrus.cli import _shared
from orthrus.cli._footer import Clock, print_footer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("generate") / "model"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("generate") / "bare", view=False))


@pytest.fixture(scope="module")
def model(path):
    return orthrus.load(path)


@pytest.fixture(autouse=True)
def _own_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tokens(run, path, *options):
    code, out, err = run("generate", "--model", path, "--json", "--cycle", "two-pass", *options)
    assert code == 0, err
    return json.loads(out)["tokens"]


def test_short_option_names_work(run, path, model):
    truth = model.generate("hi", max_new_tokens=7).tokens
    for options in (["hi", "-n", 7], ["-p", "hi", "--max-tokens", 7], ["--prompt", "hi", "--max-new-tokens", 7]):
        assert tokens(run, path, *options) == truth


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--presence-penalty", 1.5], {"presence_penalty": 1.5}),
        (["--frequency-penalty", 1.5], {"frequency_penalty": 1.5}),
        (["--logit-bias", "65=100"], {"logit_bias": {65: 100}}),
        (["--logit-bias", "A=100", "--logit-bias", "<unused300>=-2"], {"logit_bias": {32: 100, 300: -2}}),
        (["--min-new-tokens", 30, "--stop-token", "A", "--logit-bias", "A=100"],
         {"min_new_tokens": 30, "stop_token_ids": [32], "logit_bias": {32: 100}}),
    ],
)  # fmt: skip
def test_penalties_bias_and_minimum_length(run, path, model, options, given):
    assert model.tokenizer("A").input_ids == [32]
    truth = model.generate("hi", max_new_tokens=40, **given).tokens
    assert tokens(run, path, "hi", "-n", 40, *options) == truth
    assert truth != model.generate("hi", max_new_tokens=40).tokens


def test_the_context_can_be_smaller(run, path, model):
    prompt = len(model.prompt_tokens("hi", {}))
    assert len(tokens(run, path, "hi", "-c", prompt + 3)) == 3
    code, _, err = run("generate", "hi", "--model", path, "--ctx-size", 2049)
    assert (code, "context size 2049 is beyond the model's context of 2048 tokens" in err) == (2, True)


def test_threads_are_set(run, path):
    tokens(run, path, "hi", "-n", 3, "-t", 1)
    assert torch.get_num_threads() == 1


def test_the_footer_tells_prompt_and_answer_apart(run, path, tmp_path):
    code, _, err = run("generate", "hi", "--model", path, "-n", 5, "--temperature", 1, "--seed", 7)
    assert code == 0
    number, speed = r"\d+\.\d\d s", r"\d+\.\d tokens/s"
    assert re.search(rf"prompt: \d+ tokens read in {number} \({speed}\), first token after {number}", err)
    ended = "ended by length, seed 7, temperature 1"
    assert re.search(rf"5 tokens in \d+ passes \(\d\.\d\d per pass\), {number}, {speed}, {ended}", err)
    assert "kernels" not in err
    file = tmp_path / "two.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}')
    code, out, err = run("generate", "--file", file, "--model", path, "-n", 5)
    assert (code, out.count("---")) == (0, 2)
    assert "2 prompts: " in err
    assert "10 tokens in " in err
    assert "ended by length 2" in err


def test_generate_and_chat_sample_as_the_checkpoint_recommends_and_say_so(run, tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model", template=tiny.CHAT)
    (path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.9, "top_k": 7}')
    options = ("--model", path, "-n", 12, "--seed", 5)
    model = orthrus.load(path)
    sampled = model.generate("hi", max_new_tokens=12, temperature=0.9, top_k=7, seed=5)
    code, out, err = run("generate", "hi", *options, "--json")
    assert (code, json.loads(out)["tokens"]) == (0, sampled.tokens)
    assert "seed 5, temperature 0.9, top_k 7" in run("generate", "hi", *options)[2]
    code, out, err = run("generate", "hi", *options, "--temperature", 0)
    assert (out.strip("\n"), "greedy" in err) == (model.generate("hi", max_new_tokens=12).text.strip("\n"), True)
    assert "sampling: temperature 0.9, top_k 7" in run("chat", *options, stdin="")[2]
    assert "sampling: greedy" in run("chat", *options, "--temperature", 0, stdin="")[2]


def test_a_footer_is_two_lines_however_narrow_the_pipe(model):
    shown = io.StringIO()
    results = model.generate(["a", "b"], max_new_tokens=3, cycle="ar")
    print_footer(Console(file=shown, width=40), results, Clock(), sampling="temperature 1")
    assert [len(line) > 40 for line in shown.getvalue().splitlines()] == [True, True]


def test_verbose_prints_what_ran(run, path):
    for options in ([], ["--json"]):
        code, _, err = run("generate", "hi", "--model", path, "-n", 30, "--cycle", "two-pass", "--verbose", *options)
        assert code == 0
        for words in (
            "model: <orthrus.Model ",
            "kernels: ",
            "context 2048",
            "elementwise kernels: ",
            "cycles: two-pass ",
        ):
            assert words in err
        assert re.search(r"loaded: in \d+\.\d\d s; \d+ threads?;", err)
        assert re.search(r"accepted: \d\.\d\d drafts per cycle; by offset [01]\.\d\d ", err)


def test_answers_can_be_constrained(run, path, model, tmp_path):
    schema, grammar, tools = {"type": "object", "maxProperties": 0}, 'start: "x"+ "y"', [{"function": {"name": "now"}}]
    for name, content in (("schema", json.dumps(schema)), ("grammar", grammar), ("tools", json.dumps(tools))):
        (tmp_path / name).write_text(content)
    for options, given in [
        (["--json-schema", tmp_path / "schema"], {"json_schema": schema}),
        (["--json-schema", json.dumps(schema)], {"json_schema": schema}),
        (["--json-object"], {"json_object": True}),
        (["--regex", "[a-f]{4}"], {"regex": "[a-f]{4}"}),
        (["--grammar", tmp_path / "grammar"], {"grammar": grammar}),
        (["--tools", tmp_path / "tools", "--tool-choice", "now"], {"tools": tools, "tool_choice": "now"}),
    ]:
        truth = model.generate("hi", max_new_tokens=30, **given)
        code, out, err = run("generate", "hi", "--model", path, "--json", "-n", 30, "--logprobs", 2, *options)
        assert code == 0, err
        printed = json.loads(out)
        assert (printed["tokens"], printed["finish_reason"]) == (truth.tokens, truth.finish_reason)
        assert [one["token"] for one in printed["logprobs"]] == truth.tokens
        assert all(len(one["top"]) == 2 for one in printed["logprobs"])


BAD = [
    (["hi", "--json-schema", "nowhere.json"], "--json-schema: nowhere.json cannot be read"),
    (["hi", "--json-schema", "{"], "json_schema is no JSON"),
    (["hi", "--grammar", "nowhere.lark"], "--grammar: nowhere.lark cannot be read"),
    (["hi", "--tool-choice", "required"], "tool_choice 'required' needs tools"),
    (["hi", "--regex", "a", "--json-object"], "json_object and regex exclude each other"),
    (["hi", "--logprobs", "2"], "--logprobs needs --json"),
    (["", "-p", "x"], "give the prompt once"),
    (["hi", "-n", "0"], "max_new_tokens must be at least 1"),
    (["hi", "--temperature", "-1"], "temperature must lie in"),
    (["hi", "--top-p", "0"], "top_p must lie in"),
    (["hi", "--top-k", "-1"], "top_k must be 0 (off) or positive"),
    (["hi", "--min-p", "2"], "min_p must lie in"),
    (["hi", "--repetition-penalty", "0"], "repetition_penalty must lie in"),
    (["hi", "--presence-penalty", "9"], "presence_penalty must lie in"),
    (["hi", "--frequency-penalty", "9"], "frequency_penalty must lie in"),
    (["hi", "--min-new-tokens", "-1"], "min_new_tokens must not be negative"),
    (["hi", "--seed", "-1"], "seed must lie in"),
    (["hi", "--logit-bias", "x"], "--logit-bias takes ID_OR_TEXT=VALUE, such as 42=-5 or '<|im_end|>=2', not 'x'"),
    (["hi", "--logit-bias", "=2"], "--logit-bias takes ID_OR_TEXT=VALUE"),
    (["hi", "--logit-bias", "2="], "--logit-bias takes ID_OR_TEXT=VALUE"),
    (["hi", "--logit-bias", "a=inf"], "--logit-bias a=inf: "),
    (["hi", "--stop", ""], "stop string must not be empty"),
    (["hi", "--cycle", "three-pass"], "cycles: ar, auto, one-pass, two-pass"),
    (["hi", "--rule", "majority"], "rules: exact, rejection"),
    (["hi", "--width", "1"], "width must be at least 2"),
    (["hi", "--batch-size", "0"], "batch_size must be at least 1"),
    (["hi", "-t", "0"], "--threads must lie in 1..1024, not 0"),
    (["hi", "-t", "99999"], "--threads must lie in 1..1024, not 99999"),
    (["hi", "-c", "0"], "--ctx-size must be at least 1, not 0"),
    (["hi", "--explain-plan", "--cycle", "ar"], "--explain-plan needs --cycle auto"),
    (["hi", "--chat-template-kwargs", '{"tokenize": 1}'], "chat_template_kwargs may not hold 'tokenize'"),
    (["hi", "--chat-template-kwargs", '{"messages": 1}'], "chat_template_kwargs may not hold 'messages'"),
    (["hi", "--chat-template-kwargs", "[1]"], "--chat-template-kwargs: not a JSON object"),
    (["hi", "--chat-template-kwargs", ""], "--chat-template-kwargs: not valid JSON"),
    (["hi", "--raw", "--system", "s"], "raw leaves the chat template out, so there is no place for system"),
    (["hi", "--raw", "--chat-template-kwargs", '{"a": 1}'], "no place for chat_template_kwargs"),
    (["--file", "missing.jsonl"], "missing.jsonl"),
    (["--file", "roles.jsonl"], "prompt 2 of 2: message 1 of 1 has the role 'alien'; roles: system, user, assistant"),
    (["--file", "roles.jsonl", "--raw"], "prompt 2 of 2: "),
    (["--file", "empty.jsonl"], "prompt 2 of 2: the prompt is empty"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:50])
def test_settings_are_checked_before_a_model_loads(run, monkeypatch, tmp_path, arguments, message):
    def load(*_args, **_kwargs):
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr(api, "load", load)
    monkeypatch.chdir(tmp_path)
    alien = {"messages": [{"role": "alien", "content": "x"}]}
    (tmp_path / "roles.jsonl").write_text(f'{{"prompt": "a"}}\n{json.dumps(alien)}')
    (tmp_path / "empty.jsonl").write_text('{"prompt": "a"}\n{"prompt": " "}')
    code, out, err = run("generate", *arguments)
    assert code in (1, 2)
    assert message in err
    assert not out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "--temperature", "-1"], "temperature must lie in"),
        (["chat", "--cycle", "x"], "cycles: ar, auto"),
        (["chat", "--rule", "x"], "rules: exact"),
        (["verify", "--cycle", "x"], "cycles: ar, auto"),
        (["verify", "--temperature", "-1"], "temperature must lie in"),
        (["verify", "--seed", "-1"], "seed must lie in"),
        (["verify", "--task", "gsm9k"], "no task 'gsm9k'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_commands_check_before_a_model_loads_too(run, monkeypatch, arguments, message):
    def load(*_args, **_kwargs):
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr(api, "load", load)
    code, _, err = run(*arguments)
    assert (code, message in err) == (2, True)


def test_an_unknown_token_is_named(run, path):
    code, _, err = run("generate", "hi", "--model", path, "--logit-bias", "hello=1")
    assert (code, "token 'hello' is not in the vocabulary; give its exact text or its id" in err) == (2, True)


def test_missing_native_kernels_are_reported_once(run, path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    for verb, options in (("generate", ["hi", "-n", 3]), ("chat", [])):
        _, _, err = run(verb, *options, "--model", path)
        assert err.count("note: no C compiler: $CC names 'no-such-compiler'") == 1
    monkeypatch.delenv("CC")
    assert "note: no C compiler" not in run("generate", "hi", "-n", 3, "--cycle", "ar", "--model", path)[2]


def test_measuring_costs_is_reported_while_it_runs(run, path, monkeypatch):
    shown = io.StringIO()
    importlib.import_module("orthrus.cli.generate")  # else it would keep the console of this test
    monkeypatch.setattr(_shared, "stderr", Console(file=shown))
    honest = api.Model.costs

    def slow(model, **options):
        for _ in range(1000):  # up to ten seconds; the message appears after 0.3 s
            if "measuring the cost of passes on this machine (a few seconds)" in shown.getvalue():
                return honest(model, **options)
            time.sleep(0.01)
        raise AssertionError("no message was printed")

    monkeypatch.setattr(api.Model, "costs", slow)
    assert run("generate", "hi", "-n", 3, "--model", path)[0] == 0
    monkeypatch.setattr(
        api.Model, "costs", lambda *_, **__: pytest.fail("the costs are measured although nothing is planned")
    )
    assert run("generate", "hi", "-n", 3, "--model", path, "--cycle", "two-pass")[0] == 0


def test_help_shows_defaults(run):
    for verb, default in (("generate", "(torch's)"), ("verify", "(three tasks)"), ("train", "(2, with --head-only 4)")):
        out = run(verb, "--help")[1]
        assert default in " ".join(out.replace("│", " ").split())


def test_verify_without_a_view_verifies_plain_decoding(run, bare, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "number"}')
    options = ["verify", "--model", bare, "--task", task, "--max-new-tokens", 12]
    for more in ([], ["--cycle", "ar"]):
        code, out, err = run(*options, "--json", *more)
        assert code == 0, err
        assert "no diffusion view: plain decoding alone is verified" in err
        for part in json.loads(out):
            (comparison,) = part["comparisons"]
            assert (comparison["name"], comparison["identical"], comparison["tokens"]) == ("ar", 1, 12)
            assert part["bits"]["equal"] == part["bits"]["rows"] == 11
    code, _, err = run(*options, "--cycle", "ar", "--cycle", "one-pass")
    assert (code, "cycle 'one-pass' needs a diffusion view; this checkpoint has none" in err) == (2, True)
    code, _, err = run("verify", "--model", bare, "--samples", 4)
    assert (code, "--samples compares the rule `rejection`, which needs a diffusion view" in err) == (2, True)


def test_the_footer_says_how_many_prompts_were_decoded_together(run, path):
    lines = "\n".join(f'{{"prompt": "say {n}"}}' for n in range(3))
    code, _, err = run("generate", "--model", path, "--file", "-", "-n", 3, "--cycle", "two-pass", stdin=lines)
    assert code == 0
    assert re.search(r"3 prompts: \d+ tokens, 3 prompts at a time", err), err


def test_a_dash_as_the_prompt_reads_standard_input(run, path):
    asked = ["--model", path, "--max-new-tokens", 4, "--json"]
    answers = [run("generate", *argument, *asked, stdin="count to three") for argument in ([], ["-"])]
    texts = [json.loads(out)["tokens"] for _, out, _ in answers]
    assert texts[0] == texts[1]
    assert texts[0] != json.loads(run("generate", "--prompt", "-", *asked)[1])["tokens"]


def test_measuring_after_an_answer_can_be_left_to_the_next_run(run, path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api.Model, "assume_costs", lambda _: True)
    monkeypatch.setattr(api.Model, "costs", interrupted)
    monkeypatch.setattr(api.Model, "_costs_for", lambda *_: tiny.random_costs(1))
    code, out, err = run("generate", "hi", "--model", path, "-n", 3, "--json")
    assert (code, len(json.loads(out)["tokens"])) == (0, 3)
    assert "interrupted" not in err
