"""`text_offset` of a completion says where each token begins in its text, whatever the text leaves out."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
import tiny
from small_server import serving

from orthrus.serving.app import create_app
from orthrus.serving.logprobs import TextOffsets
from orthrus.token_texts import TokenTexts

ANSWER = 6


def completion_of(model, prompt, **fields):
    """The choice of an echoed completion, and its offsets as they are streamed."""

    async def main():
        body = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "echo": True, "logprobs": 0, **fields}
        async with serving(model, create_app) as (_, client):
            [choice] = (await client.post("/v1/completions", json=body)).json()["choices"]
            response = await client.post("/v1/completions", json={**body, "stream": True})
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
        return choice, [offset for part in parts for offset in part["text_offset"]]

    return asyncio.run(main())


@pytest.mark.parametrize("named", [False, True])
def test_tokens_begin_where_the_text_has_them(model, named):
    text = "caf\u00e9<|end|>b\U0001f984<|end|>" if named else "caf\u00e9b\U0001f984"
    tokens = model.encode("caf\u00e9<|end|>b\U0001f984<|end|>")
    assert tokens.count(tiny.END) == 2
    choice, _ = completion_of(model, text if named else tokens)
    assert choice["text"].startswith(text)
    offsets, names = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
    named_length = len("<|end|>") if named else 0
    cut = 4 + named_length
    expected = [0, 1, 2, 3, 3, 4, cut, *[cut + 1] * 4, cut + 2]
    assert offsets[: len(tokens)] == expected
    for name, offset in zip(names[len(tokens) :], offsets[len(tokens) :], strict=True):
        assert offset >= len(text)
        assert name.startswith("bytes:") or choice["text"].startswith(name, offset), (name, offset)


def test_a_stream_has_the_same_offsets(model):
    choice, streamed = completion_of(model, model.encode("a<|end|>b"), temperature=1.0, seed=7)
    assert choice["logprobs"]["text_offset"][:4] == [0, 1, 1, 2]
    assert streamed == choice["logprobs"]["text_offset"]


def test_the_token_that_ends_an_answer_takes_no_room(model):
    choice, _ = completion_of(model, "ab", logit_bias={str(tiny.END): 100})
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["logprobs"]["tokens"][-1] == "<|end|>" and choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_offsets_in_a_vocabulary_of_sentencepiece():
    pieces = ["<s>", "\u2581The", "\u2581", "<0xC3>", "<0xA9>", "x", "</s>"]

    def decode(tokens):
        content = b"".join(
            bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("\u2581", " ").encode()
            for piece in (pieces[token] for token in tokens)
            if piece not in ("<s>", "</s>")
        )
        return content.decode(errors="replace").removeprefix(" ")

    text = SimpleNamespace(vocabulary=lambda: {piece: token for token, piece in enumerate(pieces)})
    texts = TokenTexts(decode, text.vocabulary)
    tokens = [0, 1, 2, 3, 4, 1, 5, 6]
    assert decode(tokens) == "The \u00e9 Thex"
    assert TextOffsets(texts).of_answer(tokens) == [0, 0, 3, 4, 4, 5, 9, 10]
    assert TextOffsets(texts).of_prompt(decode(tokens), tokens) == [0, 0, 3, 4, 4, 5, 9, 10]
