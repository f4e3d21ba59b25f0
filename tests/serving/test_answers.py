"""Scripted answers: tool calls, reasoning and their events, which a random model does not write."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from orthrus.decoding.cycle import Step
from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.decoding.statistics import Statistics
from orthrus.decoding.text import Piece
from orthrus.decoding.verdict import Verdict
from orthrus.serving.answers import Answer, Delta, Format, usage
from orthrus.serving.errors import APIError
from orthrus.serving.logprobs import TextOffsets, completion_logprobs
from orthrus.serving.protocol.responses import ResponseRequest
from orthrus.serving.response_items import Events, items_of, messages_of

ALL = Format(thinking=True, tools=True)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'
TEXT = f"<think>\nI add.\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
EVENT = TypeAdapter(ResponseStreamEvent)


def steps(text, finish="stop", seed=0):
    """The text in tokens of a few characters, several per step."""
    rng, number, sequence = random.Random(seed), 0, SimpleNamespace(statistics=Statistics(cached_tokens=2))
    while text:
        pieces = []
        for _ in range(rng.randint(1, 4)):
            size = rng.randint(1, 6)
            pieces.append(Piece(text[:size], number, "plain"))
            text, number = text[size:], number + 1
        yield Step(sequence, Verdict([7] * len(pieces)), pieces=tuple(pieces), finish_reason=None if text else finish)


def read(text, form=ALL, finish="stop", seed=0):
    answer, total = Answer(form), Delta()
    for step in steps(text, finish, seed):
        for part in answer.add(step).parts:
            total.add(part)
    return answer, total


@pytest.mark.parametrize("seed", range(20))
def test_a_streamed_answer_is_the_whole_one(seed):
    answer, total = read(TEXT, seed=seed)
    reasoning, content, calls = answer.whole()
    assert (reasoning, content) == (total.reasoning, total.content) == ("I add.", "Let me see.")
    arguments = {}
    for call in total.calls:
        arguments[call.index] = arguments.get(call.index, "") + call.arguments
    assert list(arguments.values()) == [call.arguments for call in calls] == ['{"a": 1, "b": [2, 3]}'] * 2
    assert answer.called
    found = usage([answer], 9)
    assert found.completion_tokens == len(answer.tokens)
    assert 0 < found.completion_tokens_details.reasoning_tokens < found.completion_tokens
    assert found.prompt_tokens_details.cached_tokens == 2


def test_reasoning_is_counted_when_the_prompt_has_begun_it():
    answer, total = read("I add.</think>4", Format(thinking=True, opened=True))
    assert (total.reasoning, total.content) == ("I add.", "4")
    assert answer.reasoning_tokens > 0


def test_an_answer_without_tools_keeps_what_looks_like_a_call():
    answer, total = read(CALL, Format())
    assert answer.whole() == (None, CALL, [])
    assert total.content == CALL


def test_a_request_whose_time_is_up():
    step = Step(SimpleNamespace(statistics=Statistics()), Verdict([]), finish_reason="timeout")
    with pytest.raises(APIError, match="timed out") as raised:
        Answer().add(step)
    assert raised.value.status == 504
    answer, _ = read("abc", finish="timeout")
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("seed", range(5))
def test_events_of_a_response_are_those_of_the_api_and_add_up(seed):
    answer, events, seen = Answer(ALL), Events(), []
    for step in steps(TEXT, seed=seed):
        seen += events.add(answer.add(step))
    seen += events.close("completed")
    assert [each.sequence_number for each in seen] == list(range(len(seen)))
    typed = [EVENT.validate_json(each.model_dump_json(exclude_unset=True)) for each in seen]
    kinds = [each.type.removeprefix("response.") for each in typed if not each.type.endswith(".delta")]
    call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    assert kinds == [
        "output_item.added", "reasoning_text.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done",
        *call, *call,
    ]  # fmt: skip
    texts = "".join(each.delta for each in typed if each.type == "response.output_text.delta")
    assert texts == "Let me see."
    done = [each.item for each in typed if each.type == "response.output_item.done"]
    assert [item.type for item in done] == ["reasoning", "message", "function_call", "function_call"]
    whole = items_of(*answer.whole(), "completed")
    plain = [item.model_dump(exclude={"id", "call_id"}) for item in events.items]
    assert plain == [item.model_dump(exclude={"id", "call_id"}) for item in whole]


def test_text_after_a_call_does_not_break_it_where_both_come_in_one_pass():
    call, events = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', Events()
    answer, sequence = Answer(Format(tools=True)), SimpleNamespace(statistics=Statistics())
    texts = [call[:-20], f"{call[-20:]}\nDone.\n{call}"]
    for number, text in enumerate(texts):
        piece, finish = Piece(text, number, "plain"), "stop" if number else None
        list(events.add(answer.add(Step(sequence, Verdict([7]), pieces=(piece,), finish_reason=finish))))
    list(events.close("completed"))
    assert [item.type for item in events.items] == ["function_call", "message", "function_call"]
    calls = [item for item in events.items if item.type == "function_call"]
    assert [(item.name, item.arguments) for item in calls] == [("f", '{"a": 1}')] * 2
    assert len({item.call_id for item in calls} - {""}) == 2


def test_items_of_a_response_go_back_into_the_conversation():
    answer, _ = read(TEXT)
    items = [json.loads(item.model_dump_json()) for item in items_of(*answer.whole(), "completed")]
    output = {"type": "function_call_output", "call_id": items[2]["call_id"], "output": "6"}
    asked = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "1+2+3?"}]
    body = ResponseRequest(input=[*asked, *items, output], instructions="Add.")
    system, user, turn, tool = messages_of(body)
    assert system == {"role": "system", "content": "Add.\n\nBe short."}
    assert user == {"role": "user", "content": "1+2+3?"}
    assert (turn["role"], turn["content"], turn["reasoning_content"]) == ("assistant", "Let me see.", "I add.")
    assert [call["function"]["arguments"] for call in turn["tool_calls"]] == [{"a": 1, "b": [2, 3]}] * 2
    assert tool == {"role": "tool", "tool_call_id": turn["tool_calls"][0]["id"], "content": "6"}


def test_log_probabilities_of_a_text_completion():
    names = {1: "a", 2: "bc", 3: "a"}
    texts = SimpleNamespace(text=names.get, in_text=lambda token, first=False: names[token].encode())
    found = [None, TokenLogprobs(2, -0.5, ((1, -0.1), (3, -0.3))), TokenLogprobs(1, float("-inf"))]
    shown = completion_logprobs(found, [1, 2, 1], texts, TextOffsets(texts, 4).of_answer([1, 2, 1]))
    assert shown.tokens == ["a", "bc", "a"]
    assert shown.text_offset == [4, 5, 7]
    assert shown.token_logprobs == [None, -0.5, -9999.0]
    assert shown.top_logprobs == [None, {"a": -0.1, "bc": -0.5}, {"a": -9999.0}]
