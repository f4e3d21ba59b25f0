"""Options that constrain an answer: which texts the grammar of tool calls takes, and which options are refused."""

from __future__ import annotations

import json

import pytest
import tiny

from orthrus.config import Constraint
from orthrus.decoding.constraints import Grammars
from orthrus.options import Settings

ADD = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/number"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"number": {"type": "integer"}},
        "uniqueItems": True,
    },
}
TOOLS = [{"type": "function", "function": ADD}, {"type": "function", "function": {"name": "now"}}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
WRONG = [
    CALL.replace("add", "sub"), CALL.replace("3", '"3"'), CALL.replace('"a"', '"b"'), CALL.replace("\n{", "{"),
    CALL.removesuffix("\n</tool_call>"), "<tool_call>", "<tool_call> is a tag", NOW.replace("{}", '{"zone": null}'),
]  # fmt: skip
TAKEN = {
    "auto": (["", "No <tool> is needed.", CALL, f"I add.\n{CALL}", f"{CALL}\n{NOW}", f"{CALL} done"], WRONG),
    "required": ([CALL, NOW, f"{CALL}\n{NOW}"], ["", "No.", f"I add.\n{CALL}", f"{CALL} done", *WRONG]),
    "add": ([CALL], ["", "No.", NOW, f"{CALL}\n{CALL}", *WRONG]),
}


@pytest.fixture(scope="module")
def grammars():
    return Grammars(tiny.tokenizer().backend_tokenizer.to_str, tiny.VOCAB, tiny.LIMITS.end_token_ids)


@pytest.mark.parametrize("choice", list(TAKEN))
def test_tool_calls_are_forced_into_their_format(grammars, choice):
    constraint = Settings.of({"tools": TOOLS, "tool_choice": choice}).sampling.constraint
    for takes, texts in zip((True, False), TAKEN[choice], strict=True):
        for text in texts:
            grammar = grammars.start(constraint, tiny.LIMITS.end_token_ids)
            tokens = tiny.tokenizer()(text)["input_ids"]
            grammar.advance([*tokens, tiny.END])
            whole = grammar.ending is None or (grammar.ending.reason == "stop" and grammar.ending.tokens == len(tokens))
            assert whole == takes, text


def test_the_choice_may_be_an_object_and_none_leaves_the_tools_out():
    named = Settings.of({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "add"}}})
    assert named == Settings.of({"tools": TOOLS, "tool_choice": "add"})
    assert named.tools == tuple(TOOLS)
    none = Settings.of({"tools": TOOLS, "tool_choice": "none"})
    assert (none.sampling.constraint, none.tools) == (None, ())
    free = Settings.of({"tools": TOOLS, "json_object": True})
    assert free.sampling.constraint == Constraint("json_object")


def test_a_schema_may_be_a_mapping_or_text():
    schema = {"type": "object", "properties": {"é": {"type": "null"}}}
    for given in (schema, json.dumps(schema, ensure_ascii=False)):
        assert Settings.of({"json_schema": given}).sampling.constraint == Constraint("json_schema", json.dumps(schema))
    assert Settings.of({"json_object": False}).sampling.constraint is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": "[1]"}, "json_schema must be a JSON schema"),
        ({"json_schema": {"a": object()}}, "json_schema cannot be written as JSON"),
        ({"regex": "a", "json_object": True}, "json_object and regex exclude each other"),
        ({"regex": "a", "tools": TOOLS, "tool_choice": "required"}, "regex and tool_choice exclude each other"),
        ({"tool_choice": "required"}, "tool_choice 'required' needs tools"),
        ({"tools": TOOLS, "tool_choice": "sub"}, "tool_choice 'sub' is none of the tools: add, now"),
        ({"tools": TOOLS, "tool_choice": 3}, "tool_choice must be"),
        ({"tools": {}}, "tools must be a list"),
        ({"tools": [{"type": "function"}]}, "tools: tool 1 must be like"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools: the name of tool 1"),
        ({"tools": [{"function": {"name": "a", "parameters": 1}}]}, "tools: the parameters of a"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools: two tools have the same name"),
        ({"tools": TOOLS, "raw": True}, "no place for tools"),
        ({"logprobs": 21}, "logprobs must lie in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        Settings.of(options)
    Settings.of({"max_new_tokens": 0, "prompt_logprobs": 0})
