"""Items of `/v1/responses`: those of a request as messages, those of an answer one by one with their events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any
from uuid import uuid4

from orthrus.reasoning import ReasoningDelta
from orthrus.serving.answers import Delta
from orthrus.serving.prompts import called
from orthrus.serving.protocol import responses as given
from orthrus.serving.protocol.response_objects import (
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputText,
    ResponseEvent,
)
from orthrus.serving.protocol.responses import Status
from orthrus.tool_calls import ToolCall, ToolCallDelta


def messages_of(body: given.ResponseRequest) -> list[dict[str, Any]]:
    """The conversation as chat templates read it. Calls and reasoning belong to the turn of the assistant beside
    them."""
    items = [given.MessageItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    turn: dict[str, Any] | None = None
    for item in items:
        if isinstance(item, given.MessageItem) and item.role != "assistant":
            role = "user" if item.role == "user" else "system"
            turn = None
            messages.append({"role": role, "content": _text(item.content)})
        elif isinstance(item, given.CallOutputItem):
            turn = None
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        else:
            if turn is None:
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _extend(turn, item)
    return _one_system_message(messages)


def _extend(turn: dict[str, Any], item: given.MessageItem | given.CallItem | given.ReasoningItem) -> None:
    if isinstance(item, given.MessageItem):
        turn["content"] += _text(item.content)
    elif isinstance(item, given.CallItem):
        function = called(item.name, item.arguments)
        turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif item.content:
        turn["reasoning_content"] = "".join(part.text for part in item.content)


def _one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instructions and a system message after them as one, since templates know a single one, which comes first."""
    if len(messages) > 1 and messages[0]["role"] == messages[1]["role"] == "system":
        text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return [{"role": "system", "content": text}, *messages[2:]]
    return messages


def _text(content: given.Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def message_item(text: str, status: Status, item_id: str | None = None) -> OutputMessage:
    """A message of the answer."""
    content = [] if status == "in_progress" else [text_part(text)]
    return OutputMessage(type="message", id=item_id or _id("msg"), role="assistant", status=status, content=content)


def text_part(text: str) -> OutputText:
    """The text of a message."""
    return OutputText(type="output_text", text=text, annotations=[], logprobs=[])


def reasoning_item(text: str, status: Status, item_id: str | None = None) -> OutputReasoning:
    """The reasoning of the answer."""
    content = [] if status == "in_progress" else [OutputReasoningText(type="reasoning_text", text=text)]
    return OutputReasoning(type="reasoning", id=item_id or _id("rs"), summary=[], content=content, status=status)


def call_item(call: ToolCall, status: Status, item_id: str | None = None) -> OutputCall:
    """A call of the answer."""
    return OutputCall(
        type="function_call", id=item_id or _id("fc"), call_id=call.id, name=call.name, arguments=call.arguments,
        status=status,
    )  # fmt: skip


def items_of(reasoning: str | None, content: str, calls: Sequence[ToolCall], status: Status) -> list[OutputItem]:
    """The items of a whole answer. The last one has its status, those before it are complete."""
    found: list[OutputItem] = [] if reasoning is None else [reasoning_item(reasoning, "completed")]
    if content.strip() or not calls:
        found.append(message_item(content, "completed"))
    found += [call_item(call, "completed") for call in calls]
    found[-1].status = status
    return found


def _id(kind: str) -> str:
    return f"{kind}_{uuid4().hex}"


class Events:
    """Numbers the events of a stream, and keeps the items that they add up to."""

    def __init__(self) -> None:
        self._numbers = count()
        self.items: list[OutputItem] = []
        self._open: _Open | None = None

    def event(self, kind: str, **fields: Any) -> ResponseEvent:
        """The next event."""
        return ResponseEvent(type=kind, sequence_number=next(self._numbers), **fields)

    def add(self, delta: Delta) -> Iterator[ResponseEvent]:
        """The events of what a pass adds: items that end and begin, and text."""
        for part in delta.parts:
            if isinstance(part, ToolCallDelta):
                yield from self._write(_Open("function_call", "fc", part), part.arguments)
            elif isinstance(part, ReasoningDelta):
                yield from self._write(_Open("reasoning", "rs"), part.text)
            elif part:
                yield from self._write(_Open("message", "msg"), part)

    def close(self, status: Status) -> Iterator[ResponseEvent]:
        """The events that end the open item."""
        if self._open is None:
            return
        now, self._open = self._open, None
        place = {"output_index": len(self.items), "item_id": now.id}
        part = {**place, "content_index": 0}
        item = now.item(status)
        if now.kind == "message":
            yield self.event("response.output_text.done", **part, text=now.text, logprobs=[])
            yield self.event("response.content_part.done", **part, part=text_part(now.text))
        elif now.kind == "reasoning":
            yield self.event("response.reasoning_text.done", **part, text=now.text)
        else:
            yield self.event("response.function_call_arguments.done", **place, name=now.name, arguments=now.text)
        yield self.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)

    def _write(self, wanted: _Open, text: str) -> Iterator[ResponseEvent]:
        if self._open is None or not self._open.goes_on(wanted):
            yield from self.close("completed")
            self._open = wanted
            yield self.event(
                "response.output_item.added", output_index=len(self.items), item=wanted.item("in_progress")
            )
            if wanted.kind == "message":
                place = {"output_index": len(self.items), "item_id": wanted.id, "content_index": 0}
                yield self.event("response.content_part.added", **place, part=text_part(""))
        now = self._open
        now.text += text
        place = {"output_index": len(self.items), "item_id": now.id}
        if now.kind == "message":
            yield self.event("response.output_text.delta", **place, content_index=0, delta=text, logprobs=[])
        elif now.kind == "reasoning":
            yield self.event("response.reasoning_text.delta", **place, content_index=0, delta=text)
        elif text:
            yield self.event("response.function_call_arguments.delta", **place, delta=text)


class _Open:
    """The item that is being written."""

    def __init__(self, kind: str, prefix: str, call: ToolCallDelta | None = None) -> None:
        self.kind, self.id, self.text = kind, _id(prefix), ""
        self.index = call.index if call else None
        self.name, self._call_id = (call.name or "", call.id or "") if call else ("", "")

    def goes_on(self, wanted: _Open) -> bool:
        """Whether what is wanted belongs to this item."""
        return (self.kind, self.index) == (wanted.kind, wanted.index)

    def item(self, status: Status) -> OutputItem:
        """The item as it is now."""
        if self.kind == "message":
            return message_item(self.text, status, self.id)
        if self.kind == "reasoning":
            return reasoning_item(self.text, status, self.id)
        return call_item(ToolCall(self._call_id, self.name, self.text), status, self.id)
