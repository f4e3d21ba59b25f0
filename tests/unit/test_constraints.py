"""Constraints: what is refused and how, limits, end tokens, and the state that follows drafts."""

from __future__ import annotations

import json
import resource
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from orthrus.config import MAX_CONSTRAINT, Constraint, DecodingConfig, SamplingParams
from orthrus.constraints import of_options
from orthrus.decoding import constraint_compiler, constraints
from orthrus.decoding.constraints import Ending, Grammars, restrict
from orthrus.decoding.engine import Engine, generate
from orthrus.decoding.json_digits import MAX_DIGITS
from orthrus.decoding.noise import AddressedNoise
from orthrus.decoding.reference import autoregress
from orthrus.decoding.rules import Check, Proposal, exact, rejection
from orthrus.decoding.sampling import RowRequest, Sampler, distributions, targets
from orthrus.decoding.sequence import Limits
from orthrus.drafters.tree import DraftTree

ENDS = frozenset([tiny.END])


def grammars(vocab=tiny.VOCAB, ends=ENDS):
    return Grammars(tiny.tokenizer().backend_tokenizer.to_str, vocab, ends)


@pytest.fixture(scope="module")
def made():
    return grammars()


def ids(text):
    return tiny.tokenizer()(text)["input_ids"]


def allowed(grammar, vocab=tiny.VOCAB):
    mask = grammar.mask()
    assert len(mask) == vocab
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("constraint", "problem"),
    [
        (Constraint("json_schema", '{"type": "strin"}'), "json_schema .*Invalid type: strin"),
        (Constraint("json_schema", '{"type": '), "json_schema .*"),
        (Constraint("json_schema", '{"uniqueItems": true, "type": "array"}'), 'json_schema .*"uniqueItems"'),
        (Constraint("json_schema", '{"$ref": "http://example.com/schema"}'), "json_schema .*"),
        (Constraint("json_schema", '{"items": ' * 3000 + "true" + "}" * 3000), "json_schema .*recursion limit"),
        (Constraint("regex", "[a"), "regex .*unclosed character class"),
        (Constraint("regex", "(?=a)b"), "regex .*look-ahead"),
        (Constraint("regex", "()"), "regex .*empty text"),
        (Constraint("grammar", "start: other"), 'grammar .*unknown name: "other"'),
        (Constraint("grammar", "begin: other"), "grammar .*"),
    ],
)
def test_errors_name_the_option_and_the_problem(made, constraint, problem):
    with pytest.raises(ValueError, match=f"(?s)^{problem}"):
        made.start(constraint, ENDS)


def test_texts_are_bounded():
    with pytest.raises(ValueError, match="regex may have 262144 characters, not 262145"):
        Constraint("regex", "a" * (MAX_CONSTRAINT + 1))
    with pytest.raises(ValueError, match="grammar must not be empty"):
        Constraint("grammar")


def test_the_error_of_a_regex_shows_nothing_of_the_grammar_made_of_it():
    with pytest.raises(ValueError, match=r"^regex cannot be used as a constraint: invalid regex") as error:
        grammars().start(Constraint("regex", "[a"), ENDS)
    assert "unclosed character class" in str(error.value)
    assert "start:" not in str(error.value)


def test_grammars_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr(constraint_compiler, "MAX_GRAMMAR_SIZE", 10)
    with pytest.raises(ValueError, match=r"json_schema .*too big"):
        grammars().start(Constraint("json_schema", '{"type": "object"}'), ENDS)


def test_a_tokenizer_and_an_end_token_are_needed():
    with pytest.raises(ValueError, match="regex needs a tokenizer"):
        tiny.LIMITS.grammar(Constraint("regex", "a"), ENDS)
    with pytest.raises(ValueError, match="regex needs a tokenizer of the `tokenizers` library"):
        Grammars(lambda: None, tiny.VOCAB, ENDS).start(Constraint("regex", "a"), ENDS)
    with pytest.raises(ValueError, match="regex needs a model with an end token"):
        grammars(ends=frozenset()).start(Constraint("regex", "a"), ENDS)


def test_compiled_grammars_are_kept_up_to_their_bytes(monkeypatch):
    compiled, kept = [], grammars()
    original = kept._matcher
    monkeypatch.setattr(kept, "_matcher", lambda constraint: compiled.append(constraint.text) or original(constraint))
    monkeypatch.setattr(constraints, "COMPILED_BYTES", 0.0)
    monkeypatch.setattr(constraints, "KEPT_BYTES", 4 * constraints.MATCHER_BYTES)
    for text in "ababcab":
        kept.start(Constraint("regex", text), ENDS)
    assert compiled == [text for text in "abcab" for _ in ("one", "spare")]


