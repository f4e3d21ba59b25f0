"""The tokenizer, chat templates and configs that need no `transformers` give what `transformers` gives."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum

import jinja2
import numpy as np
import pytest
import tiny
import tiny_gguf
from transformers import AutoConfig, AutoTokenizer

import orthrus
from orthrus.checkpoint import chat_template, gguf_convert, hub, plain_config, sources, tokenizer
from orthrus.checkpoint.gguf_header import read_header
from orthrus.model import families

TEXTS = (
    "",
    " ",
    "Hello, world",
    "  two  spaces\n\ttabs",
    "naïve café 東京 🎉",
    "1234567 1.5e-3",
    "<|end|> <unused260>x",
)
CHATS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " <|end|> "}],
    [
        {"role": "user", "content": "What is 1 + 1?", "name": None},
        {
            "role": "assistant",
            "content": "2",
            "reasoning": "easy",
            "tool_calls": [{"name": "f", "arguments": {"x": 1}}],
        },
        {"role": "tool", "content": '{"a": "<b>"}'},
        {"role": "user", "content": "ok"},
    ],
)
TEMPLATES = (
    tiny.TEMPLATE,
    tiny.CHAT,
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\n{{ m | tojson(indent=1) }}{% endfor %}",
    "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}{{ eos_token }}",
    "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ 'name' in m }}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ dict(a=1) }}{{ style | default('plain') }}",
    "{{ messages[0]['content'] | trim }}{% if add_generation_prompt %}>{% endif %}{{ tools is none }}{{ documents }}",
)


def both(template, tmp_path):
    full = tiny.tokenizer(template)
    full.save_pretrained(tmp_path)
    made = tokenizer.load(tmp_path, lambda: full)
    assert isinstance(made, tokenizer.FastTokenizer)
    return made, tokenizer.TransformersTokenizer(full)


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_ids_and_texts_equal_those_of_transformers(template, tmp_path):
    fast, full = both(template, tmp_path)
    for text in TEXTS:
        for special in (True, False):
            ids = fast.encode(text, special_tokens=special)
            assert ids == full.encode(text, special_tokens=special)
            assert fast.decode(ids) == full.decode(ids)
    for chat in CHATS:
        for variables in ({}, {"style": "terse", "extra": [1, None, {"a": 2.5}]}):
            assert fast.render(chat, variables) == full.render(chat, variables)
    assert fast.vocabulary() == full.vocabulary() and fast.vocabulary_digest() == full.vocabulary_digest()
    assert fast.eos_token_id == full.eos_token_id


def test_the_demo_tokenizer_equals_that_of_transformers():
    demo = orthrus.load("smollm2-demo", adapter="none").checkpoint
    assert isinstance(demo.text, tokenizer.FastTokenizer)
    full = tokenizer.TransformersTokenizer(demo.tokenizer)
    for text in TEXTS:
        assert demo.text.encode(text) == full.encode(text)
        assert demo.text.decode(full.encode(text)) == full.decode(full.encode(text))
    for chat in CHATS:
        assert demo.text.render(chat, {}) == full.render(chat, {})
    assert demo.text.vocabulary_digest() == full.vocabulary_digest()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system message here') }}", "{{ messages.append(1) }}", "{{ ''.__class__ }}x",
        "{% set n = namespace(__x=1) %}", "{{ undefined_function() }}",
    ],
)  # fmt: skip
def test_templates_fail_where_those_of_transformers_fail(template, tmp_path):
    fast, full = both(template, tmp_path)
    results = []
    for each in (fast, full):
        try:
            results.append(each.render(CHATS[0], {}))
        except jinja2.exceptions.TemplateError as error:
            results.append(type(error))
    assert results[0] == results[1]


def test_templates_see_plain_data_only():
    class Loud(StrEnum):
        word = "shout"

    @dataclass
    class Point:
        x: int

    given = {"a": Loud.word, "b": (np.float64(1.5), np.bool_(False)), "c": Point(2), "d": object(), "e": [True, None]}
    plain = chat_template.plain_data(given)
    assert plain == {"a": "shout", "b": (1.5, False), "c": {"x": 2}, "d": "<object>", "e": [True, None]}
    assert type(plain["a"]) is str and type(plain["b"][0]) is float


def test_a_tokenizer_that_does_more_than_its_backend_stays_with_transformers(tmp_path):
    full = tiny.tokenizer(None)
    full.chat_template = {"default": tiny.TEMPLATE, "tool_use": tiny.CHAT}
    assert tokenizer.snapshot_settings(full) is None
    own = type("Own", (type(full),), {"_decode": lambda self, *_, **__: "mine"})
    full = tiny.tokenizer()
    full.__class__ = own
    assert tokenizer.snapshot_settings(full) is None
    full.save_pretrained(tmp_path)
    assert isinstance(tokenizer.load(tmp_path, lambda: full), tokenizer.TransformersTokenizer)


def test_a_snapshot_follows_its_files_and_a_damaged_one_is_made_again(tmp_path):
    fast, _ = both(tiny.TEMPLATE, tmp_path)
    snapshot = tokenizer.snapshot_of(tmp_path)
    (snapshot / tokenizer.BACKEND).write_text("{}")
    assert tokenizer.load(tmp_path, tiny.tokenizer).encode("Hi") == fast.encode("Hi")
    again, full = both(tiny.CHAT, tmp_path)
    assert again.render(CHATS[0], {}) == full.render(CHATS[0], {}) != fast.render(CHATS[0], {})


@pytest.mark.parametrize("family", families.names())
def test_plain_configs_give_the_decoder_that_transformers_gives(family):
    hf = tiny.hf_config(family)
    content = hf.to_dict()
    plain = plain_config.of(family, content)
    if plain is None:
        assert family not in plain_config.OWN_FIELDS
        return
    assert families.decoder_config(plain) == families.decoder_config(hf)
    assert plain.eos_token_id == hf.eos_token_id and plain.vocab_size == hf.vocab_size
    older = {**content, "rope_parameters": None, "rope_theta": 10000.0}
    assert families.decoder_config(plain_config.of(family, older)) == families.decoder_config(hf)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, {"rms_norm_eps": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"tie_word_embeddings": None},
        {"partial_rotary_factor": 0.5}, {"quantization_config": {"quant_method": "gptq"}},
    ],
)  # fmt: skip
def test_a_config_that_transformers_interprets_is_left_to_it(change):
    assert plain_config.of("llama", {**tiny.hf_config("llama").to_dict(), **change}) is None


def test_the_demo_file_is_converted_as_transformers_converts_it(tmp_path):
    path = sources.resolve("smollm2-demo", None).path
    made = gguf_convert.converted(path)
    full = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    assert made.settings == tokenizer.snapshot_settings(full)
    gguf_convert.split_digits(read_header(path), full.backend_tokenizer)
    assert json.loads(made.backend.to_str()) == json.loads(full.backend_tokenizer.to_str())
    made.save(tmp_path)
    own, theirs = AutoConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    names = set(theirs) - {"_name_or_path", "architectures", "pretraining_tp", "unk_token_id"}
    assert {name: own[name] for name in names} == {name: theirs[name] for name in names}
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.snapshot_settings(again) == made.settings
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(made.backend.to_str())
    ids = again.apply_chat_template(CHATS[0], add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.TransformersTokenizer(full).render(CHATS[0], {})


def test_the_demo_splits_every_digit_off_first():
    """As its own tokenizer does, with which it was trained: white space before a digit is one piece."""
    backend = gguf_convert.converted(sources.resolve("smollm2-demo", None).path).backend
    pieces = {text: backend.encode(text).tokens for text in ("Mix\n\n2.", "x =  57", "    9")}
    assert pieces == {
        "Mix\n\n2.": ["Mix", "ĊĊ", "2", "."], "x =  57": ["x", "Ġ=", "ĠĠ", "5", "7"], "    9": ["ĠĠĠĠ", "9"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields", [{}, {"rope__freq_base": None}, {"attention__head_count_kv": None}, {"rope__scaling__type": "yarn"}]
)
def test_a_file_that_is_not_covered_is_left_to_transformers(fields, tmp_path):
    """The tiny files lack a token that transformers adds."""
    assert gguf_convert.converted(tiny_gguf.save(tmp_path / "tiny.gguf", **fields)) is None


def test_a_warm_start_imports_no_transformers(tmp_path):
    tiny.save_checkpoint(tmp_path)
    orthrus.load(tmp_path)
    code = (
        "import sys, orthrus\n"
        "text = orthrus.load(sys.argv[1]).generate('Hi', max_new_tokens=2, cycle='ar').text\n"
        "print([name for name in ('transformers', 'huggingface_hub', 'matplotlib') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    assert hub.load(str(tmp_path)).tokenizer is not None
