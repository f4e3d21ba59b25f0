"""Text, pieces and stops depend on the tokens alone: not on the cycle, nor on how tokens are grouped into passes.

The tokens of these models are parts of characters, so that stop strings, stop tokens, end tokens and lengths fall
inside them.
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
import tiny
from test_exact import script

from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding import cycles
from orthrus.decoding.engine import generate
from orthrus.decoding.text import TextStream

PARTS = [b"\xf0\x9f", b"\xa6\x84", b"\xf0", b"\x9f\xa6", b"\x84a", b"\xc3", b"\xa9", b"a", b"aa", b"b\xe2", b""]
"""Bytes of tokens: parts of the characters U+1F984 and U+00E9, letters, a character never completed, no text."""
STOPS = [(), ("\U0001f984",), ("aab", "ab"), ("\ufffd",), ("\u00e9a", "a\u00e9"), ("\U0001f984a",)]


def text_of(tokens):
    return b"".join(PARTS[token % len(PARTS)] for token in tokens).decode(errors="replace")


def streamed(tokens, stops, groups):
    """The text, the pieces and the count of tokens until the stop, where `groups` tokens come at a time."""
    stream, pieces, left = TextStream(text_of, stops), [], next(groups)
    for token in tokens:
        stream.push(token)
        left -= 1
        if stream.stopped:
            break
        if left == 0:
            pieces += stream.take()
            left = next(groups)
    pieces_before_end = "".join(piece.text for piece in pieces)
    stream.finish()
    assert stream.text.startswith(pieces_before_end), "text was shown that is no part of the answer"
    pieces += stream.take()
    return stream.text, pieces, len(stream.ends)


@pytest.mark.parametrize("stops", STOPS)
def test_text_and_pieces_do_not_depend_on_how_tokens_are_grouped(stops):
    rng = random.Random(repr(stops))
    for _ in range(150):
        tokens = [rng.randrange(len(PARTS)) for _ in range(rng.randint(1, 24))]
        at_once = streamed(tokens, stops, iter(lambda: 1000, 0))
        one_by_one = streamed(tokens, stops, iter(lambda: 1, 0))
        mixed = streamed(tokens, stops, iter(lambda: rng.randint(1, 5), 0))
        assert at_once == one_by_one == mixed, tokens
        text, pieces, pushed = at_once
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.token for piece in pieces] == list(range(pushed))
        assert not any(stop in text for stop in stops)
        assert text_of(tokens[:pushed]).startswith(text)


RUNS = {
    "begins of characters": [b"\xf0"],
    "begins, and tokens without text": [b"\xf0", b"", b""],
    "tokens without text": [b""],
    "ends of characters": [b"\x9f\xa6"],
    "letters before begins": [b"b\xe2"],
    "characters across tokens": [b"\x9f\xa6\x84\xf0"],
    "parts of characters": [b"\xf0\x9f", b"\xe2\x82", b"\xac\xc3"],
}
"""Tokens that are repeated and never end a character."""


@pytest.mark.parametrize("opening", [b"", b"a", b"\xc3"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_token_takes_the_same_time_after_any_run_that_never_completes_a_character(run, opening):
    parts, decoded = [opening, *run * (600 // len(run)), b"z"], 0

    def decode(tokens):
        nonlocal decoded
        decoded += len(tokens)
        return b"".join(parts[token] for token in tokens).decode(errors="replace")

    for stops in ((), ("z",)):
        stream, pieces, decoded = TextStream(decode, stops), [], 0
        for token in range(len(parts)):
            stream.push(token)
            pieces += stream.take()
        assert stream.stopped == bool(stops)
        stream.finish()
        pieces += stream.take()
        assert decoded < 60 * len(parts)
        assert stream.text == decode(range(len(parts))).removesuffix("z" if stops else "")
        assert "".join(piece.text for piece in pieces) == stream.text
        assert [piece.token for piece in pieces] == list(range(len(parts)))


def answers(runner, requests, cycle):
    """Per request: its text, its pieces, its tokens and why it ended."""
    config = DecodingConfig(cycle=cycle, batch_size=3)
    pieces = [[] for _ in requests]
    ended = [None] * len(requests)
    for step in generate(runner, requests, config, tiny.LIMITS, text_of, tiny.COSTS["passes"]):
        index, sequence = step.sequence.index, step.sequence
        pieces[index] += [(piece.token, piece.text) for piece in step.pieces]
        if step.finish_reason is not None:
            ended[index] = sequence.text.text, pieces[index], sequence.tokens, step.finish_reason
    return ended


def endings(tokens):
    """Requests that stop the same tokens after each of their first ones: by length, by a stop token, by a string."""
    base = tiny.request(9, len(tokens), sampling=SamplingParams(seed=3, temperature=1.0))
    for count in range(1, len(tokens)):
        yield replace(base, stop=StopConditions(count))
        yield replace(base, stop=StopConditions(count, stop_strings=(text_of(tokens[:count])[-2:-1] or "?",)))
        yield replace(base, stop=StopConditions(len(tokens), stop_token_ids=frozenset(tokens[count : count + 1])))
    text = text_of(tokens)
    for start in range(0, len(text), 2):
        yield replace(base, stop=StopConditions(len(tokens), stop_strings=(text[start : start + 2],)))


@functools.cache
def plain():
    """The requests with their tokens, and what plain decoding answers them."""
    runner = tiny.runner()
    tokens = tiny.oracle(runner, tiny.request(9, 20, sampling=SamplingParams(seed=3, temperature=1.0))).tokens
    requests = list(endings(tokens))
    return tokens, requests, answers(runner, requests, "ar")


def test_pieces_make_the_text_of_every_ending():
    _, requests, expected = plain()
    for request, (text, pieces, tokens, reason) in zip(requests, expected, strict=True):
        assert "".join(piece for _, piece in pieces) == text
        shown = tokens[:-1] if tokens[-1] in request.stop.stop_token_ids else tokens
        assert [token for token, _ in pieces] == list(range(len(shown)))
        assert text_of(shown).startswith(text)
        stopped = any(stop in text_of(shown) for stop in request.stop.stop_strings)
        assert (text_of(shown) != text) == stopped
        assert reason == ("stop" if stopped or shown != tokens else "length")
    assert any(text.endswith("\ufffd") for text, *_ in expected), "no ending falls inside a character"


@pytest.mark.parametrize("quality", [0.6, 1.0])
@pytest.mark.parametrize("cycle", [name for name in cycles.names() if name != "ar"])
def test_every_cycle_gives_the_text_and_the_pieces_of_plain_decoding(monkeypatch, cycle, quality):
    tokens, requests, expected = plain()
    script(monkeypatch, quality, [tokens] * len(requests))
    assert answers(tiny.runner(), requests, cycle) == expected
