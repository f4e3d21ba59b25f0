"""What followed the newest tokens of a text when they occurred in it before, as evidence about what follows them now.

Text repeats itself: an answer takes up phrases of its prompt and its own. Of the n-grams at the end of a text, the
longest that occurred before is its match, and the token after the newest occurrence is likely to follow again
("inference with reference", arXiv 2304.04487). A match corrects the probabilities of drafts, and adds one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orthrus.drafters.growth import Option

LONGEST = 8
"""Tokens up to which a match is extended."""
LENGTHS = (1, 2, 3, 5, 8)
"""The shortest match of each class of lengths."""
EVIDENCE = (
    # agrees, and by how much of the log-odds; differs; new
    (0.47, -0.10, -0.08, -2.53), (0.88, -0.30, -0.29, -1.35),
    (0.99, -0.17, -0.24, -1.41), (1.64, -0.33, -0.71, -0.33),
    (0.86, -0.20, -0.19, -1.40), (1.99, -0.33, -0.95, 0.24),
    (0.80, -0.22, -0.06, -1.65), (2.19, -0.41, -1.15, 0.65),
    (1.44, -0.31, -0.55, -0.32), (3.20, -0.50, -2.33, 2.13),
)  # fmt: skip
"""By class of lengths, first where not all occurrences of the match go on alike, then where they do: what is added to
the log-odds of a draft that is the token of the match, as a number and as a multiple of the log-odds; what is added to
those of another draft; and the log-odds of the token where it was not drafted.

Fitted by logistic regression to 26,000 roots of 240 answers of the bundled model, to maths, code, passages and
questions, none of a benchmark."""
SLOPE, SHIFT = 0.81, -0.37
"""The log-odds of any draft by those of its probability, fitted with EVIDENCE."""
NEW_SLOPE, NO_ROW = 0.30, 2.0
"""How much of the log-odds of all that was not drafted is added to those of a token that was not; and what these
log-odds are below the last row."""
LEAST, MOST, LEAST_REST = -20.0, -1e-4, 1e-4
"""The log probabilities of drafts are clamped to the first two, the probability of all else to the last."""


class Match(NamedTuple):
    """token: what followed the newest occurrence of the longest n-gram; length: of the n-gram, at most LONGEST; alike:
    whether the same token followed all its occurrences; place: of that token in the text."""

    token: int
    length: int
    alike: bool
    place: int = -1

    @property
    def row(self) -> int:
        """The row of EVIDENCE."""
        return 2 * (sum(self.length >= least for least in LENGTHS) - 1) + self.alike


class Context:
    """The tokens of a text so far, in one array that grows. address: where it begins, until `extend` is called."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._place(np.empty(max(256, 2 * len(tokens)), np.int32), 0)
        self.extend(tokens)

    def __len__(self) -> int:
        return self._count

    def _place(self, room: NDArray[np.int32], count: int) -> None:
        self._room, self._count, self.address = room, count, int(room.ctypes.data)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        count = self._count + len(tokens)
        if count > len(self._room):
            self._place(np.concatenate((self.tokens, np.empty(count, np.int32))), self._count)
        self._room[self._count : count] = tokens
        self._count = count

    @property
    def tokens(self) -> NDArray[np.int32]:
        """A view of all tokens, until the next call of `extend`."""
        return self._room[: self._count]

    def first(self, count: int) -> Context:
        """The text of the first `count` tokens."""
        part = Context()
        part._place(self.tokens[:count], count)
        return part

    def after(self, path: Sequence[int] = ()) -> Match | None:
        """The match of the text with a path after it. Occurrences are looked for in the text alone."""
        text = self.tokens
        suffix = [*text[max(0, len(text) - LONGEST + len(path)) :].tolist(), *path][-LONGEST:][::-1]
        if not suffix:
            return None
        ends, length = np.flatnonzero(text[:-1] == suffix[0]), 1
        if len(ends) == 0:
            return None
        for token in suffix[1:]:
            longer = ends[np.searchsorted(ends, length) :]
            longer = longer[text[longer - length] == token]
            if len(longer) == 0:
                break
            ends, length = longer, length + 1
        place = int(ends[-1]) + 1
        token = int(text[place])
        return Match(token, length, bool((text[ends + 1] == token).all()), place)

    def following(self, match: Match, count: int) -> list[Match]:
        """The next `count` matches, or fewer at the end of the text, if the text goes on as it did there."""
        tokens = self.tokens[match.place : match.place + count].tolist()
        return [
            match._replace(token=token, length=min(match.length + n, LONGEST), place=match.place + n)
            for n, token in enumerate(tokens)
        ]


class Lookup(NamedTuple):
    """Where drafts are looked up. text: up to the token before the first row. first: the first row to weigh. The row of
    a root, which is as sure as a pass without drafts, learns nothing from a match."""

    text: Context
    first: int = 0

    def weigh(self, options: Sequence[Option], path: Sequence[int]) -> Sequence[Option]:
        """The options after a path, by what followed the path before."""
        return weighed(options, self.text.after(path)) if len(path) >= self.first else options


def weighed(options: Sequence[Option], match: Match | None) -> list[Option]:
    """The options after a path by the evidence of its match, likeliest first, with the token of the match."""
    agrees, slope, differs, new = EVIDENCE[match.row] if match is not None else (0.0, 0.0, 0.0, 0.0)
    found, drafted = [], match is None
    for token, log_p, _ in options:
        odds = _log_odds(min(max(log_p, LEAST), MOST))
        same = match is not None and token == match.token
        more = agrees + slope * odds if same else differs
        found.append(Option(token, _log_sigmoid(SHIFT + SLOPE * odds + more)))
        drafted = drafted or same
    if match is not None and not drafted:
        rest = max(LEAST_REST, 1 - math.fsum(math.exp(log_p) for _, log_p, _ in options))
        odds = _log_odds(min(math.log(rest), MOST)) if options else NO_ROW
        found.append(Option(match.token, _log_sigmoid(new + NEW_SLOPE * odds), looked_up=True))
    return sorted(found, key=lambda option: -option.log_p)


def _log_odds(log_p: float) -> float:
    return log_p - math.log(-math.expm1(log_p))


def _log_sigmoid(x: float) -> float:
    return min(0.0, x) - math.log1p(math.exp(-abs(x)))
