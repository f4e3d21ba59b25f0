"""Tool calls and reasoning read from answers: what is found does not depend on how the text is cut."""

from __future__ import annotations

import json
import random

import pytest

from orthrus.reasoning import ReasoningParser, joined, split_reasoning
from orthrus.tool_calls import ToolCallParser, parse_tool_calls

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": [1, {"n": 2}]}}\n</tool_call>'
TRICKY = r'{"a": "</tool_call> \" } {", "b": "\\"}'
CASES = {
    "plain": ("No call here, 1 < 2.\n", "No call here, 1 < 2.\n", []),
    "call": (CALL, "", [("weather", '{"city": "Paris", "days": [1, {"n": 2}]}')]),
    "content before and after": (f"Let me see.\n\n{CALL}\n\nDone. ", "Let me see.Done.", [("weather", None)]),
    "two": (f"{CALL}\n{CALL}", "", [("weather", None), ("weather", None)]),
    "tag within a string": (f'<tool_call>{{"name": "f", "arguments": {TRICKY}}}</tool_call>', "", [("f", TRICKY)]),
    "without its closing tag": ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}')]),
    "another order": ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    "arguments as a string": (
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')],
    ),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "missing brace": ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", [("f", '{"a": 1}')]),
    "beginning of a tag": ("see <tool_ca", "see <tool_ca", []),
    "no JSON": ("<tool_call>call f</tool_call> then", "<tool_call>call f</tool_call> then", []),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    "not a number": ('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', None, []),
    "open string": ('<tool_call>{"name": "f", "arguments": {"a": "x}}\n</tool_call>', None, []),
    "cut off": ('<tool_call>{"name": "f", "arguments": {"a": "x', None, []),
}  # fmt: skip


def pieces(text, seed):
    """A text cut at random places, within tags too."""
    rng = random.Random(seed)
    while text:
        size = rng.randint(1, 9)
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("case", list(CASES))
def test_a_whole_answer_is_split_into_content_and_calls(case):
    text, content, calls = CASES[case]
    found, parsed = parse_tool_calls(text)
    assert found == (text if content is None else content)
    assert [(call.name, call.arguments if wanted[1] else None) for call, wanted in zip(parsed, calls, strict=True)] == (
        calls
    )
    assert all(isinstance(json.loads(call.arguments), dict) for call in parsed)
    assert len({call.id for call in parsed}) == len(parsed)


@pytest.mark.parametrize("case", list(CASES))
def test_a_streamed_answer_does_not_depend_on_its_pieces(case):
    text = CASES[case][0]
    whole = streamed([text])
    for seed in range(40):
        assert streamed(pieces(text, seed)) == whole
    content, calls = parse_tool_calls(text)
    if len(whole[1]) == len(calls):
        assert whole == (content, [(call.name, call.arguments) for call in calls])


def test_a_call_that_was_cut_off_is_one_if_its_arguments_had_begun():
    for text, calls in (('{"name": "f", "arguments": {"a": "x', [("f", '{"a": "x')]), ('{"name": "f", "argum', [])):
        content, found = parse_tool_calls(f"<tool_call>{text}", cut=True)
        assert [(call.name, call.arguments) for call in found] == calls
        assert content == ("" if calls else f"<tool_call>{text}")
    content, found = parse_tool_calls('<tool_call>{"name": "f", "arguments": {"a"}}</tool_call>and', cut=True)
    assert (content.endswith("and"), found) == (True, [])


def streamed(parts):
    parser = ToolCallParser()
    found = [item for part in parts for item in parser.push(part)] + parser.finish()
    calls = {}
    for item in found:
        if not isinstance(item, str):
            assert (item.index in calls) == (item.id is None) == (item.name is None)
            name, arguments = calls.get(item.index, (item.name, ""))
            calls[item.index] = name, arguments + item.arguments
    assert list(calls) == list(range(parser.calls))
    return "".join(item for item in found if isinstance(item, str)), list(calls.values())


def test_arguments_are_streamed_while_they_are_written():
    parser = ToolCallParser()
    assert parser.push('I look.\n<tool_call>\n{"name": "f", "argu') == ["I look."]
    first, second = parser.push('ments": {"a": "x')
    assert (first.name, first.arguments, second.arguments) == ("f", "", '{"a": "x')
    assert [delta.arguments for delta in parser.push('y"}}\n</tool')] == ['y"}']
    assert parser.push("_call>") == parser.finish() == []


def test_only_text_that_may_begin_a_call_is_held_back():
    parser = ToolCallParser()
    assert parser.push("a <") == ["a"]
    assert parser.push("b") == [" <b"]
    assert parser.push(" \n") == []
    assert parser.finish() == [" \n"]


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nA\n\nB\n</think>\n\nC\n", False, "A\n\nB", "C\n"),
        ("A</think>C", True, "A", "C"),
        ("\n<think>A < B </thin", False, "A < B </thin", ""),
        ("<think>\n\n</think>\n\nC", False, None, "C"),
        ("C <think>A</think>", False, None, "C <think>A</think>"),
        ("<thi", False, None, "<thi"),
        ("", True, None, ""),
        ("\n\nA", False, None, "\n\nA"),
    ],
)
def test_reasoning_is_split_from_content_however_it_is_cut(text, opened, reasoning, content):
    assert split_reasoning(text, opened=opened) == (reasoning, content)
    for seed in range(40):
        parser = ReasoningParser(opened=opened)
        found = [item for part in pieces(text, seed) for item in parser.push(part)]
        assert joined([*found, *parser.finish()]) == (reasoning, content)
