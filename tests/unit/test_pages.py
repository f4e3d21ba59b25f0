"""The paged cache: pages are counted, shared, copied before they are written, and given up in order of use."""

from __future__ import annotations

import gc
import weakref

import pytest
import tiny
import torch

from orthrus.cache import BlockTable, KVCache, OutOfPagesError
from orthrus.config import PAGE


def cache_of(pages):
    cache = KVCache(tiny.runner("llama").config, pages, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        cache.keys.copy_(torch.randn(cache.keys.shape))
        cache.values.copy_(torch.randn(cache.values.shape))
    return cache


def filled(cache, length):
    table = BlockTable(cache)
    table.reserve(length)
    table.commit(length)
    return table


def same(one, other):
    return all(map(torch.equal, tiny.cached(one), tiny.cached(other)))


def test_new_pages_are_zero_and_growing_moves_nothing():
    cache = KVCache(tiny.runner("llama").config, 4, torch.bfloat16, torch.device("cpu"))
    assert not cache.keys.any() and not cache.values.any()
    assert cache.keys.nbytes + cache.values.nbytes == 4 * cache.page_bytes
    table = filled(cache, 10)
    table.reserve(3 * PAGE)
    assert table.pages == [0, 1, 2] and table.slots(PAGE - 1, PAGE + 1) == [PAGE - 1, PAGE]


def test_a_shared_page_is_copied_before_it_is_written():
    cache = cache_of(6)
    one, other = filled(cache, PAGE + 9), BlockTable(cache)
    other.adopt(one.pages, one.length)
    assert cache.pages_in_use == 2 and same(one, other)
    assert other.pages_missing(PAGE + 20) == 1
    other.reserve(PAGE + 20)
    assert other.pages[0] == one.pages[0] and other.pages[1] != one.pages[1] and same(one, other)
    one.free()
    other.free()
    assert cache.pages_in_use == 0 and cache.available_pages == 6


def test_rollback_into_a_shared_page_copies_it_too():
    cache = cache_of(6)
    one, other = filled(cache, 2 * PAGE), BlockTable(cache)
    other.adopt(one.pages, 2 * PAGE)
    other.commit(PAGE - 5)
    other.reserve(PAGE + 5)
    assert set(one.pages).isdisjoint(other.pages)
    assert all(torch.equal(a[:, :, : PAGE - 5], b) for a, b in zip(tiny.cached(one), tiny.cached(other), strict=True))


def test_running_out_of_pages_is_an_error_and_frees_nothing_of_others():
    cache = cache_of(3)
    one, other = filled(cache, 2 * PAGE), BlockTable(cache)
    with pytest.raises(OutOfPagesError):
        other.reserve(2 * PAGE)
    other.free()
    assert cache.pages_in_use == 2 and len(one.pages) == 2


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [0, 2, 5], [3], [1, 4, 5, 9]])
def test_a_committed_path_holds_its_rows_and_no_others(rows):
    cache = cache_of(3)
    table = filled(cache, PAGE - 3)  # the rows lie on both sides of a page border
    table.reserve(PAGE + 20)
    before, written = tiny.cached(table), [PAGE - 3 + row for row in rows]
    everything = [stored[:, :, table.slots(0, PAGE + 20)].clone() for stored in (cache.keys, cache.values)]
    table.commit_path(rows)
    assert table.length == PAGE - 3 + len(rows)
    for now, old, whole in zip(tiny.cached(table), before, everything, strict=True):
        assert torch.equal(now[:, :, : PAGE - 3], old)
        assert torch.equal(now[:, :, PAGE - 3 :], whole[:, :, written])


def test_the_prefix_index_finds_the_longest_prefix_and_drops_the_least_recently_used():
    cache, tokens = cache_of(8), list(range(3 * PAGE))
    one = filled(cache, 2 * PAGE + 50)
    pages = list(one.pages)
    cache.keep_prefix(tokens[: one.length], one.pages)
    one.free()
    assert cache.pages_in_use == 0 and cache.available_pages == 8
    assert cache.known_prefix(tokens) == (pages, 2 * PAGE + 50)
    assert cache.known_prefix([*tokens[: PAGE + 10], -1, *tokens]) == (pages[:2], PAGE + 10)
    assert cache.known_prefix([-1, *tokens]) == ([], 0)
    other = filled(cache, PAGE)
    cache.keep_prefix([-5] * PAGE, other.pages)
    other.free()
    assert cache.known_prefix(tokens)[1] == 2 * PAGE + 50  # used last now
    taken = [cache.take() for _ in range(5)]  # four are free, and one is the other sequence's
    assert cache.known_prefix([-5] * PAGE) == ([], 0)
    assert cache.known_prefix(tokens)[1] == 2 * PAGE + 50
    taken.append(cache.take())
    assert cache.known_prefix(tokens) == (pages[:2], 2 * PAGE), "leaves go before the pages they follow"
    with pytest.raises(OutOfPagesError):
        taken += [cache.take() for _ in range(3)]


def test_a_longer_page_replaces_the_shorter_one_that_it_continues():
    cache, tokens = cache_of(4), list(range(PAGE))
    short, long = filled(cache, 20), filled(cache, 90)
    cache.keep_prefix(tokens[:20], short.pages)
    cache.keep_prefix(tokens[:90], long.pages)
    pages = list(long.pages)
    short.free()
    long.free()
    assert cache.available_pages == 4 and cache.known_prefix(tokens) == (pages, 90)
    again = filled(cache, 40)
    cache.keep_prefix(tokens[:40], again.pages)
    again.free()
    assert cache.known_prefix(tokens) == (pages, 90)


def test_a_cache_is_freed_as_soon_as_nobody_uses_it():
    cache = cache_of(4)
    table = filled(cache, PAGE + 5)
    cache.keep_prefix(list(range(PAGE + 5)), table.pages)
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache, table
        assert gone() is None
    finally:
        gc.enable()


def test_prefixes_with_different_salts_share_no_page_and_leave_nothing_behind():
    cache = cache_of(4)
    tokens, tables = list(range(PAGE + 5)), {}
    for salt in ("one", "two"):
        assert cache.known_prefix(tokens, salt) == ([], 0)
        table = tables[salt] = filled(cache, len(tokens))
        cache.keep_prefix(tokens[:PAGE], table.pages[:1], salt)
        cache.keep_prefix(tokens, table.pages, salt)
    for salt, table in tables.items():
        assert cache.known_prefix(tokens, salt) == (table.pages, len(tokens))
        table.free()
    assert cache.known_prefix(tokens) == ([], 0)
    assert cache.available_pages == 4
    taken = [cache.take() for _ in range(4)]
    assert sorted(taken) == list(range(4)) and not cache._prefixes._roots


def test_the_only_page_of_a_salt_is_replaced_by_a_fuller_one():
    cache = cache_of(2)
    short, long = filled(cache, 20), filled(cache, 40)
    cache.keep_prefix(list(range(20)), short.pages, "salt")
    cache.keep_prefix(list(range(40)), long.pages, "salt")
    assert cache.known_prefix(list(range(40)), "salt") == (long.pages, 40)
