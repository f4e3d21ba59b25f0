"""What is enforced on answers, and read from them: formats, tools, log probabilities, reasoning."""

from __future__ import annotations

import json
import math

import in_loop
import openai
import pytest
import tiny
from pydantic import BaseModel

import orthrus
from orthrus.serving.settings import ServeSettings

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if think %}<think>{% endif %}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "The weather.", "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "tomorrow": {"type": "boolean"}},
            "required": ["city", "tomorrow"], "additionalProperties": False,
        },
    },
}  # fmt: skip
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
STOP = {"type": "function", "function": {"name": "stop", "parameters": NOTHING}}


class Answer(BaseModel):
    colour: bool
    size: int | None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tiny.save_checkpoint(tmp_path_factory.mktemp("constrained") / "tiny", template=TEMPLATE)
    model = orthrus.load(directory, dtype="float32", ctx_size=1024)
    transport = in_loop.InLoop(model, ServeSettings(served_model_name="tiny", max_num_seqs=4, cycle="one-pass"))
    yield transport
    transport.end()


@pytest.fixture(scope="module")
def client(server):
    return server.client


def chat(client, **fields):
    return client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, "max_tokens": 100, **fields})


def streamed(client, **fields):
    """The content, the calls and the finish reason of a stream."""
    content, calls, reason = "", {}, None
    for chunk in chat(client, stream=True, **fields):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            name, arguments = calls.get(call.index, (call.function.name, ""))
            calls[call.index] = name, arguments + call.function.arguments
        reason = choice.finish_reason or reason
    return content, list(calls.values()), reason


FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
            "required": ["a", "b"], "additionalProperties": False,
        },
    },
}  # fmt: skip


def test_a_schema_is_enforced(client):
    for seed in range(3):
        answer = chat(client, response_format=FORMAT, seed=seed, temperature=1.5).choices[0]
        assert set(json.loads(answer.message.content)) == {"a", "b"}
        assert answer.finish_reason == "stop"
        assert streamed(client, response_format=FORMAT, seed=seed, temperature=1.5)[0] == answer.message.content
    response = client.responses.create(
        model="tiny", input="a", text={"format": {"type": "json_schema", **FORMAT["json_schema"]}}
    )
    assert set(json.loads(response.output_text)) == {"a", "b"}


def test_the_parser_of_the_client_gets_its_type(client):
    answer = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Answer, max_tokens=200, temperature=0,
        logit_bias={str(ord("-")): -100, str(ord("n")): 50},
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Answer)


def test_regular_expressions_and_grammars(client):
    regex = {"type": "regex", "regex": "[a-c]{3}-[0-9]{2}"}
    found = chat(client, extra_body={"response_format": regex}).choices[0].message.content
    assert found[3] == "-" and set(found[:3]) <= set("abc") and found[4:].isdecimal()
    grammar = {"type": "grammar", "grammar": 'start: "yes" | "no"'}
    assert chat(client, extra_body={"response_format": grammar}).choices[0].message.content in ("yes", "no")
    completion = client.completions.create(model="tiny", prompt="a", extra_body={"response_format": grammar})
    assert completion.choices[0].text in ("yes", "no")


@pytest.mark.parametrize(
    "wrong", [{"type": "regex", "regex": "["}, {"type": "grammar", "grammar": "nothing"},
              {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}]
)  # fmt: skip
def test_a_format_that_cannot_be_enforced_is_named(client, wrong):
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, extra_body={"response_format": wrong})
    assert raised.value.param == "response_format"
    function = {"name": "f", "parameters": {"properties": {"a": {"type": "nothing"}}}}
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, tools=[{"type": "function", "function": function}])
    assert raised.value.param == "tools"


