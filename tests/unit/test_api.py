"""The Python API on a tiny checkpoint."""

from __future__ import annotations

import pytest
import tiny

import orthrus
from orthrus.config import DecodingConfig, StopConditions
from orthrus.decoding.engine import generate
from orthrus.decoding.sequence import Request, Sequence


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return orthrus.load(str(tiny.save_checkpoint(tmp_path_factory.mktemp("api") / "model")), dtype="float32")


@pytest.fixture(scope="module")
def untemplated(tmp_path_factory):
    path = tiny.save_checkpoint(tmp_path_factory.mktemp("api") / "model", template=None)
    return orthrus.load(str(path), dtype="float32")


def ids(model, text):
    return tuple(model.tokenizer(text).input_ids)


def test_the_chat_template_applies_unless_raw(model, untemplated):
    assert model.prompt_tokens("hi", {}) == ids(model, "<user>hi<assistant>")
    assert model.prompt_tokens("hi", {"system": "S"}) == ids(model, "<system>S<user>hi<assistant>")
    assert model.prompt_tokens("hi", {"raw": True}) == ids(model, "hi")
    assert model.prompt_tokens([{"role": "user", "content": "a"}], {}) == ids(model, "<user>a<assistant>")
    assert model.prompt_tokens([5, 6], {}) == (5, 6)
    assert untemplated.prompt_tokens("hi", {}) == ids(model, "hi")


def test_messages_and_system_need_a_chat_template(untemplated):
    with pytest.raises(ValueError, match="no chat template"):
        untemplated.generate("hi", system="S")
    with pytest.raises(ValueError, match="need a chat template"):
        untemplated.generate([{"role": "user", "content": "a"}])


def test_one_prompt_gives_a_result_and_a_list_gives_a_list(model):
    one = model.generate("hi", max_new_tokens=8)
    many = model.generate(["hi", "other", "hi"], max_new_tokens=8, batch_size=2)
    assert one.tokens == many[0].tokens == many[2].tokens
    assert len(many) == 3
    assert model.generate([]) == []
    assert one.finish_reason == "length"


def test_streamed_pieces_are_the_text_and_mark_drafts(model):
    chunks = list(model.stream("hi", max_new_tokens=40, temperature=0.7, seed=3, cycle="one-pass"))
    result = chunks[-1].result
    assert all(chunk.result is None for chunk in chunks[:-1])
    assert "".join(chunk.text for chunk in chunks) == result.text
    drafted = sum(piece.drafted for chunk in chunks for piece in chunk.pieces)
    assert drafted == sum(result.statistics.accepted) > 0


def test_stop_strings_and_tokens(model):
    whole = model.generate("hi", max_new_tokens=40, temperature=1.5, seed=2)
    stop = whole.text[4:7]
    cut = model.generate("hi", max_new_tokens=40, temperature=1.5, seed=2, stop=stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    token = whole.tokens[3]
    ended = model.generate("hi", max_new_tokens=40, temperature=1.5, seed=2, stop_token_ids=[token])
    assert ended.tokens == whole.tokens[: whole.tokens.index(token) + 1]


def test_the_context_ends_generation(model):
    prompt = [7] * (model.limits.max_positions - 3)
    result = model.generate(prompt, max_new_tokens=50)
    assert len(result.tokens) == 3
    assert result.finish_reason == "length"
    with pytest.raises(ValueError, match="shorten the prompt"):
        model.generate([*prompt, 7, 7, 7])


def test_a_cancelled_sequence_does_not_change_its_neighbours(model):
    requests = [Request((5, 6, 7 + n), stop=StopConditions(30)) for n in range(3)]
    alone = model.generate([list(r.prompt) for r in requests], max_new_tokens=30)
    steps, done = generate(model.runner, requests, DecodingConfig(batch_size=3), model.limits, model.decode), {}
    for step in steps:
        if step.sequence.index == 1 and len(step.sequence.tokens) > 5 and step.sequence.finish_reason is None:
            step.sequence.finish("cancelled")
        if step.sequence.finish_reason:
            done[step.sequence.index] = step.sequence
    assert done[1].finish_reason == "cancelled"
    assert done[1].tokens == alone[1].tokens[: len(done[1].tokens)]
    assert [done[n].tokens for n in (0, 2)] == [alone[n].tokens for n in (0, 2)]


def test_unknown_options_raise(model):
    with pytest.raises(ValueError, match="unknown option 'temprature'; did you mean 'temperature'"):
        model.generate("hi", temprature=1.0)
    with pytest.raises(ValueError, match="unknown option 'zzz'; options: max_new_tokens, stop, "):
        model.generate("hi", zzz=1.0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        orthrus.load("smollm2-demo", dtype="int3")
    with pytest.raises(AttributeError, match="nothing"):
        _ = orthrus.nothing


def test_bad_requests_are_refused(model):
    for prompt, message in (([], "empty"), ([-1], "outside the vocabulary"), ([tiny.VOCAB], "outside the vocabulary")):
        with pytest.raises(ValueError, match=message):
            Sequence(0, Request(tuple(prompt)), model.limits)
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        Sequence(0, Request((1,), stop=StopConditions(stop_strings=("x",))), model.limits)