def test_what_an_answer_adds_to_its_constraint_counts(monkeypatch):
    kept, used, other = grammars(), Constraint("regex", "[a-z]*"), Constraint("regex", "[0-9]*")
    grammar = kept.start(used, ENDS)
    kept.compile(other)
    monkeypatch.setattr(constraints, "MASK_BYTES", constraints.KEPT_BYTES * 10**9)
    grammar.advance(ids("abc"))
    assert kept.kept(used) is None
    assert allowed(grammar), "the answer goes on"
    assert kept._bytes == (kept.kept(other).bytes if kept.kept(other) else 0)


def test_an_estimate_of_memory_is_no_less_than_the_memory():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def schema(number):
        properties = {f"{number}-{n}": {"type": "string"} for n in range(40)}
        return Constraint("json_schema", json.dumps({"type": "object", "properties": properties}))

    made = grammars()
    held = [made.compile(schema(0))]
    before = resident()
    held += [made.compile(schema(number)) for number in range(1, 60)]
    assert resident() - before < sum(one.bytes for one in held)


def test_an_exhausted_matcher_is_replaced_without_compiling():
    """All copies of a matcher fail together; the next spare one is compiled in another thread."""
    made, constraint, threads = grammars(), Constraint("regex", "[a-z]*"), []
    one, other = made.start(constraint, ENDS), made.start(constraint, ENDS)
    compiled, first, spare = one._compiled, one._original, one._compiled.spare.result()
    original, proceed = made._matcher, threading.Event()
    made._matcher = lambda text: proceed.wait(60) and (threads.append(threading.current_thread()) or original(text))
    for grammar in (one, other):
        assert made.renew(compiled, first) is spare
        grammar.advance(ids("ab"))
    assert not one.ready and not other.ready
    assert made.renew(compiled, spare) is None, "nothing waits for the next one"
    proceed.set()
    one.wait(60)
    assert one.ready and threads != [threading.current_thread()]
    assert made.renew(compiled, spare) is compiled.matcher is not spare


def test_passes_leave_out_a_sequence_without_a_spare_matcher():
    limits = Limits(tiny.VOCAB, 2048, ENDS, grammars())
    asked = tiny.request(new=20, sampling=SamplingParams(constraint=Constraint("regex", "[a-z]{20}")))
    compiled = limits.compile(asked.sampling.constraint)
    config = DecodingConfig(cycle="two-pass", batch_size=2)
    engine = Engine(tiny.runner(), config, limits, decode=tiny.text_of, pages=64)
    first, second = engine.add(asked, compiled), engine.add(tiny.request(new=20, seed=1))
    engine.step()
    spare, compiled.spare = compiled.spare, Future()
    tokens = {first: [], second: []}
    while engine.unfinished > 1:
        for step in engine.step():
            tokens[step.sequence.index] += step.kept.tokens
    assert not tokens[first] and tokens[second]
    assert engine.step() == []
    compiled.spare = spare
    while engine.unfinished:
        for step in engine.step():
            last = step.sequence
    assert len(last.tokens) == 20
    assert last.tokens == autoregress(tiny.runner(), asked, limits, last.seed, tiny.text_of).tokens


@pytest.mark.parametrize(
    "text", ['start: <|end|> "a"', "start: A\nA: /a/ <|end|>", "start: <[5]>", 'start: "a" <[^1-3]>', "start: <[*]>"]
)
def test_a_grammar_cannot_name_tokens(made, text):
    with pytest.raises(ValueError, match="names the token <"):
        made.start(Constraint("grammar", text), ENDS)


def test_a_grammar_may_hold_what_looks_like_a_token(made):
    text = 'start: "<|x|>" A // <a>\n# <b>\nA: /<c>\\/<d>/'
    grammar = made.start(Constraint("grammar", text), ENDS)
    for character in "<|x|><c>/<d>":
        assert allowed(grammar) == ids(character), "its characters, each a token here"
        grammar.advance(ids(character))
    assert grammar.ending.reason == "stop"


