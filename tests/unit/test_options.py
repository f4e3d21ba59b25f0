"""Arguments of the Python API: a wrong type raises one ValueError with the name, the expected type and the value."""

from __future__ import annotations

import inspect
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from transformers import PreTrainedTokenizerBase

import orthrus
from orthrus import options, tokenization
from orthrus.checkpoint import hub
from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.options import Options, Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny.save_checkpoint(tmp_path_factory.mktemp("options") / "model", template=PICKY)
    return orthrus.load(path, dtype="float32")


PICKY = "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user speaks first') }}{% endif %}" + (
    tiny.TEMPLATE
)
WRONG = [
    ({"stop": 5}, "stop must be a string or a list of strings, not 5 (int)"),
    ({"stop": [1]}, "stop must be a string or a list of strings, not [1] (list)"),
    ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, not 5 (int)"),
    ({"stop_token_ids": [True]}, "stop_token_ids must be a list of token ids, not [True] (list)"),
    ({"stop_token_ids": [1.0]}, "stop_token_ids must be a list of token ids, not [1.0] (list)"),
    ({"top_k": "a"}, "top_k must be an integer, not 'a' (str)"),
    ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, not 2.5 (float)"),
    ({"max_new_tokens": 2.0}, "max_new_tokens must be an integer, not 2.0 (float)"),
    ({"max_new_tokens": np.float32(2)}, "max_new_tokens must be an integer"),
    ({"max_new_tokens": torch.tensor(2.0)}, "max_new_tokens must be an integer"),
    ({"max_new_tokens": torch.tensor([2])}, "max_new_tokens must be an integer"),
    ({"temperature": "hot"}, "temperature must be a number, not 'hot' (str)"),
    ({"temperature": True}, "temperature must be a number, not True (bool)"),
    ({"temperature": 10**400}, "temperature is too large for a float"),
    ({"seed": 1.5}, "seed must be an integer, not 1.5 (float)"),
    ({"seed": True}, "seed must be an integer, not True (bool)"),
    ({"seed": np.True_}, "seed must be an integer"),
    ({"seed": torch.tensor(True)}, "seed must be an integer"),
    ({"raw": "yes"}, "raw must be True or False, not 'yes' (str)"),
    ({"system": 3}, "system must be a string, not 3 (int)"),
    ({"cycle": 3}, "cycle must be a string, not 3 (int)"),
    ({"cycle": "three-pass"}, "there is no cycle 'three-pass'; cycles: ar, auto"),
    ({"rule": "majority"}, "rules: exact, rejection"),
    ({"logit_bias": 5}, "logit_bias must be a mapping of token ids to numbers, not 5 (int)"),
    ({"logit_bias": [1, 2]}, "logit_bias must be a mapping of token ids to numbers"),
    ({"logit_bias": {"a": 1.0}}, "logit_bias must be a mapping of token ids to numbers, not {'a': 1.0} (dict)"),
    ({"logit_bias": {1: "b"}}, "logit_bias must be a mapping of token ids to numbers, not {1: 'b'} (dict)"),
    ({"logit_bias": {1.0: 1.0}}, "logit_bias must be a mapping of token ids to numbers"),
    ({"logit_bias": {tiny.VOCAB: 1.0}}, "the vocabulary ends at 319"),
    ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ({"batch_size": "4"}, "batch_size must be an integer, not '4' (str)"),
    ({"width": 1}, "width must be at least 2"),
    ({"width": 99}, "width 99 is beyond the block size 8"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be a mapping of names to values, not [1] (list)"),
    ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs must be a mapping of names to values"),
    ({"raw": True, "system": "s"}, "no place for system"),
    ({"raw": True, "chat_template_kwargs": {"a": 1}}, "no place for chat_template_kwargs"),
]
USER = {"role": "user", "content": "a"}
BAD_PROMPTS = [
    (None, "a prompt must be a string, a list of messages, or a list of token ids, not None (NoneType)"),
    (5, "a prompt must be a string, a list of messages, or a list of token ids, not 5 (int)"),
    (b"hi", "a prompt must be a string"),
    ({1, 2}, "a prompt must be a string"),
    (USER, "a single message is not a prompt: put it into a list"),
    ([None], "a prompt must be a string, a list of messages, or a list of token ids, not [None] (list)"),
    ([1, "a"], "item 2 of a list of token ids must be an integer, not 'a' (str)"),
    ([1, 2.0], "item 2 of a list of token ids must be an integer, not 2.0 (float)"),
    ([1, True], "item 2 of a list of token ids must be an integer, not True (bool)"),
    ([True], "a prompt must be a string, a list of messages, or a list of token ids, not [True] (list)"),
    ([1.5], "a prompt must be a string"),
    ("  ", "the prompt is empty"),
    ([-1], "outside the vocabulary of 320"),
    ([2**70], "outside the vocabulary of 320"),
    (np.array([1.0]), "a prompt must be a string"),
    (torch.tensor([[1, 2]]), "token ids must be one-dimensional, not of shape [1, 2]"),
    (torch.tensor([True]), "a prompt must be a string"),
    ([USER, "b"], "message 2 of 2 must be a mapping with `role` and `content`, not 'b' (str)"),
    ([{"role": "user"}], "message 1 of 1 has no content"),
    ([{"role": "user", "content": None}], "message 1 of 1 has no content"),
    ([{"content": "a"}], "message 1 of 1 has no role; roles: system, user, assistant, tool"),
    ([{}], "message 1 of 1 has no role"),
    ([{"role": "alien", "content": "a"}], "message 1 of 1 has the role 'alien'; roles: system, user, assistant, tool"),
    ([{"role": ["user"], "content": "a"}], "message 1 of 1 has the role ['user']"),
    ([{"role": "user", "content": 5}], "the content of message 1 of 1 must be a string or a list of text parts, not 5"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url': only text is supported"),
    ([{"role": "user", "content": ["a"]}], "a part of the content of message 1 of 1 must be like"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "a part of the content of message 1 of 1 must be"),
    ([{"role": "assistant", "content": "a"}], "the chat template cannot render these messages: the user speaks first"),
]
BAD_LISTS = [
    (["a", 5], "prompt 2 of 2: a prompt must be a string, a list of messages, or a list of token ids, not 5 (int)"),
    (["a", None, USER], "prompt 2 of 3: a prompt must be a string"),
    ([["a"]], "a prompt must be a string, a list of messages, or a list of token ids, not ['a'] (list)"),
    (["a", ["b", 1]], "prompt 2 of 2: a prompt must be a string"),
    ([[]], "the prompt is empty"),
]


def entries(model):
    """The three methods that take prompts; each checks its arguments when called."""
    return (
        model.generate,
        model.stream,
        lambda prompt, **given: model.results([prompt], **given),
    )


@pytest.mark.parametrize(("given", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_option_raises_one_error_at_the_call(model, given, message):
    for enter in entries(model):
        with pytest.raises(ValueError, match=re.escape(message)):
            enter("hi", **given)


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=lambda value: str(value)[:40])
def test_a_wrong_prompt_raises_one_error_at_the_call(model, prompt, message):
    for enter in entries(model):
        with pytest.raises(ValueError, match=re.escape(message)):
            enter(prompt)


@pytest.mark.parametrize(("prompts", "message"), BAD_LISTS, ids=lambda value: str(value)[:40])
def test_a_wrong_prompt_among_several_is_named(model, prompts, message):
    for enter in (model.generate, model.results):
        with pytest.raises(ValueError, match=re.escape(message)):
            enter(prompts)


@pytest.mark.parametrize("prompts", ["hi", USER, None, 5])
def test_results_needs_a_list_of_prompts(model, prompts):
    with pytest.raises(ValueError, match="prompts must be a list of prompts, not "):
        model.results(prompts)


def test_a_prompt_that_is_too_long_is_refused_at_the_call(model):
    with pytest.raises(ValueError, match="shorten the prompt"):
        model.stream([7] * 2048)
    with pytest.raises(ValueError, match="prompt 2 of 2: the prompt has 2048 tokens"):
        model.results(["a", [7] * 2048])


def test_none_is_the_default_of_every_option(model):
    plain = model.generate("hi", max_new_tokens=12).tokens
    assert model.generate("hi", **{**dict.fromkeys(Options.__annotations__), "max_new_tokens": 12}).tokens == plain
    settings = Settings.of(dict.fromkeys(Options.__annotations__))
    assert settings == Settings(SamplingParams(), StopConditions(), DecodingConfig())


def test_every_option_has_a_kind():
    assert set(options.KINDS) == set(Options.__annotations__)


def test_numbers_of_numpy_and_torch_are_numbers(model):
    plain = model.generate([5, 6, 7], max_new_tokens=9, temperature=1, seed=3, stop_token_ids=[1], logit_bias={2: -1})
    result = model.generate(
        [np.int64(5), torch.tensor(6), 7],
        max_new_tokens=np.int32(9), temperature=np.float32(1), seed=torch.tensor(3), stop_token_ids=np.array([1]),
        logit_bias={np.int64(2): np.float64(-1)},
    )  # fmt: skip
    assert result.tokens == plain.tokens
    for ids in (np.array([5, 6, 7]), torch.tensor([5, 6, 7]), (5, 6, 7)):
        assert model.prompt_tokens(ids, {}) == (5, 6, 7)
    results = model.generate([np.array([5, 6]), torch.tensor([7])], max_new_tokens=3)
    assert [result.prompt_tokens for result in results] == [2, 1]


def test_content_parts_are_text(model):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    tokens = model.prompt_tokens([{"role": "user", "content": parts}], {})
    assert tokens == model.prompt_tokens([{"role": "user", "content": "a b"}], {})
    assert model.prompt_tokens([USER, {"role": "assistant", "tool_calls": [1], "content": None}], {})


def test_messages_need_the_template(model):
    with pytest.raises(ValueError, match="messages need the chat template"):
        model.generate([USER], raw=True)


def test_reserved_template_arguments_are_refused(model):
    for function in (PreTrainedTokenizerBase.apply_chat_template, _render()):
        named = {n for n, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD}
        assert named <= options.RESERVED
    for name in sorted(options.RESERVED):
        with pytest.raises(ValueError, match=f"chat_template_kwargs may not hold '{name}'"):
            model.stream("hi", chat_template_kwargs={name: 1})


def _render():
    from transformers.utils import chat_template_utils

    return chat_template_utils.render_jinja_template


def test_results_can_be_written_as_json(model):
    result = model.generate("hi", max_new_tokens=20, cycle="two-pass")
    record = json.loads(json.dumps(result.to_dict()))
    assert record["tokens"] == result.tokens
    assert record["prompt_tokens"] == len(model.prompt_tokens("hi", {}))
    assert record["statistics"]["acceptance_by_offset"] == result.statistics.acceptance_by_offset
    assert set(record) == {"text", "tokens", "finish_reason", "seed", "prompt_tokens", "statistics"}


def test_the_repr_of_a_model_describes_it(model, tmp_path):
    shown = repr(model)
    assert re.fullmatch(
        r"<orthrus\.Model \S+/model: qwen3, 3 layers, hidden size 64, 0\.\d M parameters; float32 on cpu;"
        r" diffusion view: in the checkpoint, blocks of 8; kernels: .+>",
        shown,
    )
    weights = hub.describe(str(model.checkpoint.backbone.id)).decoder.named_parameters()
    backbone = sum(parameter.numel() for name, parameter in weights if ".diffusion." not in name)
    assert f"{backbone / 1e6:.1f} M parameters" in shown
    bare = orthrus.load(tiny.save_checkpoint(tmp_path / "bare", view=False), dtype=torch.bfloat16)
    assert "bfloat16 on cpu; diffusion view: none;" in repr(bare)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": 5}, "name must be a string or a path, not 5 (int)"),
        ({"adapter": 5}, "adapter must be a directory, not 5 (int)"),
        ({"dtype": "int3"}, "dtype must be one of bfloat16, float32, not 'int3'"),
        ({"dtype": 5}, "dtype must be one of bfloat16, float32, not 5"),
        ({"dtype": torch.float16}, "dtype must be one of bfloat16, float32, not torch.float16"),
        ({"quantize": "int3"}, "quantize must be one of int8, none, not 'int3'"),
        ({"quantize": 8}, "quantize must be one of int8, none, not 8"),
        ({"device": []}, "device must be a device such as"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"device": "moon"}, "device 'moon' cannot be used here"),
        ({"revision": 1}, "revision must be a string, not 1 (int)"),
        ({"low_precision_drafts": "no"}, "low_precision_drafts must be True or False, not 'no' (str)"),
        ({"allow_other_backbone": 1}, "allow_other_backbone must be True or False, not 1 (int)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_are_checked_before_a_model_loads(monkeypatch, given, message):
    def load(*_args, **_kwargs):
        raise AssertionError("the model is loaded before the arguments are checked")

    monkeypatch.setattr(hub, "load", load)
    with pytest.raises(ValueError, match=re.escape(message)):
        orthrus.load(**given)


def test_public_names_are_listed():
    assert {"load", "Model", "Result", "Chunk", "SamplingParams", "StopConditions"} <= set(dir(orthrus))
    assert not {"Any", "TYPE_CHECKING", "annotations", "ModuleType"} & set(dir(orthrus))


@pytest.mark.parametrize("safe", [False, True])
def test_a_tokenizer_that_is_not_thread_safe_serves_one_thread_at_a_time(model, safe):
    """Those of transformers fail where one thread sets padding or truncation while another encodes."""
    running, seen = [], []

    class Spy:
        chat_template, thread_safe = model.tokenizer.chat_template, safe

        def __getattr__(self, name):
            return lambda *args, **kwargs: self._call(getattr(model.checkpoint.text, name), *args, **kwargs)

        def _call(self, function, *args, **kwargs):
            running.append(function)
            seen.append(len(running))
            time.sleep(0.001)
            running.pop()
            return function(*args, **kwargs)

    shared, raw, plain = tokenization.Tokenization(Spy()), Settings.of({"raw": True}), Settings.of({})

    def work(n):
        return shared.encode(f"text {n}", raw), shared.encode(f"text {n}", plain), shared.decode([65 + n])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    assert safe or max(seen) == 1
    assert [decoded for _, _, decoded in results] == [model.decode([65 + n]) for n in range(16)]
    assert [text for text, *_ in results] == [tuple(model.checkpoint.text.encode(f"text {n}")) for n in range(16)]
