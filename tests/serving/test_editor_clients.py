"""What editors send, by their sources, and what they read from the answer. The sources are those of Continue at
d0a3c0b, Zed at 09512d2, llama.vim at a1c8e6e and minuet-ai.nvim at 479487c."""

from __future__ import annotations

import json
import re

import in_loop
import pytest

from orthrus.serving.settings import ServeSettings

NAME = "qwen2.5-coder:0.5b"
BEFORE, AFTER = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
WRITTEN = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"


@pytest.fixture(scope="module")
def server(coder):
    settings = ServeSettings(served_model_name=NAME, cycle="one-pass", api_keys=("secret",))
    transport = in_loop.InLoop(coder, settings)
    yield transport
    transport.end()


@pytest.fixture(scope="module")
def filled(coder):
    """What the model writes between the two texts."""
    return lambda tokens, **options: coder.generate(BEFORE, suffix=AFTER, max_new_tokens=tokens, **options).text


def send(server, method, path, body=None, **headers):
    """A request with these bytes and headers, and those that HTTP needs. Returns the text of the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = server.http.request(method, path, content=body, headers={**named, "Authorization": "Bearer secret"})
    assert response.status_code == 200, response.text
    return response.text


def javascript(value):
    """As JSON.stringify writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def test_continue_finds_that_the_model_fills_gaps_and_asks_ollama(server):
    """core/llm/llms/Ollama.ts: ensureModelInfo, _streamFim and listModels."""
    tags = json.loads(send(server, "GET", "/api/tags", Content_Type="application/json"))
    assert [model["name"] for model in tags["models"]] == [NAME]
    shown = json.loads(send(server, "POST", "/api/show", javascript({"name": NAME}), Content_Type="application/json"))
    assert ".Suffix" in shown["template"]
    parameters = [re.match(r'^(\S+)\s+((?:".*")|\S+)$', line).groups() for line in shown["parameters"].split("\n")]
    assert parameters == [("num_ctx", "2048")]
    stops = [
        "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
        "<|file_sep|>", "<|im_start|>", "<|im_end|>", "/src/", "#- coding: utf-8", "```",
    ]  # fmt: skip
    options = {"temperature": 0.01, "num_predict": 24, "stop": stops, "num_ctx": 2048}
    body = {"model": NAME, "prompt": BEFORE, "suffix": AFTER, "options": options, "keep_alive": 1800}
    text = send(server, "POST", "/api/generate", javascript(body), Content_Type="application/json")
    *chunks, rest = text.split("\n")
    assert rest == "", "each object ends with a line break"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert all(isinstance(chunk["response"], str) for chunk in parsed)
    assert parsed[-1]["eval_count"] == 24 or parsed[-1]["done_reason"] == "stop"
    assert parsed[-1]["prompt_eval_count"] == len((BEFORE + AFTER).encode()) + 3
    assert [chunk["done"] for chunk in parsed] == [False] * (len(parsed) - 1) + [True]


def test_continue_chats(server, coder):
    """core/llm/llms/Ollama.ts: _streamChat."""
    body = {
        "model": NAME, "messages": [{"role": "user", "content": "hello"}],
        "options": {"num_predict": 8, "num_ctx": 2048}, "keep_alive": 1800, "stream": True,
    }  # fmt: skip
    text = send(server, "POST", "/api/chat", javascript(body), Content_Type="application/json")
    messages = [json.loads(line)["message"] for line in text.splitlines()]
    assert {message["role"] for message in messages} == {"assistant"}
    alone = coder.generate([{"role": "user", "content": "hello"}], max_new_tokens=8)
    assert "".join(message["content"] for message in messages) == alone.text


ZED_STOPS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]


def test_zed_writes_the_tokens_itself_and_asks_ollama(server):
    """crates/edit_prediction/src/fim.rs and ollama.rs."""
    options = {"num_predict": 20, "temperature": 0.2, "stop": ZED_STOPS}
    body = {"model": NAME, "prompt": WRITTEN, "raw": True, "stream": False, "options": options}
    answer = json.loads(send(server, "POST", "/api/generate", javascript(body), Content_Type="application/json"))
    assert isinstance(answer["created_at"], str) and isinstance(answer["response"], str)
    assert answer["prompt_eval_count"] == len((BEFORE + AFTER).encode()) + 3


def test_zed_asks_a_server_of_openais_api(server, filled):
    """crates/edit_prediction/src/open_ai_compatible.rs; `environment` is left out where it is None."""
    body = {"model": NAME, "prompt": WRITTEN, "max_tokens": 20, "stop": ZED_STOPS}
    answer = json.loads(send(server, "POST", "/v1/completions", javascript(body), Content_Type="application/json"))
    assert answer["choices"][0]["text"] == filled(20) and isinstance(answer["id"], str)