def test_a_call_that_is_required_is_made(client, server):
    fields = {"tools": [WEATHER], "tool_choice": "required", "seed": 3, "parallel_tool_calls": False}
    choice = chat(client, **fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city", "tomorrow"}
    content, calls, reason = streamed(client, **fields)
    assert (content, calls, reason) == ("", [("weather", call.function.arguments)], "tool_calls")
    turns = [*MESSAGES, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    prompt = server.http.post(
        "/tokenize",
        json={"messages": [t if isinstance(t, dict) else t.model_dump() for t in turns], "tools": [WEATHER]},
    ).json()["tokens"]
    text = server.service.model.decode(prompt)
    assert '"arguments": {"city"' in text
    assert chat(client, messages=turns, tools=[WEATHER]).usage.prompt_tokens == len(prompt)


def test_a_function_that_is_named_is_called(client):
    named = {"type": "function", "function": {"name": "stop"}}
    choice = chat(client, tools=[WEATHER, STOP], tool_choice=named, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["stop"]
    response = client.responses.create(
        model="tiny", input="a", tools=[{"type": "function", **WEATHER["function"]}],
        tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False, stream=True,
    )  # fmt: skip
    final = [*response][-1].response
    assert [item.type for item in final.output] == ["function_call"]
    assert set(json.loads(final.output[0].arguments)) == {"city", "tomorrow"}


def test_a_call_that_is_cut_off_is_a_call_with_half_its_arguments(client):
    fields = {"tools": [WEATHER], "tool_choice": "required", "seed": 3, "max_tokens": 60}
    choice = chat(client, **fields).choices[0]
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    assert "".join(call.function.arguments.split()).startswith('{"city')
    assert streamed(client, **fields) == ("", [("weather", call.function.arguments)], "length")


def test_tools_that_may_not_be_called_are_not_shown(client):
    none = chat(client, tools=[WEATHER], tool_choice="none", max_tokens=1)
    assert none.usage.prompt_tokens == chat(client, max_tokens=1).usage.prompt_tokens
    assert chat(client, tools=[WEATHER], max_tokens=1).usage.prompt_tokens > none.usage.prompt_tokens


def test_calls_written_freely_are_found(client):
    text = r'Look\.\n<tool_call>\n\{"name": "stop", "arguments": \{"a": [0-9]\}\}\n</tool_call>'
    fields = {"tools": [STOP], "extra_body": {"response_format": {"type": "regex", "regex": text}}, "seed": 1}
    choice = chat(client, **fields).choices[0]
    assert choice.message.content == "Look."
    [call] = choice.message.tool_calls
    assert streamed(client, **fields) == ("Look.", [("stop", call.function.arguments)], "tool_calls")


def test_json_is_no_reasoning_where_the_prompt_has_begun_some(client):
    extra = {"chat_template_kwargs": {"think": True}}
    message = chat(client, response_format=FORMAT, extra_body=extra).choices[0].message
    assert set(json.loads(message.content)) == {"a", "b"}
    assert message.model_extra.get("reasoning_content") is None


@pytest.mark.parametrize("opened", [False, True])
def test_reasoning_is_apart_from_content(client, opened):
    text = ("" if opened else r"<think>\n") + r"[ab]{5}\n</think>\n\n[cd]{4}"
    extra = {"response_format": {"type": "regex", "regex": text}, "chat_template_kwargs": {"think": opened}}
    answer = chat(client, extra_body=extra, seed=1)
    message = answer.choices[0].message
    assert set(message.content) <= set("cd") and len(message.content) == 4
    assert set(message.reasoning_content) <= set("ab") and len(message.reasoning_content) == 5
    assert answer.usage.completion_tokens > answer.usage.completion_tokens_details.reasoning_tokens > 5
    chunks = [chunk.choices[0].delta for chunk in chat(client, extra_body=extra, seed=1, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in chunks) == message.reasoning_content
    assert "".join(delta.content or "" for delta in chunks) == message.content


def test_log_probabilities_are_those_of_the_model(client, server):
    model = server.service.model
    fields = {"temperature": 1.2, "seed": 5, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    choice = chat(client, **fields).choices[0]
    found = choice.logprobs.content
    assert b"".join(bytes(each.bytes) for each in found).decode(errors="replace") == choice.message.content
    for each in found:
        tops = [top.logprob for top in each.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert len(tops) == 3
        assert each.logprob <= tops[0] + 1e-6
        assert sum(map(math.exp, tops)) <= 1 + 1e-6
    parts = [chunk.choices[0].logprobs for chunk in chat(client, stream=True, **fields)]
    assert [each for part in parts if part for each in part.content] == found

    prompt = list(model.prompt_tokens(MESSAGES, {}))
    tokens = model.generate(prompt, temperature=1.2, seed=5, max_new_tokens=12).tokens
    echo = client.completions.create(model="tiny", prompt=prompt + tokens, echo=True, logprobs=2, max_tokens=1)
    scored = echo.choices[0].logprobs
    assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.text_offset) == len(prompt) + len(tokens) + 1
    assert scored.token_logprobs[0] is None and scored.top_logprobs[0] is None
    assert scored.token_logprobs[len(prompt) : len(prompt) + len(found)] == pytest.approx(
        [each.logprob for each in found], abs=1e-4
    )
    alone = client.completions.create(model="tiny", prompt=prompt + tokens, echo=True, logprobs=2, max_tokens=0)
    assert alone.choices[0].logprobs.token_logprobs == scored.token_logprobs[:-1]
    chunks = client.completions.create(
        model="tiny", prompt=prompt + tokens, echo=True, logprobs=2, max_tokens=4, stream=True, temperature=0
    )
    whole = client.completions.create(
        model="tiny", prompt=prompt + tokens, echo=True, logprobs=2, max_tokens=4, temperature=0
    )
    offsets = [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == whole.choices[0].logprobs.text_offset
