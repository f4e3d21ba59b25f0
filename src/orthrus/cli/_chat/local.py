"""Answers from a model in this process; one engine keeps the cache from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from orthrus.cli._chat.answers import AnswerError, ContextFullError, Figures, Message, Part
from orthrus.cli._chat.loops import LoopDetector
from orthrus.cli._chat.settings import DEFAULTS

if TYPE_CHECKING:
    from orthrus.api import Model, Options
    from orthrus.decoding.cycle import Step
    from orthrus.decoding.engine import Engine
    from orthrus.decoding.sequence import Request

ANTI_LOOP_PENALTIES = (1.1, 1.3)
"""The repetition penalty after the first and the second loop. docs/chat.md has the measurement behind it."""
LEAST_ROOM = 4
"""Of the context, at least one part in so many is left to an answer, if it may be as long."""
LOOPED = "it began to loop: that is taken back, and the rest has repetition_penalty {}"
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class LocalAnswers:
    """A loaded model with an engine. `decoding` are the options of the engine: cycle, rule and width."""

    interruptible = False
    defaults: Mapping[str, Any] | None = DEFAULTS

    def __init__(self, model: Model, decoding: Options, fixed: Mapping[str, Any]) -> None:
        """`fixed` are options of every answer that no command changes. Raises ValueError without a chat template."""
        if not model.checkpoint.text.chat_template:
            raise ValueError("this tokenizer has no chat template; use `orthrus generate --raw` to continue a text")
        self._model, self._fixed = model, dict(fixed)
        self._engine = model.engine(**decoding)
        self.name = f"{model.checkpoint.backbone.id}, diffusion view: {model.checkpoint.view}"

    def answer(self, messages: list[Message], options: Mapping[str, Any]) -> Generator[Part, None, None]:
        """Stream an answer; of the prompt, only what is new since the last turn is computed.

        Greedy decoding that begins to loop goes back to the first repetition, and on from there with a penalty, unless
        one of the penalties is set. Raises ContextFullError where earlier turns leave an answer too little room.
        """
        several = sum(message["role"] == "user" for message in messages) > 1
        chosen: Options = {**self._fixed, **options}  # type: ignore[typeddict-item]
        try:
            request = self._model.request(messages, chosen)
            guarded = request.sampling.greedy and not any(name in options for name in PENALTIES)
            context = self._model.limits.max_positions
            room = context - len(request.prompt)
            if several and room < min(request.stop.max_new_tokens, context // LEAST_ROOM):
                raise ContextFullError(f"{room} of {context} tokens of context are left for the answer")
            yield from _Answer(self._engine, request, context, guarded=guarded).parts()
        except ValueError as error:
            full = "context" in str(error)
            if full and several:
                raise ContextFullError(str(error)) from error
            raise AnswerError(f"{error}{' (this question alone is too long)' if full else ''}") from error

    def close(self) -> None:
        """End what is still being decoded."""
        self._engine.cancel_all()


class _Answer:
    """One answer: a request, and where it loops others that go on before the loop."""

    def __init__(self, engine: Engine, request: Request, context: int, *, guarded: bool) -> None:
        self._engine, self._request, self._context, self._guarded = engine, request, context, guarded
        self._started, self._first = perf_counter(), 0.0
        self._passes = 0
        self._cached: int | None = None
        self._kept = self._shown = 0
        """Tokens of the answer before its last request; characters of that which have been shown."""

    def parts(self) -> Iterator[Part]:
        """The parts; the last one has the figures."""
        request, penalties = self._request, list(ANTI_LOOP_PENALTIES) if self._guarded else []
        while True:
            last, loop = yield from self._decode(request, guarded=bool(penalties))
            if loop is None:
                break
            text, kept, penalty = last.sequence.text, last.sequence.tokens[:loop], penalties.pop(0)
            assert text is not None
            # the text before the loop, of which some may have been held back as the begin of a stop string
            end = text.ends[loop - 1] if loop else 0
            yield Part(text.text[self._shown : end], taken_back=max(0, self._shown - end), note=LOOPED.format(penalty))
            self._kept += loop
            request = _going_on(request, kept, penalty)
        yield Part("", figures=self._figures(last))

    def _decode(self, request: Request, *, guarded: bool) -> Generator[Part, None, tuple[Step, int | None]]:
        """The text of a request. Returns its last step, and how many tokens came before the loop that ended it."""
        detector, loop = LoopDetector(), None
        self._shown = 0
        with closing(self._engine.follow(self._engine.add(request))) as steps:  # type: ignore[type-var]
            for step in steps:
                self._first = self._first or perf_counter() - self._started
                starts = [detector.push(token) for token in step.kept.tokens]
                if guarded and step.finish_reason is None:
                    loop = next((start for start in starts if start is not None), None)
                self._shown += sum(len(piece.text) for piece in step.pieces)
                yield from (Part(piece.text, piece.source in ("draft", "lookup")) for piece in step.pieces)
                if loop is not None:
                    break
        self._passes += step.passes
        if self._cached is None:  # a request that goes on before a loop finds the prompt of the first one
            self._cached = step.sequence.statistics.cached_tokens
        return step, loop

    def _figures(self, last: Step) -> Figures:
        sampled = not self._request.sampling.greedy
        return Figures(
            self._kept + len(last.sequence.tokens), self._passes, len(self._request.prompt), self._cached or 0,
            perf_counter() - self._started, self._first, last.finish_reason, last.sequence.seed if sampled else None,
            self._context,
        )  # fmt: skip


def _going_on(request: Request, tokens: list[int], penalty: float) -> Request:
    """The request that goes on after these tokens of its answer, with a repetition penalty."""
    return replace(
        request,
        prompt=(*request.prompt, *tokens),
        sampling=replace(request.sampling, repetition_penalty=penalty),
        stop=replace(request.stop, max_new_tokens=request.stop.max_new_tokens - len(tokens)),
    )
