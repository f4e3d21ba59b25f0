"""Constraints: the text of an answer must match a JSON schema, a regular expression or a Lark grammar (llguidance).

A constraint is a logit processor that comes after the others: tokens with which the text could no longer match are set
to -inf. Its state follows the tokens that the sequence keeps and, in a verified row, the drafts before that row. End
tokens are allowed where the text so far matches. Where nothing else is allowed, the answer is complete, and the
sequence ends there without an end token.

Compiling takes up to seconds, so it happens before a sequence joins the engine. A pass never compiles: it asks copies
of a compiled matcher, and takes a spare one where a matcher has run into its limits.

V vocabulary.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from threading import Lock
from time import thread_time
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from orthrus.config import Constraint
from orthrus.decoding.constraint_compiler import ConstraintCompiler, mask_of, unpacked
from orthrus.decoding.json_digits import DigitBound, Mask

if TYPE_CHECKING:
    from llguidance import LLMatcher

T = TypeVar("T")
MATCHER_BYTES, COMPILED_BYTES, MASK_BYTES = 150_000, 200_000_000, 50_000_000
"""Estimate of the memory of a matcher, which llguidance does not tell: of any, per second of processor time that it
took to compile, and per second spent in it later. Measured: 30 to 110 kB, 25 to 120 MB (most on a fast processor),
10 to 40 MB."""
KEPT_BYTES = 48_000_000
"""Estimated memory of the compiled constraints that are kept for later answers, least recently used first out."""
JSON_KINDS = ("json_object", "json_schema", "tool_calls")
"""Constraints whose text is JSON, between tags at most: the digits of its numbers are bounded."""


@dataclass(frozen=True)
class Ending:
    """Where a constraint ends an answer: after so many tokens, and why. `stop`: it is complete, and nothing but an end
    token may follow. `length`: the matcher has run into a limit."""

    tokens: int
    reason: Literal["stop", "length"]


class Compiled:
    """A compiled constraint: the matcher that answers copy, and a spare one. The copies share the states of one lexer,
    the limit on their number, and an error that it has run into. bytes: the estimated memory of both."""

    def __init__(self, constraint: Constraint, matcher: LLMatcher, spare: Future[LLMatcher], bytes: int) -> None:
        self.constraint, self.matcher, self.spare, self.bytes = constraint, matcher, spare, bytes

    @property
    def ready(self) -> bool:
        """Whether there is a spare matcher. It is missing for as long as it is compiled after the last one was used."""
        return self.spare.done()


class Grammars:
    """Compiles the constraints of requests for one model. May be used from any thread.

    Args:
        tokenizer: gives the tokenizer in the JSON format of the `tokenizers` library, None where it has none.
        vocab_size: V of the model, which may be padded beyond its tokenizer. Padding is never allowed.
        end_token_ids: the end tokens of the model.
    """

    def __init__(self, tokenizer: Callable[[], str | None], vocab_size: int, end_token_ids: frozenset[int]) -> None:
        self.compiler = ConstraintCompiler(tokenizer, vocab_size, end_token_ids)
        self._kept: OrderedDict[Constraint, Compiled] = OrderedDict()
        self._bytes = 0  # of those that are kept
        self._lock = Lock()  # never held while anything is compiled
        self._spares = ThreadPoolExecutor(1, "orthrus-constraints")

    def compile(self, constraint: Constraint) -> Compiled:
        """Compile a constraint, or find it compiled. Not for the thread that runs passes, nor for an event loop.

        Raises ValueError naming the option where the constraint is invalid, unsupported or too complex.
        """
        compiled = self.kept(constraint)
        if compiled is None:
            began = thread_time()
            spare: Future[LLMatcher] = Future()
            matcher = self._matcher(constraint)
            spare.set_result(self._matcher(constraint))
            size = 2 * MATCHER_BYTES + int(COMPILED_BYTES * (thread_time() - began))
            compiled = Compiled(constraint, matcher, spare, size)
            self._keep(compiled)
        compiled.spare.result()
        return compiled

    def kept(self, constraint: Constraint) -> Compiled | None:
        """The compiled constraint if it is kept. Does not wait."""
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
            return self._kept.get(constraint)

    def start(self, constraint: Constraint, end_token_ids: frozenset[int], compiled: Compiled | None = None) -> Grammar:
        """The state of a constraint before the first token of an answer. With `compiled`, it does not wait.

        Raises ValueError naming the option where the constraint is invalid, unsupported or too complex.
        """
        return Grammar(compiled or self.compile(constraint), self, end_token_ids, self._digit_bound(constraint.kind))

    def renew(self, compiled: Compiled, exhausted: LLMatcher) -> LLMatcher | None:
        """Another matcher in place of an exhausted one; None if there is none yet. Does not wait: the next spare one is
        compiled in a thread."""
        with self._lock:
            if compiled.matcher is exhausted:
                if not compiled.ready:
                    return None
                compiled.matcher = compiled.spare.result()
                compiled.spare = self._spares.submit(self._matcher, compiled.constraint)
            return compiled.matcher

    def charge(self, compiled: Compiled, seconds: float) -> None:
        """Count processor time spent in a matcher, which grows by it."""
        grown = int(seconds * MASK_BYTES)
        with self._lock:
            compiled.bytes += grown
            if self._kept.get(compiled.constraint) is compiled:
                self._bytes += grown
            gone = self._let_go()
        del gone  # takes time, so after the lock

    def _keep(self, compiled: Compiled) -> None:
        with self._lock:
            before = self._kept.pop(compiled.constraint, None)  # where two threads have compiled it at once
            self._kept[compiled.constraint] = compiled
            self._bytes += compiled.bytes - (0 if before is None else before.bytes)
            gone = self._let_go()
        del before, gone

    def _let_go(self) -> list[Compiled]:
        """Those that are kept no longer, as they take too much memory together. Answers go on with them."""
        gone = []
        while self._bytes > KEPT_BYTES and self._kept:
            gone.append(self._kept.popitem(last=False)[1])
            self._bytes -= gone[-1].bytes
        return gone

    def _matcher(self, constraint: Constraint) -> LLMatcher:
        return self.compiler.matcher(constraint)

    def _digit_bound(self, kind: str) -> DigitBound:
        """A bound that sees no text, and never holds, for constraints that are not JSON."""
        tokenizer, digits_V = self.compiler.load(kind)
        bytes_of = tokenizer.decode_bytes
        return DigitBound(lambda token: bytes_of([token]) if kind in JSON_KINDS else b"", digits_V)


class Grammar:
    """The state of a constraint for one sequence: a matcher that has consumed the kept tokens, and perhaps drafts."""

    def __init__(self, compiled: Compiled, grammars: Grammars, ends: frozenset[int], bound: DigitBound) -> None:
        self._compiled, self._original = compiled, compiled.matcher
        self._renew, self._charge = partial(grammars.renew, compiled), partial(grammars.charge, compiled)
        self._matcher, self._bound = self._original.deep_copy(), bound
        self._ends, self._vocab_size = ends, grammars.compiler.vocab_size
        self._end_mask = mask_of(ends, self._vocab_size)
        self._kept: list[int] = []
        self._ahead: list[int] = []
        self._mask: Mask | None = None
        self._lost = False
        self.ending: Ending | None = None

    @property
    def ready(self) -> bool:
        """Whether a pass may ask it: there is a spare matcher. Passes leave its sequence out until then."""
        return self._compiled.ready

    def wait(self, seconds: float) -> None:
        """Wait until it is ready, or so long."""
        wait([self._compiled.spare], seconds)

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
            allowed_V = self._bound.apply(unpacked(bits, self._vocab_size))
            self._mask = allowed_V | self._end_mask if accepts else allowed_V
        return self._mask

    @property
    def _closed(self) -> bool:
        """Whether nothing but an end token may follow. A matcher in error says that it is stopped."""
        if self._lost or not self._bound.reached:
            return bool(self._matcher.is_stopped()) and not self._lost
        matcher = self._matcher.deep_copy()  # which may run into a limit here
        allowed_V = self._bound.apply(unpacked(matcher.compute_bitmask(), self._vocab_size))
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
        """What the matcher answers. If it runs into a limit it is lost, and a spare one is asked, which has seen
        neither drafts nor other answers; None if that fails too."""
        began = thread_time()
        try:
            for _ in range(2):
                answer = ask(self._matcher)
                if not self._matcher.is_error():
                    return answer
                if not self._restore():
                    break
            return None
        finally:
            self._charge(thread_time() - began)

    def _restore(self) -> bool:
        """Consume the same tokens by another matcher. Returns whether they fit its limit; drafts that do not are lost.
        An error of the parser is that of this answer alone: it would come again."""
        original = None if self._lost or "Parser Error" in self._matcher.get_error() else self._renew(self._original)
        if original is None:
            self._lost = True  # for good: what is not known for one row may not be known for the next
            return False
        self._original, self._matcher, self._mask = original, original.deep_copy(), None
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
