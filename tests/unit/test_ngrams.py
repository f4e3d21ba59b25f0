"""What followed the newest tokens of a text before: matches, and their weight as evidence."""

from __future__ import annotations

import math
import random

import pytest

from orthrus.drafters.growth import Option
from orthrus.ngrams import EVIDENCE, LONGEST, Context, Match, weighed


def longest_match(text, path):
    """By comparing every place of the text with every length, the longest first."""
    whole = [*text, *path]
    for length in range(min(LONGEST, len(whole)), 0, -1):
        ends = [end for end in range(length, len(text)) if text[end - length : end] == whole[len(whole) - length :]]
        if ends:
            return Match(text[ends[-1]], length, len({text[end] for end in ends}) == 1, ends[-1])
    return None


@pytest.mark.parametrize("seed", range(30))
def test_a_match_is_the_longest_and_newest(seed):
    rng = random.Random(seed)
    text = [rng.randrange(2 + seed % 5) for _ in range(rng.randrange(60))]
    for length in (0, 1, 3, 9):
        path = [rng.randrange(2 + seed % 5) for _ in range(length)]
        assert Context(text).after(path) == longest_match(text, path)


def test_a_context_grows_and_has_parts():
    context = Context([5, 6, 7])
    for start in range(0, 600, 60):
        context.extend(range(start, start + 60))
    assert (len(context), context.tokens[:4].tolist(), int(context.tokens[-1])) == (603, [5, 6, 7, 0], 599)
    part = context.first(4)
    assert part.tokens.tolist() == [5, 6, 7, 0]
    assert part.after([5]) == Match(6, 1, True, 1)
    assert part.after([7]) == Match(0, 1, True, 3)
    assert context.after([599]) is None
    assert Context().after() is None
    assert Context([3]).after([3]) is None


def test_a_match_goes_on_to_the_end_of_the_text():
    context = Context([1, 2, 3, 4, 5, 1, 2, 3])
    match = context.after()
    assert context.following(match, 3) == [Match(4, 3, True, 3), Match(5, 4, True, 4), Match(1, 5, True, 5)]
    assert [own.token for own in context.following(match, 8)] == [4, 5, 1, 2, 3]


def test_matches_that_go_on_are_no_longer_than_the_longest():
    context = Context([*range(30), *range(6)])
    matches = context.following(context.after(), 5)
    assert [own.token for own in matches] == [6, 7, 8, 9, 10]
    assert [own.length for own in matches] == [6, 7, LONGEST, LONGEST, LONGEST]


def test_every_length_has_a_class():
    rows = [Match(0, length, alike).row for length in range(1, LONGEST + 1) for alike in (False, True)]
    assert sorted(set(rows)) == list(range(len(EVIDENCE)))
    assert rows == sorted(rows, key=lambda row: row // 2)


def test_a_long_match_decides_where_the_drafts_are_unsure():
    options = [Option(4, math.log(0.4)), Option(5, math.log(0.3)), Option(6, math.log(0.1))]
    assert [option.token for option in weighed(options, None)] == [4, 5, 6]
    assert weighed(options, Match(6, 8, alike=True))[0].token == 6
    new = weighed(options, Match(9, 8, alike=True))
    assert [(option.token, option.looked_up) for option in new[:2]] == [(9, True), (4, False)]
    assert [option.token for option in weighed(options, Match(9, 1, alike=False))] == [4, 5, 6, 9]
    assert weighed((), None) == []
    ((token, log_p, looked_up),) = weighed((), Match(9, 8, alike=True))
    assert (token, looked_up) == (9, True)
    assert 0.5 < math.exp(log_p) < 1


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -300.0])
@pytest.mark.parametrize("row", range(len(EVIDENCE)))
def test_certain_and_impossible_drafts_have_a_probability(log_p, row):
    match = Match(4, (1, 2, 3, 5, 8)[row // 2], bool(row % 2))
    for token in (4, 5):
        (found, *_) = [option for option in weighed([Option(token, log_p)], match) if option.token == token]
        assert -100 < found.log_p < 0
