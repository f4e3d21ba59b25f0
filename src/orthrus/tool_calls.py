"""Tool calls in the format of Hermes and Qwen models, read from an answer while it is generated.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Arguments are passed on as the model wrote them, as soon as it writes them. Text that is no tool call is content. A call
is taken as one where `"name"` comes before `"arguments"` or its JSON is complete; all else is content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

BEGIN, END = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call, as OpenAI streams it: the first of a call has its id and name, all have arguments to
    append."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ToolCall:
    """A complete call. `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


def new_id() -> str:
    """A fresh id of a tool call."""
    return f"call_{uuid4().hex[:24]}"


class ToolCallParser:
    """Splits an answer into content and tool calls as it is generated.

    White space and text that may be the beginning of `<tool_call>` are held back until it is certain that they are
    content. Once the arguments of a call have begun it stays one, even if they turn out to be invalid JSON: what has
    been streamed cannot be taken back. `parse_tool_calls` sees the whole answer and gives such a call as content.
    """

    def __init__(self, make_id: Callable[[], str] = new_id) -> None:
        self._make_id = make_id
        self._held, self._after_call = "", False
        self._state: Callable[[list[str | ToolCallDelta]], bool] = self._read_content
        self._arguments = _Arguments()
        self.sources: list[str] = []
        """The text of each call as the model wrote it, tags included."""

    @property
    def inside_call(self) -> bool:
        """Whether the text so far ends within the arguments of a call."""
        return self._state == self._read_arguments

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return len(self.sources)

    def push(self, text: str) -> list[str | ToolCallDelta]:
        """Add text. Returns the content, as strings, and the pieces of tool calls that have become certain."""
        self._held += text
        found: list[str | ToolCallDelta] = []
        while self._state(found):
            pass
        return found

    def finish(self) -> list[str | ToolCallDelta]:
        """What was held back, now that the answer has ended. A call may end without its tag."""
        found: list[str | ToolCallDelta] = []
        if self._state == self._read_body:
            self._end_body(self._held, "", found)
        elif self._state == self._read_content:
            self._emit(self._held.rstrip() if self.calls else self._held, found)
        elif self._state == self._read_arguments:
            self._append(self._held, found)
        else:
            self.sources[-1] += self._held
        self._held = ""
        return found

    def _read_content(self, found: list[str | ToolCallDelta]) -> bool:
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        content, begun, rest = self._held.partition(BEGIN)
        if begun:
            self._emit(content.rstrip(), found)
            self._held, self._state = rest, self._read_body
            return True
        certain = len(content) - _held_back(content)
        self._emit(content[:certain], found)
        self._held = content[certain:]
        return False

    def _read_body(self, found: list[str | ToolCallDelta]) -> bool:
        """The part of a call before its arguments or, where it is written in another order, the whole."""
        head = _HEAD.match(self._held)
        if head and (name := _loaded(head[1])):
            self._begin(name, BEGIN + head[0], found)
            self._held, self._state, self._arguments = self._held[head.end() :], self._read_arguments, _Arguments()
            return True
        body, ended, rest = self._held.partition(END)
        if ended:
            self._end_body(body, END, found)
            self._held, self._state = rest, self._read_content
        return bool(ended)

    def _end_body(self, body: str, tag: str, found: list[str | ToolCallDelta]) -> None:
        call = _loaded(body)
        name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
        if isinstance(arguments, str):
            arguments = _loaded(arguments)
        if isinstance(name, str) and name and isinstance(arguments, dict):
            self._begin(name, BEGIN + body + tag, found)
            self._append(json.dumps(arguments, ensure_ascii=False), found, source=False)
        else:
            self._emit(BEGIN + body + tag, found)

    def _read_arguments(self, found: list[str | ToolCallDelta]) -> bool:
        read = self._arguments.read(self._held)
        self._append(self._held[:read], found)
        self._held = self._held[read:]
        if self._arguments.ended:
            self._state = self._read_end
        return self._arguments.ended

    def _read_end(self, _: list[str | ToolCallDelta]) -> bool:
        """The rest of a call after its arguments, which says nothing more."""
        before, ended, rest = self._held.partition(END)
        if ended:
            self.sources[-1] += before + END
            self._held, self._state = rest, self._read_content
        return bool(ended)

    def _begin(self, name: str, source: str, found: list[str | ToolCallDelta]) -> None:
        found.append(ToolCallDelta(self.calls, self._make_id(), name, ""))
        self.sources.append(source)
        self._after_call = True

    def _append(self, arguments: str, found: list[str | ToolCallDelta], *, source: bool = True) -> None:
        if arguments:
            found.append(ToolCallDelta(self.calls - 1, None, None, arguments))
            self.sources[-1] += arguments if source else ""

    def _emit(self, content: str, found: list[str | ToolCallDelta]) -> None:
        if content:
            found.append(content)


class _Arguments:
    """Finds the end of a JSON object in pieces of text: its closing brace or, where it is invalid, the closing tag."""

    def __init__(self) -> None:
        self.ended = False
        self._depth, self._in_string, self._escaped, self._invalid = 0, False, False, False

    def read(self, text: str) -> int:
        """How many characters belong to the arguments. Sets `ended` where they end within the text."""
        for at, character in enumerate(text):
            if character == "<" and (self._invalid or not self._in_string):
                if END.startswith(text[at : at + len(END)]):
                    self.ended = len(text) - at >= len(END)
                    return at
                self._invalid = True
            elif not self._invalid and self._closes(character):
                self.ended = True
                return at + 1
        return len(text)

    def _closes(self, character: str) -> bool:
        """Whether a character closes the object."""
        if self._in_string:
            self._invalid = character < " "
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
            return False
        self._in_string = character == '"'
        self._depth += (character in "{[") - (character in "}]")
        return self._depth == 0


def parse_tool_calls(text: str, *, cut: bool = False) -> tuple[str, list[ToolCall]]:
    """The content and the tool calls of a whole answer. A call whose JSON is invalid is left in the content.

    cut: the answer was ended by its limit of tokens. A call whose arguments had begun by then stays a call.
    """
    parser = ToolCallParser()
    pieces: list[str | int] = []
    calls: list[ToolCall] = []
    for part in [*parser.push(text), *parser.finish()]:
        if isinstance(part, str):
            pieces.append(part)
        elif part.id is not None and part.name is not None:
            pieces.append(part.index)
            calls.append(ToolCall(part.id, part.name, part.arguments))
        else:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.arguments)
    valid = [isinstance(_loaded(call.arguments), dict) for call in calls]
    if cut and parser.inside_call:
        valid[-1] = True
    sources = ["" if valid[n] else source for n, source in enumerate(parser.sources)]
    content = "".join(piece if isinstance(piece, str) else sources[piece] for piece in pieces)
    return content, [call for call, is_valid in zip(calls, valid, strict=True) if is_valid]


def _loaded(text: str) -> Any:
    """JSON as a value, None where it is invalid."""
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _held_back(text: str) -> int:
    """Length of the end of a text that may be the beginning of a call, or white space before one."""
    tag = next((n for n in range(min(len(BEGIN) - 1, len(text)), 0, -1) if BEGIN.startswith(text[-n:])), 0)
    before = text[: len(text) - tag]
    return tag + len(before) - len(before.rstrip())
