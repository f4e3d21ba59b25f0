"""Constraints: the text of an answer must match a JSON schema, a regular expression or a Lark grammar (llguidance).

A constraint is a logit processor that comes after the others: tokens with which the text could no longer match are set
to -inf. Its state follows the tokens that the sequence keeps and, in a verified row, the drafts before that row. End
tokens are allowed where the text so far matches. Where nothing else is allowed, the answer is complete, and the
sequence ends there without an end token.

V vocabulary.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from orthrus.config import Constraint
from orthrus.decoding.json_digits import DigitBound, Mask

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

T = TypeVar("T")
CACHED_GRAMMARS = 64
"""Compiled grammars that are kept, least recently used first out."""
WHITESPACE = r" |\n {0,40}"
"""Whitespace between the parts of JSON: a blank, or a new line with its indentation. Unbounded whitespace is what small
models fall into and do not leave."""
JSON_KINDS = ("json_object", "json_schema", "tool_calls")
"""Constraints whose text is JSON, between tags at most: the digits of its numbers are bounded."""
MAX_LEXER_STATES, MAX_GRAMMAR_SIZE = 50_000, 100_000
"""Bounds on the memory of one grammar, about 100 MB; the time of a step is bounded by the defaults of llguidance."""


@dataclass(frozen=True)
class Ending:
    """Where a constraint ends an answer: after so many tokens, and why. `stop`: it is complete, and nothing but an end
    token may follow. `length`: the matcher has run into a limit."""

    tokens: int
    reason: Literal["stop", "length"]


class Grammars:
    """Compiles the constraints of requests for one model. May be used from any thread.

    Args:
        tokenizer: gives the tokenizer in the JSON format of the `tokenizers` library, None where it has none. It is
            asked once, when the first constraint comes.
        vocab_size: V of the model, which may be padded beyond its tokenizer. Padding is never allowed.
        end_token_ids: the end tokens of the model.
    """

    def __init__(self, tokenizer: Callable[[], str | None], vocab_size: int, end_token_ids: frozenset[int]) -> None:
        self._json, self._vocab_size, self._ends = tokenizer, vocab_size, end_token_ids
        self._tokenizer: LLTokenizer | None = None
        self._digits_V: Mask | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def start(self, constraint: Constraint, end_token_ids: frozenset[int]) -> Grammar:
        """The state of a constraint before the first token of an answer.

        Raises ValueError naming the option where the constraint is invalid, unsupported or too complex.
        """
        matcher = self._matcher(constraint)
        bound = self._digit_bound(constraint.kind)
        return Grammar(matcher, partial(self._matcher, constraint), end_token_ids, self._vocab_size, bound)

    def _matcher(self, constraint: Constraint, exhausted: LLMatcher | None = None) -> LLMatcher:
        """The matcher of a constraint. One that is `exhausted` is replaced by a new one, since all copies of a matcher
        count their lexer states together, up to one limit."""
        with self._lock:
            matcher = self._compiled.get(constraint)
            if matcher is None or matcher is exhausted:
                matcher = self._compiled[constraint] = self._compile(constraint)
                if len(self._compiled) > CACHED_GRAMMARS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(constraint)
            return matcher

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer(constraint.kind)
        limits = LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES, max_grammar_size=MAX_GRAMMAR_SIZE, verbose_errors=False
        )
        try:
            matcher = LLMatcher(self._tokenizer, _source(constraint), log_level=0, limits=limits)
            if not matcher.is_error():
                first = matcher.compute_bitmask()  # the most expensive one, for which no pass should wait
            problem = matcher.get_error().removesuffix("<non-verbose/>")
            if not problem and not (_unpacked(first, self._vocab_size) & ~_mask_of(self._ends, self._vocab_size)).any():
                problem = "it allows nothing but the empty text"
        except ValueError as error:
            problem = str(error)
        if problem:
            raise ValueError(f"{constraint.kind} cannot be used as a constraint: {problem.strip()}")
        return matcher

    def _digit_bound(self, kind: str) -> DigitBound:
        """A bound that sees no text, and never holds, for constraints that are not JSON."""
        from llguidance import LLMatcher

        assert self._tokenizer is not None, "a constraint has been compiled"
        if self._digits_V is None:
            digits = LLMatcher(self._tokenizer, LLMatcher.grammar_from_regex(r"[0-9](.|\n)*"))
            self._digits_V = _unpacked(digits.compute_bitmask(), self._vocab_size)
        bytes_of = self._tokenizer.decode_bytes
        return DigitBound(lambda token: bytes_of([token]) if kind in JSON_KINDS else b"", self._digits_V)

    def _load_tokenizer(self, kind: str) -> LLTokenizer:
        from llguidance import LLTokenizer

        content = self._json()
        if not self._ends:
            raise ValueError(f"{kind} needs a model with an end token, which this checkpoint lacks")
        if content is None:
            raise ValueError(f"{kind} needs a tokenizer of the `tokenizers` library, which this checkpoint lacks")
        try:
            return LLTokenizer(content, n_vocab=self._vocab_size, eos_token=sorted(self._ends))
        except ValueError as error:
            raise ValueError(f"{kind} cannot be used with the tokenizer of this checkpoint: {error}") from error


class Grammar:
    """The state of a constraint for one sequence: a matcher that has consumed the kept tokens, and perhaps drafts.

    compiled: the matcher before any token. renew: gives another one for a matcher that has run into a limit.
    """

    def __init__(
        self, compiled: LLMatcher, renew: Callable[[LLMatcher], LLMatcher], end_token_ids: frozenset[int],
        vocab_size: int, bound: DigitBound,
    ) -> None:  # fmt: skip
        self._compiled, self._renew = compiled, renew
        self._matcher, self._bound = compiled.deep_copy(), bound
        self._ends = end_token_ids
        self._end_mask = _mask_of(end_token_ids, vocab_size)
        self._vocab_size = vocab_size
        self._kept: list[int] = []
        self._ahead: list[int] = []
        self._mask: Mask | None = None
        self.ending: Ending | None = None

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence keeps. Tokens after the ending are ignored, as the sequence drops them."""
        usable = list(takewhile(lambda token: token not in self._ends, tokens))
        self._rewind(usable)
        refused = False
        while not (self._closed or refused) and len(self._ahead) < len(usable):
            refused = not self._consume(usable[len(self._ahead)])
        if not (self._closed or refused) and len(usable) < len(tokens):
            refused = not self.allows(tokens[len(usable)])
        self._kept += self._ahead
        self._ahead = []
        self._bound.keep()
        if self._closed:
            self.ending = Ending(len(self._kept), "stop")
        elif refused:
            self.ending = Ending(len(self._kept) + 1, "length")

    def goes_on(self, drafts: Sequence[int]) -> bool:
        """Whether the answer may go on after the kept tokens and `drafts`. It cannot after a draft that is forbidden,
        after an end token, or where it is complete: the row after these drafts is never kept."""
        self._rewind(drafts)
        return all(self._consume(token) for token in drafts[len(self._ahead) :]) and not self._closed

    def allows(self, token: int) -> bool:
        """Whether `token` may come next. Like `mask`, it refers to the drafts of the last call of `goes_on`."""
        if token in self._ends and self._matcher.is_accepting():
            return True
        if self._bound.reached:
            return bool(self.mask()[token])
        return bool(self._within_limits(lambda matcher: matcher.validate_tokens([token])))

    def mask(self) -> Mask:
        """The tokens that may come next; the end tokens alone where the matcher runs into a limit."""
        if self._mask is None:
            accepts = self._matcher.is_accepting()
            bits = self._within_limits(lambda matcher: matcher.compute_bitmask())
            if bits is None:
                return self._end_mask
            allowed_V = self._bound.apply(_unpacked(bits, self._vocab_size))
            self._mask = allowed_V | self._end_mask if accepts else allowed_V
        return self._mask

    @property
    def _closed(self) -> bool:
        """Whether nothing but an end token may follow."""
        if not self._bound.reached:
            return bool(self._matcher.is_stopped())
        matcher = self._matcher.deep_copy()  # which may run into a limit here
        allowed_V = self._bound.apply(_unpacked(matcher.compute_bitmask(), self._vocab_size))
        return bool(matcher.is_accepting()) and not (allowed_V & ~self._end_mask).any()

    def _rewind(self, drafts: Sequence[int]) -> None:
        """Take back the consumed drafts from the first on that differs from `drafts`."""
        pairs = enumerate(zip(self._ahead, drafts, strict=False))
        common = next((n for n, (had, wanted) in pairs if had != wanted), min(len(self._ahead), len(drafts)))
        if common < len(self._ahead):
            self._matcher.rollback(len(self._ahead) - common)
            self._bound.take_back(len(self._ahead) - common)
            self._ahead, self._mask = self._ahead[:common], None

    def _consume(self, token: int) -> bool:
        """Take one more token, unless it is an end token, or forbidden."""
        if token in self._ends or (self._bound.reached and not self.mask()[token]):
            return False
        if not self._within_limits(lambda matcher: matcher.try_consume_tokens([token])):
            return False
        self._ahead.append(token)
        self._bound.append(token)
        self._mask = None
        return True

    def _within_limits(self, ask: Callable[[LLMatcher], T]) -> T | None:
        """What the matcher answers. If it runs into a limit it is lost, and a new one is asked, which has seen neither
        drafts nor other answers; None if that fails too."""
        for _ in range(2):
            answer = ask(self._matcher)
            if not self._matcher.is_error():
                return answer
            if not self._restore():
                break
        return None

    def _restore(self) -> bool:
        """Consume the same tokens by a new matcher. Returns whether they fit its limit; drafts that do not are lost."""
        self._compiled = self._renew(self._compiled)
        self._matcher, self._mask = self._compiled.deep_copy(), None
        consumed = max(self._matcher.try_consume_tokens([*self._kept, *self._ahead]) - len(self._kept), 0)
        lost = len(self._ahead) - consumed
        if lost:
            self._bound.take_back(lost)
            self._ahead = self._ahead[:consumed]
        return not lost


def restrict(scores_V: Tensor, mask_V: Mask) -> None:
    """Set the scores of all tokens outside of a mask to -inf, in place. An empty mask changes nothing."""
    if not mask_V.any():
        return
    if scores_V.is_cpu:
        np.copyto(scores_V.numpy(), -math.inf, where=~mask_V)
    else:
        scores_V.masked_fill_(torch.from_numpy(~mask_V).to(scores_V.device), -math.inf)


def _mask_of(tokens: frozenset[int], vocab_size: int) -> Mask:
    allowed_V = np.zeros(vocab_size, dtype=np.bool_)
    allowed_V[list(tokens)] = True
    return allowed_V


def _unpacked(bits: bytes, vocab_size: int) -> Mask:
    """The mask that a matcher computed, one bit per token, without what is beyond the vocabulary."""
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=vocab_size, bitorder="little").view(np.bool_)


def _source(constraint: Constraint) -> str:
    """The grammar in the form that llguidance takes. Raises ValueError where it is no JSON."""
    from llguidance import LLMatcher

    text = '{"type": "object"}' if constraint.kind == "json_object" else constraint.text
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    if constraint.kind in ("grammar", "tool_calls"):
        return str(LLMatcher.grammar_from_lark(text))
    return str(LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE}))