def test_zed_lists_models_and_asks_what_they_can_do(server):
    """crates/ollama/src/ollama.rs: get_models, show_model."""
    models = json.loads(send(server, "GET", "/api/tags", Accept="application/json"))["models"]
    assert [type(models[0][name]) for name in ("name", "modified_at", "size", "digest")] == [str, str, int, str]
    details = models[0]["details"]
    assert all(isinstance(details[name], str) for name in ("format", "family", "parameter_size", "quantization_level"))
    shown = json.loads(send(server, "POST", "/api/show", javascript({"model": NAME}), Content_Type="application/json"))
    assert "tools" in shown["capabilities"]


def test_zed_chats_with_tools(server):
    """crates/ollama/src/ollama.rs: ChatRequest, whose empty fields are null."""
    tool = {"type": "function", "function": {"name": "look", "description": None, "parameters": None}}
    options = {"num_ctx": 2048, "num_predict": None, "stop": [], "temperature": 1.0, "top_p": None}
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "", "thinking": None,
         "tool_calls": [{"function": {"name": "look", "arguments": {}}}]},
        {"role": "tool", "tool_name": "look", "content": "a house"}, {"role": "user", "content": "and now"},
    ]  # fmt: skip
    body = {
        "model": NAME, "messages": messages, "stream": True, "keep_alive": -1, "options": {**options, "num_predict": 6},
        "tools": [tool], "think": None,
    }  # fmt: skip
    text = send(server, "POST", "/api/chat", javascript(body), Content_Type="application/json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line["message"]["role"] == "assistant" and isinstance(line["message"]["content"], str) for line in lines)
    assert lines[-1]["done"] and lines[-1]["eval_count"] == 6 and lines[-1]["prompt_eval_count"] > 0


VIM = {"id_slot": 0, "stream": False, "cache_prompt": True, "model": ""}


def test_llama_vim_fills_gaps(server, coder):
    """autoload/llama.vim: llama#fim and s:fim_on_response. It sends no temperature, so the model's own counts."""
    before, line = BEFORE.split("\n")
    fields = [
        "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms", "timings/prompt_per_second",
        "timings/predicted_n", "timings/predicted_ms", "timings/predicted_per_token_ms", "timings/predicted_per_second",
        "truncated", "tokens_cached",
    ]  # fmt: skip
    other = {"text": "x = 1\ny = 2\n", "time": [123, 456], "filename": "other.py"}
    body = {
        **VIM, "input_prefix": before + "\n", "input_suffix": AFTER, "input_extra": [other], "prompt": line,
        "n_predict": 24, "stop": [], "n_indent": 0, "top_k": 40, "top_p": 0.90,
        "samplers": ["top_k", "top_p", "infill"], "t_max_prompt_ms": 500, "t_max_predict_ms": 10**6,
        "response_fields": fields,
    }  # fmt: skip
    text = send(server, "POST", "/infill", json.dumps(body).encode(), Content_Type="application/json")
    assert re.match(r"^\s*{", text) and re.search(r'"content"\s*:"', text), "what llama.vim looks for before it parses"
    answer = json.loads(text)
    assert set(answer) == set(fields)
    prompt = coder.fill_in_middle.prompt(BEFORE, AFTER, files=[("other.py", "x = 1\ny = 2\n")])
    alone = coder.generate(list(prompt), max_new_tokens=24)
    assert (answer["content"], answer["timings/predicted_n"]) == (alone.text, len(alone.tokens))


def test_llama_vim_reads_chunks_into_the_cache(server):
    """autoload/llama.vim: s:ring_update."""
    other = {"text": "x = 1\n", "time": [1, 2], "filename": "other.py"}
    body = {
        **VIM, "input_prefix": "", "input_suffix": "", "input_extra": [other], "prompt": "", "n_predict": 0,
        "temperature": 0.0, "samplers": [], "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""],
    }  # fmt: skip
    assert send(server, "POST", "/infill", json.dumps(body).encode(), Content_Type="application/json") == "{}"


def test_minuet_streams_completions_with_a_suffix(server, filled):
    """lua/minuet/backends/openai_base.lua and utils.lua: stream_decode, whose lines begin with `data:`."""
    body = {"model": NAME, "stream": True, "max_tokens": 24, "top_p": 0.9, "prompt": BEFORE, "suffix": AFTER}
    kinds = {"Content_Type": "application/json", "Accept": "application/json"}
    text = send(server, "POST", "/v1/completions", json.dumps(body).encode(), **kinds)
    found = ""
    for line in text.split("\n"):
        try:
            found += json.loads(re.sub("^data:", "", line))["choices"][0]["text"]
        except ValueError:
            continue
    assert found == filled(24)
