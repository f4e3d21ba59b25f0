"""The engine under load: requests that arrive over time, a batch with one long sequence, the second turn of a chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep

from orthrus.api import Model, Options
from orthrus.bench import tasks
from orthrus.config import PAGE
from orthrus.decoding.engine import Engine
from orthrus.decoding.sequence import Request


@dataclass(frozen=True)
class Load:
    """Requests served over time. Times to the first token run from the arrival of a request, in seconds."""

    tokens_per_second: float
    first_token_median: float
    first_token_max: float


@dataclass(frozen=True)
class Uneven:
    """A batch of short sequences and a long one. cache: the most bytes of pages in use; slots: the bytes that one
    slot per sequence, as long as the longest one, would take."""

    tokens_per_second: float
    cache: int
    slots: int


@dataclass(frozen=True)
class Chat:
    """Seconds to the first token of the first turn of a chat, and of its second turn."""

    history: int
    first_turn: float
    second_turn: float


def arrivals(model: Model, options: Options, count: int, every: float) -> Load:
    """Serve `count` prompts of GSM8K, of which one arrives every `every` seconds."""
    requests = [model.request(prompt.prompt, options) for prompt in tasks.load("gsm8k")[:count]]
    engine = model.engine(**options)
    arrived: dict[int, float] = {}
    first: dict[int, float] = {}
    tokens, start = 0, perf_counter()
    while requests or engine.unfinished:
        now = perf_counter() - start
        while requests and now >= every * len(arrived):
            arrived[engine.add(requests.pop(0))] = every * len(arrived)
        if not engine.unfinished:
            sleep(every / 10)
        for step in engine.step():
            tokens += len(step.kept.tokens)
            first.setdefault(step.sequence.index, perf_counter() - start - arrived[step.sequence.index])
    waited = list(first.values())
    return Load(tokens / (perf_counter() - start), median(waited), max(waited))


def uneven(model: Model, options: Options, count: int, context: int) -> Uneven:
    """Decode `count` - 1 prompts of GSM8K beside a prompt of `context` tokens."""
    requests = [model.request(prompt.prompt, options) for prompt in tasks.load("gsm8k")[: count - 1]]
    requests.append(model.request(_text(model, context), options))
    engine, tokens, pages, start = model.engine(**options), 0, 0, perf_counter()
    for request in requests:
        engine.add(request)
    while engine.unfinished:
        tokens += sum(len(step.kept.tokens) for step in engine.step())
        pages = max(pages, engine.cache.pages_in_use)
    seconds = perf_counter() - start
    longest = -(-(context + requests[-1].stop.max_new_tokens) // PAGE)
    size = model.runner.page_bytes
    return Uneven(tokens / seconds, pages * size, count * longest * size)


def chat(model: Model, options: Options, history: int) -> Chat:
    """The second turn follows an answer to a prompt of `history` tokens, with 40 new tokens."""
    engine, prompt = model.engine(**options), _text(model, history)
    tokens, first_turn = _first_token(engine, model.request(prompt, options))
    _, second_turn = _first_token(engine, model.request([*prompt, *tokens, *prompt[:40]], options))
    return Chat(history, first_turn, second_turn)


def _text(model: Model, count: int) -> list[int]:
    """The first `count` tokens of the questions of GSM8K."""

    def tokens() -> Iterator[int]:
        while True:
            for prompt in tasks.load("gsm8k"):
                yield from model.prompt_tokens(str(prompt.prompt), {"raw": True})

    endless = tokens()
    return [next(endless) for _ in range(count)]


def _first_token(engine: Engine, request: Request) -> tuple[list[int], float]:
    """The answer to a request, and the seconds to its first token."""
    start, first, tokens = perf_counter(), 0.0, []
    for step in engine.follow(engine.add(request)):
        first = first or perf_counter() - start
        tokens += step.kept.tokens
    return tokens, first
