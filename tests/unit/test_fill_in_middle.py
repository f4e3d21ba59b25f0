"""Filling in the middle: which tokens a model has for it, the prompts made with them, and what ends an answer."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import tiny
import tiny_gguf
from tokenizers import Tokenizer, decoders, models, normalizers

import orthrus
from orthrus.checkpoint.fim_tokens import FAMILIES, find
from orthrus.fill_in_middle import FillInMiddle
from orthrus.prompt_files import Gap

PREFIX, SUFFIX, MIDDLE, PAD, REPOSITORY, FILE = range(tiny.END - 6, tiny.END)
BEFORE, AFTER = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny.save_checkpoint(tmp_path_factory.mktemp("fim") / "model", special=tiny.FIM)
    return orthrus.load(path, dtype="float32")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return orthrus.load(tiny.save_checkpoint(tmp_path_factory.mktemp("plain") / "model"), dtype="float32")


class Vocabulary:
    """A tokenizer as far as its FIM tokens are looked for."""

    def __init__(self, names):
        self._ids = {name: 10 + index for index, name in enumerate(names)}

    def vocabulary(self):
        return self._ids

    def special_tokens(self):
        return frozenset(self._ids)


@pytest.mark.parametrize(
    ("more", "family"),
    [
        (["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|endoftext|>"], "qwen2.5-coder"),
        (["<fim_pad>", "<repo_name>", "<file_sep>", "<|endoftext|>"], "starcoder2"),
        (["<fim_pad>", "<reponame>", "<filename>", "<|endoftext|>"], "starcoder2"),  # Granite-code
        (["<|file_separator|>"], "qwen2.5-coder"),  # CodeGemma
        (["▁<EOT>"], "codellama"),
        (["<｜end▁of▁sentence｜>"], "deepseek-coder"),
    ],
)
def test_each_family_has_its_tokens_and_ends_with_any_of_them(more, family):
    names = FAMILIES[family]
    tokens = find(Vocabulary([*names, *more]), 99, None, {})
    assert (tokens.prefix, tokens.suffix, tokens.middle) == (10, 11, 12)
    assert tokens.ends == frozenset(range(10, 10 + 3 + len(more)))
    assert tokens.repository == (14 if len(more) > 2 else None)
    assert tokens.file == (15 if len(more) > 2 else None)


def test_a_family_needs_all_three_tokens():
    assert find(Vocabulary(["<|fim_prefix|>", "<|fim_suffix|>", "<fim_middle>"]), 99, None, {}) is None


def test_the_ids_that_a_gguf_file_states_count(tmp_path):
    def stated(**keys):
        fields = {f"tokenizer__ggml__{key}_token_id": token for key, token in keys.items()}
        return orthrus.load(tiny_gguf.save(tmp_path / f"{len(fields)}.gguf", **fields)).checkpoint.fim

    new = stated(fim_pre=300, fim_suf=301, fim_mid=302, fim_pad=303, fim_rep=304, fim_sep=305)
    old = stated(prefix=300, suffix=301, middle=302)
    assert (new.prefix, new.suffix, new.middle, new.repository, new.file) == (300, 301, 302, 304, 305)
    assert (old.prefix, old.suffix, old.middle, old.repository, old.file) == (300, 301, 302, None, None)
    assert new.ends == frozenset(range(300, 306)) and old.ends == frozenset(range(300, 303))
    with pytest.raises(ValueError, match="fim_pre_token_id"):
        stated(fim_pre=tiny.VOCAB, fim_suf=301, fim_mid=302, fim_pad=1)


def test_a_prompt_is_prefix_suffix_middle(model):
    ids = list(model.request(BEFORE, {"suffix": AFTER}).prompt)
    assert ids == [PREFIX, *model.encode(BEFORE), SUFFIX, *model.encode(AFTER), MIDDLE]


def test_prompts_of_a_list_may_have_a_suffix_each(model):
    alone = [model.generate(BEFORE, suffix=AFTER, max_new_tokens=6), model.generate("count", max_new_tokens=6)]
    together = model.generate([Gap(BEFORE, AFTER), "count"], max_new_tokens=6)
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    with pytest.raises(ValueError, match="a suffix of its own allows no other suffix"):
        model.generate(Gap(BEFORE, AFTER), suffix=AFTER)


def test_other_files_stand_before_it_by_the_tokens_of_the_family(model):
    ids = model.fill_in_middle.prompt("a", "b", files=[("x.py", "x = 1\n")], name="y.py")
    named = model.encode("x.py\nx = 1\n")
    assert list(ids[:1]) == [REPOSITORY] and ids.count(FILE) == 2
    at = ids.index(FILE)
    assert list(ids[at : at + 1 + len(named)]) == [FILE, *named]
    assert list(ids[at + 1 + len(named) :]) == [
        FILE,
        *model.encode("y.py\n"),
        *model.request("a", {"suffix": "b"}).prompt,
    ]


@pytest.mark.parametrize("text", ["x<|fim_middle|>y", "<|end|>", "<|fim_suffix|><|fim_suffix|>", "<|<|file_sep|>"])
def test_text_that_looks_like_a_special_token_stays_text(model, text):
    assert max(model.encode(text)) > 255, "the tokenizer would read it as a token"
    ids = model.request(text, {"suffix": text}).prompt
    assert [token for token in ids if token > 255] == [PREFIX, SUFFIX, MIDDLE]
    assert model.decode([token for token in ids if token <= 255]) == text + text


def test_a_tokenizer_that_puts_a_blank_before_a_text_puts_none_into_its_midst():
    """As those of Llama 2 do, CodeLlama's among them."""
    pieces = ["<unk>", "▁", "a", "b", "▁a", "▁b", "<0xE2>", "<0x98>", "<0xBA>", "<", "P", "R", "E", ">", "▁<"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("▁", "<")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Replace("▁", " ")
    names = [*FAMILIES["codellama"], "<PRE>"]
    backend.add_special_tokens(names)
    text = Vocabulary([])
    text._ids = backend.get_vocab(with_added_tokens=True)
    text.special_tokens = lambda: frozenset(names)
    made = FillInMiddle(find(text, 99, None, {}), lambda text, _: backend.encode(text, add_special_tokens=False).ids)
    prefix, suffix, middle = (backend.token_to_id(name) for name in names[:3])
    written = [*(vocab[piece] for piece in "<PRE>")]
    assert made.prompt("a b", "b") == (prefix, vocab["▁a"], vocab["▁b"], suffix, vocab["b"], middle)
    assert made.literal("a<PRE>b") == [vocab["▁a"], *written, vocab["b"]]


@pytest.mark.parametrize("token", [FILE, PAD, PREFIX, MIDDLE])
def test_an_answer_ends_with_the_tokens_of_the_family(model, token):
    """Also where the client has written the prompt with the tokens in it."""
    written = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"
    for prompt, options in ((BEFORE, {"suffix": AFTER}), (written, {"raw": True})):
        forced = {"logit_bias": {token: 1000.0}, "max_new_tokens": 4}
        answer = model.generate(prompt, **options, **forced)
        assert (answer.tokens, answer.text, answer.finish_reason) == ([token], "", "stop")
    plain = model.generate(BEFORE, raw=True, logit_bias={token: 1000.0}, max_new_tokens=4)
    assert len(plain.tokens) == 4, "a text that is continued does not end so"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 5}])
