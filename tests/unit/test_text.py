"""Streamed text: characters that consist of several tokens, and stop strings across token boundaries."""

from __future__ import annotations

import pytest

from orthrus.decoding.text import TextStream


def bytewise(tokens):
    return bytes(tokens).decode("utf-8", errors="replace")


def push_all(stream, data):
    shown = []
    for byte in data:
        stream.push(byte)
        shown.append(stream.text[: stream.safe])
    return shown


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 🙂!", "a\nb\n", ""])
def test_streamed_text_is_the_text(text):
    stream = TextStream(bytewise)
    for partial in push_all(stream, text.encode()):
        assert text.startswith(partial)
    stream.finish()
    assert stream.text == text


def test_half_a_character_at_the_end_is_shown_when_finished():
    stream = TextStream(bytewise)
    push_all(stream, "ok é".encode()[:-1])
    assert stream.text == "ok "
    stream.finish()
    assert stream.text == "ok \ufffd"


def test_a_stop_string_is_cut_and_no_part_of_it_is_ever_shown():
    stream = TextStream(bytewise, ["STOP", "END."])
    shown = push_all(stream, b"one ST two EN three STOP four")
    assert stream.stopped
    assert stream.text == "one ST two EN three "
    assert not any(
        text.endswith(("S", "ST", "STO", "E", "EN")) for text in shown if len(text) > len("one ST two EN thre")
    )
    assert "one ST" not in shown[:6]


def test_the_longest_end_that_may_begin_a_stop_string_is_held_back():
    """Of "xaa", the last letter alone begins the stop string, and so do the last two."""
    stream = TextStream(bytewise, ["aab"])
    assert push_all(stream, b"xaa") == ["x", "x", "x"]
    assert "".join(piece.text for piece in stream.take()) == "x"
    push_all(stream, b"b")
    assert stream.stopped and stream.text == "x"


def test_pieces_make_the_text_and_say_how_each_token_came():
    stream, taken = TextStream(bytewise, ["STOP"]), []
    for n, byte in enumerate("é ST é SSTOP".encode()):
        stream.push(byte, "draft" if n % 2 else "bonus")
        taken += stream.take()
        assert stream.stopped or "".join(piece.text for piece in taken) == stream.text[: stream.safe]
    stream.finish()
    taken += stream.take()
    assert "".join(piece.text for piece in taken) == stream.text == "é ST é S"
    assert [piece.token for piece in taken] == list(range(14))
    assert [piece.drafted for piece in taken] == [bool(n % 2) for n in range(14)]


def test_the_earliest_stop_string_wins():
    stream = TextStream(bytewise, ["cde", "bc"])
    push_all(stream, b"abcdef")
    assert stream.text == "a"


def test_stop_string_inside_a_long_token():
    stream = TextStream(lambda tokens: "".join(["hello world, ", "goodbye."][t] for t in tokens), ["wor"])
    stream.push(0)
    assert stream.stopped
    assert stream.text == "hello "
