"""Answers while they are generated: steps of the engine to content, reasoning, tool calls and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from orthrus.decoding.cycle import Step
from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.decoding.sequence import Request
from orthrus.reasoning import BEGIN, END, ReasoningDelta, ReasoningParser, split_reasoning
from orthrus.serving.errors import SERVER, APIError
from orthrus.serving.protocol.common import CompletionTokensDetails, PromptTokensDetails, Usage
from orthrus.serving.tickets import Ticket
from orthrus.tool_calls import ToolCall, ToolCallDelta, ToolCallParser, parse_tool_calls

if TYPE_CHECKING:
    from orthrus.api import Model

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Format:
    """How the text of an answer is read: whether it may begin with reasoning, which the prompt may have `opened`, and
    whether it may hold tool calls."""

    thinking: bool = False
    opened: bool = False
    tools: bool = False


def format_of(model: Model, request: Request, *, tools: bool, forced: bool) -> Format:
    """How answers of a model are read. It thinks if its chat template knows the tags; the prompt may end with one. An
    answer that is JSON or a forced call leaves no room for reasoning, even where the prompt has begun it."""
    template = str(model.checkpoint.text.chat_template or "")
    constraint = request.sampling.constraint
    free = not forced and (constraint is None or constraint.kind in ("regex", "grammar"))
    opened = model.decode(request.prompt[-8:]).rstrip().endswith(BEGIN)
    return Format(thinking=free and (BEGIN in template or END in template), opened=opened, tools=tools)


@dataclass
class Delta:
    """What a step adds to an answer, in its order."""

    parts: list[str | ReasoningDelta | ToolCallDelta] = field(default_factory=list)

    @property
    def content(self) -> str:
        """The text, without reasoning and calls."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def reasoning(self) -> str:
        """The text of the reasoning."""
        return "".join(part.text for part in self.parts if isinstance(part, ReasoningDelta))

    @property
    def calls(self) -> list[ToolCallDelta]:
        """What is added to calls."""
        return [part for part in self.parts if isinstance(part, ToolCallDelta)]

    def add(self, part: str | ReasoningDelta | ToolCallDelta) -> None:
        """Append a part. It is joined to the one before it where it goes on with that."""
        last = self.parts[-1] if self.parts else None
        if isinstance(part, str) and isinstance(last, str):
            self.parts[-1] = last + part
        elif isinstance(part, ReasoningDelta) and isinstance(last, ReasoningDelta):
            self.parts[-1] = replace(last, text=last.text + part.text)
        elif isinstance(part, ToolCallDelta) and isinstance(last, ToolCallDelta) and part.id is None:
            self.parts[-1] = replace(last, arguments=last.arguments + part.arguments)
        else:
            self.parts.append(part)


class Answer:
    """One answer: its text so far, how it ended, and what it took."""

    def __init__(self, form: Format | None = None) -> None:
        self.form = form or Format()
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.accepted = self.rejected = self.reasoning_tokens = self.cached = 0
        self._reasoning = ReasoningParser(opened=self.form.opened) if self.form.thinking else None
        self._tools = ToolCallParser() if self.form.tools else None

    @property
    def called(self) -> bool:
        """Whether a tool call has begun."""
        return self._tools is not None and self._tools.calls > 0

    def add(self, step: Step) -> Delta:
        """Add a step. Returns what has become certain by it.

        Raises APIError where the request ended before its first token, because its time was up.
        """
        self.tokens += step.kept.tokens
        self.logprobs += step.logprobs
        self.accepted += step.kept.accepted
        self.rejected += step.plan.offered - step.kept.accepted
        delta = Delta()
        for piece in step.pieces:
            self._read(piece.text, delta)
        if step.finish_reason is not None:
            self._end(step, delta)
        return delta

    def whole(self) -> tuple[str | None, str, list[ToolCall]]:
        """The reasoning, the content and the calls of the whole answer."""
        reasoning, content = None, self.text
        if self.form.thinking:
            reasoning, content = split_reasoning(content, opened=self.form.opened)
        if not self.form.tools:
            return reasoning, content, []
        return reasoning, *parse_tool_calls(content, cut=self.finish_reason == "length")

    def _read(self, text: str, delta: Delta) -> None:
        self.text += text
        if self._reasoning is None:
            self._read_content(text, delta)
            return
        inside = self._reasoning.reasoning
        for part in self._reasoning.push(text):
            self._split(part, delta)
        self.reasoning_tokens += inside or self._reasoning.reasoning

    def _split(self, part: str | ReasoningDelta, delta: Delta) -> None:
        if isinstance(part, ReasoningDelta):
            delta.add(part)
        else:
            self._read_content(part, delta)

    def _read_content(self, text: str, delta: Delta) -> None:
        for part in self._tools.push(text) if self._tools else [text]:
            delta.add(part)

    def _end(self, step: Step, delta: Delta) -> None:
        if step.finish_reason == "timeout" and not self.tokens:
            raise APIError("the request timed out before its first token", status=504, type=SERVER, code="timeout")
        self.finish_reason = "stop" if step.finish_reason == "stop" else "length"
        self.cached = step.sequence.statistics.cached_tokens
        for part in self._reasoning.finish() if self._reasoning else []:
            self._split(part, delta)
        for rest in self._tools.finish() if self._tools else []:
            delta.add(rest)


async def follow(tickets: Sequence[Ticket], answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Step, Delta]]:
    """The steps of several answers as they happen, each with the index of its answer. Leaving it cancels the tickets.

    Raises what a ticket raises, and APIError where a ticket was cancelled or ran out of time.
    """
    events: asyncio.Queue[tuple[int, Step] | Exception | None] = asyncio.Queue()

    async def read(index: int, ticket: Ticket) -> None:
        try:
            async for step in ticket.steps():
                events.put_nowait((index, step))
            events.put_nowait(None)
        except Exception as error:
            events.put_nowait(error)

    readers = [asyncio.create_task(read(index, ticket)) for index, ticket in enumerate(tickets)]
    try:
        missing = len(readers)
        while missing:
            event = await events.get()
            if event is None:
                missing -= 1
            elif isinstance(event, Exception):
                raise event
            else:
                yield *event, answers[event[0]].add(event[1])
        if any(answer.finish_reason is None for answer in answers):
            raise APIError("the request was cancelled", status=503, type=SERVER, code="cancelled")
    finally:
        for reader, ticket in zip(readers, tickets, strict=True):
            reader.cancel()
            ticket.cancel()


async def collect(tickets: Sequence[Ticket], answers: Sequence[Answer]) -> None:
    """Follow answers to their ends."""
    async for _ in follow(tickets, answers):
        pass


def usage(answers: Sequence[Answer], prompt_tokens: int, n: int = 1) -> Usage:
    """The tokens of answers together, of which each `n` share a prompt."""
    generated = sum(len(answer.tokens) for answer in answers)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=generated,
        total_tokens=prompt_tokens + generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(answer.cached for answer in answers[::n])),
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=sum(answer.accepted for answer in answers),
            rejected_prediction_tokens=sum(answer.rejected for answer in answers),
            reasoning_tokens=sum(answer.reasoning_tokens for answer in answers),
        ),
    )