def test_drafted_answers_are_those_of_plain_decoding(model, options):
    fixed = {"suffix": AFTER, "max_new_tokens": 24, **options}
    plain = model.generate(BEFORE, cycle="ar", **fixed).tokens
    for cycle in ("one-pass", "two-pass"):
        assert model.generate(BEFORE, cycle=cycle, **fixed).tokens == plain


def test_what_does_not_go_with_a_suffix_is_named(model, without):
    for options, problem in (
        ({"system": "be brief"}, "suffix leaves the chat template out, so there is no place for system"),
        ({"suffix": 3}, "suffix must be a string, not 3"),
    ):
        with pytest.raises(ValueError, match=problem):
            model.generate("a", **{"suffix": "b", **options})
    for prompt in ([1, 2], [{"role": "user", "content": "a"}]):
        with pytest.raises(ValueError, match="suffix needs a prompt that is a string"):
            model.generate(prompt, suffix="b")
    with pytest.raises(ValueError, match="suffix needs a model that can fill in the middle"):
        without.generate("a", suffix="b")


LINES = [f"{' ' * 4 * (n % 3)}line {n} of a file that someone writes\n" for n in range(400)]


def test_what_fits_is_kept_and_what_does_not_is_cut_at_lines(model):
    cut = model.fill_in_middle.cut
    short = "".join(LINES[:20])
    assert cut(short, short, 2000, 2000) == (short, short)
    assert cut("", "", 10, 10) == ("", "")
    whole = "".join(LINES)
    prefix, suffix = cut(whole + "    retu", "rn\n" + whole, 2000, 500)
    assert prefix.splitlines(True) == [*LINES, "    retu"][-len(prefix.splitlines()) :]
    assert 1500 <= len(model.encode(prefix)) <= 2000, "at least three quarters of what it may have"
    assert suffix.splitlines(True) == ["rn\n", *LINES][: len(suffix.splitlines())]
    assert 450 <= len(model.encode(suffix)) <= 500


def test_the_start_of_the_prefix_moves_in_steps(model):
    """While lines are typed, a prompt starts like the one before, so that most of it is known. That holds too where the
    client sends a window whose first line moves with the cursor."""
    cut = model.fill_in_middle.cut
    for window in (400, 80):
        starts = [cut("".join(LINES[max(0, n - window) : n]), "", 2000, 10)[0].splitlines()[0] for n in range(100, 400)]
        moves = sum(a != b for a, b in pairwise(starts))
        assert moves <= 300 // 6, moves
        assert all(start.startswith("line") for start in starts), "they start where nothing is indented"


def test_lines_longer_than_a_prompt_are_cut_too(model):
    giant = "x" * 100_000
    prefix, suffix = model.fill_in_middle.cut(giant, giant, 100, 10)
    assert 75 <= len(prefix) <= 100 and len(suffix) == 10
    grown = model.fill_in_middle.cut(giant + "y", giant, 100, 10)[0]
    assert grown == prefix + "y" or len(grown) < len(prefix)
    rng = random.Random(3)
    for _ in range(50):
        text = "".join(rng.choice(["a", " ", "\n", "long " * 40]) for _ in range(rng.randrange(60)))
        before, after = model.fill_in_middle.cut(text, text, 40, 20)
        assert text.endswith(before) and text.startswith(after)
        assert len(model.encode(before)) <= 40 and len(model.encode(after)) <= 20