def test_a_grammar_is_lark_text(made):
    listed = json.dumps({"grammars": [{"lark_grammar": "start: <|end|>"}]})
    with pytest.raises(ValueError, match="grammar cannot be used"):
        made.start(Constraint("grammar", listed), ENDS)


def properties(count, **more):
    return {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(count)}, **more}


@pytest.mark.parametrize(
    "schema",
    [
        properties(1000, additionalProperties=False),
        properties(1000),
        properties(3000, required=[f"p{n}" for n in range(3000)]),
    ],
)
def test_large_objects_can_be_answered(made, schema):
    grammar = made.start(Constraint("json_schema", json.dumps(schema)), ENDS)
    text = '{"p0": "a", "p1": "b"'
    grammar.advance(ids(text))
    assert grammar.ending is None
    assert set(ids(",")) <= set(allowed(grammar))


@pytest.mark.parametrize(
    "within",
    [
        lambda s: s,
        lambda s: {"items": {"anyOf": [{"type": "null"}, s]}},
        lambda s: {**s, "required": [f"other {n}" for n in range(3000)]},
    ],
)
def test_larger_objects_are_refused_before_they_are_compiled(made, monkeypatch, within):
    made.compiler.load("json_schema")  # which asks a matcher once
    monkeypatch.setattr("llguidance.LLMatcher", None)
    with pytest.raises(ValueError, match="an object has 3000 optional properties, and may have 1200: require some"):
        made.compile(Constraint("json_schema", json.dumps(within(properties(3000)))))


def test_a_constraint_that_fails_after_its_first_token_is_refused(made):
    with pytest.raises(ValueError, match=r"regex cannot be used as a constraint: .*too many"):
        made.compile(Constraint("regex", "(c{1000}){500}"))


def test_end_tokens_are_allowed_where_the_text_matches(made):
    other_end = ids("x")[0]
    grammar = made.start(Constraint("regex", "ab?"), ENDS | {other_end})
    assert allowed(grammar) == ids("a")
    assert not grammar.allows(tiny.END) and not grammar.allows(other_end)
    grammar.advance(ids("a"))
    assert allowed(grammar) == sorted([*ids("b"), other_end, tiny.END])
    assert grammar.allows(tiny.END) and grammar.allows(other_end), "also one that the grammar does not know as an end"
    assert grammar.ending is None
    grammar.advance(ids("b"))
    assert grammar.ending == Ending(2, "stop")


def test_padding_of_the_vocabulary_is_never_allowed():
    padded = grammars(vocab=tiny.VOCAB + 13).start(Constraint("regex", "(.|\n)*"), ENDS)
    assert max(allowed(padded, tiny.VOCAB + 13)) == tiny.END


def test_drafts_lead_ahead_and_are_taken_back(made):
    grammar = made.start(Constraint("regex", "abc|abd|xyz"), ENDS)
    assert grammar.goes_on(ids("ab"))
    assert allowed(grammar) == sorted(ids("cd"))
    assert grammar.goes_on(ids("x"))
    assert allowed(grammar) == ids("y")
    assert not grammar.goes_on(ids("xc")), "forbidden"
    assert not grammar.goes_on(ids("abc")), "complete"
    assert not grammar.goes_on(ids("abcd")), "past the end"
    assert not grammar.goes_on([tiny.END]), "an end token"
    assert grammar.goes_on([])
    assert allowed(grammar) == sorted(ids("ax"))
    grammar.goes_on(ids("ab"))
    grammar.advance(ids("ab"))
    assert grammar.ending is None
    grammar.advance([*ids("d"), *ids("zz")])
    assert grammar.ending == Ending(3, "stop")


def test_a_matcher_at_its_limit_ends_the_answer_and_no_other(monkeypatch):
    monkeypatch.setattr(constraint_compiler, "MAX_LEXER_STATES", 60)
    limits = Limits(tiny.VOCAB, 2048, ENDS, grammars())
    constraint = Constraint("regex", "([a-z]{2}|[A-Z]{3}|[0-9]{4}){3,90}-(foo|ba[rz]){2,9}")
    asked = [
        tiny.request(new=60, sampling=SamplingParams(temperature=2.0, seed=0, constraint=constraint)),
        tiny.request(new=30, seed=1),
    ]
    ended = [
        s
        for s in generate(tiny.runner(), asked, DecodingConfig(cycle="two-pass", batch_size=2), limits, tiny.text_of)
        if s.finish_reason
    ]
    first = next(s.sequence for s in ended if s.sequence.index == 0)
    other = next(s.sequence for s in ended if s.sequence.index == 1)
    assert first.finish_reason == "length"
    assert len(first.tokens) < 60
    assert other.tokens == tiny.oracle(tiny.runner(), asked[1]).tokens


