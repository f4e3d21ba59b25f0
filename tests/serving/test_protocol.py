"""The API through OpenAI's own client: what it shows is what the model generates."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import in_loop
import openai
import pytest
import tiny

from orthrus.serving import errors
from orthrus.serving.app import create_app
from orthrus.serving.other_names import OTHER_NAMES
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings

SETTINGS = ServeSettings(served_model_name="tiny", max_num_seqs=4, cycle="one-pass")
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(model):
    transport = in_loop.InLoop(model, SETTINGS)
    yield transport
    transport.end()


@pytest.fixture(scope="module")
def http(server):
    return server.http


@pytest.fixture(scope="module")
def client(server):
    return server.client


def expected(model, prompt=MESSAGES, **options):
    return model.generate(prompt, **{"max_new_tokens": 24, "cycle": "ar", **options})


def chat(client, messages=MESSAGES, **fields):
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 24, **fields})


def test_a_chat_completion_is_what_the_model_generates(client, model):
    answer = chat(client, temperature=0)
    alone = expected(model)
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].finish_reason == alone.finish_reason
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert answer.usage.total_tokens == len(alone.tokens) + alone.prompt_tokens
    assert answer.system_fingerprint.startswith("fp_")


def test_choices_differ_and_are_those_of_their_sample_index(client, model):
    answer = chat(client, temperature=1.2, top_p=0.9, seed=-5, n=3, extra_body={"top_k": 50})
    alone = [
        expected(model, temperature=1.2, top_p=0.9, top_k=50, seed=2**64 - 5, sample_index=index).text
        for index in range(3)
    ]
    assert [choice.message.content for choice in answer.choices] == alone
    assert len(set(alone)) == 3


def test_without_a_temperature_the_checkpoint_decides_and_greedy_where_it_says_nothing(client, model, monkeypatch):
    assert chat(client).choices[0].message.content == expected(model).text
    monkeypatch.setitem(model.checkpoint.sampling, "temperature", 1.0)
    assert chat(client, seed=7).choices[0].message.content == expected(model, temperature=1.0, seed=7).text


@pytest.mark.parametrize("drafts", [True, False])
def test_a_stream_adds_up_to_the_answer(client, drafts):
    whole = chat(client, seed=3, n=2)
    stream = chat(
        client, seed=3, n=2, stream=True, stream_options={"include_usage": True, "include_drafts": drafts},
        extra_body={"drafts": drafts},
    )  # fmt: skip
    texts, reasons, passes = {0: "", 1: ""}, {}, 0
    for chunk in stream:
        for choice in chunk.choices:
            if choice.index not in reasons and not texts[choice.index] and choice.delta.role:
                assert choice.delta.role == "assistant"
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        info = chunk.model_extra.get("orthrus")
        if info:
            passes += 1
            assert info["kind"] in ("ar", "one-pass", "two-pass", "lookup")
            assert len(info["rejected"]) <= len(info["confidence"])
        usage = chunk.usage
    assert [texts[n] for n in range(2)] == [choice.message.content for choice in whole.choices]
    assert [reasons[n] for n in range(2)] == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert bool(passes) == drafts
    if not drafts:
        assert usage.completion_tokens_details.accepted_prediction_tokens == 0


@pytest.mark.parametrize("path", ["chat", "text"])
def test_usage_may_come_with_every_chunk(client, path):
    """As guidellm asks for it."""
    asked = {"temperature": 0, "max_tokens": 12, "stream": True, "stream_options": {"include_usage": True}}
    asked["stream_options"]["continuous_usage_stats"] = True
    if path == "chat":
        chunks = list(chat(client, **asked))
    else:
        chunks = list(client.completions.create(model="tiny", prompt="abc", **asked))
    *counted, last = [chunk.usage for chunk in chunks if chunk.choices] + [chunks[-1].usage]
    begun = [one.completion_tokens for one in counted if one is not None]
    assert begun == sorted(begun) and len(begun) > 1
    assert begun[-1] == last.completion_tokens and {one.prompt_tokens for one in counted if one} == {last.prompt_tokens}


def test_stop_strings_end_an_answer_and_are_not_shown(client, model):
    whole = expected(model, temperature=1.5, seed=2).text
    stops = [whole[5:7], "never", "also never", "nor this", "nor that"]
    for stream in (False, True):
        answer = chat(client, temperature=1.5, seed=2, stop=stops, stream=stream)
        if stream:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(stops[0])], "stop")


def test_completions_of_texts_and_of_token_ids(client, model):
    prompts = ["abc", "hello there"]
    alone = [expected(model, prompt, max_new_tokens=16, raw=True).text for prompt in prompts]
    ids = [model.encode(prompt) for prompt in prompts]
    for prompt, texts in ((prompts, alone), (ids, alone), (prompts[0], alone[:1]), (ids[1], alone[1:])):
        answer = client.completions.create(model="tiny", prompt=prompt, temperature=0)
        assert [choice.text for choice in answer.choices] == texts
        assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    echoed = client.completions.create(model="tiny", prompt=prompts, temperature=0, echo=True)
    assert [choice.text for choice in echoed.choices] == [p + text for p, text in zip(prompts, alone, strict=True)]
    alone_echoed = client.completions.create(model="tiny", prompt=prompts[0], max_tokens=0, echo=True)
    assert alone_echoed.choices[0].text == prompts[0]
    assert alone_echoed.usage.completion_tokens == 0
    chunks = list(client.completions.create(model="tiny", prompt=prompts, temperature=0, echo=True, stream=True))
    for index, choice in enumerate(echoed.choices):
        found = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(c.text for c in found) == choice.text
        assert [c.finish_reason for c in found if c.finish_reason] == [choice.finish_reason]


def test_load_tests_get_as_many_tokens_as_they_ask_for(client):
    bias = {"319": 100}  # the end token of the tiny tokenizer
    ended = chat(client, temperature=0, max_tokens=9, logit_bias=bias)
    assert (ended.usage.completion_tokens, ended.choices[0].finish_reason) == (1, "stop")
    whole = chat(client, temperature=0, max_tokens=9, logit_bias=bias, extra_body={"ignore_eos": True})
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (9, "length")


def test_tokens_and_models(client, http, model):
    assert client.models.list().data[0].model_extra["max_model_len"] == 512
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")
    found = http.post("/tokenize", json={"prompt": "aé", "return_token_strs": True}).json()
    assert found["tokens"] == model.encode("aé")
    assert found["token_strs"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "aé"}
    info = http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["chat_template"]) == ("<|end|>", tiny.CHAT)
    of_chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
    assert of_chat["tokens"] == list(model.prompt_tokens(MESSAGES, {}))
    assert of_chat["count"] == len(of_chat["tokens"])


def test_the_asynchronous_client(model):
    async def main():
        service = Service(model, SETTINGS)
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport) as inner:
            client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=inner)
            answers = await asyncio.gather(*(chat(client, temperature=1, seed=seed) for seed in range(5)))
            text = ""
            async for chunk in await chat(client, temperature=1, seed=1, stream=True):
                text += chunk.choices[0].delta.content or ""
        await service.drain(5)
        return [answer.choices[0].message.content for answer in answers], text

    texts, streamed = asyncio.run(main())
    assert texts == [expected(model, temperature=1.0, seed=seed).text for seed in range(5)]
    assert streamed == texts[1]


BAD = {
    "messages": ({"messages": []}, "messages"),
    "unknown field": ({"guided_json": {}}, "guided_json"),
    "unknown in a message": ({"messages": [{"role": "user", "content": "a", "nme": "b"}]}, "messages[0].nme"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
              "messages[0].content[0].type"),
    "role": ({"messages": [{"role": "function", "content": "a"}]}, "messages[0].role"),
    "temperature": ({"temperature": 2.5}, "temperature"),
    "string for a number": ({"top_p": "0.5"}, "top_p"),
    "audio": ({"audio": {"voice": "a"}}, "audio"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "store": ({"store": True}, "store"),
    "logit_bias": ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    "token beyond the vocabulary": ({"logit_bias": {"4000": 1}}, "logit_bias"),
    "stream_options": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "too long": ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
    "response_format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "empty stop": ({"stop": ["a", ""]}, "stop[1]"),
    "chat_template_kwargs": ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_what_is_wrong_is_named(http, case):
    fields, param = BAD[case]
    response = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[-1].split("[")[0] in error["message"] or "prompt" in error["message"]


def response_formats(text):
    """The examples of `response_format` in a message."""
    decode = json.JSONDecoder().raw_decode
    starts = [match.start() for match in re.finditer(r'\{"type": "(?!object)', text)]
    return [decode(text[start:].replace("{...}", '{"type": "object"}'))[0] for start in starts]


@pytest.mark.parametrize("field", sorted(OTHER_NAMES))
def test_a_field_of_another_server_points_to_what_takes_its_place(http, field):
    response = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2, field: {}})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, field, "unknown_parameter")
    assert error["message"].startswith(f"{field} is not a field that this server knows: ")
    if field.startswith(("guided_json", "guided_regex", "guided_choice", "guided_grammar")):
        assert response_formats(error["message"])


@pytest.mark.parametrize("field", sorted(name for name in OTHER_NAMES if "response_format" in OTHER_NAMES[name]))
def test_what_takes_its_place_is_taken(http, field):
    for example in response_formats(OTHER_NAMES[field].split("; in /v1/responses")[0]):
        if example["type"] == "grammar":
            example["grammar"] = 'start: "a"'
        given = {"messages": MESSAGES, "max_tokens": 2, "response_format": example}
        assert http.post("/v1/chat/completions", json=given).status_code == 200, example


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": NaN}', b'{"\\ud800": 1}', b"[" * 100_000])
def test_bodies_that_are_no_request(http, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        response = http.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [0] * 30_000}, "messages[0]"),
        ("chat/completions", {"messages": [{"role": "user", "content": [0] * 30_000}]}, "messages[0].content[0]"),
        ("completions", {"prompt": [""] * 30_000}, "prompt[0]"),
        ("responses", {"input": [0] * 30_000}, "input[0].type"),
    ],
)  # fmt: skip
def test_one_wrong_item_of_many_is_told(http, monkeypatch, path, body, param):
    """An error for each would take seconds and gigabytes, in which no one else is answered."""
    seen, original = [], errors.validation_error
    monkeypatch.setattr(errors, "validation_error", lambda all_, body: seen.append(len(all_)) or original(all_, body))
    response = http.post(f"/v1/{path}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert seen[0] < 20


def test_a_response_that_could_not_be_written_is_refused_before_it_is_decoded(http):
    tool = {"type": "function", "name": "f", "parameters": {"a": "\ud800"}}
    body = json.dumps({"input": "a", "tools": [tool], "tool_choice": "none", "max_output_tokens": 2})
    response = http.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_value"


def test_errors_of_the_path_and_the_method_have_the_same_shape(http, client):
    for response, status in ((http.get("/v1/nothing"), 404), (http.get("/v1/chat/completions"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"
    unknown = http.get("/v1/nothing").json()["error"]
    assert unknown["message"].startswith("there is nothing at GET /v1/nothing; the routes are GET /api/ps, ")
    assert ", GET /health, " in unknown["message"]
    for path in ("chat/completions", "completions", "responses"):
        assert f"POST /v1/{path}" in unknown["message"]
    assert unknown["code"] == "unknown_route"
    wrong = http.get("/v1/chat/completions")
    assert wrong.json()["error"]["message"] == "/v1/chat/completions takes POST, not GET"
    assert wrong.headers["allow"] == "POST"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here, only 'tiny'"):
        client.chat.completions.create(model="other", messages=MESSAGES)


def test_more_choices_than_the_server_holds_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="more than this server can hold"):
        chat(client, n=100)


def test_fields_without_effect_are_accepted(client, model):
    answer = chat(
        client, temperature=0, user="u", metadata={"a": "b"}, store=False, service_tier="auto", modalities=["text"],
        parallel_tool_calls=True, response_format={"type": "text"}, verbosity="medium", prompt_cache_key="k",
        safety_identifier="s", logit_bias={}, stop=[], audio=None,
    )  # fmt: skip
    assert answer.choices[0].message.content == expected(model).text
    with pytest.raises(openai.BadRequestError, match="service_tier must be"):
        chat(client, service_tier="flex")


def test_a_response_is_what_the_model_generates(client, model):
    answer = client.responses.create(model="tiny", input="hello", temperature=0, max_output_tokens=24)
    alone = expected(model)
    assert answer.output_text == alone.text
    assert answer.status == ("completed" if alone.finish_reason == "stop" else "incomplete")
    assert answer.usage.output_tokens == len(alone.tokens)
    events = list(
        client.responses.create(model="tiny", input=MESSAGES, temperature=0, max_output_tokens=24, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == alone.text
    assert events[-1].type == f"response.{answer.status}"
    assert events[-1].response.output_text == alone.text
    again = client.responses.create(
        model="tiny", input=[*MESSAGES, *answer.output, {"role": "user", "content": "and?"}], temperature=0,
        instructions="Be short.", max_output_tokens=16, store=False, extra_body={"chat_template_kwargs": {}},
    )  # fmt: skip
    turns = [
        {"role": "system", "content": "Be short."}, *MESSAGES, {"role": "assistant", "content": alone.text},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    assert again.output_text == expected(model, turns, max_new_tokens=16).text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ],
)
def test_what_a_stateless_server_cannot_do_is_refused(http, fields, param):
    response = http.post("/v1/responses", json={"input": "a", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}, "messages"),
        ("/v1/completions", lambda text: {"prompt": ["a", text]}, "prompt"),
        ("/v1/responses", lambda text: {"input": text}, "input"),
    ],
)
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(server, monkeypatch, path, body, field):
    service = server.service
    text = "a" * (service.longest_prompt + 1)
    monkeypatch.setattr(service.model._tokenization, "_tokenizer", None)
    refused = server.http.post(path, json=body(text))
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)
    if path != "/v1/completions":
        monkeypatch.setattr("orthrus.serving.service.BYTES_BESIDE_PROMPT", -5 * service.longest_prompt)
        unread = server.http.post(path, json=body(text))
        assert unread.json()["error"]["message"].startswith("the body has")
