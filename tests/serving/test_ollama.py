"""The subset of Ollama's API: its answers are what the model generates, and other fields are refused by name."""

from __future__ import annotations

import json

import in_loop
import pytest

from orthrus.serving import ollama
from orthrus.serving.settings import ServeSettings

BEFORE, AFTER = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(coder):
    transport = in_loop.InLoop(coder, ServeSettings(served_model_name="tiny:1m", cycle="one-pass", infill_tokens=200))
    yield transport
    transport.end()


def post(server, path, body, status=200):
    response = server.http.post(path, json=body)
    assert response.status_code == status, response.text
    if body.get("stream") is False or status != 200:
        return response.json()
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


GENERATE = [
    ({"prompt": "abc", "raw": True}, ("abc",), {"raw": True}),
    ({"prompt": "abc", "system": "be brief"}, ("abc",), {"system": "be brief"}),
    ({"prompt": BEFORE, "suffix": AFTER}, (BEFORE,), {"suffix": AFTER}),
]


@pytest.mark.parametrize(("body", "prompt", "options"), GENERATE)
def test_generate_is_what_the_model_generates(server, coder, body, prompt, options):
    given = {
        "temperature": 0.9, "seed": 7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "num_predict": 14,
        "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "num_ctx": 8192, "num_thread": 4,
    }  # fmt: skip
    alone = coder.generate(
        *prompt, temperature=0.9, seed=7, top_k=40, top_p=0.9, min_p=0.01, max_new_tokens=14, repetition_penalty=1.1,
        presence_penalty=0.5, frequency_penalty=0.5, cycle="ar", **options,
    )  # fmt: skip
    whole = post(server, "/api/generate", {**body, "stream": False, "options": given, "keep_alive": 1800})
    assert whole["response"] == alone.text and whole["model"] == "tiny:1m"
    assert (whole["done"], whole["done_reason"]) == (True, alone.finish_reason)
    assert (whole["prompt_eval_count"], whole["eval_count"]) == (alone.prompt_tokens, len(alone.tokens))
    assert whole["total_duration"] >= whole["eval_duration"] > 0 < whole["prompt_eval_duration"]
    *lines, last = post(server, "/api/generate", {**body, "options": given, "model": "tiny:1m"})
    assert "".join(line["response"] for line in lines) == alone.text and len(lines) > 1
    assert not any(line["done"] for line in lines) and last["done"] and last["response"] == ""
    assert (last["done_reason"], last["eval_count"]) == (alone.finish_reason, len(alone.tokens))


def test_stop_strings_and_the_context_end_an_answer(server, coder):
    alone = coder.generate("abc", raw=True, temperature=0.9, seed=7, max_new_tokens=40, cycle="ar")
    stop = alone.text[6:8]
    options = {"temperature": 0.9, "seed": 7, "num_predict": -1, "num_ctx": 43, "stop": ["never", stop]}
    body = {"prompt": "abc", "raw": True, "stream": False, "options": options}
    answer = post(server, "/api/generate", body)
    assert (answer["response"], answer["done_reason"]) == (alone.text[: alone.text.index(stop)], "stop")
    del options["stop"]
    answer = post(server, "/api/generate", body)
    assert (answer["response"], answer["done_reason"]) == (alone.text, "length")


def test_long_texts_around_a_gap_are_cut(server, coder):
    before, after = "".join(f"value_{n} = {n}\n" for n in range(400)), AFTER * 50
    whole = post(
        server, "/api/generate", {"prompt": before, "suffix": after, "stream": False, "options": {"num_predict": 4}}
    )
    assert 130 < whole["prompt_eval_count"] <= 203
    cut = coder.fill_in_middle.window(before, after, 200)
    assert whole["response"] == coder.generate(cut[0], suffix=cut[1], max_new_tokens=4).text


def test_a_chat_is_what_the_model_answers(server, coder):
    alone = coder.generate(MESSAGES, max_new_tokens=12, cycle="ar")
    body = {"messages": MESSAGES, "options": {"num_predict": 12}, "think": False, "format": "", "tools": []}
    whole = post(server, "/api/chat", {**body, "stream": False})
    assert whole["message"] == {"role": "assistant", "content": alone.text}
    *lines, last = post(server, "/api/chat", body)
    assert "".join(line["message"]["content"] for line in lines) == alone.text
    assert {line["message"]["role"] for line in (*lines, last)} == {"assistant"}
    assert (last["done"], last["eval_count"]) == (True, 12)