def test_answers_after_one_at_the_limit_have_a_matcher_of_their_own(monkeypatch):
    """The copies of a compiled constraint share their lexer states, and so the limit on their number."""
    monkeypatch.setattr(constraint_compiler, "MAX_LEXER_STATES", 60)
    limits = Limits(tiny.VOCAB, 2048, ENDS, grammars())
    constraint = Constraint("regex", "([a-z]{2}|[A-Z]{3}|[0-9]{4}){3,90}-(foo|ba[rz]){2,9}")
    lengths = []
    for seed in range(6):
        sampling = SamplingParams(temperature=2.0, seed=seed, constraint=constraint)
        (*_, last) = generate(
            tiny.runner(), [tiny.request(new=60, sampling=sampling)], DecodingConfig(cycle="ar"), limits, tiny.text_of
        )
        lengths.append(len(last.sequence.tokens))
    assert max(lengths) < 60, "no limit was met"
    assert min(lengths) > 30, lengths


def test_tokens_before_the_one_at_the_limit_are_kept(made):
    """Whether they come one by one or together, as accepted drafts do."""

    class Limited:
        """A matcher that fails for good at its third token."""

        def __init__(self, matcher, taken=0):
            self.matcher, self.taken = matcher, taken

        def deep_copy(self):
            return Limited(self.matcher.deep_copy(), self.taken)

        def is_error(self):
            return self.taken > 2

        def try_consume_tokens(self, tokens):
            usable = tokens[: max(0, 2 - self.taken)]
            self.taken += len(tokens)
            return self.matcher.try_consume_tokens(usable)

        def __getattr__(self, name):
            return getattr(self.matcher, name)

    def ending(parts):
        grammar = made.start(Constraint("regex", "[a-z]*"), ENDS)
        grammar._matcher = Limited(grammar._matcher)
        grammar._renew = lambda spent: Limited(made._matcher(Constraint("regex", "[a-z]*")))
        for part in parts:
            grammar.advance(ids(part))
        return grammar.ending

    assert ending("abc") == ending(["abcd"]) == ending(["ab", "cd"]) == Ending(3, "length")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_follow_their_drafts(made, dtype, temperature):
    """The token of each row equals that of a sampler that has kept the drafts before it."""
    logits = torch.randn(5, tiny.VOCAB).to(dtype)
    params = SamplingParams(temperature=temperature, seed=0, constraint=Constraint("regex", "[a-c]{2}([x-z]{2}|!)9*"))
    drafts = ids("abyx")

    def sampler(tokens):
        made_sampler = Sampler(params, AddressedNoise(0, 0), (), ENDS, tiny.VOCAB, made.start(params.constraint, ENDS))
        made_sampler.advance(tokens)
        return made_sampler

    expected = [
        targets([RowRequest(sampler(drafts[:row]), logits[row : row + 1], 7 + row)])[0](0) for row in range(len(logits))
    ]
    for row, draft in enumerate(drafts):
        logits[row, draft] = 30.0  # so that the draft is the token of its row
    draft = DraftTree.chain(drafts)
    (verdict,) = exact.verify([Check(sampler([]), logits, draft, 7)])
    assert verdict.tokens == [*drafts, expected[-1]]
    (block,) = exact.propose([Proposal(sampler([]), logits, 7, 0, [1.0] * len(logits))])
    assert block.tokens == verdict.tokens
    if temperature:
        (rows,) = distributions([RowRequest(sampler([]), logits, 7, draft.paths)])
        masked = logits[-1].float().clone()
        grammar = made.start(params.constraint, ENDS)
        grammar.advance(drafts)
        restrict(masked, grammar.mask())
        assert torch.equal(rows(len(drafts)), (masked / 0.8).softmax(0))


@pytest.mark.parametrize("rule", [exact, rejection])
def test_drafts_respect_the_grammar(made, rule):
    params = SamplingParams(temperature=1.0, seed=0, constraint=Constraint("regex", "[a-c]{2}[x-z]{2}"))
    grammar = made.start(params.constraint, ENDS)
    sampler = Sampler(params, AddressedNoise(0, 0), (), ENDS, tiny.VOCAB, grammar)
    (draft,) = rule.propose([Proposal(sampler, torch.randn(6, tiny.VOCAB), 7, 14, [1.0] * 6)])
    assert len(draft.tokens) == 4, "nothing is drafted after the end"
    grammar.advance(draft.tokens)
    assert grammar.ending == Ending(4, "stop")


