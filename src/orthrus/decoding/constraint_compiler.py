"""Compiles constraints with llguidance, within limits, for one tokenizer.

Nothing here needs torch, so that a process which only compiles starts quickly and is small.

V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from orthrus.config import Constraint
from orthrus.decoding.json_digits import Mask

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

WHITESPACE = r" |\n {0,40}"
"""Whitespace between the parts of JSON: a blank, or a new line with its indentation. Unbounded whitespace is what small
models fall into and do not leave."""
MAX_LEXER_STATES, MAX_GRAMMAR_SIZE = 50_000, 100_000
"""Bounds on the memory of one matcher, about 100 MB; the time of a step is bounded by the defaults of llguidance."""
MAX_OPTIONAL_PROPERTIES, MAX_ALTERNATIVES = 1200, 5000
"""Optional properties of an object, and parser items at one place of a text: about four per optional property. Masks
take milliseconds at most then; with 3,000 properties some take 250 ms, for which every sequence of a pass would wait.
"""
CHECKED_TOKENS = 2
"""Tokens that a new matcher consumes on trial: llguidance finds out by them that a constraint is too complex."""
DERIVED_GRAMMAR = re.compile(r"^at \d+\(\d+\): |\n *\d+ \| start: .*", re.DOTALL)
"""What an error of a regular expression says of the grammar that was made of it."""
LARK_PARTS = re.compile(r'"(?:\\.|[^"\\\n])*"|(?:#|//)[^\n]*|/(?:\\.|[^/\\\n])+/|(<[^<>\s]+>)')
"""Strings, comments and regular expressions of a Lark grammar; group 1: a token that it names."""


class ConstraintCompiler:
    """Makes matchers. May be used from any thread.

    Args:
        tokenizer: gives the tokenizer in the JSON format of the `tokenizers` library, None where it has none. It is
            asked when the first constraint comes.
        vocab_size: V of the model, which may be padded beyond its tokenizer. Padding is never allowed.
        end_token_ids: the end tokens of the model.
    """

    def __init__(self, tokenizer: Callable[[], str | None], vocab_size: int, end_token_ids: frozenset[int]) -> None:
        self.vocab_size, self.end_token_ids = vocab_size, end_token_ids
        self._json = tokenizer
        self._loaded: tuple[LLTokenizer, Mask] | None = None
        self._loading = Lock()

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A matcher that has consumed nothing. Takes milliseconds, and up to seconds for a complex constraint.

        Raises ValueError naming the option where the constraint is invalid, unsupported or too complex.
        """
        from llguidance import LLMatcher, LLParserLimits

        tokenizer, _ = self.load(constraint.kind)
        limits = LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES, max_grammar_size=MAX_GRAMMAR_SIZE, max_items_in_row=MAX_ALTERNATIVES,
            verbose_errors=False,
        )  # fmt: skip
        try:
            matcher = LLMatcher(tokenizer, _source(constraint), log_level=0, limits=limits)
            problem = self._problem(matcher)
        except ValueError as error:
            problem = str(error)
        if problem:
            if constraint.kind == "regex":
                problem = DERIVED_GRAMMAR.sub("", problem)
            raise ValueError(f"{constraint.kind} cannot be used as a constraint: {problem.strip()}")
        return matcher

    def load(self, kind: str) -> tuple[LLTokenizer, Mask]:
        """The tokenizer, and a mask of the tokens that begin with a digit. The first call makes them, for which it
        holds the lock of Python for up to a second.

        Raises ValueError naming the option `kind` where the model has no such tokenizer or no end token.
        """
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load(kind)
            return self._loaded

    def tokenizer_json(self, kind: str) -> str:
        """The tokenizer. Raises ValueError naming the option `kind` as `load` does."""
        content = self._json()
        if not self.end_token_ids:
            raise ValueError(f"{kind} needs a model with an end token, which this checkpoint lacks")
        if content is None:
            raise ValueError(f"{kind} needs a tokenizer of the `tokenizers` library, which this checkpoint lacks")
        return content

    def _load(self, kind: str) -> tuple[LLTokenizer, Mask]:
        from llguidance import LLMatcher, LLTokenizer

        content = self.tokenizer_json(kind)
        try:
            tokenizer = LLTokenizer(content, n_vocab=self.vocab_size, eos_token=sorted(self.end_token_ids))
        except ValueError as error:
            raise ValueError(f"{kind} cannot be used with the tokenizer of this checkpoint: {error}") from error
        digits = LLMatcher(tokenizer, LLMatcher.grammar_from_regex(r"[0-9](.|\n)*"))
        return tokenizer, unpacked(digits.compute_bitmask(), self.vocab_size)

    def _problem(self, matcher: LLMatcher) -> str:
        """Why a new matcher cannot be used; empty if it can. Its first masks are the most expensive ones: later copies
        find them computed."""
        trial = matcher.deep_copy()
        for number in range(CHECKED_TOKENS):
            if trial.is_error() or trial.is_stopped():
                break
            mask_V = unpacked(trial.compute_bitmask(), self.vocab_size)
            tokens = [token for token in np.flatnonzero(mask_V).tolist() if token not in self.end_token_ids]
            if not tokens:
                return "it allows nothing but the empty text" if number == 0 and not trial.is_error() else ""
            trial.try_consume_tokens(tokens[:1])
        return str(trial.get_error().removesuffix("<non-verbose/>").strip())


def mask_of(tokens: frozenset[int], vocab_size: int) -> Mask:
    """The mask [V] that allows `tokens` alone."""
    allowed_V = np.zeros(vocab_size, dtype=np.bool_)
    allowed_V[list(tokens)] = True
    return allowed_V


def unpacked(bits: bytes, vocab_size: int) -> Mask:
    """The mask [V] that a matcher computed, one bit per token, without what is beyond the vocabulary."""
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=vocab_size, bitorder="little").view(np.bool_)


def _source(constraint: Constraint) -> str:
    """The grammar in the form that llguidance takes. Raises ValueError where it is no JSON, or names tokens."""
    from llguidance import LLMatcher

    text = '{"type": "object"}' if constraint.kind == "json_object" else constraint.text
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    if constraint.kind in ("grammar", "tool_calls"):
        named = next((part[1] for part in LARK_PARTS.finditer(text) if part[1]), None)
        if named is not None:
            raise ValueError(f"it names the token {named}: a grammar is about text; quote it to match its characters")
        return json.dumps({"grammars": [{"lark_grammar": text}]})
    optional = _optional_properties(text)
    if optional > MAX_OPTIONAL_PROPERTIES:
        raise ValueError(
            f"an object has {optional} optional properties, and may have {MAX_OPTIONAL_PROPERTIES}: require some of"
            " them, or leave some out"
        )
    return str(LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE}))


def _optional_properties(schema: str) -> int:
    """The most optional properties of an object in a schema. Raises ValueError where it is no JSON."""
    try:
        values = [json.loads(schema)]
    except RecursionError as error:
        raise ValueError("recursion limit exceeded") from error
    most = 0
    while values:
        value = values.pop()
        if isinstance(value, dict):
            properties, required = value.get("properties"), value.get("required")
            if isinstance(properties, dict):
                needed = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
                most = max(most, len(properties.keys() - needed))
            values += value.values()
        elif isinstance(value, list):
            values += value
    return most