def test_calls_are_objects_and_turns_with_them_go_on(server, coder, monkeypatch):
    called = '<tool_call>{"name": "look", "arguments": {"at": 3}}</tool_call>'
    tools = {"messages": MESSAGES, "tools": [TOOL], "options": {"num_predict": 200}}
    shown = coder.request(MESSAGES, {"tools": [TOOL]}).prompt
    made = ollama.prompts.make_request

    def scripted(service, prompt, options, body, limit):
        """Force the call, which a random model would never make."""
        regex = called.replace("{", r"\{").replace("}", r"\}")
        request = made(service, prompt, {**options, "regex": regex}, body, limit)
        assert request.prompt == shown
        return request

    monkeypatch.setattr(ollama.prompts, "make_request", scripted)
    expected = [{"function": {"name": "look", "arguments": {"at": 3}}}]
    whole = post(server, "/api/chat", {**tools, "stream": False})
    assert whole["message"] == {"role": "assistant", "content": "", "tool_calls": expected}
    *lines, last = post(server, "/api/chat", tools)
    assert [line["message"].get("tool_calls") for line in lines] == [expected]
    assert last["done_reason"] == "stop"
    monkeypatch.undo()
    turns = [*MESSAGES, whole["message"], {"role": "tool", "tool_name": "look", "content": "a house"}]
    answer = post(server, "/api/chat", {"messages": turns, "stream": False, "options": {"num_predict": 4}})
    assert answer["eval_count"] == 4


def test_a_format_is_kept(server):
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    for path, given in (("/api/generate", {"prompt": "a"}), ("/api/chat", {"messages": MESSAGES})):
        answer = post(server, path, {**given, "format": schema, "stream": False})
        text = answer["response"] if "response" in answer else answer["message"]["content"]
        assert json.loads(text) == {"n": 7}


def test_what_clients_ask_of_models(server, coder):
    listed = server.http.get("/api/tags").json()["models"]
    assert [(one["name"], one["model"]) for one in listed] == [("tiny:1m", "tiny:1m")]
    assert listed[0]["digest"] == coder.checkpoint.backbone.sha256 and isinstance(listed[0]["size"], int)
    assert set(listed[0]["details"]) >= {"format", "family", "families", "parameter_size", "quantization_level"}
    loaded = server.http.get("/api/ps").json()["models"]
    assert loaded[0]["name"] == "tiny:1m" and loaded[0]["expires_at"] and loaded[0]["context_length"] == 2048
    for body in ({"model": "tiny:1m"}, {"name": "tiny:1m", "verbose": True}):
        shown = server.http.post("/api/show", json=body).json()
        assert shown["capabilities"] == ["completion", "insert", "tools"]
        fim = "{{- if .Suffix }}<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>{{- end }}"
        assert (shown["template"], shown["parameters"]) == (fim, "num_ctx 2048")
        assert shown["model_info"]["qwen3.context_length"] == 2048
    assert server.http.get("/api/version").json()["version"].split(".")[0] == "0"
    assert (server.http.head("/").status_code, server.http.head("/").content) == (200, b"")


def test_a_request_without_a_prompt_asks_for_the_model(server):
    assert post(server, "/api/generate", {"model": "tiny:1m", "stream": False})["done_reason"] == "load"
    assert server.http.post("/api/chat", json={"messages": [], "keep_alive": 0}).json()["done_reason"] == "unload"


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/api/generate", {"prompt": "a", "model": "other"}, "the model 'other' is not served here"),
        ("/api/generate", {"prompt": "a", "model": "tiny"}, "the model 'tiny' is not served here"),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template must be ''"),
        ("/api/generate", {"prompt": "a", "images": ["aaaa"]}, "images should have at most 0 items"),
        ("/api/generate", {"prompt": "a", "options": {"mirostat": 1}}, "options.mirostat must be 0"),
        ("/api/generate", {"prompt": "a", "options": {"penalize_newline": True}}, "penalize_newline is not"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "system has no place"),
        ("/api/generate", {"prompt": "a" * 50, "raw": True, "options": {"num_ctx": 40}}, "in options.num_ctx, 40"),
        ("/api/generate", {"prompt": "a" * 2100, "raw": True}, "the prompt has 2100 tokens"),
        ("/api/generate", {"prompt": "a", "think": True}, "think is not for this model"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role must be"),
        ("/api/chat", {"messages": MESSAGES, "format": {"type": "nothing"}}, "nothing"),
        ("/api/embed", {"input": "a"}, "there is nothing at POST /api/embed"),
    ],
)  # fmt: skip
def test_errors_are_texts_that_name_the_field(server, path, body, problem):
    response = server.http.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code in (400, 404) and isinstance(error, str) and problem in error, error


def test_a_latest_tag_may_be_left_out(model):
    transport = in_loop.InLoop(model, ServeSettings(served_model_name="plain", cycle="one-pass"))
    try:
        for name in ("plain", "plain:latest"):
            body = {"model": name, "prompt": "a", "stream": False, "options": {"num_predict": 2}}
            assert transport.http.post("/api/generate", json=body).json()["eval_count"] == 2
        refused = transport.http.post("/api/generate", json={"prompt": "a", "suffix": "b"})
        assert (
            refused.status_code == 400 and "suffix needs a model that can fill in the middle" in refused.json()["error"]
        )
        shown = transport.http.post("/api/show", json={"model": "plain"}).json()
        assert (shown["template"], shown["capabilities"]) == ("", ["completion"])
    finally:
        transport.end()