def number(text, schema='{"type": "array", "items": {"type": "number"}}', kind="json_schema"):
    """The state of a constraint after a text."""
    grammar = grammars().start(Constraint(kind, schema), ENDS)
    grammar.advance(ids(text))
    assert grammar.ending is None, grammar.ending
    return grammar


def test_digits_of_json_numbers_are_bounded():
    digits, full = {token for digit in "0123456789" for token in ids(digit)}, "1" * MAX_DIGITS
    assert set(allowed(number("[" + full[1:]))) > digits
    at_end = number("[" + full)
    assert sorted(allowed(at_end)) == sorted({token for one in ".eE,] \n" for token in ids(one)} & set(allowed(at_end)))
    assert not digits & set(allowed(at_end))
    assert not at_end.allows(ids("1")[0])
    assert not at_end.goes_on(ids("1"))
    assert at_end.goes_on(ids(".5"))
    assert digits < set(allowed(at_end)), "the fraction has digits of its own"
    assert at_end.goes_on([])
    assert not at_end.allows(ids("1")[0]), "the drafts are taken back"
    for text in ("[0." + full, "[1.5e" + full, "[7, -" + full):
        assert not digits & set(allowed(number(text))), text


def test_digits_of_drafts_that_a_new_matcher_does_not_take_are_not_counted(made):
    """The matcher runs into a limit after 18 drafts that are digits, and the one in its place takes none of them."""
    constraint = Constraint("json_schema", '{"type": "array", "items": {"type": "number"}}')

    class Failed:
        def __init__(self, matcher):
            self.matcher = matcher

        def is_error(self):
            return True

        def __getattr__(self, name):
            return getattr(self.matcher, name)

    class TakesTwo(Failed):
        def __init__(self, matcher):
            super().__init__(matcher)
            self.first = True

        def deep_copy(self):
            return TakesTwo(self.matcher.deep_copy())

        def is_error(self):
            return False

        def try_consume_tokens(self, tokens):
            usable, self.first = tokens[:2] if self.first else tokens, False
            return self.matcher.try_consume_tokens(usable)

    grammar = made.start(constraint, ENDS)
    grammar.advance(ids("[1"))
    drafts = ids("2" * (MAX_DIGITS - 2))
    assert grammar.goes_on(drafts)
    grammar._matcher, grammar._renew = Failed(grammar._matcher), lambda spent: TakesTwo(made._matcher(constraint))
    assert not grammar.goes_on([*drafts, *drafts[:1]])
    assert grammar.goes_on(ids("34")), "the text has three digits"
    assert grammar.ending is None


def test_digits_are_bounded_in_numbers_alone():
    digit, full = ids("1")[0], "1" * MAX_DIGITS
    assert number('["' + full, '{"type": "array", "items": {"type": "string"}}').allows(digit)
    assert number('{"a\\"' + full, "", "json_object").allows(digit)
    assert number('{"a\\\\": ' + full, "", "json_object").goes_on(ids("}")) is False, "complete"
    assert not number('{"a\\\\": ' + full, "", "json_object").allows(digit)
    assert number(full, "[0-9]+x", "regex").allows(digit)
    assert int(full) % 7
    assert number(full, '{"type": "integer", "multipleOf": 7}').allows(digit), "nothing else may follow"


def test_a_number_alone_is_complete_at_the_bound():
    grammar = grammars().start(Constraint("json_schema", '{"type": "integer"}'), ENDS)
    grammar.advance(ids("1" * (MAX_DIGITS + 5)))
    assert grammar.ending == Ending(MAX_DIGITS, "stop")


def test_digits_of_forced_calls_are_bounded():
    tool = {"function": {"name": "f", "parameters": {"properties": {"n": {"type": "number"}}}}}
    calls = of_options({"tools": [tool], "tool_choice": "required"})
    text = '<tool_call>\n{"name": "f", "arguments": {"n": ' + "1" * MAX_DIGITS
    assert not number(text, calls.text, calls.kind).allows(ids("1")[0])
    free = of_options({"tools": [tool], "tool_choice": "auto"})
    assert number(text, free.text, free.kind).allows(ids("1")[0])
